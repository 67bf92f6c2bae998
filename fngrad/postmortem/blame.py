"""Which of the suspects did it.

Suspects are repaired, one after the other in the order of evaluation, until what went
bad is good. Then the first one is guilty without whose repair it is bad again. So an
infinity that a mask is made of is not blamed, nor what only follows from a fault.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from fngrad.postmortem.walk import Place, Suspect, Value, Walk
from fngrad.programs.slices import Program
from fngrad.types import Path

MAX_SUSPECTS = 8  # beyond them the first is blamed


class Verdict(NamedTuple):
    """Who did it, and what came of it."""

    culprit: Suspect
    outputs: list[Value]  # of the program, with the other suspects repaired
    losses: list[Value]  # likewise, those that the program names
    gradients: dict[Path, Value]  # those that it names, with nothing repaired


def find_culprit(
    program: Program,
    arrays: Sequence[Any],
    goals: Collection[int],
    check: Callable[[], None],
) -> Verdict | None:
    """Return what made outputs of a program bad; None where they are good.

    Args:
        program: what to evaluate.
        arrays: its arguments' leaves.
        goals: which outputs should have been good, by number.
        check: called before every operation; may raise to give up.
    """

    def attempt(repaired: Sequence[Place]) -> tuple[Walk, list[Value], set[Place]]:
        walk = Walk(program, repaired, check)
        outputs = walk.run(arrays)
        return walk, outputs, set().union(*(outputs[i].sources for i in goals))

    repaired: list[Place] = []
    before = attempt(repaired)
    walk, outputs, guilty = before
    gradients = walk.gradients
    while guilty and len(repaired) < MAX_SUSPECTS:
        before = walk, outputs, guilty
        repaired.append(next(place for place in walk.suspects if place in guilty))
        walk, outputs, guilty = attempt(repaired)
    if not repaired:
        return None
    for place in repaired[:-1]:
        others = [other for other in repaired if other != place]
        tried = attempt(others)
        if place in tried[2]:
            return _verdict(place, *tried[:2], gradients)
        repaired = others
    return _verdict(repaired[-1], *before[:2], gradients)


def _verdict(
    place: Place, walk: Walk, outputs: list[Value], gradients: dict[Path, Value]
) -> Verdict:
    return Verdict(walk.suspects[place], outputs, walk.losses, gradients)
