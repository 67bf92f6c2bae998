"""Line searches: steps whose length is searched along the optimizer's direction."""

import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.training.loss_forms as loss_forms
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.sharding.constraints import placing
from fngrad.steps.core import displace
from fngrad.steps.line_search_conditions import Found, Point, backtrack, strong_wolfe
from fngrad.training import Step, TrainState, begin, finish, with_gradients
from fngrad.training.step_metrics import LossAtStart, Move, WhichMetrics, check_metrics
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    chain,
    update_and_report,
)
from fngrad.transforms.step_length import StepLengthState
from fngrad.types import Batch, Hyper, LossFn, Metrics, OptState, Reported, Updates


class _Rule(NamedTuple):
    condition: str
    max_evaluations: int
    slope_rtol: Hyper
    curv_rtol: Hyper
    decrease_factor: Hyper
    increase_factor: Hyper
    max_learning_rate: Hyper


class _Line(NamedTuple):
    """The loss along a direction, as a function of the length."""

    loss_at: Callable[[jax.Array], jax.Array]
    start: Point  # at length 0
    scale: jax.Array | None  # of the loss; see `fngrad.loss_scaling`

    def point_at(self, a: jax.Array) -> Point:
        """Return the value and the slope at a length."""

        def loss_twice(a: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss = self.loss_at(a)
            return loss, loss

        return Point(a, *loss_forms.slope_fn(loss_twice, self.scale)(a))


def line_search(
    loss_fn: LossFn,
    optimizer: TransformLike,
    condition: Literal["armijo", "strong_wolfe"] = "armijo",
    *,
    max_evaluations: int = 30,
    slope_rtol: Hyper = 1e-4,
    curv_rtol: Hyper = 0.9,
    decrease_factor: Hyper = 0.8,
    increase_factor: Hyper | None = None,
    max_learning_rate: Hyper | None = None,
    metrics: WhichMetrics = "norms",
) -> Step:
    r"""Multiply the optimizer's update by a length that decreases the loss enough.

    Along $d$, the optimizer's update, a length $a$ is taken that satisfies, with
    $\phi(a) = L(w_t + a\,d)$,

    - ``"armijo"``: $\phi(a) \le \phi(0) + c_1\,a\,\phi'(0)$, the first of
      $a_0, \beta a_0, \beta^2 a_0, \ldots$;
    - ``"strong_wolfe"``: that, and $|\phi'(a)| \le c_2\,|\phi'(0)|$, by bracketing
      and zoom.

    All evaluations use the same batch, key and model state. Their loss never rises: if
    no length within ``max_evaluations`` is good, the parameters do not change. Lengths
    at which the loss is not finite are rejected. If $d$ does not point downhill, it is
    replaced by the negative gradient, scaled to the length of $d$.

    $a_0$ is ``max_learning_rate``, or 1 with ``"strong_wolfe"``. If the optimizer has
    the part `fngrad.scale_by_step_length`, which keeps the last length $a$, it is
    $a$ times ``increase_factor``, or $a$ with ``"strong_wolfe"``. The step can be
    mapped and scanned, but not differentiated in reverse mode.

    Args:
        loss_fn: as for `fngrad.make_step`.
        optimizer: a transform, e.g. ``sgd(1.0)`` or ``lbfgs()``.
        condition: the condition that the length must satisfy.
        max_evaluations: >= 1; the largest number of lengths that are tried.
        slope_rtol: $c_1$ in (0, 1).
        curv_rtol: $c_2$ in (c1, 1).
        decrease_factor: $\beta$ in (0, 1).
        increase_factor: > 1; how a length grows, between steps (armijo, ``None``
            means 1.5) or within a search (strong Wolfe, 2).
        max_learning_rate: the longest length > 0; ``None`` means 1 (armijo) or 1e10.
        metrics: as for `fngrad.make_step`.

    Returns:
        A step; its metrics are those of `fngrad.make_step`, ``step_length`` ($a$, 0
        if none was found), ``next_loss`` (at that length) and ``evaluations`` (the
        number of lengths tried).

    Raises:
        TypeError: if ``loss_fn`` has another signature, or ``metrics`` another type.
        ValueError: if the condition is unknown, a number is out of range, or
            ``metrics`` is unknown or empty; while tracing, as for `fngrad.make_step`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> def loss_fn(w, batch):
        ...     return jnp.sum(jnp.array([1.0, 50.0]) * w**2)
        >>> optimizer = fg.lbfgs()
        >>> step = jax.jit(fg.steps.line_search(loss_fn, optimizer, "strong_wolfe"))
        >>> state = fg.init_state(jnp.array([3.0, -1.0]), optimizer, key=0)
        >>> for _ in range(12):
        ...     state, metrics = step(state, None)
        >>> print(bool(metrics["next_loss"] < 1e-9))
        True

    References:
        Nocedal and Wright, Numerical optimization, 2006, algorithms 3.1, 3.5 and 3.6,
        https://doi.org/10.1007/978-0-387-40065-5. The names are optax's
        (``scale_by_backtracking_linesearch``). Differs from it in: if no length is good
        enough the step is zero, and directions uphill are replaced.
    """
    growth, longest = (1.5, 1.0) if condition == "armijo" else (2.0, 1e10)
    rule = _Rule(
        condition,
        numerics.check_count("max_evaluations", max_evaluations, 1),
        slope_rtol=slope_rtol,
        curv_rtol=curv_rtol,
        decrease_factor=decrease_factor,
        increase_factor=growth if increase_factor is None else increase_factor,
        max_learning_rate=longest if max_learning_rate is None else max_learning_rate,
    )
    _check(rule)
    metrics = check_metrics(metrics)
    transform = chain(optimizer)
    gradient = loss_forms.gradient_fn(loss_fn)
    value_at = loss_forms.value_fn(loss_fn)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        start = begin(transform, gradient, state, batch)
        direction, opt_state, reports = _direction(transform, start, state)
        unit = _unit(start, direction)
        direction = tree.scale(1 / unit, direction)

        def loss_at(a: jax.Array) -> jax.Array:
            updates = tree.scale(a, direction)
            params = displace(state.params, start.trainable, updates)
            return value_at(params, batch, start.key, state.model_state).loss

        last = queries.find(state.opt_state, StepLengthState)
        zero = Point(jnp.zeros_like(unit), start.value.loss, _slope(start, direction))
        line = _Line(loss_at, zero, start.scale)
        found = _search(rule, line, last, step=state.step, scale=unit)
        updates = tree.where(
            found.a > 0, tree.scale(found.a, direction), tree.zeros_like(direction)
        )
        params = displace(state.params, start.trainable, updates)
        length = found.a / unit
        opt_state = _remember(opt_state, length)
        move = Move(params, opt_state, updates, _with_kept(reports, state.opt_state))
        more = _of_search(length, found)
        return finish(transform, state, start, move, more, metrics=metrics)

    return placing(with_gradients(step, transform, gradient), loss_fn)


def _of_search(length: jax.Array, found: Found) -> Metrics:
    return {
        "step_length": length,
        "next_loss": found.value,
        "evaluations": found.evaluations,
    }


def _with_kept(reports: Metrics, opt_state: OptState) -> Metrics:
    """Return the reports with the kept step lengths; `_direction` sets them to 1."""
    kept: Metrics = {}
    for path, node in queries.find_with_paths(opt_state, StepLengthState):
        ending = f"{path.rpartition('/')[2]}/step_length"
        for report in queries.reported(reports, ending):
            kept[report] = node.step_length
    return reports | kept


def _direction(transform: Transform, start: LossAtStart, state: TrainState) -> Reported:
    """Return the direction at length 1, the optimizer's next state, and its reports."""
    unscaled = _remember(state.opt_state, jnp.ones(()))
    updates, opt_state, reports = update_and_report(
        transform, start.grads, unscaled, state.params
    )
    updates, grads = tree.widen(updates), tree.widen(start.grads)
    trainable = start.trainable
    length = tree.norm(tree.keep(trainable, updates))
    steepest = tree.norm(tree.keep(trainable, grads))
    ratio = jnp.where(jnp.isfinite(length), numerics.divide(length, steepest), 1)
    unit = _unit(start, updates)
    is_uphill = ~(_slope(start, tree.scale(1 / unit, updates)) <= 0)  # NaN too
    direction = tree.where(is_uphill, tree.scale(-ratio, grads), updates)
    return direction, opt_state, reports


def _slope(start: LossAtStart, direction: Updates) -> jax.Array:
    grads, along = (tree.keep(start.trainable, x) for x in (start.grads, direction))
    return tree.vdot(grads, along).astype(start.value.loss.dtype)


def _unit(start: LossAtStart, direction: Updates) -> jax.Array:
    """Return the power of two by which the direction is divided for the search.

    It is 1 unless the slope along the direction overflows or underflows. The length is
    multiplied by it.
    """
    slope = _slope(start, direction)
    size = tree.norm(tree.keep(start.trainable, direction)).astype(slope.dtype)
    limits = jnp.finfo(slope.dtype)
    fits = jnp.isfinite(slope) & (jnp.abs(slope) >= limits.tiny / limits.eps)
    power = numerics.power_of_two_below(size)
    return jnp.where(fits | (size == 0), 1, jnp.minimum(power, 2.0**120))


def _search(
    rule: _Rule,
    line: _Line,
    last: list[StepLengthState],
    *,
    step: jax.Array,
    scale: jax.Array,
) -> Found:
    """Search along the direction divided by ``scale``, for a length times ``scale``."""
    loss = line.start.value
    c1, c2, shrink, grow, longest = (
        numerics.hyper(value, step).astype(loss.dtype)
        for value in (
            rule.slope_rtol,
            rule.curv_rtol,
            rule.decrease_factor,
            rule.increase_factor,
            rule.max_learning_rate,
        )
    )
    longest = jnp.minimum(longest * scale, jnp.finfo(loss.dtype).max)
    unit = longest if rule.condition == "armijo" else scale
    if last:
        factor = grow if rule.condition == "armijo" else jnp.ones_like(loss)
        kept = last[0].step_length.astype(loss.dtype) * scale
        unit = jnp.where(kept > 0, kept * factor, unit)
    first = jnp.minimum(unit, longest)
    bounds: dict[str, Any] = {"c1": c1, "max_evaluations": rule.max_evaluations}
    if rule.condition == "armijo":
        return backtrack(line.loss_at, line.start, first, factor=shrink, **bounds)
    more = {"c2": c2, "factor": grow, "longest": longest}
    return strong_wolfe(line.point_at, line.start, first, **more, **bounds)


def _remember(opt_state: OptState, length: jax.Array) -> OptState:
    """Store the length in the optimizer's part for it, if there is one."""

    return queries.replace(
        opt_state,
        StepLengthState,
        lambda s: s._replace(step_length=length.astype(s.step_length.dtype)),
    )


def _check(rule: _Rule) -> None:
    if rule.condition not in ("armijo", "strong_wolfe"):
        raise ValueError(
            f'need condition="armijo" or "strong_wolfe", got {rule.condition!r}'
        )
    for name in ("slope_rtol", "curv_rtol", "decrease_factor"):
        numerics.check_positive(name, getattr(rule, name))
        numerics.check_number(name, getattr(rule, name), 0.0, 1.0)
        _check_differs(name, getattr(rule, name), "<", 1.0)
    numerics.check_number("increase_factor", rule.increase_factor, low=1.0)
    _check_differs("increase_factor", rule.increase_factor, ">", 1.0)
    if rule.condition == "strong_wolfe" and isinstance(rule.slope_rtol, numbers.Real):
        numerics.check_number("curv_rtol", rule.curv_rtol, low=float(rule.slope_rtol))
    numerics.check_positive("max_learning_rate", rule.max_learning_rate)


def _check_differs(name: str, value: Hyper, sign: str, bound: float) -> None:
    if isinstance(value, numbers.Real) and value == bound:
        raise ValueError(f"need {name} {sign} {bound}, got {name}={value}")
