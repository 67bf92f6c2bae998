"""Metrics over examples as a fold: accumulators of batches, merged in their order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
import fngrad.numerics.array_inputs as array_inputs
import fngrad.tree as tree
from fngrad.data.dataset import Dataset, num_examples, take
from fngrad.data.foreign_datasets import ways_to_read
from fngrad.data.reads_from_disk import in_memory
from fngrad.data.sources import Source
from fngrad.losses.weighted_sums import WeightedSum
from fngrad.metrics import Accumulator, Mean
from fngrad.metrics.derived import grows
from fngrad.metrics.sums import Pair, pair_of, pair_of_sum
from fngrad.programs.signatures import bind, check_function, kind_of, parameters
from fngrad.sharding.constraints import split
from fngrad.sharding.meshes import AnyMesh, auto_mesh_of, batch_devices
from fngrad.types import Batch, ModelState, Params

_FORMS = "need metric_fn(params, batch) or metric_fn(params, batch, model_state)"


class _Source(NamedTuple):
    """Examples that can be read by position."""

    size: int
    read: Callable[[jax.Array | int, int], Batch]  # (start, count) -> batch


def fold(
    metric_fn: Callable[..., dict[str, Any]],
    params: Params,
    model_state: ModelState,
    arrays: Any,
    batch_size: int = 256,
) -> dict[str, jax.Array]:
    """Return the metrics of a model over a data set: the pure core of `evaluate`.

    It works under ``jit`` and ``vmap``. The full batches are one loop in the program;
    the smaller last batch follows it.

    Args:
        metric_fn: see `evaluate`.
        params: the model's parameters.
        model_state: the value of an argument named ``model_state``.
        arrays: a pytree of arrays of shape ``(n, ...)``, or a dataset.
        batch_size: how many examples to evaluate at once, >= 1; on a mesh it is rounded
            up to a multiple of the devices.

    Raises:
        TypeError: as for `evaluate`.
        ValueError: as for `evaluate`.
    """
    return values_of(accumulated(metric_fn, params, model_state, arrays, batch_size))


def accumulated(
    metric_fn: Callable[..., dict[str, Any]],
    params: Params,
    model_state: ModelState,
    arrays: Any,
    batch_size: int,
) -> dict[str, Accumulator]:
    """Return the accumulators of which `fold` returns the values."""
    check_function(metric_fn)
    mesh = auto_mesh_of(params)
    batch_size = divisible_batch_size(batch_size, mesh)
    call = bind(metric_fn, ("model_state",), _FORMS)
    source = _source_of(arrays)
    full, rest = divmod(source.size, batch_size)
    odd = rest % _devices(mesh)

    def measure(start: jax.Array | int, count: int) -> dict[str, Accumulator]:
        batch = split(source.read(start, count), mesh)
        metrics = call(params, batch, model_state=model_state)
        return _accumulators(metrics, count)

    parts = []
    if full:
        parts.append(_merge_over(lambda i: measure(i * batch_size, batch_size), full))
    if rest > odd:
        parts.append(measure(full * batch_size, rest - odd))
    if odd:  # examples that every device computes, since they cannot be divided
        parts.append(measure(source.size - odd, odd))
    return reduce(merge, parts)


def divisible_batch_size(batch_size: Any, mesh: AnyMesh | None) -> int:
    """Return the smallest multiple of a mesh's devices that is not below a batch size.

    Raises:
        ValueError: if the batch size is not an int >= 1.
    """
    devices = _devices(mesh)
    parts, rest = divmod(numerics.check_count("batch_size", batch_size, 1), devices)
    return (parts + bool(rest)) * devices


def _devices(mesh: AnyMesh | None) -> int:
    return 1 if mesh is None else batch_devices(mesh)


def values_of(parts: dict[str, Accumulator]) -> dict[str, jax.Array]:
    """Return the values of accumulators."""
    return {name: part.value() for name, part in parts.items()}


def arrays_of(data: Any) -> Any:
    """Return a dataset or a pytree of arrays in the form that `fold` reads.

    Raises:
        TypeError: if a leaf contains neither numbers nor bools, or it is a source.
        ValueError: if there are no examples, leaves have different numbers of them, or
            `fngrad.numerics.array_inputs.array` refuses a leaf.
    """
    if isinstance(data, Dataset):
        is_plain = data.read is take and not data.maps
        return data.arrays if is_plain else data
    check_examples(data)
    if isinstance(data, Source):
        raise TypeError(
            "need arrays or a dataset to evaluate inside a program, got "
            f"{data!r}: fngrad.fit and fngrad.evaluate read a source"
        )
    num_examples(data)
    return tree.map_with_path(array_inputs.array, in_memory(data))


def check_examples(data: Any) -> None:
    """Raise unless the data's examples can be read in any order.

    Raises:
        TypeError: if it is an iterator, a function, a state, all parts of a data set
            at once, or a dataset of another library.
    """
    if hasattr(data, "params") and hasattr(data, "model_state"):
        raise TypeError(
            "need data to evaluate, got a state: evaluate(metric_fn, state, data)"
        )
    is_read = isinstance(data, Dataset | Source) or hasattr(data, "__array__")
    needed = "need arrays of examples or a dataset of fngrad.data to evaluate, got"
    if all(hasattr(data, part) for part in ("train", "validation", "test")):
        raise TypeError(f"{needed} {type(data).__name__}: pass splits.validation")
    if not is_read and _is_opaque(data):
        made = ways_to_read(data)
        raise TypeError(
            f"{needed} {type(data).__name__}: {made}{'; ' if made else ''}"
            "jax.tree.map(lambda *x: np.concatenate(x), *batches) joins batches"
        )


def _is_opaque(data: Any) -> bool:
    """Return whether a value contains batches instead of arrays in a tree."""
    if isinstance(data, Iterator):
        return True
    is_theirs = callable(getattr(data, "batch", None)) or isinstance(data, Iterable)
    is_leaf = jax.tree_util.all_leaves([data])
    return is_leaf and not isinstance(data, str) and (callable(data) or is_theirs)


def _source_of(data: Any) -> _Source:
    arrays = arrays_of(data)
    if not isinstance(arrays, Dataset):

        def cut(start: jax.Array | int, count: int) -> Batch:
            return jax.tree.map(
                lambda x: lax.dynamic_slice_in_dim(jnp.asarray(x), start, count), arrays
            )

        return _Source(num_examples(arrays), cut)

    dataset = arrays
    for fn in dataset.maps:
        if "key" in parameters(fn):
            raise ValueError(
                "need data without random maps for an evaluation, got a map that "
                f"takes a key: {fn!r}"
            )

    def read(start: jax.Array | int, count: int) -> Batch:
        positions = start + jnp.arange(count, dtype=jnp.int32)
        batch = dataset.read(dataset.arrays, positions)
        for fn in dataset.maps:
            batch = fn(batch)
        return batch

    return _Source(dataset.size, read)


def merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Return the accumulators of the examples of ``a`` and ``b``, in this order."""
    merged = {name: part.merge(b[name]) for name, part in a.items()}
    return tree.cast_like(merged, a)


def _merge_over(
    measure: Callable[[jax.Array], dict[str, Any]], count: int
) -> dict[str, Any]:
    """Merge the measurements at 0, ..., count - 1, in this order.

    What grows is not carried from step to step, which would have to know its last size:
    its rows are the outputs of the loop.
    """

    def step(merged: dict[str, Any], i: jax.Array) -> tuple[Any, Any]:
        new, rows = divided(measure(i))
        both = partial(jnp.where, i == 0)
        return jax.tree.map(both, new, merge(merged, new)), rows

    steps = jnp.arange(count, dtype=jnp.int32)
    blank = tree.zeros_like(divided(jax.eval_shape(measure, steps[0]))[0])
    merged, rows = lax.scan(step, blank, steps)
    return merged | jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def divided(metrics: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the accumulators that keep their size, and those that grow."""
    growing = {name: part for name, part in metrics.items() if grows(part)}
    return {n: part for n, part in metrics.items() if n not in growing}, growing


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return growing accumulators merged, all at once."""
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)


def _accumulators(metrics: Any, count: int) -> dict[str, Accumulator]:
    if not isinstance(metrics, dict):
        raise TypeError(
            f"need a metric_fn that returns a dict, got {kind_of(metrics)}; a loss per "
            'example is one of its values: {"loss": losses}'
        )
    return {name: _accumulator(name, value, count) for name, value in metrics.items()}


def _accumulator(name: str, value: Any, count: int) -> Accumulator:
    if hasattr(value, "merge") and hasattr(value, "value"):
        if isinstance(value, Mean):  # a user's may contain integer counts
            return _pair(name, value.total, value.weight).merge(
                _pair(name, *value.rest)
            )
        return jax.tree.map(_settled, value)
    if isinstance(value, WeightedSum):
        return _pair(name, value.total, value.weight)
    if type(value) is tuple and len(value) == 2:
        return _pair(name, *value)
    values = _strong(name, value)
    if values.shape == ():
        raise ValueError(
            f"need metric {name!r} per example, as a tuple (sum, weight) or as an "
            "accumulator of fngrad.metrics, got a scalar: the last batch may be "
            "smaller, so a mean of the batches' means is not the mean over the "
            "examples. Leave out .mean()"
        )
    if len(values) != count:
        raise ValueError(
            f"need metric {name!r} with a value for each of the {count} examples of "
            f"the batch on its first axis, got shape {values.shape}"
        )
    return _mean(pair_of_sum(values, 0), pair_of(jnp.int32(count)))


def _pair(name: str, total: Any, weight: Any) -> Mean:
    if jnp.shape(weight) not in ((), jnp.shape(total)):
        raise ValueError(
            f"need metric {name!r} as (sum, weight) of one shape, "
            f"got {jnp.shape(total)} and {jnp.shape(weight)}"
        )
    total, weight = (jnp.asarray(_real(name, x)) for x in (total, weight))
    return _mean(pair_of(total), pair_of(weight))


def _mean(total: Pair, weight: Pair) -> Mean:
    dtype = np.promote_types(
        total[0].dtype, weight[0].dtype
    )  # also if promotion is strict
    totals, rest = zip(total, weight, strict=True)
    return jax.tree.map(lambda x: x.astype(dtype), Mean(*totals, rest))


def _settled(x: Any) -> jax.Array:
    """Return an array without a weak type; narrow floats are cast to float32."""
    x = jnp.asarray(x)
    return lax.convert_element_type(x, tree.wide_dtype(x.dtype))


def _strong(name: str, x: Any) -> jax.Array:
    """Return an array of at least float32, without a weak type."""
    x = _real(name, jnp.asarray(x))
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(tree.wide_dtype(x.dtype) if is_float else jnp.float32)


def _real(name: str, x: Any) -> Any:
    if jnp.iscomplexobj(x):
        raise TypeError(
            f"need a real metric {name!r}, got dtype {jnp.result_type(x)}; "
            "its imaginary part would be lost"
        )
    return x
