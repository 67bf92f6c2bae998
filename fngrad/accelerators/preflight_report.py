"""What a preflight found, as numbers, as text and as HTML."""

import math
from typing import Any, Literal, NamedTuple

import fngrad.programs.text_tables as text_tables
from fngrad.accelerators.chips import Chip
from fngrad.accelerators.collectives import Traffic
from fngrad.accelerators.roofline import Times
from fngrad.accelerators.state_placement import StatePlacement
from fngrad.programs.compiled_memory import Memory
from fngrad.programs.operation_counts import Costs
from fngrad.programs.printed import preformatted, shown
from fngrad.programs.units import seconds_text, size_text

Verdict = Literal["fits", "does not fit", "does not compile", "no answer", "lowers"]
MOST_PATHS = 3  # in a line
SHORT = 1e-4  # seconds of a step beside which starting its program takes long
_DERIVED = ("devices", "fits", "utilization")


class Change(NamedTuple):
    """A change that would help."""

    what: str  # such as "micro-batches"
    why: str
    argument: str  # of ``make``, by which it is made; empty if none makes it
    value: Any  # of the argument


class Preflight(NamedTuple):
    """What a step would take on a target; see `fngrad.preflight`."""

    target: str
    axes: dict[str, int]  # of the mesh
    # "no answer": the compiler crashed or hung; "lowers": nothing compiles here for it
    verdict: Verdict
    reason: str  # why not, in the compiler's words; else empty
    chip: Chip | None
    memory: Memory | None  # on each device, as the compiler planned it
    peak: int | None  # bytes at once: the compiler's other estimate
    needed: int | None  # bytes on each device: the larger estimate, or the refusal's
    arguments: int  # bytes of the state and the batch on each device
    costs: Costs  # of one step, on all devices together
    examples: int | None  # in a batch; None if its arrays have no common first axis
    traffic: Traffic | None  # what the devices exchange
    times: Times | None  # of one step
    state: StatePlacement
    changes: list[Change]  # what would help
    compile_seconds: float | None

    @property
    def devices(self) -> int:
        """On how many devices of JAX it runs."""
        return math.prod(self.axes.values())

    @property
    def fits(self) -> bool | None:
        """Whether it compiles and its memory is enough; None if that is not known."""
        is_known = self.verdict not in ("lowers", "no answer")
        return self.verdict == "fits" if is_known else None

    @property
    def utilization(self) -> float | None:
        """The share of the peak FLOPs, if everything overlaps; None without times."""
        return self.times and self.times.utilization

    def as_json(self) -> dict[str, Any]:
        """Return the fields, the properties too, in types that JSON has."""
        changes = [{"what": x.what, "why": x.why} for x in self.changes]
        derived = {name: getattr(self, name) for name in _DERIVED}
        times = self.times and self.times._asdict() | {
            "overlapped": self.times.overlapped,
            "apart": self.times.apart,
            "bound": self.times.bound,
        }
        return self._asdict() | derived | {"changes": changes, "times": times}

    def __repr__(self) -> str:
        return shown(self, text_of)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


def text_of(it: Preflight) -> str:
    """Return the verdict, a table, and what would help."""
    mesh = ", ".join(f"{name}={size}" for name, size in it.axes.items())
    where = f"{it.target} ({mesh})" if it.devices > 1 else it.target
    lines = [f"Preflight for {where}: {it.verdict}"]
    if it.reason:
        lines += [f"  {line}" for line in it.reason.splitlines()]
    rows = [*_memory(it), *_work(it), *_times(it), *_state(it.state, it.devices)]
    lines.append(text_tables.table(rows))
    if it.changes:
        lines.append("what would help")
        rows = [[f"  {change.what}", change.why] for change in it.changes]
        lines.append(text_tables.table(rows))
    return "\n".join(lines)


def _memory(it: Preflight) -> list[list[str]]:
    each = " on each device" if it.devices > 1 else ""
    if it.needed is None:
        what = f"of arguments alone{each}"
        return [["memory", size_text(it.arguments), what]]
    share = ""
    if it.chip:
        percent = 100 * it.needed / it.chip.memory
        share = f"of {size_text(it.chip.memory)}{each}, {percent:.3g} %"
    rows = [["memory", size_text(it.needed), share]]
    if it.memory is None:
        return [*rows, ["  arguments", size_text(it.arguments), "state and batch"]]
    remarks = {"aliased": "of the outputs, in donated memory"}
    for name, value in it.memory._asdict().items():
        rows.append([f"  {name}", size_text(value), remarks.get(name, "")])
    if it.peak:
        rows.append(["  peak", size_text(it.peak), "the compiler's other estimate"])
    return rows


def _work(it: Preflight) -> list[list[str]]:
    share = 100 * it.costs.products / max(it.costs.flops, 1)
    together = "on all devices together, " if it.devices > 1 else ""
    what = f"{together}{share:.0f} % in matrix products"
    rows = [["FLOPs", f"{it.costs.flops:.3g}", what]]
    if it.costs.uncounted:
        rows.append(["  uncounted", "", str(it.costs.uncounted)])
    if it.traffic is None:
        return rows
    for kind, each in it.traffic.collectives.items():
        rows.append([kind, size_text(each.bytes), f"sent by each, {each.count} times"])
    if it.traffic.unknown_loops:
        rows.append(["  uncounted", "", "loops of unknown length, taken once"])
    return rows


def _times(it: Preflight) -> list[list[str]]:
    if it.times is None:
        return []
    times = it.times
    rate = f", {it.examples / times.overlapped:.3g} examples/s" if it.examples else ""
    overlap = f"if all overlap{rate}; {seconds_text(times.apart)} if nothing does"
    rows = [["step", seconds_text(times.overlapped), overlap]]
    for name, value in times._asdict().items():
        if name == "network" and it.devices == 1:
            continue
        is_bound = "what bounds it" if name == times.bound else ""
        rows.append([f"  {name}", seconds_text(value), is_bound])
    if times.overlapped < SHORT:
        rows.append(["  start", "", "of a program: tens of microseconds more"])
    used = f"{100 * times.utilization:.3g} %"
    return [*rows, ["utilization", used, "of the peak FLOPs, at most"]]


def _state(state: StatePlacement, devices: int) -> list[list[str]]:
    each = "on each device, " if devices > 1 else ""
    parts = f"{size_text(state.params_bytes)} of them parameters"
    rows = [["state", size_text(state.bytes), f"{each}{parts}"]]
    if state.copied is not None:
        copied = f"not wholly: {_paths(state.copied)}" if state.copied else "wholly"
        rows.append(["  donated", "", copied])
    if state.moved is not None and devices > 1:
        moved = f"moves: {_paths(state.moved)}" if state.moved else "yes"
        rows.append(["  stays in place", "", moved])
    if state.splits_nothing:
        rows.append(["  split", "", "the step's rule splits no parameter"])
    elif state.whole:
        rows.append(["  whole on each", "", _paths(state.whole)])
    return rows


def _paths(paths: list[str]) -> str:
    more = len(paths) - MOST_PATHS
    shown_paths = ", ".join(paths[:MOST_PATHS])
    return f"{shown_paths} and {more} more" if more > 0 else shown_paths
