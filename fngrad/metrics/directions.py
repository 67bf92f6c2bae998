"""Whether a metric should fall or rise, by its name where that is known.

The last component of the name decides, exactly: ``val/loss`` falls because ``loss``
does, and ``val/my_loss`` is unknown.
"""

import difflib
from collections.abc import Iterable
from typing import Any, TypeAlias

import fngrad.numerics as numerics
from fngrad.types import Mode

Directed: TypeAlias = tuple[str, Mode]  # a metric's name and which way is better
Metric: TypeAlias = str | Directed

FALLING = (
    *("loss", "error", "perplexity", "nll", "mse", "mae"),
    *("log_loss", "calibration_error", "mean_squared_error", "mean_absolute_error"),
    *("bits_per_character", "maximum_calibration_error", "rmse", "mape"),
    "mean_absolute_percentage_error",
)
RISING = (
    *("accuracy", "top_k", "top_k_accuracy", "f1", "auroc", "r2"),
    *("precision", "recall", "f_beta", "dice", "iou", "matthews", "cohen_kappa"),
    *("roc_auc", "average_precision", "pearson", "spearman", "ndcg", "psnr", "ssim"),
)


def unknown_metric(name: str, names: Iterable[str], use: str = "") -> ValueError:
    """Return the error of a metric that is not among some names.

    Args:
        name: of the metric.
        names: that there are.
        use: what it is needed for, such as ``" for keep_best"``.

    Example:
        >>> from fngrad.metrics.directions import unknown_metric
        >>> print(unknown_metric("accuracy", ["loss", "val/accuracy"]))
        need a metric among ['loss', 'val/accuracy'], got 'accuracy'; did you mean \
'val/accuracy'?
    """
    known = sorted(names)
    meant = [each for each in known if each.endswith(f"/{name}")]
    meant = meant or difflib.get_close_matches(name, known, 1)
    remedy = f"; did you mean {meant[0]!r}?" if meant else ""
    return ValueError(f"need a metric among {known}{use}, got {name!r}{remedy}")


def known_direction(name: str) -> Mode | None:
    """Return which way a metric gets better if its name is known, else None."""
    last = name.rpartition("/")[2]
    return "min" if last in FALLING else "max" if last in RISING else None


def direction(name: str, mode: Any = None, remedy: str = "") -> Mode:
    """Return which way a metric gets better.

    Args:
        name: of the metric; the part after the last ``/`` decides.
        mode: ``"min"`` or ``"max"``; ``None`` infers it from the name.
        remedy: how the caller can give the direction, for the message; by default
            ``mode``.

    Raises:
        ValueError: if the mode is neither, or is ``None`` and the name is unknown.

    Example:
        >>> from fngrad.metrics.directions import direction
        >>> direction("val/loss"), direction("val/accuracy"), direction("x", "max")
        ('min', 'max', 'max')
    """
    numerics.check_mode(mode)
    if known := mode or known_direction(name):
        return known
    raise ValueError(
        f"need a direction for the metric {name!r}, whose name is unknown: give "
        f"{remedy or numerics.MODES}. Known are {', '.join(FALLING)}, which fall, and "
        f"{', '.join(RISING)}, which rise"
    )


def directed(metric: Any, argument: str = "metric") -> Directed:
    """Return a metric's name and which way is better.

    Args:
        metric: a name, or a pair of a name and ``"min"`` or ``"max"``.
        argument: what it was given as, for messages.

    Raises:
        ValueError: if the metric has another form or mode, or is an unknown name alone.

    Example:
        >>> from fngrad.metrics.directions import directed
        >>> directed("val/accuracy"), directed(("val/score", "max"))
        (('val/accuracy', 'max'), ('val/score', 'max'))
    """
    if isinstance(metric, str):
        remedy = f'{argument}=({metric!r}, "min" or "max")'
        return metric, direction(metric, remedy=remedy)
    is_pair = isinstance(metric, tuple | list) and len(metric) == 2
    if not is_pair or not isinstance(metric[0], str) or metric[1] not in ("min", "max"):
        raise ValueError(
            f'need {argument}=(name, "min" or "max"), or a known name alone, '
            f"got {argument}={metric!r}"
        )
    return metric[0], metric[1]
