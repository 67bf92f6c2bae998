"""Batches of trials, grouped by their static values and trained as lanes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fngrad.sweeps.results.statistics as statistics
import fngrad.sweeps.running.block_width as block_width
from fngrad.logging import ProgressBar
from fngrad.metrics.directions import Directed
from fngrad.programs.printed import recorded
from fngrad.sweeps.results.assembly import Part, assemble
from fngrad.sweeps.results.result import SweepResult, diverged_at, last_values
from fngrad.sweeps.running.combinations import (
    Combination,
    count_done,
    describe,
    recorded_modes,
    restore,
    share_done,
    trace,
    train,
)
from fngrad.sweeps.running.failures import Failures
from fngrad.sweeps.running.lane_outputs import LaneOutputs
from fngrad.sweeps.running.program import Lanes
from fngrad.sweeps.running.storage import Folder, digest
from fngrad.sweeps.searching.search_space import Space
from fngrad.sweeps.searching.studies import Trial


class _Group(NamedTuple):
    """Trials with one combination of static values."""

    trials: list[int]  # their numbers in the study
    points: dict[str, np.ndarray]  # columns, one entry per trial
    outputs: LaneOutputs | None  # None if they failed


class Batches:
    """The programs of a search, and the batches that they trained.

    Args:
        train_fn: of the search.
        space: of the search.
        lanes: without points; those of each batch take their place.
        metric: which the trials are told by.
        mode: the width of the blocks.
        size: how many trials a batch has.
        folder: where lanes are saved, batch by batch.
    """

    def __init__(
        self,
        train_fn: Callable[..., Any],
        space: Space,
        lanes: Lanes,
        *,
        metric: Directed,
        mode: block_width.Mode,
        size: int,
        folder: str | Path | None,
    ):
        self.space: Space = space
        self.size: int = size
        self._train_fn, self._metric = train_fn, metric
        self._mode: block_width.Mode = mode
        self._folder = None if folder is None else Path(folder) / "batches"
        self._args = digest(lanes.args)
        # Once for all programs, which would each have a copy otherwise.
        mesh = Mesh(np.array(lanes.devices), ("lanes",))
        args = jax.device_put(lanes.args, NamedSharding(mesh, PartitionSpec()))
        self._lanes = lanes._replace(args=args)
        self._statics: list[dict[str, Any]] = []  # of each combination
        self._numbers: dict[str, int] = {}  # of the combinations, by their texts
        self._failures = Failures(self._statics, lanes.peers, space.programs)
        self._programs: dict[int, Combination] = {}
        self._modes: dict[int, dict[str, Any] | None] = {}
        self._groups: dict[int, list[_Group]] = {}
        self._restored = 0

    def train(
        self, number: int, trials: Sequence[Trial], bar: ProgressBar
    ) -> list[float | None]:
        """Train a batch of trials.

        Args:
            number: of the batch.
            trials: asked from a study.
            bar: shows the progress.

        Returns:
            The values to tell: infinite for a trial that diverged, None for one whose
            training raised.
        """
        by_combination: dict[int, list[int]] = {}
        for place, trial in enumerate(trials):
            combination = self._number(self.space.combination(trial.suggested))
            by_combination.setdefault(combination, []).append(place)
        points = {
            combination: self.space.columns([trials[i].suggested for i in places])
            for combination, places in by_combination.items()
        }
        outputs = self._train_lanes(number, points, bar)
        values: list[float | None] = [None] * len(trials)
        for combination, places in by_combination.items():
            own = outputs.get(combination)
            numbers = [trials[i].number for i in places]
            group = _Group(numbers, points[combination], own)
            self._groups.setdefault(combination, []).append(group)
            for place, value in zip(places, self._values(own), strict=False):
                values[place] = value
        return values

    def gather(self, notes: dict[str, Any]) -> SweepResult:
        """Return the result of all batches.

        Args:
            notes: of the result, to which those of the batches are added.

        Raises:
            Exception: of the first combination, if all have failed.
        """
        self._failures.check_one_works()
        parts, counts, numbers, failed = [], [], [], {}
        for combination, static in enumerate(self._statics):
            for has_failed in (False, True):
                groups = [
                    group
                    for group in self._groups[combination]
                    if (group.outputs is None) is has_failed
                ]
                if not groups:
                    continue
                own = [number for group in groups for number in group.trials]
                if has_failed:
                    failed[combination] = list(range(len(numbers), len(numbers + own)))
                parts.append(Part(static, _columns(groups), self._outputs(groups)))
                counts.append(len(own))
                numbers += own
        return assemble(
            parts,
            len(self._lanes.keys),
            notes
            | {
                "modes": [self._modes.get(n) for n in range(len(self._statics))],
                "restored": self._restored,
                "failures": self._failures.record(failed),
                "counts": counts,
                "trials": np.array(numbers),
            },
        )

    def _number(self, static: dict[str, Any]) -> int:
        """Return the number of a combination, in the order of first use."""
        number = self._numbers.setdefault(recorded(static), len(self._statics))
        if number == len(self._statics):
            self._statics.append(static)
        return number

    def _train_lanes(
        self, number: int, points: dict[int, dict[str, np.ndarray]], bar: ProgressBar
    ) -> dict[int, LaneOutputs]:
        """Train the points of a batch; return the outputs of what did not fail."""
        new = {c: self._statics[c] for c in points if c not in self._programs}
        lanes = self._lanes._replace(points=next(iter(points.values())))
        name = self._metric[0]
        self._programs |= {
            c: self._prepared(program)
            for c, program in trace(
                self._train_fn, lanes, new, name, self._failures
            ).items()
        }
        found = {
            c: self._programs[c]._replace(
                lanes=self._programs[c].lanes._replace(points=own)
            )
            for c, own in points.items()
        }
        peers = self._lanes.peers
        digests = [digest(program.lanes.points) for program in found.values()]
        described = describe(self._args, found) | {"points": digests}
        peers.check_same(described)
        saved = None
        if self._folder is not None and peers.is_first:
            saved = Folder(self._folder / f"{number:05d}", described, {})
        able = {c: program for c, program in found.items() if c not in self._failures}
        collected = restore(able, saved)
        known = share_done(peers, collected, recorded_modes(able, saved))
        restored = count_done(collected)
        self._restored += restored
        bar.advance(restored)
        modes = train(
            able,
            collected,
            self._failures,
            saved,
            bar=bar,
            mode=self._mode,
            known=known,
        )
        for combination, how in modes.items():
            self._keep(combination, how)
        return {c: out for c, out in collected.items() if c not in self._failures}

    def _prepared(self, program: Combination) -> Combination:
        """Fix the width of the blocks, for the program's share of a batch."""
        if program.outline is None:
            return program
        share = -(-self.size // self.space.programs)
        full = {n: np.repeat(x[:1], share, 0) for n, x in program.lanes.points.items()}
        lanes = program.lanes._replace(points=full)
        choice = block_width.choose(self._mode, lanes, program.outline.jaxpr)
        return program._replace(blocks={}, choice=choice)

    def _keep(self, combination: int, how: dict[str, Any] | None) -> None:
        """Note how lanes were trained; the next ones are trained in the same way."""
        before = self._modes.get(combination)
        if how is None:
            return
        program = self._programs[combination]
        assert program.choice is not None
        choice = program.choice._replace(width=how["width"])
        self._programs[combination] = program._replace(choice=choice)
        spent = before["compile_seconds"] if before else 0.0
        total = how["compile_seconds"] + spent
        self._modes[combination] = how | {"compile_seconds": total}

    def _values(self, outputs: LaneOutputs | None) -> list[float | None]:
        """Return the median of each trial over its seeds."""
        if outputs is None:
            return []
        name, direction = self._metric
        _, history = outputs.by_point(len(self._lanes.keys))
        lost = diverged_at(history, name) >= 0
        costs = statistics.costs(last_values(history[name]), lost, self._metric)
        sign = 1 if direction == "min" else -1
        return [sign * float(np.median(row)) for row in costs]

    def _outputs(self, groups: list[_Group]) -> Any:
        """Return (state, history) of the trials of several batches, None if failed."""
        parts = [group.outputs for group in groups if group.outputs is not None]
        if not parts:
            return None
        whole = parts[0].emptied(sum(part.done.size for part in parts))
        leaves = zip(*(part.leaves for part in parts), strict=True)
        whole.put(np.arange(whole.done.size), [np.concatenate(x) for x in leaves])
        return whole.by_point(len(self._lanes.keys))


def _columns(groups: list[_Group]) -> dict[str, np.ndarray]:
    names = groups[0].points
    return {name: np.concatenate([g.points[name] for g in groups]) for name in names}
