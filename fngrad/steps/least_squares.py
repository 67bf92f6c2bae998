r"""Steps for losses that are sums of squares.

With residuals $r(w)$ and their Jacobian $J$, $L = \|r\|^2 / 2$ has the gradient
$J^\top r$, and $J^\top J$ is its Hessian without the residuals' own curvature.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.optimizers.sgd import sgd
from fngrad.sharding.constraints import placing
from fngrad.steps.core import move_by
from fngrad.steps.linearized_residuals import (
    Jacobian,
    Linearized,
    Residuals,
    Solver,
    flatten,
    linearize,
    residuals_of,
    unflatten,
)
from fngrad.training import Step, TrainState, finish, open_step
from fngrad.training.step_metrics import (
    LossAtStart,
    Move,
    WhichMetrics,
    check_metrics,
)
from fngrad.transforms.core import Transform, TransformLike, chain
from fngrad.transforms.damping import DampingState
from fngrad.types import Batch, Hyper, Metrics, Updates


class _Problem(NamedTuple):
    residuals: Residuals
    solver: Solver
    jacobian: Jacobian | None
    cg_tolerance: float


def gauss_newton(
    residual_fn: Callable[..., Any],
    optimizer: TransformLike | None = None,
    damping: Hyper = 0.0,
    *,
    solver: Solver = "dense",
    jacobian: Jacobian | None = None,
    cg_tolerance: float = 1e-6,
    metrics: WhichMetrics = "norms",
) -> Step:
    r"""Solve the linearized least-squares problem in every step.

    $$p_t = (J^\top J + \mu I)^{-1} J^\top r(w_t), \qquad L = \tfrac12 \|r\|^2$$

    The optimizer receives $p_t$ in place of the gradient. With linear residuals one
    step solves the problem. Far from a solution it may diverge; see
    `levenberg_marquardt`. Where $J^\top J + \mu I$ is singular, the dense solver
    takes the solution of least norm.

    Args:
        residual_fn: ``residual_fn(params, batch) -> residuals`` or ``-> (residuals,
            metrics)``: an array or a pytree of arrays, the metrics a dict of scalars.
            ``key`` and ``model_state`` are recognized by name, as for
            `fngrad.make_step`.
        optimizer: a transform; ``None`` means ``sgd(1.0)``, the whole step.
        damping: $\mu$ >= 0, in units of $J^\top J$; may be a schedule of
            ``state.step``.
        solver: ``"dense"`` builds $J$, shape (m, n), and solves by its singular
            values; ``"cg"`` uses only products with $J$ and its transpose.
        jacobian: whether the dense solver takes n derivatives in forward mode or m in
            reverse mode; ``None`` means the smaller number.
        cg_tolerance: > 0, the relative residual of the normal equations.
        metrics: as for `fngrad.make_step`.

    Returns:
        A step; its metrics are those of `fngrad.make_step`, with
        ``loss`` $= \tfrac12 \|r\|^2$ and ``grad_norm`` $= \|J^\top r\|$.

    Raises:
        TypeError: if ``residual_fn`` has another signature, or ``metrics`` another
            type; while tracing, if it returns another form, or parameters or residuals
            are complex.
        ValueError: if a number is out of range, ``solver`` or ``jacobian`` is unknown,
            or ``metrics`` is unknown or empty; while tracing, if no leaf is trainable,
            a glob of ``metrics`` selects no layer, or the dense solver is given an
            array that is split along Explicit axes of a mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> def residual_fn(w, batch):
        ...     return batch["x"] @ w - batch["y"]
        >>> batch = {"x": jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]),
        ...          "y": jnp.array([1.0, 3.0, 5.0])}
        >>> step = fg.steps.gauss_newton(residual_fn)
        >>> state = fg.init_state(jnp.zeros(2), fg.sgd(1.0), key=0)
        >>> state, _ = step(state, batch)
        >>> print(state.params.round(4))
        [1. 2.]

    References:
        Nocedal and Wright, Numerical optimization, 2006, section 10.3,
        https://doi.org/10.1007/978-0-387-40065-5.
    """
    numerics.check_number("damping", damping, low=0.0)
    problem = _read_problem(residual_fn, solver, jacobian, cg_tolerance)
    metrics = check_metrics(metrics)
    transform = chain(sgd(1.0) if optimizer is None else optimizer)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        start, model = _begin(problem, transform, state, batch)
        direction = model.solve(numerics.hyper(damping, state.step))
        move = _move(transform, state, start, direction)
        return finish(transform, state, start, move, metrics=metrics)

    return placing(step, residual_fn)


def levenberg_marquardt(
    residual_fn: Callable[..., Any],
    optimizer: TransformLike,
    *,
    solver: Solver = "dense",
    jacobian: Jacobian | None = None,
    cg_tolerance: float = 1e-6,
    metrics: WhichMetrics = "norms",
) -> Step:
    r"""Gauss-Newton with adaptive damping, which rejects steps that raise the loss.

    With $p_t = (J^\top J + \mu_t I)^{-1} J^\top r$ and the optimizer's update $h$
    ($-p_t$ for ``sgd(1.0)``), the gain ratio is the actual decrease of the loss over
    the predicted one,

    $$\varrho = \frac{L(w_t) - L(w_t + h)}
      {-h^\top J^\top r - \tfrac12 \|J h\|^2}.$$

    If $\varrho > 0$ the step is accepted,
    $\mu \leftarrow \mu \max(\tfrac13, 1 - (2\varrho - 1)^3)$ and
    $\nu \leftarrow 2$. Otherwise, or if the new loss is not finite, the parameters and
    the rest of the optimizer's state do not change,
    $\mu \leftarrow \nu\mu$ and $\nu \leftarrow 2\nu$. The method interpolates
    between short steps of gradient descent ($\mu$ large) and Gauss-Newton
    ($\mu \to 0$); the loss on the batch never rises.

    Args:
        residual_fn: as for `gauss_newton`.
        optimizer: a transform with the part `fngrad.adaptive_damping`, such as
            ``chain(adaptive_damping(1e-3), sgd(1.0))``.
        solver: as for `gauss_newton`.
        jacobian: as for `gauss_newton`.
        cg_tolerance: as for `gauss_newton`.
        metrics: as for `fngrad.make_step`.

    Returns:
        A step; its metrics are those of `gauss_newton`, ``damping`` ($\mu_t$),
        ``gain_ratio`` ($\varrho$) and ``is_accepted``.

    Raises:
        TypeError: as for `gauss_newton`.
        ValueError: as for `gauss_newton`; while tracing, if the optimizer has no part
            ``adaptive_damping``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> def residual_fn(w, batch):
        ...     return jnp.array([10 * (w[1] - w[0] ** 2), 1 - w[0]])
        >>> optimizer = fg.chain(fg.adaptive_damping(), fg.sgd(1.0))
        >>> step = fg.steps.levenberg_marquardt(residual_fn, optimizer)
        >>> state = fg.init_state(jnp.array([-1.2, 1.0]), optimizer, key=0)
        >>> state, history = fg.run(step, state, lambda step: None, 30)
        >>> print(state.params.round(4))
        [1. 1.]

    References:
        Madsen, Nielsen and Tingleff, Methods for non-linear least squares problems,
        2004, algorithm 3.16, https://orbit.dtu.dk/en/publications/2721. Differs from
        it in: the first damping is relative to $\|J g\|^2 / \|g\|^2$ along the
        gradient $g$, not to the largest diagonal entry of $J^\top J$, which is not
        available without the matrix.
    """
    problem = _read_problem(residual_fn, solver, jacobian, cg_tolerance)
    metrics = check_metrics(metrics)
    transform = chain(optimizer)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        start, model = _begin(problem, transform, state, batch)
        node = _damping_of(state)
        damping = _in_force(node, model)
        move = _move(transform, state, start, model.solve(damping))
        ratio, is_accepted = _gain(problem, model, state, start, batch, move)
        adapted = _adapt(node, damping, ratio, is_accepted)
        opt_state = queries.replace(
            tree.where(is_accepted, move.opt_state, state.opt_state),
            DampingState,
            lambda _: adapted,
        )
        move = move._replace(
            params=tree.where(is_accepted, move.params, state.params),
            updates=tree.where(
                is_accepted, move.updates, tree.zeros_like(move.updates)
            ),
            opt_state=opt_state,
        )
        more = {"damping": damping, "gain_ratio": ratio, "is_accepted": is_accepted}
        return finish(transform, state, start, move, more, metrics=metrics)

    return placing(step, residual_fn)


def _read_problem(
    residual_fn: Any, solver: Solver, jacobian: Jacobian | None, cg_tolerance: float
) -> _Problem:
    if solver not in ("dense", "cg"):
        raise ValueError(f'need solver="dense" or "cg", got {solver=}')
    if jacobian not in (None, "forward", "reverse"):
        raise ValueError(f'need jacobian="forward" or "reverse", got {jacobian=}')
    numerics.check_positive("cg_tolerance", cg_tolerance)
    return _Problem(residuals_of(residual_fn), solver, jacobian, cg_tolerance)


def _begin(
    problem: _Problem, transform: Transform, state: TrainState, batch: Batch
) -> tuple[LossAtStart, Linearized]:
    trainable, key = open_step(transform, state)
    model = linearize(
        problem.residuals,
        state.params,
        trainable,
        batch,
        key,
        state.model_state,
        solver=problem.solver,
        jacobian=problem.jacobian,
        cg_tolerance=problem.cg_tolerance,
    )
    grads = _unflatten(model.gradient, trainable, state)
    return LossAtStart(trainable, key, model.value, grads), model


def _unflatten(x: jax.Array, trainable: Any, state: TrainState) -> Updates:
    held = tree.keep(trainable, state.params)
    return tree.merge(unflatten(x, held), tree.zeros_like(state.params))


def _move(
    transform: Transform, state: TrainState, start: LossAtStart, direction: jax.Array
) -> Move:
    update = _unflatten(direction, start.trainable, state)
    return move_by(transform, state, start.trainable, update)


def _damping_of(state: TrainState) -> DampingState:
    nodes = queries.find(state.opt_state, DampingState)
    if len(nodes) != 1:
        raise ValueError(
            f"need an optimizer with one part adaptive_damping, got {len(nodes)}: "
            "chain(adaptive_damping(), sgd(1.0)) has one"
        )
    return nodes[0]


def _in_force(node: DampingState, model: Linearized) -> jax.Array:
    """Return the damping, at step 0 in units of the curvature along the gradient."""
    g = model.gradient
    pushed = model.push(g)
    curvature = numerics.divide(
        tree.vdot(pushed, pushed).astype(g.dtype), tree.vdot(g, g).astype(g.dtype)
    ).astype(node.damping.dtype)
    return node.damping * jnp.where(node.step == 0, curvature, 1)


def _gain(
    problem: _Problem,
    model: Linearized,
    state: TrainState,
    start: LossAtStart,
    batch: Batch,
    move: Move,
) -> tuple[jax.Array, jax.Array]:
    h = flatten(tree.keep(start.trainable, move.updates))
    pushed = model.push(h)
    predicted = -tree.vdot(h, model.gradient) - 0.5 * tree.vdot(pushed, pushed)
    _, new = problem.residuals.at(move.params, batch, start.key, state.model_state)
    actual = start.value.loss - new.loss
    ratio = numerics.divide(actual, predicted.astype(actual.dtype))
    is_accepted = jnp.isfinite(new.loss) & (actual > 0) & (predicted > 0)
    return ratio, is_accepted


def _adapt(
    node: DampingState, damping: jax.Array, ratio: jax.Array, is_accepted: jax.Array
) -> DampingState:
    ratio = ratio.astype(damping.dtype)
    less = damping * jnp.maximum(1 / 3, 1 - (2 * ratio - 1) ** 3)
    info = jnp.finfo(damping.dtype)
    kept = jnp.where(is_accepted, less, damping * node.growth)
    return DampingState(
        step=numerics.next_step(node.step),
        damping=jnp.clip(kept, float(info.tiny) ** 0.5, float(info.max) ** 0.5),
        growth=jnp.where(is_accepted, 2, jnp.minimum(2 * node.growth, 2.0**30)),
    )
