"""What `fngrad.summary` shows: of a model, of parameters, of a training step."""

from collections.abc import Callable
from typing import Any, NamedTuple, overload

import jax

import fngrad.layers.summaries as layers
import fngrad.programs.text_tables as text_tables
from fngrad.data.dataset import Dataset
from fngrad.layers.core import Layer, StatefulLayer
from fngrad.programs.compiled_memory import Memory, memory_of
from fngrad.programs.jaxprs import Program
from fngrad.programs.operation_counts import Costs, costs_of
from fngrad.programs.printed import preformatted, shown
from fngrad.training.run_checks import call_step, check_order
from fngrad.training.state import TrainState
from fngrad.training.step import Step
from fngrad.types import Batch


class StepSummary(NamedTuple):
    """What one call of a step takes; see `fngrad.summary`."""

    costs: Costs  # operations, of all devices together
    memory: Memory | None  # bytes on each device; None if the backend reports none
    devices: int  # on which the program runs

    def __repr__(self) -> str:
        return shown(self, lambda it: "StepSummary\n" + text_tables.table(it.rows()))

    def _repr_html_(self) -> str:
        return preformatted(repr(self))

    def rows(self) -> list[list[str]]:
        """Return the cells of a table: what, a number, a remark."""
        where = f"on {self.devices} devices together" if self.devices > 1 else ""
        products = f"{self.costs.products:,} in products"
        rows = [["FLOPs", f"{self.costs.flops:,}", f"{products} {where}".strip()]]
        if self.costs.uncounted:
            rows.append(["  uncounted", str(self.costs.uncounted)])
        return rows + (self.memory.rows() if self.memory else [])


@overload
def summary(model: Step, example: TrainState, batch: Batch = None) -> StepSummary: ...


@overload
def summary(model: Any, example: Any = None) -> str: ...


def summary(model: Any, example: Any = None, batch: Batch = None) -> str | StepSummary:
    r"""Return what a model or a step costs, or a table of the leaves of parameters.

    A layer has one line for itself and one for each layer inside of it: the shape of
    its output, its parameters, their bytes and share, and the FLOPs of the forward pass
    of one example, counted as `costs` does. Inside a `repeat` parameters and FLOPs are
    those of all its passes. Only shapes are read; the model runs without a key.

    ``summary(step, state, batch)`` compiles a step, with the state donated, as
    `fngrad.fit` does, and does not run it. Its FLOPs are those of `costs`: XLA counts
    the body of a loop once. Its memory is that of the compiled program on each device:
    arguments, outputs, temporaries, and which outputs are in the memory of the donated
    state. On a mesh, state and batch must be there, as `fngrad.sharding.shard_state`
    and `fngrad.sharding.shard_batch` place them. For a whole run, see `fngrad.dry_run`.

    Args:
        model: a layer or a stateful layer; or parameters, any tree of arrays or
            ShapeDtypeStructs; or a step.
        example: what the layer takes, without a batch axis; or the state that the step
            takes: arrays or ShapeDtypeStructs.
        batch: what the step takes, likewise. For a step alone.

    Returns:
        A table, as text; of a step a StepSummary, with ``costs``, ``memory`` and the
        number of ``devices``.

    Raises:
        TypeError: if a layer comes without an example, or parameters with one; if what
            comes with a state is not a step, or what comes with a batch has no state.
        ValueError: if there are no parameters to list; or from the layer, with its path
            in front, if the example does not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> model = fg.models.mlp((4, 3, 1))
        >>> print(fg.summary(model, jnp.ones(4)))
        layer              output  parameters  bytes    share  FLOPs
        serial             (1,)            19     76  100.0 %     37
          layers/0 linear  (3,)            15     60   78.9 %     27
          entry 1 relu     (3,)             0      0    0.0 %      3
          layers/1 linear  (1,)             4     16   21.1 %      7
        total              19 parameters, 76 bytes, 37 FLOPs forward
        >>> params = model.init(jax.random.key(0))
        >>> print(fg.summary(params["layers"][0]))
        leaf    shape   dtype    count  bytes   share
        bias    (3,)    float32      3     12  20.0 %
        weight  (4, 3)  float32     12     48  80.0 %
        total   15 parameters, 60 bytes

        Of a step:

        >>> def loss_fn(params, x):
        ...     return jnp.mean(jax.vmap(model.apply, (None, 0))(params, x) ** 2)
        >>> optimizer = fg.adam(1e-3)
        >>> step = fg.make_step(loss_fn, optimizer)
        >>> state = fg.init_state(params, optimizer, key=0)
        >>> found = fg.summary(step, state, jnp.ones((8, 4)))
        >>> found.costs.products, found.memory.aliased  # Adam: three times 76 bytes
        (528, 248)
    """
    if isinstance(example, TrainState):
        return _of_step(model, example, batch)
    if batch is not None:
        raise TypeError(
            f"need a TrainState between the step and the batch, got "
            f"{type(example).__name__}: fngrad.summary(step, state, batch)"
        )
    if isinstance(model, Layer | StatefulLayer):
        return layers.layer_table(model, example)
    if example is not None:
        raise TypeError(
            f"need a layer where there is an example, got {type(model).__name__}; "
            "fngrad.summary(params) takes parameters alone"
        )
    if callable(model) or hasattr(model, "init"):
        raise TypeError(f"need a layer or parameters, got {type(model).__name__}")
    return layers.leaf_table(model)


def _of_step(step: Any, state: TrainState, batch: Batch) -> StepSummary:
    check_order(step, batch)
    if isinstance(batch, Dataset):
        raise TypeError(
            "need a batch for the summary of a step, got a dataset: "
            "fngrad.summary(step, state, data.batch(0))"
        )
    made: list[Any] = []

    def call(state: TrainState, batch: Batch) -> Any:
        program: Callable[..., Any] = jax.jit(step, donate_argnums=0)
        made.append(program.trace(state, batch))
        return made[0].out_info

    call_step(step, state, batch, call)
    (traced,) = made
    compiled = traced.lower().compile()
    shardings = jax.tree.leaves(compiled.input_shardings)
    devices = set().union(*(sharding.device_set for sharding in shardings))
    counted = costs_of(Program(traced.jaxpr))
    return StepSummary(counted, memory_of(compiled), len(devices))
