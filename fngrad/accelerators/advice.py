"""What to change in a step that does not fit, or that something other bounds."""

from collections.abc import Iterator

import fngrad.sharding as sharding
from fngrad.accelerators.preflight_report import SHORT, Change, Preflight
from fngrad.programs.units import size_text
from fngrad.transforms.quantize import quantize_state

MICRO_BATCHES = 4


def smaller_batch(it: Preflight) -> Change:
    """Half of the examples in a batch."""
    size = max((it.examples or 2) // 2, 1)
    why = f"half of the activations: {size} examples"
    return Change("smaller batch", why, "batch_size", size)


def larger_batch(it: Preflight) -> Change:
    """Twice the examples in a batch."""
    size = 2 * (it.examples or 1)
    why = f"parameters are read and sent once for {size} examples"
    return Change("larger batch", why, "batch_size", size)


def micro_batches(it: Preflight) -> Change:
    """The batch in parts, one after the other."""
    why = f"the activations of a {MICRO_BATCHES}th of the batch at once"
    what = f"make_step(micro_batches={MICRO_BATCHES})"
    return Change("micro-batches", f"{why}: {what}", "micro_batches", MICRO_BATCHES)


def remat(it: Preflight) -> Change:
    """Activations computed again in the backward pass."""
    why = "activations are computed again instead of kept: layers.repeat(remat=True)"
    return Change("remat", why, "remat", True)


def bfloat16(it: Preflight) -> Change:
    """The loss in bfloat16."""
    gathered = ", and of what is gathered" if it.devices > 1 else ""
    why = f'half of the bytes of activations{gathered}: make_step(precision="bfloat16")'
    return Change("bfloat16", why, "precision", "bfloat16")


def moments_in_8_bits(it: Preflight) -> Change:
    """The optimizer's moments as codes."""
    kept = size_text(it.state.optimizer_bytes)
    why = f"the optimizer keeps {kept}: fngrad.quantize_state(optimizer)"
    return Change("8-bit moments", why, "wrap", quantize_state)


def fully_sharded(it: Preflight) -> Change:
    """The state split over the devices of the batch."""
    why = f"each device keeps a part of the {size_text(it.state.bytes)} of the state"
    what = "make_step(rule=fngrad.sharding.fsdp())"
    return Change("FSDP", f"{why}: {what}", "rule", sharding.fsdp())


def steps_per_start(it: Preflight) -> Change:
    """Many steps in one program."""
    why = 'steps are shorter than the start of a program: fit(loop="scan")'
    return Change("one program for many steps", why, "", None)


def more_devices(it: Preflight) -> Change:
    """A larger target."""
    why = "more devices with FSDP, each of which keeps a part of the state"
    return Change("larger target", why, "", None)


def all_changes(it: Preflight) -> list[Change]:
    """Return every change that may help somewhere, with what it would do here."""
    found = [smaller_batch, larger_batch, micro_batches, remat, bfloat16]
    changes = [change(it) for change in [*found, moments_in_8_bits]]
    return [*changes, fully_sharded(it)] if it.devices > 1 else changes


def advised(it: Preflight, *, has_rule: bool, is_wide: bool) -> list[Change]:
    """Return the changes that would help, the least invasive ones first.

    Args:
        it: what was found.
        has_rule: whether the step was made with a rule.
        is_wide: whether most of its products read float32.
    """
    if it.verdict == "does not fit":
        return [*_for_memory(it, has_rule=has_rule, is_wide=is_wide)]
    return [*_for_placement(it), *_for_speed(it, has_rule=has_rule, is_wide=is_wide)]


def _for_memory(it: Preflight, *, has_rule: bool, is_wide: bool) -> Iterator[Change]:
    assert it.chip is not None
    is_full_of_state = it.arguments > it.chip.memory / 2
    if is_full_of_state:
        if it.devices > 1 and not has_rule:
            yield fully_sharded(it)
        if it.state.optimizer_bytes > it.state.params_bytes / 2:
            yield moments_in_8_bits(it)
        if it.devices == 1 or has_rule:
            yield more_devices(it)
    if not is_full_of_state or (it.needed or 0) > 2 * it.arguments:
        if is_wide:
            yield bfloat16(it)
        yield from (remat(it), micro_batches(it), smaller_batch(it))


def _for_placement(it: Preflight) -> Iterator[Change]:
    if it.state.splits_nothing:
        why = "the rule splits no parameter: fsdp(min_size=) says from which size on"
        yield Change("smaller min_size", why, "", None)
    if it.state.moved and it.devices > 1:
        why = "the next call compiles again: make_step(rule=) keeps the state in place"
        yield Change("rule", why, "", None)


def _for_speed(it: Preflight, *, has_rule: bool, is_wide: bool) -> Iterator[Change]:
    if it.times and it.times.overlapped < SHORT:
        yield steps_per_start(it)
    if it.times is None or it.times.bound == "compute":
        return
    if is_wide and (it.times.bound == "memory" or has_rule):
        yield bfloat16(it)
    if it.chip and it.needed is not None and it.needed < it.chip.memory / 2:
        yield larger_batch(it)
