"""Put saved leaves into a tree, or name what differs."""

from typing import Any, NamedTuple

import jax

from fngrad.checkpoint.device_transfer import (
    Leaf,
    describe,
    paths_of,
    place,
    static_parts,
)
from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.layer_layouts import Layouts, compare
from fngrad.checkpoint.reading import Saved
from fngrad.checkpoint.shards import ShardedLeaf
from fngrad.programs.caller_warnings import warn
from fngrad.types import Path, Tree

_SHOWN = 4  # leaves per kind of difference
_WIDTH = 60  # characters of a text
_WAY_OUT = "partial=True takes what fits and keeps the rest"


class _Differences(NamedTuple):
    """How a tree differs from what was saved: paths, with remarks."""

    missing: dict[Path, str]
    unexpected: dict[Path, str]
    shape: dict[Path, str]
    dtype: dict[Path, str]
    structure: dict[Path, str]


def rebuild(
    saved: Saved,
    like: Tree,
    part: Path = "state",
    *,
    partial: bool = False,
    way_out: str = _WAY_OUT,
) -> Tree:
    """Return a tree like another, with the leaves that were saved.

    Args:
        saved: a step that was read.
        like: a tree of arrays or ShapeDtypeStructs. A leaf is restored bit for bit, on
            the devices that its counterpart here is committed to, else on the default
            one; NumPy stays NumPy. The result can be donated.
        part: the path of ``like`` in the saved tree.
        partial: take the leaves of the same path, shape and dtype, and keep the rest of
            ``like``, with a warning.
        way_out: what the error says to do if the trees differ.

    Raises:
        CheckpointError: if the trees differ (the differences are named); with
            ``partial``, if nothing fits or a leaf to keep is abstract.
    """
    wanted = paths_of({part: like})
    _check_arrays(wanted, part)
    have = {p: leaf for p, leaf in saved.leaves.items() if _is_under(p, part)}
    if wanted and not have:
        _refuse_part(saved, part)
    static = static_parts({part: like})
    old = {p: text for p, text in saved.static.items() if _is_under(p, part)}
    differences = _compare(wanted, have, static, old)
    layouts = _layouts(differences, wanted, have)
    if any(differences) and not partial:
        others = set().union(*differences) - layouts.explained
        hint = _hint(saved, others, wanted, part)
        recipe = _recipe(layouts, others, wanted, part)
        if not others and way_out == _WAY_OUT:
            way_out, recipe = recipe.removesuffix(". "), ""
        raise CheckpointError(
            _explain(saved, differences, part) + hint + recipe + way_out
        )
    kept = {
        *differences.missing,
        *differences.shape,
        *differences.dtype,
        *(p for p in wanted for node in differences.structure if _is_under(p, node)),
    }
    if partial and any(differences):
        _accept_kept(saved, wanted, kept, part, layouts)
    leaves = [
        leaf if path in kept else place(path, have[path], leaf)
        for path, leaf in wanted.items()
    ]
    return jax.tree.structure(like).unflatten(leaves)


def _check_arrays(wanted: dict[Path, Any], part: Path) -> None:
    for path, leaf in wanted.items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise CheckpointError(
                "need arrays or ShapeDtypeStructs to restore into, got "
                f"{type(leaf).__name__} at {_below(path, part)!r}"
            )


def _refuse_part(saved: Saved, part: Path) -> None:
    """Name the children of the part's nearest ancestor in the checkpoint."""
    above = part
    while above and not any(path.startswith(f"{above}/") for path in saved.leaves):
        above = above.rpartition("/")[0]
    start = f"{above}/" if above else ""
    there = {
        path.removeprefix(start).split("/")[0]
        for path in saved.leaves
        if path.startswith(start)
    }
    shown = above.partition("/")[2]
    raise CheckpointError(
        f"need a part of the checkpoint {saved.path}, got "
        f"{part.removeprefix('state/')!r}: {repr(shown) if shown else 'it'} has "
        f"{sorted(there)}"
    )


def _compare(
    wanted: dict[Path, Any],
    have: dict[Path, Leaf | ShardedLeaf],
    static: dict[Path, str],
    old: dict[Path, str],
) -> _Differences:
    found = _Differences({}, {}, {}, {}, {})
    found.missing.update((path, "") for path in wanted if path not in have)
    found.unexpected.update((path, "") for path in have if path not in wanted)
    for path in wanted.keys() & have.keys():
        dtype, shape = describe(wanted[path])
        leaf = have[path]
        if shape != leaf.shape:
            found.shape[path] = f" {leaf.shape} saved, {shape} wanted"
        elif dtype != leaf.dtype:
            found.dtype[path] = f" {leaf.dtype} saved, {dtype} wanted"
    for path in static.keys() | old.keys():
        if static.get(path) != old.get(path):
            found.structure[path] = _apart(str(old.get(path)), str(static.get(path)))
    return found


def _layouts(
    differences: _Differences,
    wanted: dict[Path, Any],
    have: dict[Path, Leaf | ShardedLeaf],
) -> Layouts:
    if not any(differences):
        return Layouts({}, {}, set())
    return compare(
        {path: (leaf.dtype, leaf.shape) for path, leaf in have.items()},
        {path: describe(leaf) for path, leaf in wanted.items()},
    )


def _recipe(
    layouts: Layouts, others: set[Path], wanted: dict[Path, Any], part: Path
) -> str:
    """Return how to convert layers; empty if none have another layout.

    Args:
        layouts: of layers.
        others: the paths that differ otherwise.
        wanted: the leaves to restore.
        part: their path.
    """
    leaves = wanted.values()
    is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    text = layouts.recipe(part, is_abstract=is_abstract)
    if text and any(_is_under(path, f"{part}/opt_state") for path in others):
        text += (
            "An optimizer's state that does not convert is begun anew by "
            'fngrad.init_state, with what is restored so into params, part="params". '
        )
    return text


def _apart(old: str, new: str) -> str:
    """Show two texts around the place where they first differ."""
    pairs = enumerate(zip(old, new, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    start = max(same - 20, 0)
    window = slice(start, start + _WIDTH)
    return f" {old[window]!r} saved, {new[window]!r} wanted"


def _explain(saved: Saved, differences: _Differences, part: Path) -> str:
    titles = {
        "missing": "missing in the checkpoint",
        "unexpected": "only in the checkpoint",
        "shape": "with another shape",
        "dtype": "with another dtype",
        "structure": "with another structure",
    }
    groups = [
        f"{titles[kind]}: {_some(entries, part)}"
        for kind, entries in differences._asdict().items()
        if entries
    ]
    return (
        f"need the tree that was saved in {saved.path}, got leaves "
        f"{'; '.join(groups)}. "
    )


def _some(entries: dict[Path, str], part: Path) -> str:
    def rank(entry: tuple[Path, str]) -> tuple[bool, Path]:
        path = _below(entry[0], part)  # parameters first: the optimizer follows them
        return not _is_under(path, "params"), path

    shown = [
        f"{_below(path, part)!r}{remark}"
        for path, remark in sorted(entries.items(), key=rank)[:_SHOWN]
    ]
    more = len(entries) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _hint(saved: Saved, others: set[Path], wanted: dict[Path, Any], part: Path) -> str:
    inside = f"{part}/params"
    if all(f"{inside}{p.removeprefix(part)}" in saved.leaves for p in wanted):
        return 'The parameters of the checkpoint are part="params". '
    paths = {_below(path, part) for path in others}
    places = [
        name
        for name, where in (("model", "params"), ("optimizer", "opt_state"))
        if any(_is_under(path, where) for path in paths)
    ]
    return f"It has another {' and '.join(places)}. " if places else ""


def _accept_kept(
    saved: Saved,
    wanted: dict[Path, Any],
    kept: set[Path],
    part: Path,
    layouts: Layouts,
) -> None:
    """Warn of the leaves that stay as they are.

    Raises:
        CheckpointError: if nothing fits, or a leaf to keep is abstract.
    """
    recipe = _recipe(layouts, kept - layouts.explained, wanted, part)
    way_out = f". {recipe}".removesuffix(". ")
    if len(kept) == len(wanted):
        raise CheckpointError(
            f"need leaves that fit the checkpoint {saved.path}, got none of "
            f"{_some(dict.fromkeys(wanted, ''), part)}{way_out}"
        )
    for path in kept:
        if isinstance(wanted[path], jax.ShapeDtypeStruct):
            raise CheckpointError(
                "need an array where the checkpoint has nothing that fits, got an "
                f"abstract leaf at {_below(path, part)!r}{way_out}"
            )
    if kept:
        warn(
            f"restored {len(wanted) - len(kept)} of {len(wanted)} leaves from "
            f"{saved.path}; kept as they are: {_some(dict.fromkeys(kept, ''), part)}"
            f"{_step_too(saved, wanted, kept, part)}{way_out}"
        )


def _step_too(
    saved: Saved, wanted: dict[Path, Any], kept: set[Path], part: Path
) -> str:
    """Return a remark that a run would go on from the saved step, or nothing."""
    step = f"{part}/step"
    if part != "state" or step not in wanted or step in kept:
        return ""
    return (
        f". The step is restored too, {saved.step}: to train the parameters from step "
        '0, as in fine-tuning, restore them alone, like=state.params, part="params"'
    )


def _is_under(path: Path, part: Path) -> bool:
    return path == part or path.startswith(f"{part}/")


def _below(path: Path, part: Path) -> Path:
    return path.removeprefix(part).removeprefix("/")
