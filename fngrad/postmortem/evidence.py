"""Evidence for the root cause: leaves, rows of the batch, numbers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.tree as tree
from fngrad.postmortem.interpreter import GRADIENT, INPUT, Origin, is_bad
from fngrad.postmortem.replay import Replay
from fngrad.postmortem.root_cause import RootCause
from fngrad.postmortem.source_locations import phase_of
from fngrad.programs.equations import name_of
from fngrad.programs.reasons_of_nans import reason_of
from fngrad.programs.text_tables import short_text
from fngrad.types import Params, Path


def argument_path(replayed: Replay, origin: Origin) -> Path:
    """Return the path of an argument of the step: params/w, batch/x."""
    arguments = {**replayed.state._asdict(), "batch": replayed.batch}
    paths = {id(leaf): path for path, leaf in tree.leaf_paths(arguments).items()}
    arrays = jax.tree.leaves((replayed.state, replayed.batch))
    return paths[id(arrays[origin.location[1]])]


def phase(replayed: Replay, cause: RootCause, paths: Sequence[Path]) -> str:
    """Return the phase of the step in which the origin is, see `Autopsy`."""
    origin = cause.origin
    if is_argument(origin):
        path = argument_path(replayed, origin)
        return "batch" if path.partition("/")[0] == "batch" else "state"
    outputs = dict(zip(paths, cause.outputs, strict=True))
    losses = [loss for loss in cause.losses if loss.made > origin.made]
    losses += [v for p, v in outputs.items() if p == "metrics/loss"]
    # The model state is the only part of the state that the forward pass makes.
    forward = [v for p, v in outputs.items() if p.startswith("state/model_state/")]
    forward += losses[:1]
    return phase_of(origin.scopes, any(origin.location in v.sources for v in forward))


def leaves(replayed: Replay, cause: RootCause) -> list[Path]:
    """Return the paths of the bad leaves, in the order of evaluation."""
    origin = cause.origin
    first = [argument_path(replayed, origin)] if is_argument(origin) else []
    reached = {p: v for p, v in cause.gradients.items() if v.sources}
    ordered = sorted(reached, key=lambda path: reached[path].made)
    gradients = [f"{GRADIENT}{path}".rstrip("/") for path in ordered]
    state = [p.removeprefix("state/") for p in replayed.bad if p.startswith("state/")]
    return list(dict.fromkeys([*first, *gradients, *state]))


def is_argument(origin: Origin) -> bool:
    """Return whether the bad numbers are in an argument of the step."""
    return origin.location[0] == INPUT


def rows(replayed: Replay, origin: Origin) -> np.ndarray | None:
    """Return the rows of the batch that make the step bad; None where unknown.

    Where the origin's output has an axis as long as the batch, the rows with bad
    entries are candidates. They are returned if the step is good with another row in
    place of each.
    """
    size = _batch_size(replayed.batch)
    bad = ~np.isfinite(_bad_output(origin))
    for axis in range(bad.ndim):
        others = tuple(i for i in range(bad.ndim) if i != axis)
        is_candidate = bad.any(axis=others)
        if bad.shape[axis] != size or is_candidate.all():
            continue
        order = np.where(
            is_candidate, np.argmin(is_candidate), np.arange(bad.shape[axis])
        )
        if not replayed.is_bad(_reorder(replayed.batch, order)):
            return np.flatnonzero(is_candidate)
    return None


def indices(data: Any, replayed: Replay, chosen: np.ndarray | None) -> Any:
    """Return the dataset's indices of the chosen rows or of all; None without any."""
    if not hasattr(data, "indices"):
        return None
    examples = np.asarray(data.indices(replayed.state.step))
    if chosen is None or len(examples) != _batch_size(replayed.batch):
        return examples
    return examples[chosen]


def _batch_size(batch: Any) -> int | None:
    sizes = [leaf.shape[0] for leaf in jax.tree.leaves(batch) if np.ndim(leaf)]
    return sizes[0] if sizes else None


def _reorder(batch: Any, order: np.ndarray) -> Any:
    return jax.tree.map(
        lambda x: x[order] if np.shape(x)[:1] == order.shape else x, batch
    )


def norms(params: Params) -> dict[Path, float]:
    """Return every leaf's norm, the largest first."""
    numeric = {p: x for p, x in tree.leaf_paths(params).items() if _is_numeric(x)}
    by_path = {path: _norm(np.asarray(x)) for path, x in numeric.items()}
    return dict(sorted(by_path.items(), key=lambda item: -item[1]))


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.complex128).ravel()))


def magnitudes(origin: Origin) -> list[float]:
    """Return the largest finite magnitude in each numeric input, NaN without one."""
    numbers = [x for x in origin.inputs if _is_numeric(x)]
    return [_magnitude(np.asarray(x)) for x in numbers]


def _is_numeric(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.number)


def _magnitude(x: np.ndarray) -> float:
    sizes = np.abs(x.astype(np.complex128))
    sizes = sizes[np.isfinite(sizes)]
    return float(np.max(sizes)) if sizes.size else float("nan")


def explain(origin: Origin, path: Path | None) -> str:
    """Return the operation with its numbers, such as ``exp(104.2) = inf``."""
    output = _bad_output(origin)
    bad = ~np.isfinite(output)
    if is_argument(origin):
        entries = "1 entry" if bad.sum() == 1 else f"{bad.sum()} entries"
        return f"{path} is not finite in {entries} of {bad.size}"
    location = np.unravel_index(np.argmax(bad), bad.shape)
    result = short_text(output[location].item())
    name = name_of(origin.equations[0])
    numbers = [np.asarray(x) for x in origin.inputs if _is_numeric(x)]
    if all(x.shape in ((), bad.shape) for x in numbers):
        operands = [short_text((x[location] if x.ndim else x).item()) for x in numbers]
        words = f"{name}({', '.join(operands)}) = {result}"
    else:
        words = f"{name} gives {result}"
    dtype = output.dtype
    if jnp.finfo(dtype).bits < 32:
        words += f" in {dtype}, whose largest is {float(jnp.finfo(dtype).max):.4g}"
    reason = reason_of(origin.scopes)
    if reason is not None:
        words += f"; {reason}"
    elif any(is_bad(x) for x in origin.inputs):
        words += "; the program contains a constant that is not finite"
    return words


def _bad_output(origin: Origin) -> np.ndarray:
    return np.asarray(next(x for x in origin.outputs if is_bad(x)))
