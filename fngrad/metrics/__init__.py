r"""Metrics as accumulators: what is measured on parts is exact for the whole.

An *accumulator* is a NamedTuple of arrays, and so a pytree, with two methods:
``merge(other)`` gives the accumulator of both parts together, ``value()`` the metric.
Merging is associative, so a mean over ragged batches is the mean over the examples,
never a mean of means. Any NamedTuple with these two methods can be given to
`fngrad.evaluate`.

The functions measure a batch and return an accumulator. They share ``where``, a mask
of the examples that count, and ``weights``, a number per example, both of the shape
of the labels (of the first axis of the targets for regression). An example that
``where`` leaves out, or whose weight is 0, may hold NaN. Predictions and targets of
`mean_squared_error` and `mean_absolute_error` may be complex; elsewhere, and as
weights, complex numbers are refused.

Sums are pairs of floats, of at least float32: a sum, and in ``rest`` what rounding
dropped from it. So neither the order nor the number of merges costs digits: the mean
of 20 million examples, read one by one, is that of the whole. Integers are counted
beyond 2**24. Your own accumulators are as exact as their ``merge``. `Derived` is a
function of another accumulator, such as the root of an error.

`spearman`, and `roc_auc` and `average_precision` without ``num_bins``, keep every
example that they measure (`Rows`): their accumulators grow with the data.

An integer label outside [0, classes) makes the whole metric NaN, of a confusion
matrix every count: the labels are data of a compiled program, so nothing can raise.
In `fngrad.evaluate` it shows as that metric being NaN over the whole data set, however
few labels are wrong, while metrics that read no labels stay finite.
"""

from typing import TYPE_CHECKING

from fngrad.metrics.accumulators import (
    R2,
    Accumulator,
    BinnedScores,
    CalibrationError,
    ConfusionMatrix,
    Correlation,
    Mean,
    Rows,
)
from fngrad.metrics.classification import (
    accuracy,
    calibration_error,
    confusion_matrix,
    log_loss,
    maximum_calibration_error,
    top_k_accuracy,
)
from fngrad.metrics.confusion import (
    cohen_kappa,
    dice,
    f_beta,
    iou,
    matthews,
    precision,
    recall,
)
from fngrad.metrics.correlation import pearson, spearman
from fngrad.metrics.derived import Derived
from fngrad.metrics.images import psnr, ssim
from fngrad.metrics.language import bits_per_character, perplexity
from fngrad.metrics.ranking import ndcg
from fngrad.metrics.regression import (
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    r2,
)
from fngrad.metrics.scores import average_precision, roc_auc

__all__ = [
    "R2",
    "Accumulator",
    "BinnedScores",
    "CalibrationError",
    "ConfusionMatrix",
    "Correlation",
    "Derived",
    "Mean",
    "Rows",
    "accuracy",
    "average_precision",
    "bits_per_character",
    "calibration_error",
    "cohen_kappa",
    "confusion_matrix",
    "dice",
    "f_beta",
    "iou",
    "log_loss",
    "matthews",
    "maximum_calibration_error",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "ndcg",
    "pearson",
    "perplexity",
    "precision",
    "psnr",
    "r2",
    "recall",
    "roc_auc",
    "spearman",
    "ssim",
    "top_k_accuracy",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    import fngrad.programs.keywords_elsewhere as _keywords
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
    _keywords.explain_package(globals(), _keywords.OF_METRICS)
