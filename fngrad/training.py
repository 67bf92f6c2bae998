"""Training as pure functions: a state, a step, a run.

A *step* takes a state and a batch and gives the next state and metrics. A *run* is a
fold of steps; it can be jitted, differentiated, and mapped over seeds or
hyperparameters. Randomness at step t comes from ``fold_in(state.key, t)`` and the
batch of step t from the data, so a run is a function of its first state.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

import fngrad.evaluation as evaluation
import fngrad.evaluation_point as evaluation_point
import fngrad.measures as measures
import fngrad.numerics as numerics
import fngrad.objective as objective
import fngrad.tree as tree
from fngrad.batching import Dataset, check_foreign
from fngrad.measures import Move, Start
from fngrad.signatures import batch_of, explained, kind_of, name_of
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    apply_updates,
    chain,
    learned_leaves,
    update_and_report,
)
from fngrad.types import (
    Batch,
    Key,
    LossFn,
    Metrics,
    ModelState,
    OptState,
    Params,
    Path,
    Tree,
)


class TrainState(NamedTuple):
    """All that changes while training."""

    step: jax.Array  # int32, shape (); steps made so far
    key: Key  # typed, shape (); never changes
    params: Params
    opt_state: OptState
    model_state: ModelState  # () unless the loss carries one


Step: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(
    params: Params,
    optimizer: TransformLike,
    key: int | Key,
    model_state: ModelState = (),
) -> TrainState:
    """Return the state of step 0.

    Args:
        params: a pytree of float or complex arrays.
        optimizer: the transform that will be given to `make_step`.
        key: a typed key or an int of any size; all randomness of the run derives
            from it.
        model_state: what the model carries but does not learn, e.g. batch statistics.

    Raises:
        TypeError: a leaf is no array, or a trainable leaf is an integer array; a key
            that is neither a typed key nor an int; an optimizer or a model as params.
        ValueError: no parameters, a masked array.
    """
    if hasattr(params, "init"):
        what = "an optimizer" if hasattr(params, "update") else "a model"
        raise TypeError(
            f"need init_state(params, optimizer, key), got {what} as params; "
            "model.init(key) gives a model's parameters"
        )
    opt_state = chain(optimizer).init(params)
    for path, leaf in tree.leaf_paths(model_state).items():
        numerics.check_unmasked(f"model_state at {path!r}", leaf)
    params, model_state = tree.strong((params, model_state))
    return TrainState(
        numerics.first_step(), numerics.key(key), params, opt_state, model_state
    )


def make_step(
    loss_fn: LossFn,
    optimizer: TransformLike,
    *,
    metrics: Literal["norms", "loss"] = "norms",
    micro_batches: int = 1,
) -> Step:
    r"""Compose a loss and an optimizer into one pure training step.

    $$g_t = \nabla_\theta L(\theta_t, b_t), \quad
      u_t, s_{t+1} = \mathrm{update}(g_t, s_t, \theta_t), \quad
      \theta_{t+1} = \theta_t + u_t$$

    Only leaves that the optimizer trains are differentiated. The gradient of a
    complex leaf is conjugated, so that a transform always sees the direction of
    steepest ascent.

    Args:
        loss_fn: ``loss_fn(params, batch) -> loss`` or ``-> (loss, metrics)``, the loss
            a real scalar, the metrics a dict of scalars. Arguments named ``key`` (one
            fresh key a step) and ``model_state`` are recognised by name; with
            ``model_state`` it returns ``(loss, (metrics, model_state))``. Arguments
            with defaults are left alone.
        optimizer: a transform.
        metrics: ``"norms"`` reports the global norms too, ``"loss"`` leaves them out.
        micro_batches: into how many equal parts the batch is cut. Gradients, loss and
            metrics are averaged over the parts, which run one after the other, so the
            activations of one part are in memory at a time.

    Returns:
        ``step(state, batch) -> (state, metrics)``. The metrics are scalars: ``loss``;
        ``learning_rate`` in force, when the optimizer reports one (the first, when
        groups differ); ``is_finite``, whether the loss is, and with norms those of
        gradient and update too, unless `skip_nonfinite` skipped the step within its
        limit; ``grad_norm``, ``update_norm`` and ``param_norm``, over trainable
        leaves; the transforms' reports, by part; the user's own.

    Raises:
        TypeError: ``loss_fn`` has another signature; while tracing, it returns
            another form, or the state is no TrainState.
        ValueError: an unknown ``metrics``, ``micro_batches`` below 1; while tracing,
            a batch that cannot be cut equally, a loss or metric that is not a
            scalar, a model state of another structure, a metric name that is taken.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> def loss_fn(params, batch):
        ...     return jnp.mean((batch["x"] * params - batch["y"]) ** 2)
        >>> optimizer = fg.sgd(0.1)
        >>> step = fg.make_step(loss_fn, optimizer)
        >>> state = fg.init_state(jnp.array(0.0), optimizer, key=0)
        >>> batch = {"x": jnp.array([1.0, 2.0]), "y": jnp.array([2.0, 4.0])}
        >>> state, metrics = step(state, batch)
        >>> print(state.params, metrics["loss"])
        1.0 10.0
    """
    if metrics not in ("norms", "loss"):
        raise ValueError(f'need metrics="norms" or "loss", got {metrics=}')
    micro_batches = numerics.check_count("micro_batches", micro_batches, 1)
    transform = chain(optimizer)
    gradient = objective.gradient_fn(loss_fn, micro_batches)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        start = begin(transform, gradient, state, batch)
        updates, opt_state, told = update_and_report(
            transform, start.grads, state.opt_state, state.params
        )
        params = apply_updates(state.params, updates)
        move = Move(params, opt_state, updates, told)
        return finish(state, start, move, {}, norms=metrics == "norms")

    return step


def open_step(transform: Transform, state: TrainState) -> tuple[Any, Key]:
    """Return which leaves are learned, and the key of this step.

    Raises:
        TypeError: the state is no TrainState.
    """
    if not isinstance(state, TrainState):
        raise TypeError(
            f"need a TrainState from init_state, got {type(state).__name__}"
        )
    key = jax.random.fold_in(state.key, state.step)
    return learned_leaves(transform, state.params), key


def begin(
    transform: Transform, gradient: objective.Gradient, state: TrainState, batch: Batch
) -> Start:
    """Evaluate the loss and its gradient where the step begins.

    Raises:
        TypeError: the state is no TrainState.
    """
    learned, key = open_step(transform, state)
    value, grads = gradient(state.params, learned, batch, key, state.model_state)
    return Start(learned, key, value, grads)


def finish(
    state: TrainState, start: Start, move: Move, more: Metrics, *, norms: bool = True
) -> tuple[TrainState, Metrics]:
    """Return the next state, and what every step reports with ``more``."""
    new_state = TrainState(
        numerics.next_step(state.step),
        state.key,
        move.params,
        move.opt_state,
        start.value.model_state,
    )
    told = measures.standard_metrics(start, move, state.params, more, norms=norms)
    return new_state, told


def snapshot(state: Tree) -> Tree:
    """Return a copy of every array, in memory of its own, strongly typed.

    A copy survives the donation of the original; leaves that were one array become
    two.

    Raises:
        ValueError: a masked array.
    """

    def copied(path: Path, x: Any) -> jax.Array:
        numerics.check_unmasked(f"a state at {path!r}", x)
        return jnp.array(x, dtype=x.dtype, copy=True)

    return tree.map_with_path(copied, state)


def run(
    step: Step,
    state: TrainState,
    data: Any,
    num_steps: int,
    *,
    metric_fn: Callable[..., Any] | None = None,
    eval_data: Any = None,
    eval_every: int | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Train for ``num_steps`` steps, as one pure function.

    Under ``jit`` pass the dataset as an argument: a captured one becomes program
    text. Under ``vmap`` it trains many runs at once.

    Args:
        step: from `make_step`, or any function with its signature.
        state: where to start.
        data: a dataset, or a function ``step -> batch``.
        num_steps: how many steps to make, a Python int >= 0.
        metric_fn: see `fngrad.evaluate`; it is given `fngrad.eval_params`.
        eval_data: arrays or a dataset, evaluated whole.
        eval_every: evaluate after every so many steps, and at the end. ``None`` means
            at the end only.

    Returns:
        The last state and the history: each metric of the step with shape
        ``(num_steps,)``, each evaluation metric under ``val/`` with shape
        ``(ceil(num_steps / eval_every), ...)``.

    Raises:
        TypeError: data of another kind; a loss or another function that is not a step;
            a function that Python cannot run on traced arrays.
        ValueError: a negative ``num_steps``, ``eval_every`` below 1, or only one of
            ``metric_fn`` and ``eval_data``.
    """
    num_steps = numerics.check_count("num_steps", num_steps, 0, numerics.MAX_STEP)
    if (metric_fn is None) != (eval_data is None):
        raise ValueError("need both metric_fn and eval_data, or neither")
    if eval_every is not None:
        eval_every = numerics.check_count("eval_every", eval_every, 1)
    check_order(step, data)
    if not (isinstance(data, Dataset) or callable(data)):
        raise TypeError(
            f"need a dataset or a function of the step, got {type(data).__name__}: "
            "fngrad.data.from_arrays(arrays, batch_size) makes a dataset"
        )

    def advance(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        return call_step(step, state, batch_at(data, state.step))

    if metric_fn is None:
        return jax.lax.scan(advance, state, None, num_steps)

    every = num_steps if eval_every is None else eval_every

    def block(state: TrainState, length: int) -> tuple[TrainState, Any]:
        state, history = jax.lax.scan(advance, state, None, length)
        point = evaluation_point.eval_params(state)
        scores = evaluation.fold(
            metric_fn, point, state.model_state, evaluation.arrays_of(eval_data)
        )
        return state, (history, {f"val/{name}": v for name, v in scores.items()})

    return _run_blocks(block, state, num_steps, max(every, 1))


def batch_at(data: Any, step: jax.Array) -> Batch:
    """Return the batch of a step from a dataset or a function ``step -> batch``.

    Raises:
        TypeError: a function that cannot be traced, see `fngrad.signatures`.
    """
    return data.batch(step) if isinstance(data, Dataset) else batch_of(data, step)


def check_order(step: Any, data: Any) -> None:
    """Raise where the arguments of a run are not a step and data.

    Raises:
        TypeError: the state or an optimizer in the place of the step, the state in
            the place of the data, or a dataset of another library.
    """
    if isinstance(step, TrainState) or not callable(step):
        made = "a transform" if hasattr(step, "update") else type(step).__name__
        raise TypeError(
            f"need a step, then the state and the data, got {made} as the step: "
            "fngrad.make_step(loss_fn, optimizer) makes a step"
        )
    if isinstance(data, TrainState):
        raise TypeError("need a step, then the state and the data, got the state last")
    check_foreign(data)


def call_step(
    step: Step, state: TrainState, batch: Batch, call: Callable | None = None
) -> tuple[TrainState, Metrics]:
    """Make a step; explain what is wrong if the function is not a step.

    Args:
        step: what is named in messages, and called, if there is no ``call``.
        state, batch: its arguments.
        call: a program of the step, such as its shapes.

    Raises:
        TypeError: it is a loss, gives no (state, metrics), or cannot be traced.
    """
    with explained(step):
        try:
            made = (call or step)(state, batch)
        except Exception as error:
            if isinstance(state, TrainState) and _is_loss(step, state.params, batch):
                raise TypeError(_no_step(step, "a loss")) from error
            raise
    if not isinstance(made, tuple) or len(made) != 2:
        raise TypeError(_no_step(step, kind_of(made)))
    return made


def _no_step(step: Any, got: str) -> str:
    return (
        f"need a step (state, batch) -> (state, metrics), got {got} from "
        f"{name_of(step)}: fngrad.make_step(loss_fn, optimizer) makes a step of a loss"
    )


def _is_loss(fn: Any, params: Params, batch: Batch) -> bool:
    """Say whether a function gives a scalar of parameters, as no step does."""
    try:
        out = jax.eval_shape(fn, params, batch)
    except Exception:  # whatever it is, it does not take parameters
        return False
    loss = out[0] if isinstance(out, tuple) and len(out) == 2 else out
    return getattr(loss, "shape", None) == ()


def _run_blocks(
    block: Callable[[TrainState, int], tuple[TrainState, Any]],
    state: TrainState,
    num_steps: int,
    every: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Scan over whole blocks, then make the shorter last one."""
    whole, rest = divmod(num_steps, every)
    state, (history, scores) = jax.lax.scan(
        lambda state, _: block(state, every), state, None, whole
    )
    history = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), history)
    if rest:
        state, (more, last) = block(state, rest)
        history = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), history, more)
        scores = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), scores, last)
    return state, measures.union([history, scores])
