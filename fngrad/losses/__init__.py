r"""Losses: one number per example, from predictions and targets.

All losses share one set of keywords.

``axis``: the axis or axes over which *one example extends*; the loss sums its terms
over them, so its shape is that of the predictions without these axes. For losses of
single entries (regression, binary) the default ``None`` makes every entry an example
of its own; for losses of distributions, classes or vectors the default is -1.

``where``: a mask. With the rank of the predictions it holds per entry, with the rank
of the loss per example. What it leaves out contributes exactly zero to the value and
has exactly zero gradient, even when it is NaN or infinite. Classes that are left out
take no part in the softmax.

``weights``: a number per example (or one for all) that multiplies the loss. A weight
of 0 leaves the example out exactly like ``where``, NaN in it included; so the
derivative with respect to such a weight is 0.

``reduction``: "none" for the losses per example; "sum"; "mean" for
$\sum_i w_i \ell_i / \sum_i w_i$ over the examples that ``where`` keeps (those with an
entry left), and 0 when it keeps none.

``label_smoothing``: a number $\alpha$ in [0, 1), or a tracer; the labels become
$(1 - \alpha)\,y + \alpha / K$.

Inputs may have any float dtype: the arithmetic and the result are in at least
float32. Values and gradients keep their digits where the plain formula would
cancel or overflow: a class of probability $1 - 10^{-20}$ has the loss $10^{-20}$.
Complex predictions are accepted by the squared and the absolute error only; complex
weights by none.

Integer labels outside [0, classes) raise when their values are known; in a traced
function (under ``jit``) the loss of such an example, and its gradient, are NaN, unless
``where`` leaves it out. The same holds for a label whose class ``where`` leaves out.
Logits of ``-inf`` mean impossible classes: where their label is zero they contribute
nothing. A logit of ``+inf`` gives NaN in a softmax.
"""

from typing import TYPE_CHECKING

from fngrad.losses.classification import (
    focal,
    hinge,
    multiclass_hinge,
    sigmoid_binary_cross_entropy,
    smooth_labels,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from fngrad.losses.distances import (
    cosine_distance,
    kl_divergence,
    kl_divergence_with_log_targets,
)
from fngrad.losses.embeddings import info_nce, triplet
from fngrad.losses.likelihoods import gaussian_nll
from fngrad.losses.overlap import dice, focal_tversky
from fngrad.losses.polynomial import poly_cross_entropy
from fngrad.losses.ranking import ranking_softmax
from fngrad.losses.regression import (
    absolute_error,
    huber,
    log_cosh,
    poisson_nll,
    quantile,
    squared_error,
)
from fngrad.losses.robust import pseudo_huber, smooth_l1
from fngrad.losses.sequences import ctc
from fngrad.losses.sparsemax import sparsemax
from fngrad.losses.weighted_sums import WeightedSum, weighted_sum

__all__ = [
    "WeightedSum",
    "absolute_error",
    "cosine_distance",
    "ctc",
    "dice",
    "focal",
    "focal_tversky",
    "gaussian_nll",
    "hinge",
    "huber",
    "info_nce",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "log_cosh",
    "multiclass_hinge",
    "poisson_nll",
    "poly_cross_entropy",
    "pseudo_huber",
    "quantile",
    "ranking_softmax",
    "sigmoid_binary_cross_entropy",
    "smooth_l1",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "sparsemax",
    "squared_error",
    "triplet",
    "weighted_sum",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    import fngrad.programs.keywords_elsewhere as _keywords
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
    _keywords.explain_package(globals(), _keywords.OF_LOSSES)
