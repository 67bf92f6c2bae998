"""Muon."""

from typing import Any

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.optimizers.adaptive_moment import adamw
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.masking import masked
from fngrad.transforms.orthogonal import QUINTIC, Coefficients, scale_by_muon
from fngrad.transforms.roots import check_decay
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Path, Selector


def muon(
    learning_rate: Hyper,
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    nesterov: bool = True,
    debias: bool = True,
    adaptive: bool = False,
    consistent_rms: Hyper | None = None,
    ns_dtype: Any = None,
    matrices: Selector | None = None,
    adam_learning_rate: Hyper | None = None,
    adam_b1: Hyper = 0.9,
    adam_b2: Hyper = 0.999,
    adam_eps_root: Hyper = 0.0,
    adam_weight_decay: Hyper = 0.0,
) -> Transform:
    r"""Muon: orthogonalised momentum for matrices, AdamW for the rest.

    $$\mu_t = \beta\,\mu_{t-1} + (1 - \beta)\,g_t, \qquad
      o_t \approx U V^\top \text{ of } \hat\mu_t = U \Sigma V^\top$$
    $$w_{t+1} = w_t - \alpha_t\,(s\,o_t + \lambda\,w_t)$$

    with $\hat\mu_t$ the debiased average, or Nesterov's look-ahead, and the factor $s$
    of `scale_by_muon`. All other leaves go to `adamw`, which shares ``eps`` and
    ``nesterov``. The first and the last layer do better there too; ``matrices`` says
    so.

    The defaults are optax's. Other conventions: PyTorch is ``debias=False,
    weight_decay=0.1, eps=1e-7, ns_dtype=jnp.bfloat16`` and without the rest, Keras
    ``debias=False, consistent_rms=0.2, weight_decay=0.004, eps=1e-7``.

    For another rule for the rest, or other groups, put
    ``chain(scale_by_muon(), add_decayed_weights(l), scale_by_learning_rate(a))`` into
    a `partition`.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        ns_coeffs: coefficients of the Newton-Schulz iteration, see `orthogonalize`.
        ns_steps: how many Newton-Schulz steps.
        beta: $\beta$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$ of the orthogonalised leaves.
        mask: which of them decay, see `fngrad.tree.select`; ``None`` means all.
        nesterov: whether to look ahead.
        debias: whether the average is debiased, see `scale_by_muon`.
        adaptive: whether to step in proportion to the momentum, see `scale_by_muon`.
        consistent_rms: the other form of $s$, see `scale_by_muon`; 0.2 lets Muon take
            AdamW's learning rate and decay.
        ns_dtype: dtype of the iterations; ``None`` means float32 (float64 for
            parameters of it).
        matrices: which leaves are orthogonalised, see `fngrad.tree.select`; ``None``
            means those of two axes. A kernel of more axes counts as a matrix whose
            columns are its last axis.
        adam_learning_rate: AdamW's learning rate; ``None`` takes the other.
        adam_b1: AdamW's $\beta_1$ in [0, 1).
        adam_b2: AdamW's $\beta_2$ in [0, 1).
        adam_eps_root: AdamW's $\bar\epsilon$ >= 0, in squared gradient units.
        adam_weight_decay: AdamW's $\lambda$.

    Raises:
        TypeError: at ``init``, a complex leaf to orthogonalise.
        ValueError: a number out of range, or bad coefficients; at ``init``, a leaf to
            orthogonalise has less than two axes, or a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.muon(0.02, matrices="layers/*/weight")
        >>> like_adam = fg.muon(1e-3, consistent_rms=0.2, weight_decay=0.1)

    References:
        Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024,
        https://kellerjordan.github.io/posts/muon/. Liu et al., Muon is scalable for
        LLM training, 2025, https://arxiv.org/abs/2502.16982. Differs from Jordan in:
        the average is debiased, the rest gets Nesterov's look-ahead too, and the
        iterations run in float32.
    """
    check_decay("adam_b1", adam_b1, corrected=True)
    check_decay("adam_b2", adam_b2, corrected=True)
    numerics.check_number("adam_learning_rate", adam_learning_rate, low=0.0)
    numerics.check_number("adam_eps_root", adam_eps_root, low=0.0)
    numerics.check_number("adam_weight_decay", adam_weight_decay)
    decaying = mask
    if mask is not None and not isinstance(mask, str):
        decaying = tree.selector_predicate(mask)  # a tree of all leaves fits no group
    orthogonalized = chain(
        scale_by_muon(
            ns_coeffs,
            ns_steps,
            beta,
            eps,
            nesterov=nesterov,
            debias=debias,
            adaptive=adaptive,
            consistent_rms=consistent_rms,
            ns_dtype=ns_dtype,
        ),
        add_decayed_weights(weight_decay, decaying),
        scale_by_learning_rate(learning_rate),
    )
    rest = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1,
        adam_b2,
        eps,
        adam_eps_root,
        adam_weight_decay,
        nesterov=nesterov,
    )
    is_orthogonalized = _has_two_axes if matrices is None else matrices
    return masked(orthogonalized, is_orthogonalized, otherwise=rest)


def _has_two_axes(path: Path, leaf: Any) -> bool:
    return leaf.ndim == 2
