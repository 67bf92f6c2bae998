"""Differential privacy: clipped gradients of single examples, and noise on them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.training.loss_forms as loss_forms
import fngrad.training.step_metrics as step_metrics
import fngrad.tree as tree
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.programs.signatures import parameters
from fngrad.sharding.constraints import gradients_of_examples, placing
from fngrad.sharding.meshes import (
    auto_mesh_of,
    batch_devices,
    check_not_split_explicitly,
)
from fngrad.steps.core import move_by
from fngrad.training import Step, TrainState, begin, finish, with_gradients
from fngrad.training.loss_forms import Gradient, Value
from fngrad.training.step_metrics import WhichMetrics, check_metrics
from fngrad.transforms.core import TransformLike, chain
from fngrad.types import Batch, Key, LossFn, Metrics, ModelState, Params, Scalar


@explains_keywords()
def differentially_private(
    loss_fn: LossFn,
    optimizer: TransformLike,
    l2_norm_clip: Scalar,
    noise_multiplier: Scalar,
    *,
    micro_batches: int = 1,
    metrics: WhichMetrics = "norms",
) -> Step:
    r"""DP-SGD, for any optimizer: clip each example's gradient, and add noise.

    $$\tilde g = \frac1B \Big(\sum_{i=1}^{B} g_i
        \min\big(1, C / \lVert g_i \rVert_2\big) + \mathcal N(0, \sigma^2 C^2 I)\Big),
        \qquad g_i = \nabla_\theta L(\theta, b_i)$$

    The optimizer receives $\tilde g$. $B$ is the number of rows of the batch, and the
    norm is over all trainable leaves. Without noise, $\sigma = 0$, it is clipping per
    example, which is robust to outliers and private in no way.

    The loss is called with batches of one example, ``x[None]`` of each array: it must
    be a mean over examples. One in which examples meet (a contrastive loss, a mean
    over a mask of the whole batch, batch statistics) is then another function; a
    `fngrad.losses.weighted_sum` and an argument ``model_state`` are refused.

    No accountant is included: take the library dp-accounting for the $\varepsilon$ of
    ``noise_multiplier``, the sampling rate $B / n$ and the number of steps. Accountants
    assume Poisson sampling, each example in each batch with that rate, independently;
    `fngrad.data` instead takes every example once an epoch, and their $\varepsilon$ is
    then not proven. A Poisson sample can be padded to a fixed number of rows: a loss
    times 0 has a gradient of 0, and $B$, the number of rows, stays constant.

    What is private is the parameters (and $\tilde g$): the metrics ``loss``,
    ``clipped_fraction`` and your own are of the data, without noise, and so is a run
    whose steps react to the loss (`plateau`, `skip_spikes`). The draws are JAX's,
    pseudo-random in floating point: the key of the run has to be secret.

    Args:
        loss_fn: as for `fngrad.make_step`, without ``model_state``. Example i has a key
            of its own, the same for any ``micro_batches``.
        optimizer: a transform.
        l2_norm_clip: $C$ > 0, in units of the gradient; a number, an array or a tracer.
        noise_multiplier: $\sigma$ >= 0, relative to $C$; likewise.
        micro_batches: into how many equal parts the batch is cut; they run one after
            another, so that the examples' gradients of one part at a time are in
            memory.
        metrics: as for `fngrad.make_step`; the norms are those of $\tilde g$.

    Returns:
        A step; its metrics are those of `fngrad.make_step`, means over the examples,
        and ``clipped_fraction``, the share of examples whose norm is above $C$.

    Raises:
        TypeError: if ``loss_fn`` has another signature, or ``metrics`` another type.
        ValueError: if the loss has an argument ``model_state``, a number is out of
            range, ``micro_batches`` is below 1, or ``metrics`` is unknown or empty;
            while tracing, as for `fngrad.make_step`, if the loss is a weighted sum, the
            arrays of the batch have different numbers of rows, or an array is split
            along Explicit axes of a mesh.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> def loss_fn(w, batch):
        ...     return jnp.mean((batch["x"] * w - batch["y"]) ** 2)
        >>> optimizer = fg.sgd(0.5)
        >>> step = fg.steps.differentially_private(loss_fn, optimizer, 1.0, 0.0)
        >>> state = fg.init_state(jnp.array(0.0), optimizer, key=0)
        >>> batch = {"x": jnp.ones(2), "y": jnp.array([0.25, 100.0])}
        >>> state, metrics = step(state, batch)  # gradients -0.5 and -200, clipped to 1
        >>> print(state.params, metrics["clipped_fraction"])
        0.375 0.5

    References:
        Abadi et al. 2016, "Deep learning with differential privacy", algorithm 1,
        https://arxiv.org/abs/1607.00133. Differs from it in: batches are the caller's.
        optax's ``differentially_private_aggregate`` takes gradients per example and
        keeps its key in the state of the optimizer; here the noise of step t is a
        function of the state's key and t.
    """
    numerics.check_positive("l2_norm_clip", l2_norm_clip)
    numerics.check_number("noise_multiplier", noise_multiplier, low=0.0)
    micro_batches = numerics.check_count("micro_batches", micro_batches, 1)
    metrics = check_metrics(metrics)
    transform = chain(optimizer)
    gradient = _gradient_fn(loss_fn, l2_norm_clip, noise_multiplier, micro_batches)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        start = begin(transform, gradient, state, batch)
        move = move_by(transform, state, start.trainable, start.grads)
        return finish(transform, state, start, move, metrics=metrics)

    return placing(with_gradients(step, transform, gradient), loss_fn)


def _gradient_fn(
    loss_fn: LossFn, l2_norm_clip: Scalar, noise_multiplier: Scalar, parts: int
) -> Gradient:
    """Return the gradient with noise, in the form of `loss_forms.gradient_fn`."""
    of_one = loss_forms.gradient_fn(loss_fn)
    if "model_state" in parameters(loss_fn):
        raise ValueError(
            "need a loss without model_state, got one with it: statistics over a batch "
            "mix its examples; layer_norm and group_norm do not"
        )

    def gradient(
        params: Params,
        trainable: Any,
        batch: Batch,
        key: Key,
        model_state: ModelState,
        scale: jax.Array | None = None,
    ) -> tuple[Value, Any]:
        check_not_split_explicitly("gradients of single examples", params, batch)
        k_loss, k_noise = jax.random.split(key)
        bound = numerics.hyper(l2_norm_clip)
        multiplier = numerics.hyper(noise_multiplier)
        size = _count_examples(batch)
        is_on_mesh = auto_mesh_of(params, batch) is not None

        def of_example(example: Batch, index: jax.Array) -> tuple[Value, Any]:
            alone = jax.tree.map(lambda x: x[None], example)
            k_example = jax.random.fold_in(k_loss, index)
            with gradients_of_examples():
                value, grads = of_one(params, trainable, alone, k_example, (), scale)
            _check_mean(value)
            return value, tree.widen(tree.keep(trainable, grads))

        def of_part(examples: tuple[Batch, jax.Array]) -> Any:
            values, grads = jax.vmap(of_example)(*examples)
            return _sums(values, grads, bound, is_on_mesh)

        total = _over_parts(of_part, (batch, jnp.arange(size)), parts, params)
        (loss, sums, weights, clipped), summed = total
        noisy = _with_noise(k_noise, bound * multiplier, summed)
        grads = tree.scale(1 / size, noisy)
        means = {name: numerics.divide(sums[name], weights[name]) for name in sums}
        more = step_metrics.union([means, {"clipped_fraction": clipped / size}])
        value = Value(loss / size, more, model_state)
        return value, tree.merge(grads, tree.wide_zeros_like(params))

    return gradient


def _sums(values: Value, grads: Any, bound: jax.Array, is_on_mesh: bool) -> Any:
    """Return sums over examples: of what a step reports, and of clipped gradients."""
    norms = _norms(grads, len(values.loss), is_on_mesh)
    bound = bound.astype(norms.dtype)
    factor = jnp.where(norms > bound, bound / jnp.where(norms > bound, norms, 1), 1)

    def clipped_sum(g: jax.Array) -> jax.Array:
        share = factor.reshape(-1, *(1,) * (g.ndim - 1)).astype(g.dtype)
        # A product of matrices might round to 16 bits.
        return jnp.sum(share * g, axis=0)

    named = {k: jnp.asarray(x) for k, x in values.metrics.items()}
    named = {k: x.astype(jnp.result_type(float)) for k, x in named.items()}
    ones = jnp.ones_like(values.loss, dtype=jnp.result_type(float))
    weights = {k: values.weights.get(k, ones).astype(x.dtype) for k, x in named.items()}
    sums = {k: jnp.sum(x * weights[k]) for k, x in named.items()}
    weights = {k: jnp.sum(w) for k, w in weights.items()}
    is_clipped = jnp.sum((norms > bound).astype(ones.dtype))
    report = jnp.sum(values.loss), sums, weights, is_clipped
    return report, jax.tree.map(clipped_sum, grads)


def _norms(grads: Any, size: int, is_on_mesh: bool) -> jax.Array:
    """Return the norm of each example's gradient over all leaves, shape (size,).

    Not under ``vmap``, which would make every norm read its entries twice.
    """

    def of_leaf(g: jax.Array) -> jax.Array:
        if is_on_mesh:  # XLA would gather axes that are split, to merge them
            return numerics.norm(g, axis=range(1, g.ndim))
        return numerics.norm(g.reshape(size, -1), axis=1)  # needs no transposed copy

    of_leaves = [of_leaf(g) for g in jax.tree.leaves(grads)]
    if not of_leaves:
        return jnp.zeros(size)
    widest = functools.reduce(np.promote_types, (n.dtype for n in of_leaves))
    return numerics.norm(jnp.stack([n.astype(widest) for n in of_leaves]), axis=0)


def _over_parts(of_part: Any, examples: Any, parts: int, params: Params) -> Any:
    """Return the sum of a function of examples over equal parts of them."""
    if parts == 1:
        return of_part(examples)
    mesh = auto_mesh_of(params, examples)
    devices = 1 if mesh is None else batch_devices(mesh)
    batch, indices = examples
    stacked = tree.map_with_path(
        lambda path, x: loss_forms.cut(path, x, parts, devices), batch
    )
    stacked = stacked, loss_forms.cut("", indices, parts, devices)
    first = jax.tree.map(lambda x: x[0], stacked)
    zero = tree.zeros_like(jax.eval_shape(of_part, first))
    total, _ = jax.lax.scan(lambda c, x: (tree.add(c, of_part(x)), None), zero, stacked)
    return total


def _with_noise(key: Key, deviation: jax.Array, a: Any) -> Any:
    """Add Gaussian noise, of that deviation in each real coordinate."""

    def add(x: jax.Array, z: jax.Array) -> jax.Array:
        # The variance of a complex draw is that of both its coordinates together.
        factor = 2**0.5 if jnp.iscomplexobj(z) else 1.0
        return x + numerics.scaled(deviation * factor, z)

    return jax.tree.map(add, a, tree.random_like(key, a))


def _check_mean(value: Value) -> None:
    if "loss" in value.weights:
        raise ValueError(
            "need a loss that is a mean over examples, got a weighted_sum: the weight "
            "of a batch depends on other examples; of one example return its own mean, "
            "such as jnp.sum(l * w) / jnp.sum(w)"
        )


def _count_examples(batch: Batch) -> int:
    sizes = {path: np.shape(x)[:1] for path, x in tree.leaf_paths(batch).items()}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise ValueError(
            f"need a batch whose arrays have one number of rows, got {sizes}"
        )
    ((size,),) = set(sizes.values())
    if size == 0:
        raise ValueError("need a batch with at least one example, got none")
    return size
