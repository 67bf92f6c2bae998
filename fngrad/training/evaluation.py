"""Metrics over a data set of any size: exact, in one program.

The examples are read in batches, the last of which may be smaller. The metrics of each
batch are accumulators (`fngrad.metrics`), which are merged, so the result depends on
the batch size only by rounding.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
import fngrad.numerics.array_inputs as array_inputs
import fngrad.transforms.evaluation_point as evaluation_point
import fngrad.tree as tree
from fngrad.data.dataset import Dataset, num_examples, take
from fngrad.metrics import Accumulator, Mean
from fngrad.metrics.sums import Pair, pair_of, pair_of_sum
from fngrad.programs.signatures import bind, check_function, kind_of, parameters
from fngrad.training.precision import Precision, mixed_precision, policy_of
from fngrad.types import Batch, ModelState, Params

_FORMS = "need metric_fn(params, batch) or metric_fn(params, batch, model_state)"


class _Source(NamedTuple):
    """Examples that can be read by position."""

    size: int
    read: Callable[[jax.Array | int, int], Batch]  # (start, count) -> batch


def evaluate(
    metric_fn: Callable[..., dict[str, Any]],
    state_or_params: Any,
    data: Any,
    *,
    batch_size: int = 256,
    precision: Precision = None,
) -> dict[str, float | np.ndarray]:
    """Return the metrics of a model over a data set.

    The program is compiled once per ``metric_fn``, batch size and shapes; a function
    that is defined again counts as another function.

    Args:
        metric_fn: ``metric_fn(params, batch)``, or with an argument named
            ``model_state``. It returns a dict whose values are: an array with a value
            per example, shape ``(examples, ...)``, which is averaged over the
            examples; or a tuple (sum, weight), of which the quotient of totals is
            taken; or an accumulator such as ``metrics.r2(...)``.
        state_or_params: a `fngrad.TrainState`, evaluated at its `fngrad.eval_params`,
            or only the parameters.
        data: a pytree of arrays of shape ``(n, ...)``, or a dataset, whose examples
            are read once each, in the order of its arrays and through its maps.
        batch_size: how many examples to evaluate at once, >= 1; at most n are used.
        precision: in which dtype ``metric_fn`` computes, see `fngrad.mixed_precision`.

    Returns:
        A float per scalar metric, a NumPy array for the others.

    Raises:
        TypeError: if ``metric_fn`` is not a function, takes other arguments, takes a
            model state where there is none, or does not return a dict, or the precision
            has another type.
        ValueError: if there are no examples, leaves have different numbers of
            examples, the batch size is not an int >= 1, a map takes a key, the
            precision is unknown, or a metric cannot be accumulated: a bare scalar, or
            an array whose first axis is not the batch's.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> from fngrad.training.evaluation import evaluate
        >>> def metric_fn(params, batch):
        ...     return {"error": (params * batch["x"] - batch["y"]) ** 2}
        >>> data = {"x": jnp.arange(3.0), "y": jnp.array([0.0, 2.0, 7.0])}
        >>> evaluate(metric_fn, jnp.array(2.0), data, batch_size=2)
        {'error': 3.0}
    """
    program, *arguments = _prepared(metric_fn, state_or_params, data, precision)
    values = jax.device_get(program(*arguments, batch_size))
    return {
        name: float(value) if np.ndim(value) == 0 else np.asarray(value)
        for name, value in values.items()
    }


def shapes(
    metric_fn: Callable[..., dict[str, Any]],
    state_or_params: Any,
    data: Any,
    *,
    batch_size: int = 256,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of the metrics of `evaluate`, by tracing."""
    program, *arguments = _prepared(metric_fn, state_or_params, data)
    return program.eval_shape(*arguments, batch_size)


def _prepared(
    metric_fn: Callable[..., dict[str, Any]],
    state_or_params: Any,
    data: Any,
    precision: Precision = None,
) -> tuple[Any, Params, ModelState, Any]:
    """Return the program of an evaluation, and its arguments but the batch size."""
    if callable(state_or_params) and not callable(metric_fn):
        raise TypeError(
            f"need a function, got {type(metric_fn).__name__}: "
            "evaluate(metric_fn, state, data)"
        )
    check_function(metric_fn)
    if hasattr(state_or_params, "state") and hasattr(state_or_params, "history"):
        raise TypeError(
            f"need a TrainState or parameters, got {type(state_or_params).__name__}: "
            "pass result.state"
        )
    params, model_state = state_or_params, ()
    is_state = hasattr(params, "params") and hasattr(params, "model_state")
    if is_state:
        model_state = params.model_state
        params = evaluation_point.eval_params(params)
    if not is_state and "model_state" in parameters(metric_fn):
        raise TypeError(
            "need a TrainState for a metric_fn that takes model_state, "
            f"got {type(state_or_params).__name__}"
        )
    leaves, structure = jax.tree.flatten(arrays_of(data))
    # A tree of bools in the policy has no hash; its leaves and structure have.
    settings, structure_of_policy = jax.tree.flatten(policy_of(precision))
    policy = tuple(settings), structure_of_policy
    return _program(metric_fn, structure, policy), params, model_state, leaves


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
        batch_size: how many examples to evaluate at once, >= 1.

    Raises:
        TypeError: as for `evaluate`.
        ValueError: as for `evaluate`.
    """
    check_function(metric_fn)
    batch_size = numerics.check_count("batch_size", batch_size, 1)
    call = bind(metric_fn, ("model_state",), _FORMS)
    source = _source_of(arrays)
    full, rest = divmod(source.size, batch_size)

    def measure(start: jax.Array | int, count: int) -> dict[str, Accumulator]:
        metrics = call(params, source.read(start, count), model_state=model_state)
        return _accumulators(metrics, count)

    parts = []
    if full:
        parts.append(_merge_over(lambda i: measure(i * batch_size, batch_size), full))
    if rest:
        parts.append(measure(full * batch_size, rest))
    merged = parts[0] if len(parts) == 1 else _merge(*parts)
    return {name: part.value() for name, part in merged.items()}


def arrays_of(data: Any) -> Any:
    """Return a dataset or a pytree of arrays in the form that `fold` reads.

    Raises:
        TypeError: if a leaf contains neither numbers nor bools.
        ValueError: if there are no examples, leaves have different numbers of them, or
            `fngrad.numerics.array_inputs.array` refuses a leaf.
    """
    if isinstance(data, Dataset):
        is_plain = data.read is take and not data.maps
        return data.arrays if is_plain else data
    check_examples(data)
    num_examples(data)
    return tree.map_with_path(array_inputs.array, data)


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
    is_read = isinstance(data, Dataset) or hasattr(data, "__array__")
    needed = "need arrays of examples or a dataset of fngrad.data to evaluate, got"
    if all(hasattr(data, part) for part in ("train", "validation", "test")):
        raise TypeError(f"{needed} {type(data).__name__}: pass splits.validation")
    if not is_read and _is_opaque(data):
        raise TypeError(
            f"{needed} {type(data).__name__}: join separate batches by "
            "jax.tree.map(lambda *x: np.concatenate(x), *batches)"
        )


def _is_opaque(data: Any) -> bool:
    """Return whether a value contains batches instead of arrays in a tree."""
    if isinstance(data, Iterator):
        return True
    is_theirs = callable(getattr(data, "batch", None)) or isinstance(data, Iterable)
    is_leaf = jax.tree_util.all_leaves([data])
    return is_leaf and not isinstance(data, str) and (callable(data) or is_theirs)


@lru_cache(maxsize=8)
def _program(
    metric_fn: Callable[..., Any], structure: Any, policy: tuple[tuple, Any]
) -> Any:
    """Return the jitted fold of a function over the leaves of data of one structure.

    The cache is small, so that old metric functions and maps of the data are freed,
    with the arrays that they close over. The data is passed as leaves, since JAX keeps
    the structure of every argument.

    Args:
        metric_fn: see `evaluate`.
        structure: of the data.
        policy: leaves and structure of the precision's policy.
    """
    settings, structure_of_policy = policy
    measured = mixed_precision(metric_fn, structure_of_policy.unflatten(settings))

    def folded(params: Any, model_state: Any, leaves: Any, batch_size: int) -> Any:
        arrays = jax.tree.unflatten(structure, leaves)
        return fold(measured, params, model_state, arrays, batch_size)

    return jax.jit(folded, static_argnums=3)


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


def _merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    merged = {name: part.merge(b[name]) for name, part in a.items()}
    return tree.cast_like(merged, a)


def _merge_over(
    measure: Callable[[jax.Array], dict[str, Any]], count: int
) -> dict[str, Any]:
    """Merge the measurements at 0, ..., count - 1, in this order."""

    def step(merged: dict[str, Any], i: jax.Array) -> tuple[dict[str, Any], None]:
        new = measure(i)
        both = partial(jnp.where, i == 0)
        return jax.tree.map(both, new, _merge(merged, new)), None

    steps = jnp.arange(count, dtype=jnp.int32)
    blank = tree.zeros_like(jax.eval_shape(measure, steps[0]))
    merged, _ = lax.scan(step, blank, steps)
    return merged


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
    if type(value) is tuple and len(value) == 2:
        return _pair(name, *value)
    values = _strong(name, value)
    if values.shape == ():
        raise ValueError(
            f"need metric {name!r} per example, as a tuple (sum, weight) or as an "
            "accumulator of fngrad.metrics, got a scalar: the last batch is smaller, "
            "so a mean of the batches' means is not the mean over the examples"
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
    dtype = jnp.promote_types(total[0].dtype, weight[0].dtype)
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
