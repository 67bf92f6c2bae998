"""Compile a training step for a TPU that is not here; say what it takes.

The step is traced here and compiled in a process of its own, since libtpu may crash or
hang, and may not be loaded beside a TPU in use. `exported_steps` says how a step gets
there, `compile_worker` what is done there.
"""

import math
from collections.abc import Mapping

from fngrad.accelerators.advice import advised
from fngrad.accelerators.collectives import traffic_of
from fngrad.accelerators.compiled_elsewhere import (
    Compiled,
    compiled_elsewhere,
    refused,
)
from fngrad.accelerators.exported_steps import (
    PlacedStep,
    abstract,
    placed_step,
    why_not_exported,
)
from fngrad.accelerators.preflight_report import Preflight, Verdict
from fngrad.accelerators.roofline import times_on
from fngrad.accelerators.state_placement import placement_after, placement_before
from fngrad.accelerators.step_work import bytes_on_device, has_wide_products, work_of
from fngrad.accelerators.targets import (
    Target,
    check_installed_libtpu,
    parsed_target,
)
from fngrad.data.dataset import batch_size_of
from fngrad.programs.operation_counts import costs_of
from fngrad.sharding.meshes import BATCH_AXIS
from fngrad.training.state import TrainState
from fngrad.training.step import Step
from fngrad.types import Batch

TIME_LIMIT = 1800.0  # seconds


def preflight(
    step: Step,
    state: TrainState,
    batch: Batch,
    target: str = "v5e:1x1",
    *,
    axes: Mapping[str, int] | None = None,
    time_limit: float = TIME_LIMIT,
) -> Preflight:
    r"""Say whether a step compiles for a TPU, what it takes there and what bounds it.

    No TPU is needed, and nothing is run: the step is compiled by libtpu, in a process
    of its own. State and batch are placed as `fngrad.fit` places them with ``mesh=``,
    by the rule that the step was made with, and the state is donated.

    The memory on each device is the larger of the compiler's two estimates. The times
    are those of a roofline at the chip's published peaks, each part alone: FLOPs of
    products over the peak in bfloat16, bytes of the state and of the operands and
    results of products over the bandwidth of the memory, and what a device sends over
    the bandwidth of its links, all of them used. A real step takes longer: small
    products fill a part of the chip, and collectives use a part of the links.

    Args:
        step: a function ``(state, batch) -> (state, metrics)``.
        state: a TrainState of arrays, or of ShapeDtypeStructs, as `jax.eval_shape`
            makes them: nothing of the model's size has to exist.
        batch: one batch, likewise, of all devices together.
        target: a TPU and its chips along each axis of its torus: ``v5e:1x1`` (as on
            Colab), ``v5e:2x4`` to ``v5e:16x16``, ``v6e:...``, ``v4:2x2x1``,
            ``v5p:2x2x1``, ``tpu7x:2x2x1``. For ``cuda`` and ``cpu`` the step is lowered
            and not compiled: it says whether such a program exists, FLOPs and bytes.
        axes: sizes of the mesh by name; one may be -1. By default all devices are on
            ``data``, over which the batch is split.
        time_limit: seconds after which the compiler is stopped.

    Returns:
        Preflight, which prints as a table: ``verdict``, ``fits``, the compiler's
        ``reason`` if it does not, ``memory``, ``needed`` bytes, ``costs``, ``traffic``
        between the devices, ``times`` and ``utilization``, whether the ``state`` is
        donated, stays where it is, and is split, and ``changes`` that would help.

    Raises:
        TypeError: if the step, the state, the target or the axes are something else.
        ValueError: if there is no such target, the axes do not multiply to its devices,
            or the devices do not divide the batch.
        ImportError: if libtpu is missing, or is not the version that JAX pins; the
            message has the pip command.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> model, optimizer = fg.models.mlp((64, 32, 10)), fg.adam(1e-3)
        >>> def loss_fn(params, x):
        ...     return jnp.mean(fg.layers.batched(model)(params, x) ** 2)
        >>> step = fg.make_step(loss_fn, optimizer)
        >>> def make():
        ...     return fg.init_state(model.init(jax.random.key(0)), optimizer, key=0)
        >>> state = jax.eval_shape(make)
        >>> x = jax.ShapeDtypeStruct((128, 64), jnp.float32)
        >>> found = fg.preflight(step, state, x, "cuda")  # or, with libtpu, "v5e:1x1"
        >>> found.verdict, found.costs.products
        ('lowers', 1294336)

    References:
        https://docs.jax.dev/en/latest/aot.html, https://docs.jax.dev/en/latest/export/.
    """
    found = parsed_target(target)
    if found.platform == "tpu":
        check_installed_libtpu()
    sizes = mesh_axes(axes, found)
    placed = placed_step(step, state, batch, sizes)
    if found.platform == "tpu":
        compiled = compiled_elsewhere(placed, found, time_limit)
    else:
        compiled = _lowered(placed, found)
    return _report(found, placed, compiled, step, abstract(state), abstract(batch))


def mesh_axes(axes: Mapping[str, int] | None, target: Target) -> dict[str, int]:
    """Return the axes of the mesh of a target, with all sizes.

    Raises:
        TypeError: if they are not sizes by name.
        ValueError: if they do not multiply to the devices of the target.
    """
    sizes = {BATCH_AXIS: -1} if axes is None else axes
    if not isinstance(sizes, Mapping) or not sizes:
        raise TypeError(f'need axes by name, such as {{"data": 8}}, got {axes!r}')
    for name, size in sizes.items():
        is_int = isinstance(size, int) and not isinstance(size, bool)
        if not is_int or (size < 1 and size != -1):
            raise TypeError(f"need an int >= 1 or -1 as axis {name!r}, got {size!r}")
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    devices = target.devices or known
    if len(free) > 1 or known * (devices // known if free else 1) != devices:
        raise ValueError(
            f"need axes whose sizes multiply to the {devices} devices of "
            f"{target.name}, got {dict(sizes)}"
        )
    return {name: devices // known if name in free else n for name, n in sizes.items()}


def _lowered(placed: PlacedStep, target: Target) -> Compiled:
    """Return that a step has a program of a platform, or why it has none."""
    try:
        placed.exported(target.platform)
    except Exception as error:  # JAX has several types for what it cannot export
        return refused(why_not_exported(placed, error))
    return refused("")


def _verdict(target: Target, compiled: Compiled) -> Verdict:
    if compiled.is_unanswered:
        return "no answer"
    if compiled.is_too_large:
        return "does not fit"
    if compiled.refusal:
        return "does not compile"
    if target.chip is None:
        return "lowers"
    is_enough = (compiled.needed or 0) <= target.chip.memory
    return "fits" if is_enough else "does not fit"


def _report(
    target: Target,
    placed: PlacedStep,
    compiled: Compiled,
    step: Step,
    state: TrainState,
    batch: Batch,
) -> Preflight:
    placement, traffic = placement_before(placed), None
    if compiled.program:
        placement = placement_after(placement, placed, compiled.stays, compiled.program)
        traffic = traffic_of(compiled.program, placed.mesh.size)
    total = costs_of(placed.jaxpr)
    given = [*placed.state.values(), *placed.batch.values()]
    report = Preflight(
        target=target.name,
        axes=dict(placed.mesh.shape),
        verdict=_verdict(target, compiled),
        reason=compiled.refusal,
        chip=target.chip,
        memory=compiled.memory,
        peak=compiled.peak,
        needed=compiled.needed,
        arguments=sum(map(bytes_on_device, given)),
        costs=total,
        examples=batch_size_of(batch),
        traffic=traffic,
        times=None,
        state=placement,
        changes=[],
        compile_seconds=compiled.seconds,
    )
    if target.chip and traffic:
        work = work_of(placed, total, step, state, batch)
        times = times_on(target.chip, work.flops, work.bytes, traffic.bytes)
        report = report._replace(times=times)
    has_rule = placed.rule is not None
    changes = advised(report, has_rule=has_rule, is_wide=has_wide_products(placed))
    return report._replace(changes=changes)
