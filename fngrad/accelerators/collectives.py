"""Collectives of a compiled program: how often, and the bytes that a device sends.

They are read from the text of the program of one device. A TPU's differs from others
in three ways. A collective that overlaps with computation stands there several times,
with one ``channel_id``. A reduce-scatter is an all-reduce inside of a computation of
that name. The trip count of a loop stands in its condition alone.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|called_computations=\{)=?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\]")
_KNOWN_COUNT = re.compile(r"known_trip_count\D*(\d+)")
_CONSTANT = re.compile(r"%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_LESS = re.compile(r"ROOT .* compare\(%([\w.\-]+), %([\w.\-]+)\), direction=(LT|GT)")


class Collective(NamedTuple):
    """All collectives of one kind in one call of a program."""

    count: int  # on each device
    bytes: int  # that each device sends to others


class Traffic(NamedTuple):
    """What the devices exchange in one call of a program."""

    collectives: dict[str, Collective]  # by kind, such as "all-gather"
    unknown_loops: int  # with collectives, of unknown length: counted once

    @property
    def bytes(self) -> int:
        """What each device sends."""
        return sum(each.bytes for each in self.collectives.values())


class _Call(NamedTuple):
    """A call of another computation."""

    name: str
    times: int | None  # None: the body of a loop of unknown length


class _Found(NamedTuple):
    """A collective in the text."""

    kind: str
    channel: str  # names the collective wherever it is repeated
    bytes: int


class _Computation(NamedTuple):
    lines: list[str]
    calls: list[_Call]
    found: list[_Found]


def traffic_of(text: str, devices: int) -> Traffic:
    r"""Return the collectives of a program, those in loops by their trip counts.

    Of n bytes on each of g devices, rings send $n(g-1)/g$ for an all-gather with a
    result of n bytes, a reduce-scatter and an all-to-all with an operand of n bytes,
    twice that for an all-reduce, and n for a permutation.

    Args:
        text: of a compiled program, from ``compiled.as_text()``.
        devices: on which it runs.

    Example:
        >>> from fngrad.accelerators.collectives import traffic_of
        >>> text = '''ENTRY %main (p: f32[8]) -> f32[8] {
        ...   ROOT %a = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}
        ... }'''
        >>> traffic_of(text, 2).collectives
        {'all-reduce': Collective(count=1, bytes=32)}
    """
    computations = _computations(text, devices)
    most: dict[tuple[str, str], tuple[int, int]] = {}
    unknown: set[str] = set()
    for each, times in _visited(computations, unknown):
        known = most.get((each.kind, each.channel), (0, 0))
        most[each.kind, each.channel] = max(known, (times, each.bytes))
    collectives: dict[str, Collective] = {}
    for (kind, _), (times, size) in most.items():
        count, total = collectives.get(kind, Collective(0, 0))
        collectives[kind] = Collective(count + times, total + times * size)
    return Traffic(dict(sorted(collectives.items())), len(unknown))


def _visited(
    computations: dict[str, _Computation], unknown: set[str]
) -> Iterator[tuple[_Found, int]]:
    """Yield each collective that runs, and how often; add loops of unknown length."""
    reachable = {name: _has_any(name, computations, {}) for name in computations}

    def visit(name: str, times: int) -> Iterator[tuple[_Found, int]]:
        yield from ((each, times) for each in computations[name].found)
        for call in computations[name].calls:
            if reachable.get(call.name):
                if call.times is None:
                    unknown.add(call.name)
                yield from visit(call.name, times * (call.times or 1))

    yield from visit("ENTRY", 1) if "ENTRY" in computations else ()


def _has_any(
    name: str, computations: dict[str, _Computation], known: dict[str, bool]
) -> bool:
    """Return whether a computation or one that it calls has a collective."""
    if name not in known and name in computations:
        inside = computations[name]
        known[name] = bool(inside.found) or any(
            _has_any(call.name, computations, known) for call in inside.calls
        )
    return known.get(name, False)


def _computations(text: str, devices: int) -> dict[str, _Computation]:
    """Return what the text holds, by the names of computations; the first is ENTRY."""
    found: dict[str, _Computation] = {}
    name = ""
    for line in text.splitlines():
        begin = _COMPUTATION.match(line)
        if begin:
            name = "ENTRY" if begin[1] else begin[2]
            found[name] = _Computation([], [], [])
        elif name:
            found[name].lines.append(line)
    for name, computation in found.items():
        for number, line in enumerate(computation.lines):
            computation.calls.extend(_calls(line, found))
            collective = _collective(line, name, devices)
            if collective:
                one = collective._replace(
                    channel=collective.channel or f"{name}:{number}"
                )
                computation.found.append(one)
    return found


def _calls(line: str, computations: dict[str, _Computation]) -> Iterator[_Call]:
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    times = _trip_count(line, computations, condition[1]) if condition else 1
    for called in _CALLED.findall(line):
        yield _Call(called, times)
    branches = _BRANCHES.search(line)
    for branch in re.findall(r"[\w.\-]+", branches[1]) if branches else ():
        yield _Call(branch, 1)


def _trip_count(
    line: str, computations: dict[str, _Computation], condition: str
) -> int | None:
    """Return how often a loop runs: the compiler's word, or the bound it counts to."""
    known = _KNOWN_COUNT.search(line)
    if known:
        return int(known[1])
    lines = computations[condition].lines if condition in computations else []
    constants = {m[1]: int(m[2]) for m in map(_CONSTANT.search, lines) if m}
    for compared in filter(None, map(_LESS.search, lines)):
        bound = compared[2] if compared[3] == "LT" else compared[1]
        return constants.get(bound)
    return None


def _collective(line: str, computation: str, devices: int) -> _Found | None:
    found = _COLLECTIVE.search(line)
    if found is None:
        return None
    kind, sizes = found[2], [_bytes(*array) for array in _ARRAY.findall(found[1])]
    group = _group(line, devices)
    if found[3] and kind == "collective-permute":  # operand, result, two counters
        sizes = sizes[:1]
    elif found[3] and kind == "all-gather":  # operands, then results
        sizes = sizes[len(sizes) // 2 :]
    size = sum(sizes)
    if kind == "all-reduce" and "reduce-scatter" in computation:
        kind, size = "reduce-scatter", size // group
    channel = re.search(r"channel_id=(\d+)", line)
    return _Found(kind, channel[1] if channel else "", _sent(kind, size, group))


def _sent(kind: str, size: int, group: int) -> int:
    """Return the bytes that a device sends, from those of a collective's result."""
    if kind == "reduce-scatter":  # of which the result is one part
        return size * (group - 1)
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (group - 1) // group


def _group(line: str, devices: int) -> int:
    """Return how many devices take part in a collective together."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if counted:
        return int(counted[2])
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line)
    if meshed:
        sizes = dict(re.findall(r"'([^']*)'=(\d+)", meshed[1]))
        names = re.findall(r"'([^']*)'", meshed[2])
        return math.prod(int(sizes.get(name, 1)) for name in names)
    return devices


def _bytes(dtype: str, shape: str) -> int:
    count = math.prod(int(size) for size in shape.split(",") if size)
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])  # type: ignore[index]
    return count * bits // 8
