"""The lanes of an earlier sweep, which a larger one does not train again.

A lane is the same in both if its program, its data, its point and its key are: their
digests are compared, not their places.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.tree as tree
from fngrad.sweeps.results.result import SweepResult
from fngrad.sweeps.running.lane_outputs import LaneOutputs
from fngrad.sweeps.running.program import Lanes, canonical
from fngrad.sweeps.running.storage import SavedLanes, digest
from fngrad.types import Key

SHARED = ("jax", "backend", "device kind", "args")
BY_COMBINATION = ("outputs", "train_fn")


class Earlier(NamedTuple):
    """An earlier sweep: what determines its lanes, and a way to read them."""

    program: Mapping[str, Any]  # see `fngrad.sweeps.running.combinations.describe`
    points: list[str]  # the digest of each
    keys: list[str]
    modes: Mapping[int, Any]  # how each combination's lanes were trained
    read: Callable[[int, LaneOutputs], None]  # puts the lanes of a combination

    def take(
        self, program: Mapping[str, Any], lanes: Lanes, collected: dict[int, Any]
    ) -> dict[int, Any]:
        """Put the lanes that both sweeps have into the outputs of the larger one.

        Args:
            program: of the larger sweep.
            lanes: of the larger sweep.
            collected: its outputs, by combination.

        Returns:
            How the combinations that both have were trained, by number.

        Raises:
            ValueError: if the sweeps train in different ways or share no lane.
        """
        _check_same(self.program, program, SHARED)
        points, keys = lane_digests(lanes)
        of_point = _places(self.points, points)[:, None]
        of_key = _places(self.keys, keys)[None, :]
        at = of_point * len(self.keys) + of_key
        source = np.where((of_point >= 0) & (of_key >= 0), at, -1).reshape(-1)
        shared = {n: self._number(program, n) for n in collected}
        shared = {new: old for new, old in shared.items() if old in self.modes}
        if not shared or (source < 0).all():
            static = self.program["static"][0], program["static"][0]
            told = "" if shared else "; static is {} there and {} here".format(*static)
            raise ValueError(
                "need points, keys and static of the whole sweep, those of `extend` "
                f"included, got none of its lanes{told}"
            )
        for new, old in shared.items():
            outputs = collected[new]
            whole = outputs.emptied(len(self.points) * len(self.keys))
            self.read(old, whole)
            own = np.flatnonzero((source >= 0) & whole.done[source] & ~outputs.done)
            outputs.put(own, [leaf[source[own]] for leaf in whole.leaves])
        return {new: self.modes[old] for new, old in shared.items()}

    def _number(self, program: Mapping[str, Any], number: int) -> int:
        """Return the number of a combination in the earlier sweep, or -1."""
        values = program["static"][number]
        if values not in self.program["static"]:
            return -1
        found = self.program["static"].index(values)
        old, new = (
            {name: p[name][n] for name in BY_COMBINATION}
            for p, n in ((self.program, found), (program, number))
        )
        if old["train_fn"] is None:  # tracing it failed
            return -1
        _check_same(old, new, BY_COMBINATION)
        return found


def earlier_sweep(extend: SweepResult | str | Path) -> Earlier:
    """Return the earlier sweep of a result or of a folder.

    Raises:
        ValueError: if the result or the folder does not tell what its lanes are.
        FileNotFoundError: if there is no sweep in the folder.
    """
    if not isinstance(extend, SweepResult):
        saved = SavedLanes(extend)
        return Earlier(
            program=saved.content,
            points=saved.content["lanes"]["points"],
            keys=saved.content["lanes"]["keys"],
            modes={int(n): mode for n, mode in saved.content["modes"].items()},
            read=saved.restore,
        )
    notes = extend.notes
    if not {"program", "keys"} <= notes.keys():
        raise ValueError(
            "need a result of fngrad.sweep to extend, got one without its program and "
            "keys: if it was loaded, pass its folder"
        )
    count = len(notes["program"]["static"])
    rows = len(extend.diverged_at) // count
    states = extend.state if notes["static"] else [extend.state]
    columns = {
        n: x[:rows] for n, x in extend.points.items() if n not in notes["static"]
    }

    def read(number: int, collected: LaneOutputs) -> None:
        own = slice(number * rows, (number + 1) * rows)
        history = {name: x[own] for name, x in extend.history.items()}
        collected.put_points(states[number], history)

    return Earlier(
        program=notes["program"],
        points=_points(columns),
        keys=_keys(notes["keys"]),
        modes={n: mode for n, mode in enumerate(notes["modes"]) if mode},
        read=read,
    )


def descriptions(
    program: Mapping[str, Any], lanes: Lanes
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return what a sweep's folder describes: the whole, and each point and key."""
    points, keys = lane_digests(lanes)
    whole = {"points": digest(lanes.points), "keys": digest(lanes.keys)}
    return {**program, **whole}, {"points": points, "keys": keys}


def lane_digests(lanes: Lanes) -> tuple[list[str], list[str]]:
    """Return the digests of the points and of the keys."""
    return _points(tree.leaf_paths(lanes.points)), _keys(lanes.keys)


def _points(columns: Mapping[str, np.ndarray]) -> list[str]:
    """Return the digest of each point, as the program gets it."""
    ordered = [(path, canonical(column)) for path, column in sorted(columns.items())]
    return [
        _digest(*(f"{path} {x.dtype}".encode() + x[i].tobytes() for path, x in ordered))
        for i in range(len(ordered[0][1]))
    ]


def _places(known: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Return where each of some digests is among the known ones, or -1."""
    places = {digest: place for place, digest in enumerate(known)}
    return np.array([places.get(digest, -1) for digest in wanted])


def _keys(keys: Key) -> list[str]:
    kind = str(jax.random.key_impl(keys)).encode()
    return [
        _digest(kind, data.tobytes()) for data in np.asarray(jax.random.key_data(keys))
    ]


def _digest(*parts: bytes) -> str:
    """Return 16 hex digits of some bytes."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        hashed.update(f"{len(part)};".encode() + part)
    return hashed.hexdigest()


def _check_same(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]
) -> None:
    different = [name for name in names if old[name] != new[name]]
    if different:
        shown = ", ".join(f"{n}: {old[n]!r} became {new[n]!r}" for n in different)
        raise ValueError(f"need the training that `extend` trained: {shown}")
