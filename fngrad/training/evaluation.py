"""Metrics over a data set of any size: exact, in one program.

The examples are read in batches, the last of which may be smaller. The metrics of each
batch are accumulators (`fngrad.metrics`), which are merged, so the result depends on
the batch size only by rounding.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import fngrad.programs.jaxprs as jaxprs
import fngrad.transforms.evaluation_point as evaluation_point
from fngrad.data.sources import Source
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.programs.signatures import check_function, parameters
from fngrad.sharding.constraints import gathered
from fngrad.sharding.meshes import auto_mesh_of
from fngrad.sharding.placement import beside, fetched
from fngrad.sharding.rules import Rule, rule_of
from fngrad.training.metric_folds import (
    accumulated,
    arrays_of,
    divided,
    divisible_batch_size,
    fold,
    joined,
    merge,
    values_of,
)
from fngrad.training.precision import Precision, mixed_precision, policy_of
from fngrad.types import ModelState, Params


@explains_keywords()
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
            examples; or a tuple (sum, weight) or a `fngrad.losses.weighted_sum`, of
            which the quotient of totals is taken; or an accumulator such as
            ``metrics.r2(...)``.
        state_or_params: a `fngrad.TrainState`, evaluated at its `fngrad.eval_params`
            and `fngrad.eval_model_state`, or only the parameters.
        data: a pytree of arrays of shape ``(n, ...)``, which are read whole, those on
            disk with a warning; or a dataset or a source, whose examples are read once
            each, in the order of its arrays and through its maps.
        batch_size: how many examples to evaluate at once, >= 1; at most n are used. If
            the parameters are on a mesh it is rounded up to a multiple of the devices,
            and each computes its part.
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
    point = _point(metric_fn, state_or_params)
    if isinstance(data, Source):
        values = _over_source(metric_fn, point, data, batch_size, precision)
    else:
        rule = rule_of(point[0])
        program, leaves = _program_over(fold, metric_fn, data, precision, rule)
        values = program(*point, beside(point[0], leaves), batch_size)
    if not all(value.is_fully_addressable for value in values.values()):
        values = jax.tree.map(fetched, values)
    values = jax.device_get(values)
    return {
        name: float(value) if np.ndim(value) == 0 else np.asarray(value)
        for name, value in values.items()
    }


def traced(
    metric_fn: Callable[..., dict[str, Any]],
    state_or_params: Any,
    data: Any,
    *,
    batch_size: int = 256,
) -> tuple[jaxprs.Program, dict[str, Any]]:
    """Return the program of `evaluate`, and its metrics' shapes and dtypes.

    The program reads the leaves of parameters, model state and data, in this order.
    """
    if isinstance(data, Source):
        data = data.part(0, min(batch_size, data.size))
    point = _point(metric_fn, state_or_params)
    program, leaves = _program_over(fold, metric_fn, data)

    def measure(point: Any, leaves: Any) -> dict[str, jax.Array]:
        return program(*point, leaves, batch_size)

    made, structure = jaxprs.trace(measure, point, leaves)
    return made, structure.unflatten(made.closed.out_avals)


_merge, _values_of = jax.jit(merge), jax.jit(values_of)


def _over_source(
    metric_fn: Callable[..., dict[str, Any]],
    point: tuple[Params, ModelState],
    source: Source,
    batch_size: int,
    precision: Precision,
) -> dict[str, jax.Array]:
    """Return the metrics over examples that are read on the host, batch by batch."""
    mesh = auto_mesh_of(point[0])
    batch_size = divisible_batch_size(batch_size, mesh)
    if isinstance(mesh, Mesh) and source.mesh is None:
        source = source.on(mesh)
    merged, rows, rule = None, [], rule_of(point[0])
    for start in range(0, source.size, batch_size):
        examples = source.part(start, min(batch_size, source.size - start))
        program, leaves = _program_over(
            accumulated, metric_fn, examples, precision, rule
        )
        part, growing = divided(program(*point, beside(point[0], leaves), batch_size))
        merged = part if merged is None else _merge(merged, part)
        rows.append(growing)
        if source.is_shared:  # to read may mean to ask the other processes
            jax.block_until_ready((merged, growing))
    return _values_of((merged or {}) | joined(rows))


def _point(
    metric_fn: Callable[..., dict[str, Any]], state_or_params: Any
) -> tuple[Params, ModelState]:
    """Return the parameters and the model state at which a function is evaluated."""
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
        model_state = evaluation_point.eval_model_state(params)
        params = evaluation_point.eval_params(params)
    if not is_state and "model_state" in parameters(metric_fn):
        raise TypeError(
            "need a TrainState for a metric_fn that takes model_state, "
            f"got {type(state_or_params).__name__}"
        )
    return params, model_state


def _program_over(
    folded: Callable[..., Any],
    metric_fn: Callable[..., dict[str, Any]],
    data: Any,
    precision: Precision = None,
    rule: Rule | None = None,
) -> tuple[Any, Any]:
    """Return the program of an evaluation, and the data's leaves as it takes them."""
    leaves, structure = jax.tree.flatten(arrays_of(data))
    # A tree of bools in the policy has no hash; its leaves and structure have.
    settings, structure_of_policy = jax.tree.flatten(policy_of(precision))
    policy = tuple(settings), structure_of_policy
    return _program(folded, metric_fn, structure, policy, rule), leaves


@lru_cache(maxsize=8)
def _program(
    folded: Callable[..., Any],
    metric_fn: Callable[..., Any],
    structure: Any,
    policy: tuple[tuple, Any],
    rule: Rule | None,
) -> Any:
    """Return the jitted fold of a function over the leaves of data of one structure.

    The cache is small, so that old metric functions and maps of the data are freed,
    with the arrays that they close over. The data is passed as leaves, since JAX keeps
    the structure of every argument.

    Args:
        metric_fn: see `evaluate`.
        structure: of the data.
        policy: leaves and structure of the precision's policy.
        rule: by which the parameters are placed, if they are on a mesh.
    """
    settings, structure_of_policy = policy
    policy_again = structure_of_policy.unflatten(settings)
    measured = mixed_precision(gathered(metric_fn, rule), policy_again)

    def program(params: Any, model_state: Any, leaves: Any, batch_size: int) -> Any:
        arrays = jax.tree.unflatten(structure, leaves)
        return folded(measured, params, model_state, arrays, batch_size)

    return jax.jit(program, static_argnums=3)
