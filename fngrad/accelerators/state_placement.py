"""The state on the devices: whether it is split, donated, and stays where it is."""

import re
from typing import NamedTuple

from fngrad.accelerators.exported_steps import PlacedStep
from fngrad.accelerators.step_work import bytes_on_device
from fngrad.sharding.rules import replicated
from fngrad.types import Path

LARGE = 2**20  # bytes of a leaf from which on it matters that it is whole

_ALIASED = re.compile(r"\{(\d+)\}: \(\d+, \{\}, \w+-alias\)")


class StatePlacement(NamedTuple):
    """Where a state is before and after a step; paths name its leaves."""

    bytes: int  # on each device
    params_bytes: int  # of these, the parameters
    copied: list[Path] | None  # not made in the memory of the donated state
    moved: list[Path] | None  # returned elsewhere than they were given
    whole: list[Path]  # large, and on every device though a rule was asked for
    splits_nothing: bool  # whether the rule of the step splits no parameter

    @property
    def optimizer_bytes(self) -> int:
        """What is not parameters, on each device."""
        return self.bytes - self.params_bytes


def placement_before(placed: PlacedStep) -> StatePlacement:
    """Return what is known of a state before its step is compiled."""
    sizes = {path: bytes_on_device(x) for path, x in placed.state.items()}
    params = [path for path in sizes if f"{path}/".startswith("params/")]
    whole = {path for path, x in placed.state.items() if x.sharding.is_fully_replicated}
    has_rule = placed.rule not in (None, replicated) and placed.mesh.size > 1
    return StatePlacement(
        bytes=sum(sizes.values()),
        params_bytes=sum(sizes[path] for path in params),
        copied=None,
        moved=None,
        whole=[p for p in sizes if has_rule and p in whole and sizes[p] >= LARGE],
        splits_nothing=has_rule and whole.issuperset(params),
    )


def placement_after(
    before: StatePlacement, placed: PlacedStep, stays: list[bool], program: str
) -> StatePlacement:
    """Return what the compiler made of it.

    Args:
        before: from `placement_before`.
        placed: the step.
        stays: of each leaf, whether it is returned where it was.
        program: the text of the compiled program.
    """
    paths, aliased = list(placed.state), aliased_outputs(program)
    return before._replace(
        copied=[path for i, path in enumerate(paths) if i not in aliased],
        moved=[path for path, stay in zip(paths, stays, strict=True) if not stay],
    )


def aliased_outputs(program: str) -> set[int]:
    """Return the numbers of the outputs that are in the memory of donated arguments.

    Example:
        >>> from fngrad.accelerators.state_placement import aliased_outputs
        >>> text = "HloModule f, input_output_alias={ {0}: (1, {}, may-alias) }, a={}"
        >>> aliased_outputs(text)
        {0}
    """
    return {int(number) for number in _ALIASED.findall(program.partition("\n")[0])}
