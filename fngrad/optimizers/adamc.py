"""AdamC: AdamW whose decay is corrected for the learning rate's schedule."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.optimizers.adam import scale_by_adam
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_weights
from fngrad.transforms.scaling import check_learning_rate, scale_by_learning_rate
from fngrad.types import Hyper, Params, Selector, Updates


class CorrectedDecayState(NamedTuple):
    """State of `add_corrected_weight_decay`."""

    step: jax.Array  # int32, shape ()
    largest: jax.Array  # the largest learning rate so far, shape ()


def add_corrected_weight_decay(
    learning_rate: Hyper,
    weight_decay: Hyper,
    mask: Selector | None = None,
    *,
    max_learning_rate: Hyper | None = None,
) -> Transform:
    r"""Add a multiple of the parameters that falls with the learning rate.

    $$u \leftarrow u + \lambda\,\frac{\alpha_t}{\alpha_{\max}}\,w$$

    Its place is before the learning rate, after any rule: the decay of a step is then
    proportional to $\alpha_t^2$. See `adamc`.

    Args:
        learning_rate: $\alpha$, that of the chain: a number >= 0, a scalar array or
            tracer, or a schedule.
        weight_decay: $\lambda$, a number, a scalar array or tracer, or a schedule.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        max_learning_rate: $\alpha_{\max}$ > 0; ``None`` takes the largest rate so far.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.
    """
    check_learning_rate(learning_rate)
    numerics.check_number("weight_decay", weight_decay)
    if max_learning_rate is not None:
        numerics.check_number("max_learning_rate", max_learning_rate, low=0.0)
        numerics.check_positive("max_learning_rate", max_learning_rate)

    def init(params: Params) -> CorrectedDecayState:
        tree.check_mask(mask, params)
        return CorrectedDecayState(numerics.first_step(), numerics.scalar(0.0))

    def update(
        updates: Updates, state: CorrectedDecayState, params: Params
    ) -> tuple[Updates, CorrectedDecayState]:
        rate, decay = numerics.hypers(state.step, learning_rate, weight_decay)
        largest = jnp.maximum(state.largest, rate)
        top = largest
        if max_learning_rate is not None:
            top = numerics.hyper(max_learning_rate, state.step)
        factor = decay * numerics.divide(rate, top)
        new_updates = add_weights(updates, params, factor, mask)
        step = numerics.next_step(state.step)
        return new_updates, CorrectedDecayState(step, largest)

    return chain(Transform(init, update, name="add_corrected_weight_decay"))


def adamc(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 1e-4,
    mask: Selector | None = None,
    *,
    max_learning_rate: Hyper | None = None,
    nesterov: bool = False,
) -> Transform:
    r"""AdamC: AdamW with weight decay in proportion to the squared learning rate.

    With Adam's direction $u_t$ (see `adam`)

    $$w_{t+1} = w_t - \alpha_t \left(u_t +
      \frac{\alpha_t}{\alpha_{\max}}\,\lambda\,w_t\right)$$

    Below a normalization, decay and steps balance at a ratio
    $\|g\| / \|w\| = \sqrt{2 \lambda / \alpha}$: under AdamW the gradient grows as the
    learning rate falls, and here it stays. With a constant learning rate it is AdamW.
    Layers whose scale matters, as the last one, take AdamW's decay in the paper:
    ``partition([("head/**", adamw(a, weight_decay=l)), ("**", adamc(a,
    weight_decay=l))])``.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$ at the largest learning rate.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        max_learning_rate: $\alpha_{\max}$, the schedule's largest value; ``None`` takes
            the largest so far, so that a warmup decays as in AdamW.
        nesterov: whether to look ahead.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> rate = fg.schedules.warmup_cosine(0.0, 1e-3, 100, 1000)
        >>> optimizer = fg.adamc(rate, weight_decay=0.1, max_learning_rate=1e-3)

    References:
        Defazio, Why gradients rapidly increase near the end of training, 2025,
        algorithm 2, https://arxiv.org/abs/2506.02285.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov),
        add_corrected_weight_decay(
            learning_rate, weight_decay, mask, max_learning_rate=max_learning_rate
        ),
        scale_by_learning_rate(learning_rate),
    )
