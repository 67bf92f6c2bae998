"""DoG: step sizes of distance traveled over the root of summed squared gradients."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.averages import average_params
from fngrad.transforms.core import Transform, chain, from_report
from fngrad.transforms.decay import decaying
from fngrad.transforms.moment_arithmetic import divide_by_root, shrink
from fngrad.types import Hyper, Metrics, Params, Scalar, Selector, Updates

Kind: TypeAlias = Literal["distance", "learning_rate", "heuristic"]
InitStep: TypeAlias = tuple[Kind, Scalar]


class ScaleByDogState(NamedTuple):
    """State of `scale_by_dog`; with ``layerwise``, its scalars are one per leaf."""

    step: jax.Array  # int32, shape ()
    max_distance: Any  # shape (); from params0, the largest so far
    sum_of_squares: Any  # shape (); of gradients
    params0: Params  # the first parameters


def scale_by_dog(
    init_step: InitStep = ("heuristic", 1e-6),
    eps: Hyper = 1e-8,
    *,
    layerwise: bool = False,
) -> Transform:
    r"""Multiply by the distance traveled over the root of summed squares, as DoG does.

    Returns $u_t$ of `dog`; see there for the equations and the reference. It reports
    ``distance``, $\bar r_t$, and ``step_size``, the factor; with ``layerwise``, the
    largest over leaves.

    Args:
        init_step: the first step, see `fngrad.dog`.
        eps: $\epsilon$ >= 0, in squared gradient units.
        layerwise: whether each leaf has its own step size.

    Raises:
        ValueError: if the kind of ``init_step`` is unknown, or a number is out of
            range.
    """
    kind, value = _check_init_step(init_step)
    numerics.check_number("eps", eps, low=0.0)

    def over_blocks(fn: Any, *trees: Any, outputs: int = 1) -> Any:
        return tree.map_leaves(fn, *trees, outputs=outputs) if layerwise else fn(*trees)

    def init(params: Params) -> ScaleByDogState:
        start = tree.wide_copy(params)
        farthest = over_blocks(lambda w: _first_distance(init_step, w), start)
        squares = over_blocks(lambda w: numerics.scalar(0.0), start)
        return ScaleByDogState(numerics.first_step(), farthest, squares, start)

    def advance(state: ScaleByDogState, updates: Updates, params: Params) -> Any:
        """Return distances, sums of squares, step sizes, and gradients' factors."""
        inside = numerics.hyper(eps, state.step)

        def of_block(w: Any, g: Any, start: Any, farthest: Any, squares: Any) -> Any:
            distance = tree.norm(tree.difference(w, start)).astype(farthest.dtype)
            farthest = jnp.maximum(farthest, distance)
            squares, factor = _add_square(squares, g)
            size = divide_by_root(farthest, squares, inside, outside=0.0)
            if kind == "learning_rate":
                is_first = state.step == 0
                size = jnp.where(is_first, numerics.hyper(value), size)
                factor = jnp.where(is_first, 1, factor)
            return farthest, squares, size, factor

        farthest, squares = state.max_distance, state.sum_of_squares
        return over_blocks(
            of_block, params, updates, state.params0, farthest, squares, outputs=4
        )

    def report(
        updates: Updates, state: ScaleByDogState, params: Params
    ) -> tuple[Updates, ScaleByDogState, Metrics]:
        farthest, squares, sizes, factors = advance(state, updates, params)
        fitting = over_blocks(lambda g, x: tree.scale(x, g), updates, factors)
        new_updates = over_blocks(lambda g, x: tree.scale(x, g), fitting, sizes)
        sizes = jax.tree.map(jnp.multiply, sizes, factors)
        step = numerics.next_step(state.step)
        new_state = ScaleByDogState(step, farthest, squares, state.params0)
        metrics = {"distance": _largest(farthest), "step_size": _largest(sizes)}
        return new_updates, new_state, metrics

    return chain(from_report(init, report, "scale_by_dog"))


def dog(
    learning_rate: Hyper = 1.0,
    init_step: InitStep = ("heuristic", 1e-6),
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    layerwise: bool = False,
    averaging: Hyper | None = None,
) -> Transform:
    r"""DoG: gradient descent with the step size distance over gradients.

    $$\bar r_t = \max(r_\epsilon, \max_{s \le t} \|w_s - w_0\|), \qquad
      u_t = \frac{\bar r_t}{\sqrt{\sum_{s \le t} \|g_s\|^2 + \epsilon}}\,g_t, \qquad
      w_{t+1} = w_t - \gamma_t\,u_t$$

    The norms are over all leaves or, with ``layerwise`` (LDoG), over each leaf.
    Evaluate at an average of the iterates, as the authors recommend: ``averaging=8.0``.

    Args:
        learning_rate: $\gamma$, a factor >= 0: a number, a scalar array or tracer, or a
            schedule; a schedule around 1 warms up or cools down.
        init_step: the first step, a kind and a number > 0. ``("heuristic", a)`` means
            $r_\epsilon = a (1 + \|w_0\|)$, ``reps_rel`` of the authors' code: 1e-6, or
            1e-4 with batch normalization. ``("distance", r)`` means
            $r_\epsilon = r$, and ``("learning_rate", eta)`` that $\gamma_0$ times eta
            is the first step size and $r_\epsilon = 0$.
        eps: $\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$, L2: $g_t$ is the gradient plus $\lambda\,w_t$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        layerwise: whether each leaf has its own $\bar r_t$ and its own sum.
        averaging: $\gamma$ >= 0 of `fngrad.average_params`, whose average
            `fngrad.eval_params` returns; ``None`` keeps none.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if the kind of ``init_step`` is unknown, or a number is out of
            range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.dog(averaging=8.0)

    References:
        Ivgi, Hinder and Carmon, DoG is SGD's best friend: a parameter-free dynamic
        step size schedule, 2023, https://arxiv.org/abs/2302.12022. Differs from it in:
        with ``("learning_rate", eta)`` the learning rate multiplies the first step
        too, as in optax.
    """
    numerics.check_number("averaging", averaging, low=0.0, optional=True)
    average = () if averaging is None else (average_params(averaging),)
    rule = scale_by_dog(init_step, eps, layerwise=layerwise)
    descend = decaying(rule, learning_rate, weight_decay, mask, decoupled=False)
    return chain(descend, *average)


def _first_distance(init_step: InitStep, start: Params) -> jax.Array:
    kind, value = init_step
    begin = numerics.scalar(value)
    if kind == "heuristic":
        return begin * (1 + tree.norm(start).astype(begin.dtype))
    return begin if kind == "distance" else jnp.zeros_like(begin)


def _add_square(squares: jax.Array, g: Any) -> tuple[jax.Array, jax.Array]:
    """Return the sum with one more square, and the factor at which that one fits."""
    factor, square = (x.astype(squares.dtype) for x in shrink(tree.vdot(g, g), g))
    return numerics.saturated(squares + square, square), factor


def _largest(scalars: Any) -> jax.Array:
    return functools.reduce(jnp.maximum, map(jnp.max, jax.tree.leaves(scalars)))


def _check_init_step(init_step: InitStep) -> InitStep:
    kinds = get_args(Kind)
    is_pair = isinstance(init_step, tuple) and len(init_step) == 2
    if not is_pair or init_step[0] not in kinds:
        raise ValueError(
            f"need init_step=(kind, value) with a kind among {kinds}, got {init_step=}"
        )
    numerics.check_positive(f"the {init_step[0]} of init_step", init_step[1])
    return init_step
