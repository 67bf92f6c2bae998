"""The work of a step on each device: its FLOPs and the bytes from and to memory."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

import fngrad.programs.equations as equations
import fngrad.programs.jaxprs as jaxprs
from fngrad.accelerators.exported_steps import PlacedStep
from fngrad.programs.operation_counts import Costs, product_bytes_of
from fngrad.sharding.meshes import batch_devices
from fngrad.training.state import TrainState
from fngrad.training.step import Step
from fngrad.types import Batch


class Work(NamedTuple):
    """What one call of a step asks of each device."""

    flops: float  # of matrix products and convolutions
    bytes: float  # from and to its memory


def work_of(
    placed: PlacedStep, total: Costs, step: Step, state: TrainState, batch: Batch
) -> Work:
    """Return the work of each device.

    The products are divided among all devices. The bytes are those of the state, twice,
    as it is kept on a device, and of the products: of the step on the device's part of
    the batch, since each device reads whole parameters for it, divided among the other
    axes of the mesh. What is fused with the products takes none.

    Args:
        placed: the step on the mesh.
        total: its costs, on all devices together.
        step, state, batch: what it is made of, abstract.
    """
    devices, parts = placed.mesh.size, batch_devices(placed.mesh)
    product_bytes = product_bytes_of(placed.jaxpr)
    if parts > 1:
        product_bytes = _bytes_of_part(step, state, batch, parts) or product_bytes
    kept = sum(bytes_on_device(x) for x in placed.state.values())
    given = sum(bytes_on_device(x) for x in placed.batch.values())
    others = devices // parts
    return Work(total.products / devices, product_bytes / others + 2 * kept + given)


def bytes_on_device(x: Any) -> int:
    """Return the bytes of an abstract array with a sharding, on each device."""
    shape = x.sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize


def has_wide_products(placed: PlacedStep) -> bool:
    """Return whether most matrix products of a step read float32."""
    widths = list(_widths(placed.jaxpr.closed))
    return sum(width > 2 for width in widths) > len(widths) / 2


def _widths(jaxpr: Any) -> Iterator[int]:
    """Yield the bytes of a number that each product reads."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield max(v.aval.dtype.itemsize for v in equation.invars[:2])
        for inner in equations.inner_jaxprs(equation):
            yield from _widths(inner)


def _bytes_of_part(
    step: Step, state: TrainState, batch: Batch, parts: int
) -> int | None:
    """Return the bytes of the products of a step on a part of the batch.

    It is None if the step takes no smaller batch, as where micro-batches divide it.
    """

    def part(x: Any) -> Any:
        if not x.shape or x.shape[0] % parts:
            return x
        return jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]), x.dtype)

    smaller = jax.tree.map(part, batch)
    try:
        program, _ = jaxprs.trace(step, state, smaller)
    except Exception:  # its own, whatever it is
        return None
    return product_bytes_of(program)
