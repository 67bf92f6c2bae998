"""A user's loss as one function of four arguments, and its gradient.

Losses of several forms (`FORMS`) are converted to one. The gradient is that of the
trainable leaves, over the whole batch or averaged over its parts.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

import fngrad.numerics as numerics
import fngrad.sharding.constraints as constraints
import fngrad.tree as tree
from fngrad.layers.rematerialization import CheckpointPolicy
from fngrad.losses.weighted_sums import WeightedSum
from fngrad.programs.signatures import OF_A_LOSS, bind, parameters
from fngrad.sharding.meshes import (
    BATCH_AXIS,
    auto_mesh_of,
    batch_devices,
    check_not_split_explicitly,
)
from fngrad.types import Batch, Key, LossFn, Metrics, ModelState, Params, Path

FORMS = """\
need a loss function with two required arguments, in this order, for the parameters
and the batch, and optional arguments named key and model_state:
  loss_fn(params, batch) -> loss  or  (loss, metrics)
  loss_fn(params, batch, key) -> loss  or  (loss, metrics)
  loss_fn(params, model_state, batch[, key]) -> (loss, (metrics, model_state))
where loss is a scalar or fngrad.losses.weighted_sum(total, weight)\
"""


_VALUE = ".value() gives the number of an accumulator of fngrad.metrics"


class Value(NamedTuple):
    """The value of a loss."""

    loss: jax.Array  # at least float32, shape ()
    metrics: Metrics  # the user's own
    model_state: ModelState  # the new one
    weights: Metrics = {}  # noqa: RUF012  # by name, of what was a weighted sum


# (params, trainable, batch, key, model_state[, scale]) -> the value and its gradient.
Gradient: TypeAlias = Callable[..., tuple[Value, Any]]


def value_fn(loss_fn: LossFn) -> Callable[[Params, Batch, Key, ModelState], Value]:
    """Return ``value(params, batch, key, model_state)`` of a loss in any form.

    Raises:
        TypeError: if the loss has another signature.
    """
    check_loss(loss_fn)
    call = bind(loss_fn, OF_A_LOSS, FORMS)
    has_model_state = "model_state" in parameters(loss_fn)

    def value(params: Params, batch: Batch, key: Key, model_state: ModelState) -> Value:
        out = call(params, batch, key=key, model_state=model_state)
        return read_value(out, model_state, has_model_state)

    return value


def check_loss(loss_fn: Any) -> None:
    """Raise if a loss is a transform.

    Raises:
        TypeError: if it is one.
    """
    if hasattr(loss_fn, "init") and hasattr(loss_fn, "update"):
        raise TypeError(
            f"need a loss function, got a transform ({type(loss_fn).__name__}): the "
            "loss is the first argument and the optimizer the second"
        )


def gradient_fn(
    loss_fn: LossFn, micro_batches: int = 1, remat: CheckpointPolicy | None = None
) -> Gradient:
    """Return the function that evaluates a loss and its gradient.

    Args:
        loss_fn: any of the accepted forms.
        micro_batches: into how many parts to cut the batch.
        remat: what the backward pass finds in memory; None: all that it reads.

    Returns:
        ``gradient(params, trainable, batch, key, model_state, scale=None) -> (value,
        grads)``, where ``trainable`` is a tree of bools; the gradient of other leaves
        is zero. With a scale it is that of `slope_fn`.

    Raises:
        TypeError: if the loss has another signature.
    """
    value_at = value_fn(loss_fn)
    if remat is not None:
        value_at = jax.checkpoint(value_at, policy=remat)

    def gradient(
        params: Params,
        trainable: Any,
        batch: Batch,
        key: Key,
        model_state: ModelState,
        scale: jax.Array | None = None,
    ) -> tuple[Value, Any]:
        def loss_at(trained: Params) -> tuple[jax.Array, Value]:
            value = value_at(tree.merge(trained, params), batch, key, model_state)
            return value.loss, value

        value, grads = slope_fn(loss_at, scale)(tree.keep(trainable, params))
        value = value._replace(loss=checkpoint_name(value.loss, "loss"))
        grads = tree.map_with_path(_named, jax.tree.map(_conjugate, grads))
        return value, tree.merge(grads, tree.zeros_like(params))

    return gradient if micro_batches == 1 else _averaged(gradient, micro_batches)


def _conjugate(grad: jax.Array) -> jax.Array:
    """Return a gradient along which the loss rises; JAX gives its conjugate."""
    return jnp.conj(grad) if jnp.iscomplexobj(grad) else grad


def slope_fn(
    loss_at: Callable[[Any], tuple[jax.Array, Any]], scale: jax.Array | None
) -> Callable[[Any], tuple[Any, Any]]:
    """Return ``slope(x) -> (aux, gradient)`` of ``loss_at(x) -> (loss, aux)``.

    With a scale, scale * loss is differentiated, and the gradient divided by the scale,
    in at least float32 (see `fngrad.loss_scaling`).
    """

    def scaled(x: Any) -> tuple[jax.Array, Any]:
        loss, aux = loss_at(x)
        return (loss if scale is None else scale.astype(loss.dtype) * loss), aux

    def slope(x: Any) -> tuple[Any, Any]:
        grads, aux = jax.grad(scaled, has_aux=True)(x)
        if scale is not None:
            grads = tree.scale(1 / scale, tree.widen(grads))
        return aux, grads

    return slope


def _named(path: Path, grad: jax.Array) -> jax.Array:
    """Name a gradient in the traced program, for `fngrad.postmortem`."""
    return checkpoint_name(grad, f"gradient/{path}")


def read_value(out: Any, model_state: ModelState, has_model_state: bool) -> Value:
    """Return the value of a loss from the output of the loss function.

    Raises:
        TypeError: if the output has another form.
        ValueError: if the loss or a metric is not a scalar, or the model state's
            structure differs.
    """
    if _is_accumulator(out):
        raise TypeError(f"need a scalar loss, got {_kind(out)}: {_VALUE}")
    if has_model_state:
        if not _is_pair(out) or not _is_pair(out[1]):
            raise TypeError(
                "need (loss, (metrics, model_state)) from a loss function with an "
                f"argument model_state, got {_kind(out)}"
            )
        loss, (metrics, new_model_state) = out
        difference = tree.mismatch(model_state, new_model_state)
        if difference:
            raise ValueError(f"need a model_state like the one given: {difference}")
        model_state = tree.strong(new_model_state)
    else:
        loss, metrics = out if _is_pair(out) else (out, {})
    if not isinstance(metrics, dict):
        raise TypeError(f"need a dict of metrics, got {_kind(metrics)}")
    weights, loss, metrics = _divided(loss, metrics)
    _check_loss(loss)
    _check_metrics(metrics)
    return Value(tree.widen(jnp.asarray(loss)), metrics, model_state, weights)


def _divided(loss: Any, metrics: Mapping[str, Any]) -> tuple[Metrics, Any, Metrics]:
    """Return the weights of the weighted sums by name, and loss and metrics as means.

    The loss is named as among the metrics of a step, where no other has its name.
    """
    named = {**metrics, "loss": loss}
    sums = {k: tree.widen(x) for k, x in named.items() if isinstance(x, WeightedSum)}
    means: dict[str, Any] = {name: x.mean() for name, x in sums.items()}
    weights = {k: jnp.asarray(x.weight).astype(means[k].dtype) for k, x in sums.items()}
    others = {name: means.get(name, x) for name, x in metrics.items()}
    return weights, means.get("loss", loss), others


def _is_pair(out: Any) -> bool:
    return isinstance(out, tuple) and len(out) == 2


def _is_accumulator(x: Any) -> bool:
    return hasattr(x, "merge") and hasattr(x, "value")


def _kind(out: Any) -> str:
    if _is_accumulator(out):
        return f"the accumulator {type(out).__name__}"
    if isinstance(out, tuple):
        return f"a tuple ({', '.join(_kind(item) for item in out)})"
    if hasattr(out, "dtype"):
        return f"an array {out.dtype}{list(jnp.shape(out))}"
    return type(out).__name__


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, jax.Array | float):
        raise TypeError(f"need loss or (loss, metrics), got {_kind(loss)} for loss")
    if jnp.shape(loss) != ():
        raise ValueError(
            f"need a scalar loss, got shape {jnp.shape(loss)}; reduce it over the "
            "batch, e.g. loss.mean()"
        )
    if not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise TypeError(f"need a real float loss, got {jnp.result_type(loss)}")


def _check_metrics(metrics: Any) -> None:
    for name, value in metrics.items():
        if not (hasattr(value, "dtype") or isinstance(value, int | float)):
            remedy = f": {_VALUE}" if _is_accumulator(value) else ""
            if type(value) is tuple and len(value) == 2:
                remedy = ": of a (sum, weight) give fngrad.losses.weighted_sum(...)"
            raise TypeError(
                f"need scalar metrics, got {_kind(value)} for {name!r}{remedy}"
            )
        if jnp.shape(value) != ():
            raise ValueError(
                f"need scalar metrics, got shape {jnp.shape(value)} for {name!r}"
            )


def _averaged(gradient: Gradient, parts: int) -> Gradient:
    """Average loss, metrics and gradient over equal parts of the batch.

    A weighted sum counts each part by its weight; the rest counts all the same.
    """

    def averaged(
        params: Params,
        trainable: Any,
        batch: Batch,
        key: Key,
        model_state: ModelState,
        scale: jax.Array | None = None,
    ) -> tuple[Value, Any]:
        def accumulate(carry: Any, inputs: Any) -> tuple[Any, None]:
            total, model_state = carry
            part, index = inputs
            k_part = jax.random.fold_in(key, index)
            value, grads = gradient(params, trainable, part, k_part, model_state, scale)
            shares = dict.fromkeys(_names(value), 1 / parts) | value.weights
            term = _scaled(shares, _terms(value, grads))
            total = tree.add(total, (term, value.weights))
            return (total, value.model_state), None

        check_not_split_explicitly("micro-batches", batch)
        mesh = auto_mesh_of(params, batch)
        devices = 1 if mesh is None else batch_devices(mesh)
        batch = constraints.split(batch, mesh)
        stacked = tree.map_with_path(lambda p, x: cut(p, x, parts, devices), batch)
        first = jax.tree.map(lambda x: x[0], stacked)

        def terms(part: Batch, key: Key, model_state: ModelState) -> Any:
            value, grads = gradient(params, trainable, part, key, model_state, scale)
            return _terms(value, grads), value.weights

        zero = tree.zeros_like(jax.eval_shape(terms, first, key, model_state))
        inputs = (stacked, jnp.arange(parts))
        ((total, weights), model_state), _ = jax.lax.scan(
            accumulate, (zero, model_state), inputs
        )
        inverse = {k: numerics.divide(jnp.ones_like(w), w) for k, w in weights.items()}
        loss, metrics, grads = _scaled(inverse, total)
        loss = checkpoint_name(loss, "mean_loss")
        named = tree.map_with_path(_named_mean, tree.keep(trainable, grads))
        value = Value(loss, metrics, model_state)
        return value, tree.merge(named, tree.zeros_like(grads))

    return averaged


def _names(value: Value) -> list[str]:
    return ["loss", *value.metrics]


def _scaled(factors: Mapping[str, Any], terms: Any) -> Any:
    """Return loss, metrics and gradient times factors by name; others stay."""
    loss, metrics, grads = terms
    if "loss" in factors:
        loss, grads = tree.scale(factors["loss"], (loss, grads))
    mine = {k: tree.scale(factors[k], metrics[k]) for k in metrics if k in factors}
    return loss, {**metrics, **mine}, grads


def _named_mean(path: Path, grad: jax.Array) -> jax.Array:
    """Name an averaged gradient, for `fngrad.fitting.program_changes`."""
    return checkpoint_name(grad, f"mean_gradient/{path}")


def _terms(value: Value, grads: Any) -> tuple[jax.Array, Metrics, Any]:
    metrics = {
        name: jnp.asarray(metric).astype(jnp.result_type(float))
        for name, metric in value.metrics.items()
    }
    return tree.widen((value.loss, metrics, grads))


def cut(path: Path, x: jax.Array, parts: int, devices: int) -> jax.Array:
    """Return the parts of a batch, stacked.

    On several devices part i has rows i, i + parts, and so on, some of each device's;
    else every part would be on a few devices only.
    """
    if x.ndim == 0 or x.shape[0] % parts:
        raise ValueError(
            f"need a batch whose first axis is a multiple of micro_batches={parts}, "
            f"got shape {x.shape} at {path!r}"
        )
    size = x.shape[0] // parts
    if x.shape[0] % devices == 0 and size % devices:
        raise ValueError(
            f"need micro-batches whose size is a multiple of the {devices} devices of "
            f"the mesh axis {BATCH_AXIS!r}, got {size} rows in each of {parts} for "
            f"shape {x.shape} at {path!r}; choose fewer micro_batches or a larger batch"
        )
    if devices > 1:
        return x.reshape(size, parts, *x.shape[1:]).swapaxes(0, 1)
    return x.reshape(parts, size, *x.shape[1:])
