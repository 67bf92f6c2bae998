"""A training step: a pure function of a state and a batch.

A step evaluates the loss and its gradient (`begin`), calls the optimizer, and returns
the next state and the metrics (`finish`). The key of step t is
``fold_in(state.key, t)``.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh

import fngrad.numerics as numerics
import fngrad.training.loss_forms as loss_forms
import fngrad.training.step_metrics as step_metrics
import fngrad.tree as tree
from fngrad.layers.rematerialization import CheckpointPolicy, check_policy
from fngrad.programs.keywords_elsewhere import OF_STEPS, explains_keywords
from fngrad.programs.step_wrappers import own_gradients
from fngrad.sharding.constraints import gathered, placing, split
from fngrad.sharding.meshes import auto_mesh_of
from fngrad.sharding.rules import Rule, with_rule
from fngrad.training.precision import Precision, mixed_precision
from fngrad.training.state import TrainState, check_train_state
from fngrad.training.step_metrics import LossAtStart, Move, WhichMetrics
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    apply_updates,
    chain,
    trainable_leaves,
    update_and_report,
)
from fngrad.transforms.dynamic_loss_scale import scale_in_force
from fngrad.types import (
    Batch,
    Key,
    LossFn,
    Metrics,
)

Step: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@explains_keywords(OF_STEPS)
def make_step(
    loss_fn: LossFn,
    optimizer: TransformLike,
    *,
    metrics: WhichMetrics = "norms",
    micro_batches: int = 1,
    precision: Precision = None,
    remat: CheckpointPolicy | None = None,
    rule: Rule | None = None,
) -> Step:
    r"""Compose a loss and an optimizer into one pure training step.

    $$g_t = \nabla_\theta L(\theta_t, b_t), \quad
      u_t, s_{t+1} = \mathrm{update}(g_t, s_t, \theta_t), \quad
      \theta_{t+1} = \theta_t + u_t$$

    Only trainable leaves are differentiated. The gradient of a complex leaf is
    conjugated, so that a transform always receives the direction of steepest ascent.

    Args:
        loss_fn: ``loss_fn(params, batch) -> loss`` or ``-> (loss, metrics)``, the loss
            a real scalar, the metrics a dict of scalars. Arguments named ``key`` (a
            new key per step) and ``model_state`` are recognized by name; with
            ``model_state`` it returns ``(loss, (metrics, model_state))``. Arguments
            with defaults keep them. A loss or a metric that is a mean over a number of
            tokens that differs between batches may be a
            `fngrad.losses.weighted_sum`. `fngrad.fit` warns of a step that leaves all
            of ``model_state`` as it was, as layers without a key do; where that is
            meant,
            ``warnings.filterwarnings("ignore", "the step returns model_state")``.
        optimizer: a transform.
        metrics: ``"norms"`` includes the global norms, ``"loss"`` does not. A list of
            globs over the paths of the parameters, such as ``["blocks/*", "head"]``,
            includes the global norms and those of every layer that a glob selects, a
            leaf or a tree of trainable leaves; of layers inside each other a glob
            selects the innermost, so that ``["**"]`` means every leaf.
        micro_batches: into how many equal parts the batch is cut. Gradients, loss and
            metrics are averaged over the parts, which run one after another, so that
            the activations of one part at a time are in memory. Each part has a key of
            its own and its own batch statistics. Its examples are consecutive; on
            several devices part i has examples i, i + ``micro_batches`` and so on, some
            of each device's. Every part counts the same, unless the loss is a
            `fngrad.losses.weighted_sum`: a masked mean ``sum(l * w) / sum(w)`` is then
            not that of the batch; return ``weighted_sum(sum(l * w), sum(w))``.
        precision: in which dtype the loss computes, such as ``"bfloat16"``, or a
            `fngrad.Policy`; parameters, gradients, the optimizer's state and metrics
            keep theirs (see `fngrad.mixed_precision`). ``"float16"`` needs an optimizer
            in `fngrad.loss_scaling`.
        remat: one of `jax.checkpoint_policies`, which says what of the loss is kept for
            the backward pass; the rest is computed again. A policy that keeps nothing
            saves nothing here, since all is then computed again at once: for that,
            `fngrad.layers.remat` and `fngrad.layers.repeat` cut a model into layers.
        rule: over which axes of a mesh the parameters are split, such as
            `fngrad.sharding.fsdp`. Where the state is on a mesh, they are gathered for
            use (`fngrad.sharding.gathered`), and the new state is placed as
            `fngrad.sharding.shard_state` places it; on one device it does nothing.

    Returns:
        ``step(state, batch) -> (state, metrics)``. The metrics are scalars: ``loss``;
        ``learning_rate`` in force, if the optimizer reports one (the first, if there
        are several), and that of each group of a `fngrad.partition`, such as
        ``learning_rate/head/**``; where groups may have different ones there is no
        ``learning_rate``; ``is_finite``, whether the loss is finite, and with
        norms those of gradient and update too; it is true also where `skip_nonfinite`
        skipped the step within its limit, while the loss and ``grad_norm`` are what
        they were, NaN perhaps: ``skip_nonfinite/consecutive`` above 0 tells that the
        step was skipped; ``grad_norm``, ``update_norm`` and
        ``param_norm``, over trainable leaves, and by layer, such as
        ``grad_norm/blocks/0``; the transforms' reports, by part; the user's own.
        ``step.gradients(state, batch)`` is the gradient of the loss in that step, None
        for leaves that are not trained.

    Raises:
        TypeError: if ``loss_fn`` has another signature, ``metrics`` or the precision
            another type, or ``remat`` or ``rule`` is not a function; while tracing, if
            the loss returns another form, or the state is not a TrainState.
        ValueError: if ``metrics`` is unknown or empty, ``micro_batches`` below 1, the
            precision unknown, or another rule gathers the loss already; while tracing,
            if the batch cannot be cut into equal parts, a loss or metric is not a
            scalar, the model state's structure differs, a metric's name is taken, a
            glob of ``metrics`` selects no layer, the optimizer has two parts
            `fngrad.loss_scaling`, or micro-batches are cut from a batch that is split
            along Explicit axes of a mesh.

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

        The norms of every layer of a network:

        >>> import jax
        >>> model = fg.models.mlp((1, 2, 1))
        >>> def loss_fn(params, batch):
        ...     y = jax.vmap(model.apply, (None, 0))(params, batch["x"][:, None])
        ...     return jnp.mean((y[:, 0] - batch["y"]) ** 2)
        >>> step = fg.make_step(loss_fn, optimizer, metrics=["layers/*"])
        >>> state = fg.init_state(model.init(jax.random.key(0)), optimizer, key=0)
        >>> state, metrics = step(state, batch)
        >>> print([name for name in metrics if name.startswith("grad_norm")])
        ['grad_norm', 'grad_norm/layers/0', 'grad_norm/layers/1']
    """
    metrics = step_metrics.check_metrics(metrics)
    micro_batches = numerics.check_count("micro_batches", micro_batches, 1)
    transform = chain(optimizer)
    loss_forms.check_loss(loss_fn)
    check_policy(remat)
    loss_fn = mixed_precision(gathered(loss_fn, rule), precision)
    gradient = loss_forms.gradient_fn(loss_fn, micro_batches, remat)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        start = begin(transform, gradient, state, batch)
        updates, opt_state, reports = update_and_report(
            transform, start.grads, state.opt_state, state.params
        )
        params = apply_updates(state.params, updates)
        move = Move(params, opt_state, updates, reports)
        return finish(transform, state, start, move, metrics=metrics)

    ours = with_rule(with_gradients(step, transform, gradient), None)
    return placing(ours, loss_fn)  # by the rule of the loss, if it has one


def with_gradients(
    step: Step, transform: Transform, gradient: loss_forms.Gradient
) -> Step:
    """Return a step with an attribute ``gradients``, for histograms of them.

    ``step.gradients(state, batch)`` is the gradient of the loss at the parameters, with
    the key of the step, and ``None`` for leaves that are not trained.
    """

    def gradients(state: TrainState, batch: Batch) -> Any:
        start = begin(transform, gradient, state, batch)
        return tree.keep(start.trainable, start.grads)

    return own_gradients(step, gradients)


def open_step(transform: Transform, state: TrainState) -> tuple[Any, Key]:
    """Return which leaves are trainable, and the key of this step.

    Raises:
        TypeError: if the state is not a TrainState.
    """
    check_train_state(state)
    key = jax.random.fold_in(state.key, state.step)
    return trainable_leaves(transform, state.params), key


def begin(
    transform: Transform, gradient: loss_forms.Gradient, state: TrainState, batch: Batch
) -> LossAtStart:
    """Evaluate the loss and its gradient at the parameters of a state.

    Raises:
        TypeError: if the state is not a TrainState.
        ValueError: if the optimizer has two parts `fngrad.loss_scaling`.
    """
    trainable, key = open_step(transform, state)
    mesh = auto_mesh_of(state.params)
    if isinstance(mesh, Mesh):  # not traced: JAX refuses arrays of other devices
        batch = split(batch, mesh)
    scale = scale_in_force(state.opt_state)
    value, grads = gradient(
        state.params, trainable, batch, key, state.model_state, scale
    )
    return LossAtStart(trainable, key, value, grads, scale)


def finish(
    transform: Transform,
    state: TrainState,
    start: LossAtStart,
    move: Move,
    more: Metrics | None = None,
    *,
    metrics: WhichMetrics = "norms",
) -> tuple[TrainState, Metrics]:
    """Return the next state and the metrics of a step, with ``more`` among them.

    Raises:
        ValueError: if two metrics have one name, or a glob selects no layer.
    """
    new_state = TrainState(
        numerics.next_step(state.step),
        state.key,
        move.params,
        move.opt_state,
        start.value.model_state,
    )
    values = step_metrics.standard_metrics(
        transform,
        start,
        move,
        params=state.params,
        more=more or {},
        metrics=metrics,
    )
    return new_state, values
