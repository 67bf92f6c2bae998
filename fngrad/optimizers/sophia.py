"""Sophia: averaged gradients over an estimate of the Hessian's diagonal, clipped.

The estimate needs the loss, so it comes from outside: `fngrad.steps.sophia` puts it
into the state every few steps, and updates divide by it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.clipping import clip_entries
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import check_decay
from fngrad.types import Hyper, Metrics, Params, Selector, Updates


class ScaleBySophiaState(NamedTuple):
    """State of `scale_by_sophia`."""

    step: jax.Array  # int32, shape ()
    b2: jax.Array  # float, shape (); for the next estimate
    mu: Updates  # average of g
    hessian: Updates  # average of the estimates of the Hessian's diagonal

    signed = ("mu",)  # type: tuple[str, ...]


def scale_by_sophia(
    b1: Hyper = 0.965,
    b2: Hyper = 0.99,
    eps: Hyper = 1e-8,
    gamma: Hyper = 0.01,
    clip_threshold: Hyper = 1.0,
) -> Transform:
    r"""Divide the averaged gradient by the averaged Hessian diagonal, entry by entry.

    Returns $u_t$ of `sophia`; see there for the equations and the reference. $h$ begins
    at zero and changes only when an estimate arrives (see `fngrad.steps.sophia`). Where
    it is not positive, as before the first estimate, the entry moves by $\rho$ along
    the sign of $\mu_t$. It reports ``clipped``, the share of entries at the bound.

    Args:
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1]; a schedule is evaluated at the update before.
        eps: $\epsilon$ > 0, in units of curvature.
        gamma: $\gamma$ > 0; the larger, the fewer entries are clipped.
        clip_threshold: $\rho$ > 0, the largest entry of an update.

    Raises:
        TypeError: at ``init``, if a parameter is complex.
        ValueError: if a number is out of range.
    """
    check_decay("b1", b1, corrected=False)
    check_decay("b2", b2, corrected=False)
    numerics.check_positive("eps", eps)
    numerics.check_positive("gamma", gamma)
    numerics.check_positive("clip_threshold", clip_threshold)

    def init(params: Params) -> ScaleBySophiaState:
        tree.check_real("scale_by_sophia", params)
        step, zeros = numerics.first_step(), tree.wide_zeros_like
        decay = numerics.scalar(numerics.hyper(b2, step))
        return ScaleBySophiaState(step, decay, zeros(params), zeros(params))

    def report(
        updates: Updates, state: ScaleBySophiaState, params: Params
    ) -> tuple[Updates, ScaleBySophiaState, Metrics]:
        beta = numerics.hyper(b1, state.step)
        mean = tree.average(beta, state.mu, updates)
        scale, least = (numerics.hyper(x, state.step) for x in (gamma, eps))

        def divide(m: jax.Array, h: jax.Array) -> jax.Array:
            floor = least.astype(h.dtype)
            return m / jnp.maximum(numerics.scaled(scale, h), floor)

        ratio = jax.tree.map(divide, mean, state.hessian)
        bound = numerics.hyper(clip_threshold, state.step)
        clipped = clip_entries(ratio, bound)
        step = numerics.next_step(state.step)
        decay = numerics.hyper(b2, step)
        new_state = ScaleBySophiaState(step, decay, mean, state.hessian)
        return clipped, new_state, {"clipped": _share_at(bound, ratio)}

    return chain(from_report(init, report, "scale_by_sophia"))


def sophia(
    learning_rate: Hyper,
    b1: Hyper = 0.965,
    b2: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-4,
    mask: Selector | None = None,
    gamma: Hyper = 0.01,
    clip_threshold: Hyper = 1.0,
) -> Transform:
    r"""Sophia: averaged gradients over an estimated Hessian diagonal, clipped.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      h_t = \beta_2\,h_{t-k} + (1 - \beta_2)\,\hat h_t$$
    $$u_t = \mathrm{clip}\left(
      \frac{\mu_t}{\max(\gamma\,h_t, \epsilon)}, \rho\right), \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    The estimates $\hat h$ need the loss: train with
    ``steps.sophia(loss_fn, sophia(...))``. Without them, as in a plain
    `fngrad.make_step`, $h$ stays zero: see `scale_by_sophia`.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ > 0, in units of curvature.
        weight_decay: $\lambda$; the paper has 0.2.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        gamma: $\gamma$ > 0; the paper tunes it so that 10 to 50 % of the entries are
            not clipped.
        clip_threshold: $\rho$ > 0, the largest entry of an update, before $\alpha$.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.sophia(1e-3, weight_decay=0.2, mask="**/weight")

    References:
        Liu et al., Sophia: a scalable stochastic second-order optimizer for language
        model pre-training, 2023, algorithm 3, https://arxiv.org/abs/2305.14342.
        Differs from optax in: no bias correction of $\mu$ and $h$, as in the paper.
    """
    rule = scale_by_sophia(b1, b2, eps, gamma, clip_threshold)
    return decaying(rule, learning_rate, weight_decay, mask)


def add_estimate(state: ScaleBySophiaState, estimate: Updates) -> ScaleBySophiaState:
    """Return the state with one more estimate of the Hessian's diagonal averaged in.

    An estimate with an entry that is not finite is left out: it would stay in the
    average for ever.

    Args:
        state: the state.
        estimate: shaped like the parameters; leaves that the state does not have are
            ignored.

    Raises:
        ValueError: if the state has a leaf that the estimate does not have.
    """
    paths = tree.leaf_paths(estimate)
    for path in tree.leaf_paths(state.hessian):
        if path not in paths:
            raise ValueError(
                f"need scale_by_sophia of the parameters themselves, got {path!r} in "
                f"its state, which is not among {list(paths)}; inside of stack_leaves "
                "it needs parameters from fngrad.stack"
            )
    known = jax.tree.map(lambda e, h: None if h is None else e, estimate, state.hessian)
    averaged = tree.average(state.b2, state.hessian, known)
    finite = [jnp.all(jnp.isfinite(h)) for h in jax.tree.leaves(averaged)]
    is_known = jnp.all(jnp.array(finite))
    return state._replace(hessian=tree.where(is_known, averaged, state.hessian))


def _share_at(bound: jax.Array, ratio: Updates) -> jax.Array:
    """Return the share of entries that are at the bound, or beyond it."""

    def count(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(x) >= bound.astype(x.dtype), dtype=jnp.int32)

    at_bound = sum(map(count, jax.tree.leaves(ratio)), jnp.int32(0))
    return at_bound.astype(float) / tree.size(ratio)
