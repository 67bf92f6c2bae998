"""The loss of a label sequence whose alignment to the frames is unknown.

The keywords that all losses share are explained in `fngrad.losses`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
import fngrad.programs.reasons_of_nans as reasons_of_nans
from fngrad.losses.core import (
    Array,
    Reduction,
    check_labels,
    floats,
    keep,
    make_masks,
    reduce,
    resolve_axes,
)
from fngrad.losses.softmax import log_sum_exp

# The logarithm of an impossible event: finite, so that differences have gradients.
IMPOSSIBLE = -1e30


def ctc(
    logits: Array,
    logit_paddings: Array,
    labels: Array,
    label_paddings: Array,
    *,
    blank_id: int = 0,
    axis: Sequence[int] = (-2, -1),
    where: Array | None = None,
    weights: Array | None = None,
    reduction: Reduction = "none",
) -> jax.Array:
    r"""Return the negative log likelihood of a label sequence, in nats.

    $$-\log \sum_{\pi \in B^{-1}(y)} \prod_t \mathrm{softmax}(x_t)_{\pi_t}$$

    over all alignments $\pi$ of frames to classes that $B$ maps to the labels $y$: it
    merges repeats, then drops blanks.

    Args:
        logits: $x$, shape ``(..., frames, classes)``.
        logit_paddings: shape ``(..., frames)``; not 0 where a frame is padding.
        labels: $y$, shape ``(..., length)``; integers in [0, classes), not blank.
        label_paddings: shape ``(..., length)``; not 0 where a label is padding, which
            stands at the end.
        blank_id: the class of the blank.
        axis: the axes of frames and classes in the logits.
        where: bool, shape ``(...)``: the examples that count.
        weights, reduction: see `fngrad.losses`.

    Returns:
        As all losses; ``inf`` with zero gradient for labels that fit into no
        alignment, such as more labels than frames.

    Raises:
        TypeError: if the logits are not floating or the labels not integers.
        ValueError: if shapes do not fit, the reduction is unknown, or concrete labels
            are out of range, blank, or padded elsewhere than at the end. Traced ones
            (under ``jit``) give NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad import losses
        >>> ctc, labels = jax.jit(losses.ctc), jnp.array([1])
        >>> print(ctc(jnp.zeros((2, 3)), jnp.zeros(2), labels, jnp.zeros(1)))  # 3 of 9
        1.0986123

    References:
        Graves et al., Connectionist temporal classification, 2006,
        https://doi.org/10.1145/1143844.1143891, equations 5 to 8. Differs from it in:
        sums of logarithms in place of rescaled sums.
    """
    x = floats("logits", logits)
    axes = resolve_axes(axis, x.ndim)
    if len(axes) != 2:
        raise ValueError(f"need two axes, of frames and of classes, got {axis=}")
    x = jnp.moveaxis(x, axes, (-2, -1))
    outer, (frames, classes) = x.shape[:-2], x.shape[-2:]
    if not 0 <= blank_id < classes:
        raise ValueError(f"need 0 <= blank_id < {classes}, got {blank_id=}")
    example = make_masks(where, weights, outer, ()).example
    is_frame = _unpadded("logit_paddings", logit_paddings, (*outer, frames), example)
    length = jnp.shape(labels)[-1:]
    is_label = _unpadded("label_paddings", label_paddings, (*outer, *length), example)
    labels = check_labels(labels, (*outer, *length), classes, is_label)
    is_right = _check_sequences(labels, is_label, blank_id, classes)
    labels = jnp.where(is_label & is_right[..., None], labels, blank_id)

    x = jnp.where(is_frame[..., None], x, 0)
    log_p = jnp.maximum(-numerics.surprise(x, (x.ndim - 1,)), IMPOSSIBLE)
    lengths = jnp.sum(is_label, axis=-1)
    of_one = functools.partial(_negative_log_likelihood, blank_id)
    for _ in outer:
        of_one = jax.vmap(of_one)
    loss = of_one(log_p, is_frame, labels, lengths)
    loss = jnp.where(loss > -0.1 * IMPOSSIBLE, jnp.inf, loss)
    with jax.named_scope(reasons_of_nans.LABEL):
        loss = keep(example, loss * jnp.where(is_right, 1, jnp.nan).astype(x.dtype))
    return reduce(loss, example, weights, reduction)


def _negative_log_likelihood(
    blank_id: int,
    log_p: jax.Array,
    is_frame: jax.Array,
    labels: jax.Array,
    length: jax.Array,
) -> jax.Array:
    """Sum over alignments by the forward recursion on blank, label, blank, ..."""
    states = jnp.full(2 * labels.size + 1, blank_id, labels.dtype)
    states = states.at[1::2].set(labels)
    before = jnp.concatenate([states[:2], states[:-2]])
    can_skip = (states != blank_id) & (states != before)
    can_skip &= jnp.arange(states.size) >= 2

    def step(
        alpha: jax.Array, frame: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        log_emission, is_kept = frame
        one, two = _shift(alpha, 1), jnp.where(can_skip, _shift(alpha, 2), IMPOSSIBLE)
        reached = log_sum_exp(jnp.stack([alpha, one, two]), axis=0)
        alpha_next = jnp.maximum(reached + log_emission, IMPOSSIBLE)
        return jnp.where(is_kept, alpha_next, alpha), None

    # Before the first frame stands a blank, from which both beginnings are reached.
    alpha = jnp.full(states.size, IMPOSSIBLE, log_p.dtype).at[0].set(0)
    alpha, _ = lax.scan(step, alpha, (log_p[:, states], is_frame))
    last = 2 * length
    label_end = jnp.where(length > 0, alpha[jnp.maximum(last - 1, 0)], IMPOSSIBLE)
    return -jnp.logaddexp(alpha[last], label_end)


def _shift(alpha: jax.Array, by: int) -> jax.Array:
    start = jnp.full(min(by, alpha.size), IMPOSSIBLE, alpha.dtype)
    return jnp.concatenate([start, alpha[:-by]])


def _unpadded(
    name: str, paddings: Array, shape: tuple[int, ...], example: jax.Array | None
) -> jax.Array:
    paddings = jnp.asarray(paddings)
    if paddings.shape != shape:
        raise ValueError(f"need {name} of shape {shape}, got shape {paddings.shape}")
    is_kept = paddings == 0
    return is_kept if example is None else is_kept & example[..., None]


def _check_sequences(
    labels: jax.Array, is_label: jax.Array, blank_id: int, classes: int
) -> jax.Array:
    """Return which sequences are valid: labels in range, no blank, padding last."""
    is_out = (labels < 0) | (labels >= classes)
    is_blank = jnp.any(is_label & (labels == blank_id), axis=-1)
    is_gapped = jnp.any(is_label[..., 1:] & ~is_label[..., :-1], axis=-1)
    if numerics.is_known(labels) and numerics.is_known(is_label):
        if np.any(is_blank):
            raise ValueError(f"need labels without the blank, got {blank_id=} in them")
        if np.any(is_gapped):
            raise ValueError("need padding at the end of label_paddings, got a gap")
    return ~(is_blank | is_gapped | jnp.any(is_label & is_out, axis=-1))
