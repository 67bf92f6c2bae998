r"""Updates by the depth of their layer: smaller below, or later below.

Both transforms stand after an optimizer in a chain. Its recipe ends in the rate, so a
factor of the update is a factor of the rate, and of a decoupled weight decay with it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.types import Metrics, Params, Path, Scalar, Selector, Updates

# From the input to the output. (selector, count): the first axis of each selected leaf
# counts that many layers, as with `fngrad.layers.repeat`.
Layers: TypeAlias = Sequence[Selector | tuple[Selector, int]]


class UnfreezingState(NamedTuple):
    """State of `gradual_unfreezing`."""

    step: jax.Array  # int32, shape (); updates made so far


def scale_by_depth(layers: Layers, decay: Scalar) -> Transform:
    r"""Decay the rate from the output to the input: layer-wise learning-rate decay.

    $$u_l \leftarrow \gamma^{L - 1 - l}\, u_l$$

    for layer $l$ of $L$, counted from the input: the last one keeps its rate.

    Args:
        layers: from the input to the output, each a selector of its leaves, see
            `fngrad.tree.select`; the first that selects a leaf has it. A pair
            ``("blocks/**", 12)`` is twelve layers stacked along the first axis of the
            selected leaves.
        decay: $\gamma$ in [0, 1], a number, a scalar array or a tracer; 0.65 to 0.9 are
            usual.

    Raises:
        TypeError: if a layer is not a selector.
        ValueError: if there are no layers, a count is below 1, or ``decay`` is outside
            [0, 1]; at ``init``, if a leaf is in no layer, a glob selects no leaf, or
            the first axis of a leaf is not the count.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> params = {"embed": jnp.ones(1), "blocks": jnp.ones(2), "head": jnp.ones(1)}
        >>> layers = ["embed", ("blocks", 2), "head"]
        >>> optimizer = fg.chain(fg.sgd(1.0), fg.scale_by_depth(layers, 0.5))
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates["embed"], updates["blocks"], updates["head"])
        [-0.125] [-0.25 -0.5 ] [-1.]

    References:
        Clark et al. 2020, "ELECTRA", appendix A, https://arxiv.org/abs/2003.10555; Bao
        et al. 2021, "BEiT", https://arxiv.org/abs/2106.08254. Differs from them in:
        what counts as a layer is the caller's; the head is the last layer, with
        exponent 0, not one beyond it.
    """
    depths = _checked(layers)
    numerics.check_number("decay", decay, low=0.0, high=1.0)

    def init(params: Params) -> tuple[()]:
        _check_layers(layers, params)
        _layers_above(depths, params)
        return ()

    def update(updates: Updates, state: tuple, params: Params) -> tuple[Updates, tuple]:
        rate = numerics.hyper(decay)

        def scaled(u: jax.Array, above: np.ndarray) -> jax.Array:
            factor = jnp.power(rate, jnp.asarray(above, rate.dtype))
            return jnp.broadcast_to(factor, u.shape).astype(u.dtype) * u

        return jax.tree.map(scaled, updates, _layers_above(depths, params)), state

    return chain(Transform(init, update, "scale_by_depth"))


def gradual_unfreezing(layers: Layers, every: int | jax.Array) -> Transform:
    r"""Train the last layer first, and one more layer after every so many steps.

    $$u_l \leftarrow \begin{cases} u_l & t \ge k\,(L - 1 - l) \cr 0 & \text{else}
    \end{cases}$$

    for layer $l$ of $L$ at step $t$, the first being 0. A frozen layer stays bit for
    bit, also where its gradient is not finite. Its gradient is computed, and enters the
    moments of the optimizer and global norms: the program is the same at all steps. To
    save that work, train in several runs, each with `fngrad.freeze` for what is frozen.

    Reports ``unfrozen_layers``, how many are trained.

    Args:
        layers: as in `scale_by_depth`.
        every: $k$, in steps, at least 1; an int, a scalar array or a tracer.

    Raises:
        TypeError: if a layer is not a selector.
        ValueError: if there are no layers, a count is below 1, or ``every`` is an int
            below 1; at ``init``, if a leaf is in no layer, a glob selects no leaf, or
            the first axis of a leaf is not the count.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> params = {"body": jnp.ones(1), "head": jnp.ones(1)}
        >>> unfreeze = fg.gradual_unfreezing(["body", "head"], every=1)
        >>> optimizer = fg.chain(fg.sgd(0.5), unfreeze)
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(params, state, params)
        ...     print(updates["body"], updates["head"])
        [0.] [-0.5]
        [-0.5] [-0.5]

    References:
        Howard and Ruder 2018, "Universal language model fine-tuning for text
        classification", section 3.3, https://arxiv.org/abs/1801.06146. Differs from it
        in: one run with one schedule and one state of the optimizer, not one per epoch.
    """
    depths = _checked(layers)
    if not isinstance(every, jax.Array):
        numerics.check_count("every", every, 1)

    def init(params: Params) -> UnfreezingState:
        _check_layers(layers, params)
        _layers_above(depths, params)
        return UnfreezingState(numerics.first_step())

    def report(
        updates: Updates, state: UnfreezingState, params: Params
    ) -> tuple[Updates, UnfreezingState, Metrics]:
        period = jnp.maximum(jnp.asarray(every, state.step.dtype), 1)
        begun = state.step // period

        def opened(u: jax.Array, above: np.ndarray) -> jax.Array:
            is_open = begun >= jnp.asarray(above, begun.dtype)
            return jnp.where(is_open, u, jnp.zeros_like(u))

        opened_updates = jax.tree.map(opened, updates, _layers_above(depths, params))
        new_state = UnfreezingState(numerics.next_step(state.step))
        count = jnp.minimum(begun + 1, _total(depths))
        return opened_updates, new_state, {"unfrozen_layers": count}

    return chain(from_report(init, report, "gradual_unfreezing"))


class _Layer(NamedTuple):
    takes: Any  # (path, leaf) -> bool
    count: int | None  # of layers stacked along the first axis; None: one, not stacked


def _split(layer: Any) -> tuple[Selector, int | None]:
    """Return the selector of a layer, and the count of stacked ones."""
    is_pair = isinstance(layer, tuple) and len(layer) == 2
    if is_pair and isinstance(layer[1], int) and not isinstance(layer[1], bool):
        return layer
    return layer, None


def _checked(layers: Layers) -> list[_Layer]:
    if isinstance(layers, str):
        raise TypeError(
            f"need a list of layers, from the input to the output, got {layers!r}"
        )
    found = []
    for selector, count in map(_split, layers):
        if count is not None:
            numerics.check_count("the count of stacked layers", count, 1)
        found.append(_Layer(tree.selector_predicate(selector), count))
    if not found:
        raise ValueError("need at least one layer, got none")
    return found


def _check_layers(layers: Layers, params: Params) -> None:
    for selector, _ in map(_split, layers):
        tree.check_mask(selector, params)


def _total(layers: list[_Layer]) -> int:
    return sum(layer.count or 1 for layer in layers)


def _layers_above(layers: list[_Layer], params: Params) -> Any:
    """Return per leaf how many layers are between it and the output.

    Integers of shape (), or one per stacked layer along the first axis.
    """

    def above(path: Path, leaf: Any) -> np.ndarray:
        left = _total(layers)
        for layer in layers:
            left -= layer.count or 1
            if layer.takes(path, leaf):
                return _of_leaf(path, leaf, layer.count, left)
        raise ValueError(f"need a layer for every leaf, got none for {path!r}")

    return tree.map_with_path(above, params)


def _of_leaf(path: Path, leaf: Any, count: int | None, left: int) -> np.ndarray:
    if count is None:
        return np.full((1,) * leaf.ndim, left)
    if leaf.shape[:1] != (count,):
        raise ValueError(
            f"need {count} layers along the first axis of {path!r}, got shape "
            f"{leaf.shape}"
        )
    numbers = np.arange(left + count - 1, left - 1, -1)
    return numbers.reshape(count, *(1,) * (leaf.ndim - 1))
