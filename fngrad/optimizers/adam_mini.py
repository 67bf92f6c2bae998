"""Adam-mini: one second moment per block of a leaf: a neuron, a head, a token."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import (
    check_moments,
    divide_by_root,
    real_dtype,
    remove_bias,
    shrunk_leaf,
    squarable,
)
from fngrad.types import Hyper, Params, Selector, Updates

Blocks: TypeAlias = Sequence[tuple[Selector, str | int]]
KINDS = ("entry", "leaf", "output", "input")


class ScaleByAdamMiniState(NamedTuple):
    """State of `scale_by_adam_mini`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of each block's mean of |g|**2, real, shape (blocks,)

    signed = ("mu",)  # type: tuple[str, ...]


def scale_by_adam_mini(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    *,
    blocks: Blocks = (),
) -> Transform:
    r"""Divide the debiased average by each block's root mean square: Adam-mini.

    Returns $u_t$ of `adam_mini`; see there for the equations and the reference. Where
    the denominator is zero, the update is zero.

    Args:
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        blocks: pairs of a selector and the blocks of its leaves, see `adam_mini`.

    Raises:
        ValueError: if a number is out of range, or a kind of blocks is not one of its
            choices; at ``init``, if a glob selects no leaf, or a leaf's last axis
            cannot be cut into the number of blocks.
    """
    check_moments(b1=b1, b2=b2, eps=eps)
    blocks = [(selector, _checked_kind(kind)) for selector, kind in blocks]

    def init(params: Params) -> ScaleByAdamMiniState:
        for selector, _ in blocks:
            tree.check_mask(selector, params)
        kinds = _kinds_of(blocks, params)
        _check_lengths(kinds, params)
        nu = _map_blocks(_start, params, kinds=kinds)
        mu = tree.wide_zeros_like(params)
        return ScaleByAdamMiniState(numerics.first_step(), mu, nu)

    def update(
        updates: Updates, state: ScaleByAdamMiniState, params: Params
    ) -> tuple[Updates, ScaleByAdamMiniState]:
        beta_1, beta_2, outside = numerics.hypers(state.step, b1, b2, eps)

        def direct(
            g: jax.Array, mu: jax.Array, nu: jax.Array, kind: str | int
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            g = squarable(g) if kind == "entry" else shrunk_leaf(g)
            mu = tree.average(beta_1, mu, g)
            nu = tree.average(beta_2, nu, _mean(tree.abs_square(g), kind))
            mu_hat = remove_bias(mu, beta_1, state.step)
            nu_hat = _spread(remove_bias(nu, beta_2, state.step), g.shape, kind)
            return divide_by_root(mu_hat, nu_hat, 0.0, outside), mu, nu

        kinds = _kinds_of(blocks, params)
        new_updates, mu, nu = _map_blocks(
            direct, updates, state.mu, state.nu, kinds=kinds, outputs=3
        )
        step = numerics.next_step(state.step)
        return new_updates, ScaleByAdamMiniState(step, mu, nu)

    return chain(Transform(init, update, name="scale_by_adam_mini"))


def adam_mini(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    blocks: Blocks = (),
) -> Transform:
    r"""Adam-mini: AdamW whose second moment is one number per block of a leaf.

    With Adam's average $\hat\mu_t$ (see `adam`), for each block $b$ of a leaf

    $$\nu_t = \beta_2\,\nu_{t-1} +
      (1 - \beta_2)\operatorname{mean}_{i \in b} |g_{t,i}|^2, \qquad
      u_t = \frac{\hat\mu_t}{\sqrt{\nu_t / (1 - \beta_2^t)} + \epsilon}, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    so that the state is half of Adam's. A block is a part of the loss's Hessian that is
    dense in itself:

    - ``"output"``: all weights of one output neuron, one index of the last axis. It is
      the default of leaves with two axes or more: values, projections and MLPs; and of
      a language model's head, whose outputs are tokens.
    - ``"input"``: one index of the first axis: tokens and positions of an embedding.
    - a number of heads: the last axis cut into so many blocks: queries and keys.
    - ``"leaf"``: all of it. It is the default of vectors and scalars: biases and norms.
    - ``"entry"``: each entry by itself, which is Adam.

    The number of heads is not in the shapes, so queries and keys, and embeddings too,
    have to be named; by the default rule they train, in smaller blocks than the paper's
    or in ones across tokens, where it saw instabilities. Stacked layers
    (`fngrad.layers.repeat`, ``scan=True``) share blocks; `fngrad.layerwise` gives each
    layer its own.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        blocks: pairs of a selector (see `fngrad.tree.select`) and one of the above; the
            first that selects a leaf holds.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range, or a kind of blocks is not one of its
            choices; at ``init``, if a glob selects no leaf, or a leaf's last axis
            cannot be cut into the number of blocks.

    Example:
        >>> import jax
        >>> import fngrad as fg
        >>> model = fg.models.transformer(100, 16, features=8, num_heads=2)
        >>> blocks = [
        ...     (["tokens/**", "positions/**"], "input"),
        ...     (["**/query/*", "**/key/*"], 2),
        ... ]
        >>> optimizer = fg.adam_mini(1e-3, b2=0.95, weight_decay=0.1, blocks=blocks)
        >>> state = optimizer.init(model.init(jax.random.key(0)))

    References:
        Zhang et al., Adam-mini: use fewer learning rates to gain more, 2024, algorithms
        1 and 3, https://arxiv.org/abs/2406.16793. Differs from it in: blocks are told
        by paths and shapes, not by PyTorch's names of parameters.
    """
    rule = scale_by_adam_mini(b1, b2, eps, blocks=blocks)
    return decaying(rule, learning_rate, weight_decay, mask)


def _checked_kind(kind: str | int) -> str | int:
    if isinstance(kind, str):
        numerics.check_choice("blocks", kind, KINDS)
        return kind
    return numerics.check_count("blocks", kind, low=1)


def _kinds_of(blocks: Blocks, params: Params) -> Any:
    """Return the kind of each leaf's blocks."""
    kinds = tree.map_selected(
        lambda path, leaf: "output" if leaf.ndim > 1 else "leaf", params
    )
    for selector, kind in reversed(blocks):
        kinds = jax.tree.map(
            lambda is_chosen, old, kind=kind: kind if is_chosen else old,
            tree.selected(selector, params),
            kinds,
        )
    return kinds


def _check_lengths(kinds: Any, params: Params) -> None:
    found = tree.leaf_paths(kinds)

    def check(path: str, leaf: Any) -> None:
        kind, length = found.get(path), (leaf.shape or (1,))[-1]
        if isinstance(kind, int) and length % kind:
            raise ValueError(
                f"need a number of blocks that divides the last axis of {path!r}, "
                f"got {kind} for its shape {leaf.shape}"
            )

    tree.map_selected(check, params)


def _map_blocks(
    fn: Callable[..., Any], a: Any, *rest: Any, kinds: Any, outputs: int = 1
) -> Any:
    """Map ``fn(leaf, *parts, kind)``, also over stacks, whose leaves have one kind."""

    def of_stack(count: int) -> Callable[..., Any]:
        return lambda *parts: jax.vmap(
            functools.partial(_with_kind, fn, parts[-1]), axis_size=count
        )(*parts[:-1])

    return tree.map_leaves(fn, a, *rest, kinds, outputs=outputs, of_stack=of_stack)


def _with_kind(fn: Callable[..., Any], kind: str | int, *parts: Any) -> Any:
    return fn(*parts, kind)


def _start(p: jax.Array, kind: str | int) -> jax.Array:
    shape = jax.eval_shape(lambda x: _mean(x, kind), p).shape
    return tree.zeros(p, real_dtype(p), shape)


def _mean(x: jax.Array, kind: str | int) -> jax.Array:
    """Return the mean of each block, and x itself where a block is an entry."""
    if kind == "entry":
        return x
    if kind == "leaf" or x.ndim == 0:
        return jnp.mean(x) if x.size else jnp.zeros((), x.dtype)
    if kind == "input":
        return jnp.mean(x.reshape(len(x), math.prod(x.shape[1:])), axis=1)
    count = x.shape[-1] if kind == "output" else int(kind)
    return jnp.mean(x.reshape(-1, count, x.shape[-1] // count), axis=(0, 2))


def _spread(nu: jax.Array, shape: tuple[int, ...], kind: str | int) -> jax.Array:
    """Return each entry's block's value."""
    if kind in ("entry", "leaf") or not shape:
        return jnp.broadcast_to(nu, shape)
    if kind == "input":
        return jnp.broadcast_to(nu.reshape(-1, *[1] * (len(shape) - 1)), shape)
    repeated = jnp.repeat(nu, shape[-1] // len(nu), total_repeat_length=shape[-1])
    return jnp.broadcast_to(repeated.reshape(*[1] * (len(shape) - 1), -1), shape)
