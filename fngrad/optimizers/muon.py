"""Muon: momentum whose singular values are made equal."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.optimizers.adam import adamw
from fngrad.sharding.matrices import Place, map_matrices
from fngrad.sharding.meshes import auto_mesh_of
from fngrad.transforms.core import Transform, TransformLike, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.matrix_leaves import check_axes, mask_of_group, with_rest
from fngrad.transforms.moment_arithmetic import check_decay, look_ahead
from fngrad.transforms.polar_factors import (
    QUINTIC,
    Coefficients,
    check_coefficients,
    orthogonalize,
)
from fngrad.types import Hyper, Params, Scalar, Selector, Updates


class ScaleByMuonState(NamedTuple):
    """State of `scale_by_muon`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    signed = ("mu",)  # type: tuple[str, ...]


def scale_by_muon(
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    beta: Hyper = 0.95,
    eps: Hyper = 1e-8,
    *,
    nesterov: bool = True,
    debias: bool = True,
    adaptive: bool = False,
    consistent_rms: Hyper | None = None,
    ns_dtype: DTypeLike | None = None,
) -> Transform:
    r"""Orthogonalize the momentum of every leaf: Muon's direction.

    Returns $s\,o_t$ of `muon`; see there for the equations and the references. Leaves
    have two axes, (in, out), or more, (..., in, out), of which all but the last are
    flattened for the iterations; stacked layers need `fngrad.layerwise`.

    Args:
        ns_coeffs: the coefficients, see `orthogonalize`.
        ns_steps: how many Newton-Schulz steps.
        beta: $\beta$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units, see `orthogonalize`.
        nesterov: whether to look ahead.
        debias: whether $\mu_t$ and $g_t$ are corrected for bias, as in optax. If not,
            $\hat\mu_t = \mu_t$, or with the look-ahead $\beta \mu_t + (1 - \beta) g_t$,
            as in the original, PyTorch and Keras.
        adaptive: whether $s\,o_t$ is multiplied by $\langle \hat\mu_t, o_t \rangle$,
            $o_t$ the orthogonalized momentum: steepest descent in the spectral norm.
        consistent_rms: $\rho$ >= 0; ``None`` takes the first form of $s$, as the
            original does. Moonlight and Keras take 0.2.
        ns_dtype: dtype of the iterations, see `orthogonalize`.

    Raises:
        TypeError: at ``init``, if a leaf is complex.
        ValueError: if a number is out of range, or the coefficients do not fit; at
            ``init``, if a leaf has fewer than two axes.
    """
    check_decay("beta", beta, corrected=True)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("consistent_rms", consistent_rms, low=0.0, optional=True)
    check_coefficients(ns_coeffs, ns_steps)

    def init(params: Params) -> ScaleByMuonState:
        tree.check_real("scale_by_muon", params)
        check_axes("scale_by_muon", params)
        return ScaleByMuonState(numerics.first_step(), tree.wide_zeros_like(params))

    def update(
        updates: Updates, state: ScaleByMuonState, params: Params
    ) -> tuple[Updates, ScaleByMuonState]:
        decay, floor = numerics.hypers(state.step, beta, eps)
        rms = None
        if consistent_rms is not None:
            rms = numerics.hyper(consistent_rms, state.step)
        mu = tree.average(decay, state.mu, updates)

        def direct(place: Place, m: jax.Array, g: jax.Array) -> jax.Array:
            unit = _unit(m, g)
            m, g = m / unit, g / unit
            m = look_ahead(m, g, decay, state.step, nesterov=nesterov, debias=debias)
            flat = place.gather(m).reshape(math.prod(m.shape[:-1]), m.shape[-1])
            least = floor.astype(unit.dtype) / unit
            o = orthogonalize(flat, ns_coeffs, ns_steps, least, ns_dtype=ns_dtype)
            o = place.gather(o)  # or XLA splits the iterations as what follows
            if adaptive:
                o = numerics.scaled(tree.vdot(flat, o), o)
                o = numerics.bounded(o * unit, o)
            return numerics.scaled(_factor(flat.shape, rms), o).reshape(m.shape)

        mesh = auto_mesh_of(updates, state, params)
        new_updates = map_matrices(direct, mu, updates, mesh=mesh)
        return new_updates, ScaleByMuonState(numerics.next_step(state.step), mu)

    return chain(Transform(init, update, name="scale_by_muon"))


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
    ns_dtype: DTypeLike | None = None,
    matrices: Selector | None = None,
    adam_learning_rate: Hyper | None = None,
    adam_b1: Hyper = 0.9,
    adam_b2: Hyper = 0.999,
    adam_eps_root: Hyper = 0.0,
    adam_weight_decay: Hyper = 0.0,
    cautious_weight_decay: bool = False,
) -> Transform:
    r"""Muon: orthogonalized momentum for matrices, AdamW for the rest.

    $$\mu_t = \beta\,\mu_{t-1} + (1 - \beta)\,g_t, \qquad
      \hat\mu_t = \frac{\mu_t}{1 - \beta^t}, \qquad
      o_t = \mathrm{orthogonalize}(\hat\mu_t) \approx U V^\top
      \text{ of } \hat\mu_t = U \Sigma V^\top$$
    $$w_{t+1} = w_t - \alpha_t\,(s\,o_t + \lambda\,w_t)$$

    With ``nesterov`` $\hat\mu_t$ looks ahead, as in `adam`. The factor is
    $s = \sqrt{\max(1, n_{out} / n_{in})}$, or $s = \rho \sqrt{\max(n_{in}, n_{out})}$,
    which gives the update of a leaf of full rank a root mean square near $\rho$, and so
    Adam's scale. All other leaves go to `adamw`, which shares ``eps`` and ``nesterov``.
    The first and the last layer train better with AdamW too; ``matrices`` selects the
    others.

    The defaults are optax's. Other conventions: PyTorch is
    ``debias=False, weight_decay=0.1, eps=1e-7, ns_dtype=jnp.bfloat16`` without AdamW
    for the rest, Keras
    ``debias=False, consistent_rms=0.2, weight_decay=0.004, eps=1e-7``.

    On a mesh (`fngrad.sharding`) every device orthogonalizes every matrix, which is
    gathered once for all iterations; where `stack_leaves` stacks equal matrices, each
    device orthogonalizes its share if the size of the mesh axis "data" divides their
    number.

    Layers that are stacked in one array, as those of `fngrad.layers.repeat` and of
    models with ``scan=True``, need `fngrad.layerwise`: without it a stack of biases
    counts as a matrix, and a stack of matrices is left to AdamW. Where leaves look like
    that, ``init`` warns.

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
        weight_decay: $\lambda$ of the orthogonalized leaves.
        mask: which of them decay, see `fngrad.tree.select`; ``None`` means all.
        nesterov: whether to look ahead.
        debias: whether the average is debiased, see `scale_by_muon`.
        adaptive: whether to step in proportion to the momentum, see `scale_by_muon`.
        consistent_rms: the other form of $s$, see `scale_by_muon`; 0.2 lets Muon take
            AdamW's learning rate and decay.
        ns_dtype: dtype of the iterations; ``None`` means float32 (float64 for float64
            parameters).
        matrices: which leaves are orthogonalized, see `fngrad.tree.select`; ``None``
            means those of two axes. A kernel of more axes counts as a matrix whose
            columns are its last axis.
        adam_learning_rate: AdamW's learning rate; ``None`` takes ``learning_rate``.
        adam_b1: AdamW's $\beta_1$ in [0, 1).
        adam_b2: AdamW's $\beta_2$ in [0, 1).
        adam_eps_root: AdamW's $\bar\epsilon$ >= 0, in squared gradient units.
        adam_weight_decay: AdamW's $\lambda$.
        cautious_weight_decay: whether orthogonalized leaves decay only where that
            agrees with the update, see `fngrad.add_cautious_weight_decay`.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            leaf to orthogonalize is complex.
        ValueError: if a number is out of range, or the coefficients do not fit; at
            ``init``, if a leaf to orthogonalize has fewer than two axes, or a glob
            selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.muon(0.02, matrices="layers/*/weight")
        >>> like_adam = fg.muon(1e-3, consistent_rms=0.2, weight_decay=0.1)
        >>> of_scanned_blocks = fg.layerwise(fg.muon(0.02), "blocks/**")

    References:
        Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024,
        https://kellerjordan.github.io/posts/muon/. The second form of $s$: Liu et al.,
        Muon is scalable for LLM training, 2025, equation 4,
        https://arxiv.org/abs/2502.16982. ``adaptive``: Bernstein and Newhouse, Old
        optimizer, new norm: an anthology, 2024, proposition 5,
        https://arxiv.org/abs/2409.20325. Differs from Jordan in: a matrix is (in, out),
        where PyTorch has (out, in); the average is debiased, the rest gets Nesterov's
        look-ahead too, and the iterations run in float32 by default, not in bfloat16.
    """
    check_decay("adam_b1", adam_b1, corrected=True)
    check_decay("adam_b2", adam_b2, corrected=True)
    numerics.check_number(
        "adam_learning_rate", adam_learning_rate, low=0.0, optional=True
    )
    numerics.check_number("adam_eps_root", adam_eps_root, low=0.0)
    numerics.check_number("adam_weight_decay", adam_weight_decay)
    rule = scale_by_muon(
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        nesterov=nesterov,
        debias=debias,
        adaptive=adaptive,
        consistent_rms=consistent_rms,
        ns_dtype=ns_dtype,
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
    return of_matrices(
        "muon",
        rule,
        learning_rate,
        weight_decay,
        mask,
        matrices,
        rest,
        cautious=cautious_weight_decay,
    )


def of_matrices(
    name: str,
    rule: Transform,
    learning_rate: Hyper,
    weight_decay: Hyper,
    mask: Selector | None,
    matrices: Selector | None,
    rest: TransformLike | None,
    *,
    cautious: bool = False,
) -> Transform:
    """Return a rule for matrices, with its decay, and one for the rest, in one.

    Args:
        name: of the optimizer.
        rule: gives the direction of matrices.
        learning_rate: of the matrices, and of the rest where it has no rule.
        weight_decay: of the matrices.
        mask: which of them decay; ``None`` means all.
        matrices: which leaves are matrices; ``None`` means those of two axes.
        rest: the rule for the other leaves; ``None`` means AdamW without decay.
        cautious: whether the decay is, see `fngrad.add_cautious_weight_decay`.
    """
    mask = mask_of_group(mask)
    decayed = decaying(rule, learning_rate, weight_decay, mask, cautious=cautious)
    if rest is None:
        rest = adamw(learning_rate, weight_decay=0.0)
    return with_rest(name, decayed, rest, matrices)


def _unit(*arrays: jax.Array) -> jax.Array:
    """Return the power of two that averages are divided by: 1 unless they are huge."""
    largest = functools.reduce(
        jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x in arrays]
    )
    unit = jnp.where(largest > numerics.FAR, 1 / numerics.FITTING_RATE, 1)
    return unit.astype(largest.dtype)


def _factor(shape: tuple[int, ...], rms: jax.Array | None) -> Scalar:
    rows, columns = shape
    if rms is None:
        return max(1.0, columns / max(rows, 1)) ** 0.5
    return rms * max(rows, columns) ** 0.5
