"""Runs of MLflow."""

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fngrad.logging.histograms import Histogram
from fngrad.logging.media import MediaLogger
from fngrad.logging.tracked_runs import Status, TrackedRun
from fngrad.programs.caller_warnings import warn
from fngrad.programs.optional_imports import import_extra

_MOST_METRICS, _MOST_PARAMS = 1000, 100  # per request
_LONGEST = 500  # characters of a parameter that every server takes


def mlflow(
    experiment: str = "Default",
    *,
    run_name: str | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> MediaLogger:
    """Log to a run of MLflow.

    The run begins at the first record, the config included, and ends with the run of
    `fngrad.fit`: as failed if an exception ended that, and as killed after one of its
    ``exit_signals``. A second run of `fit` with the same logger continues it. MLflow
    keeps what was logged: after a rollback it holds the abandoned steps too. It has no
    histograms; they are JSON artifacts, one per name and step, with counts, edges, mean
    and root mean square. The config becomes parameters, whose nested names are joined
    by dots and whose values are cut after 500 characters, and the artifact
    ``config.json``, which is whole. A parameter keeps its first value; one that has
    changed is named in a warning.

    MLflow's file store keeps a metric as a file. Where a name is the beginning of
    another, as ``grad_norm`` is of ``grad_norm/body``, that one is ``grad_norm.body``.

    Each record is a request, for which the run waits. If the server cannot be reached,
    MLflow tries again for minutes before it raises and the logger is left out. The
    environment variables ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` (7),
    ``MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR`` (2) and ``MLFLOW_HTTP_REQUEST_TIMEOUT``
    (120 seconds) shorten that.

    Args:
        experiment: its name; it is made if needed.
        run_name: what the run is called; MLflow chooses a name by default.
        run_id: the run to continue, such as that of a killed process.
        tracking_uri: the server or store; by default that of ``mlflow`` itself, as
            ``MLFLOW_TRACKING_URI`` says. ``mlflow-skinny``, which the extra installs,
            reaches servers; a database of one's own needs ``mlflow``.
        tags: of a new run.

    Returns:
        The logger. Characters of names that MLflow does not allow are underscores.

    Raises:
        ImportError: if mlflow is missing (``pip install "fngrad[mlflow]"``), or pillow
            for images.
        TypeError: at a call, if a value is not a number; its name is given.
        ValueError: at a call, if two names of a record differ only in characters that
            MLflow does not allow, or an image is not one, see `fngrad.logging.media`.
        Exception: at a call, whatever MLflow raises.

    References:
        https://mlflow.org/docs/latest/ml/tracking
    """
    library = import_extra("mlflow", "mlflow", "mlflow-skinny")
    client = library.MlflowClient(tracking_uri)
    new = functools.partial(_new_run, client, experiment, run_name, tags)
    return _Mlflow(library, client, new, run_id).logger(f"mlflow({experiment!r})")


class _Mlflow(TrackedRun):
    def __init__(self, library: Any, client: Any, new: Callable[[], str], known: Any):
        super().__init__()
        self._library, self._client, self._new = library, client, new
        self._run = known  # the id, if the run exists
        self._metrics, self._param_keys = _Keys(), _Keys()
        self._params: dict[str, str] = {}  # that the run has

    def _begin(self, last: str | None) -> str:
        if last is None:
            return self._new()
        self._client.update_run(last, status="RUNNING")
        known = self._client.get_run(last).data
        self._params = dict(known.params)
        self._metrics, self._param_keys = _Keys(known.metrics), _Keys(known.params)
        return last

    def _log(self, run: str, step: int, values: Mapping[str, Any]) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [
            self._library.entities.Metric(name, float(value), now, step)
            for name, value in self._metrics.of(values).items()
        ]
        for some in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(run, metrics=some)

    def _log_images(self, run: str, step: int, images: dict[str, np.ndarray]) -> None:
        for name, pixels in _named(images).items():
            self._client.log_image(run, pixels, key=name, step=step)

    def _log_histograms(
        self, run: str, step: int, histograms: dict[str, Histogram]
    ) -> None:
        for name, x in _named(histograms).items():
            lists = {"counts": x.counts.tolist(), "edges": x.edges.tolist()}
            content = {"step": step, **x._asdict(), **lists}
            path = f"histograms/{name}/step_{step:09d}.json"
            self._client.log_dict(run, content, path)

    def _configure(self, run: str, config: Any) -> None:
        self._client.log_dict(run, config, "config.json")
        flat = self._param_keys.of(_flat(config))
        wanted = {name: str(value)[:_LONGEST] for name, value in flat.items()}
        old = self._params
        new = {name: text for name, text in wanted.items() if name not in old}
        params = [self._library.entities.Param(*pair) for pair in new.items()]
        for some in _parts(params, _MOST_PARAMS):
            self._client.log_batch(run, params=some)
        self._params = {**old, **new}
        if changed := [name for name in wanted if self._params[name] != wanted[name]]:
            warn(
                f"MLflow keeps the first values of the parameters {changed}, which have"
                " others now: config.json of the run holds these"
            )

    def _finish(self, run: str, status: Status) -> None:
        self._client.set_terminated(run, status.upper())


class _Keys:
    """Gives each name a key that is not also the folder of another.

    MLflow's file store keeps a metric or a parameter as a file, so ``a`` and ``a/b``
    get the keys ``a`` and ``a.b``; after ``a/b``, ``a`` gets ``a.value``.

    Args:
        known: keys that are taken.

    Example:
        >>> from fngrad.logging.mlflow_runs import _Keys
        >>> _Keys().of({"grad_norm/body": 1.0, "grad_norm": 2.0, "val/loss": 3.0})
        {'grad_norm.body': 1.0, 'grad_norm': 2.0, 'val/loss': 3.0}
    """

    def __init__(self, known: Iterable[str] = ()):
        self._keys: dict[str, str] = {}
        self._files: set[str] = set()
        self._folders: set[str] = set()
        for key in known:
            self._take(key)

    def of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values by key.

        Raises:
            ValueError: if two names have the same key.
        """
        named = _named(values)
        for name in sorted(named):  # a folder's name before those in it
            if name not in self._keys:
                self._keys[name] = self._take(self._free(name))
        found = {self._keys[name]: value for name, value in named.items()}
        _check_all_differ(found, values)
        return found

    def _free(self, name: str) -> str:
        first, *others = name.split("/")
        key = first
        for word in others:
            key += ("." if key in self._files else "/") + word
        return f"{key}.value" if key in self._folders else key

    def _take(self, key: str) -> str:
        self._files.add(key)
        words = key.split("/")
        self._folders |= {"/".join(words[:n]) for n in range(1, len(words))}
        return key


def _new_run(
    client: Any, experiment: str, name: str | None, tags: Mapping[str, str] | None
) -> str:
    known = client.get_experiment_by_name(experiment)
    number = known.experiment_id if known else client.create_experiment(experiment)
    return client.create_run(number, run_name=name, tags=dict(tags or {})).info.run_id


def _allowed(name: str) -> str:
    """Return a name with underscores for what MLflow takes for no name or for a path.

    Example:
        >>> from fngrad.logging.mlflow_runs import _allowed
        >>> _allowed("val/loss"), _allowed("a*b"), _allowed("../a")
        ('val/loss', 'a_b', '_/a')
    """
    words = re.sub(r"[^\w\-. /]", "_", name).split("/")
    return "/".join("_" if word in ("", ".", "..") else word for word in words)


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    allowed = {_allowed(name): value for name, value in values.items()}
    _check_all_differ(allowed, values)
    return allowed


def _check_all_differ(keys: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    if len(keys) < len(names):
        raise ValueError(
            "need names that differ in letters, digits or one of '_-. /', got "
            f"{sorted(names)}"
        )


def _flat(config: Any, before: str = "") -> dict[str, Any]:
    """Return the values of nested dicts by their keys, joined by dots."""
    if not isinstance(config, dict) or not config:
        return {before: config} if before else {}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{before}.{key}" if before else key)
    return flat


def _parts(entries: list[Any], most: int) -> Iterator[list[Any]]:
    for start in range(0, len(entries), most):
        yield entries[start : start + most]
