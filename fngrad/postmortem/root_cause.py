"""Which origin of bad numbers made a step bad.

Origins (see `fngrad.postmortem.interpreter`) are repaired one after another, in the
order of evaluation, until the outputs are good. The root cause is the first origin
without whose repair they are bad again. So neither an infinity in a mask nor a mere
consequence of the fault is blamed.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from fngrad.postmortem.interpreter import Interpreter, Location, Origin, Value
from fngrad.programs.jaxprs import Program
from fngrad.types import Path

MAX_REPAIRS = 8  # beyond them the first origin counts as the cause


class RootCause(NamedTuple):
    """The origin that made a program's outputs bad, and what it reached."""

    origin: Origin
    outputs: list[Value]  # of the program, with the other origins repaired
    losses: list[Value]  # likewise, those that the program names
    gradients: dict[Path, Value]  # those that it names, with nothing repaired


def find_root_cause(
    program: Program,
    arrays: Sequence[Any],
    checked: Collection[int],
    check: Callable[[], None],
) -> RootCause | None:
    """Return what made outputs of a program bad; None where they are good.

    Args:
        program: the program to evaluate.
        arrays: its arguments' leaves.
        checked: the indices of the outputs that should be good.
        check: called before every operation; may raise to give up.
    """

    def attempt(
        repaired: Sequence[Location],
    ) -> tuple[Interpreter, list[Value], set[Location]]:
        interpreter = Interpreter(program, repaired, check)
        outputs = interpreter.run(arrays)
        sources = [outputs[i].sources for i in checked]
        return interpreter, outputs, set().union(*sources)

    repaired: list[Location] = []
    before = attempt(repaired)
    interpreter, outputs, blamed = before
    gradients = interpreter.gradients
    while blamed and len(repaired) < MAX_REPAIRS:
        before = interpreter, outputs, blamed
        repaired.append(next(o for o in interpreter.origins if o in blamed))
        interpreter, outputs, blamed = attempt(repaired)
    if not repaired:
        return None
    for location in repaired[:-1]:
        others = [other for other in repaired if other != location]
        tried = attempt(others)
        if location in tried[2]:
            before, repaired = tried, [location]
            break
        repaired = others
    interpreter, outputs, _ = before
    origin = interpreter.origins[repaired[-1]]
    return RootCause(origin, outputs, interpreter.losses, gradients)
