"""Placements over eight devices, and what is read from a compiled program."""

import contextlib
import logging
import re
from collections import Counter

import jax
import numpy as np

import fngrad.sharding as sharding

LIMIT = 64  # entries from which leaves are split
FSDP = sharding.fsdp(min_size=LIMIT)


def by_columns(path, leaf, mesh):
    """Split the last axis over "model", where its size allows."""
    shape = np.shape(leaf)
    if len(shape) < 2 or shape[-1] % mesh.shape["model"]:
        return jax.sharding.PartitionSpec()
    return jax.sharding.PartitionSpec(*[None] * (len(shape) - 1), "model")


def outlined(a, rule, mesh):
    """Return a tree's shapes, placed by a rule on a mesh, which may be abstract."""
    where = sharding.shardings(a, mesh, rule)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), a, where
    )


def placements():
    """Return a mesh and a rule by name."""
    flat = sharding.make_mesh(data=8)
    mixed = sharding.make_mesh(data=4, model=2)
    return {
        "data parallel": (flat, sharding.replicated),
        "fsdp": (flat, FSDP),
        "4 x 2": (mixed, sharding.fsdp(min_size=LIMIT, within=by_columns)),
    }


def collectives(compiled) -> dict[str, Counter]:
    """Return the shapes of what each kind of collective gives, with their counts.

    The axes are sorted, since XLA may sum a gradient transposed.
    """
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    pattern = rf"= (\S+|\([^)]*\)) ({kinds})(?:-start)?\("
    found: dict[str, Counter] = {}
    for shapes, kind in re.findall(pattern, compiled.as_text()):
        each = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        found.setdefault(kind, Counter()).update(
            shape_text(dtype, [int(size) for size in axes.split(",") if size])
            for dtype, axes in each
        )
    return found


class Compilations(logging.Handler):
    """Counts the programs that XLA compiles."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def emit(self, record):
        self.count += "Finished XLA compilation" in record.getMessage()


@contextlib.contextmanager
def compilations():
    """Yield the count of the programs that are compiled in the context."""
    found, logger = Compilations(), logging.getLogger("jax")
    logger.addHandler(found)
    try:
        with jax.log_compiles(True):
            yield found
    finally:
        logger.removeHandler(found)


def shape_text(dtype, shape) -> str:
    """Return a shape as text, its axes sorted."""
    return f"{dtype}[{','.join(map(str, sorted(shape)))}]"


def flops(compiled) -> float:
    """Return the FLOPs of one device."""
    analysis = compiled.cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def bytes_here(a) -> int:
    """Return the bytes of a tree on one device."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(a)
    )


def farthest(a, b) -> float:
    """Return the largest difference, relative to the largest entry of each leaf."""
    differences = [
        np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)), initial=0)
        / max(np.max(np.abs(np.asarray(x)), initial=0), 1e-3)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return float(max(differences))
