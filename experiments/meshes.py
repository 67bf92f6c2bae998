"""Meshes of devices as an argument of an experiment."""

import re
from typing import Any

import jax

import fngrad as fg


def chips(mesh: jax.sharding.Mesh | None) -> int:
    """Return how many chips a mesh has; virtual devices of a CPU share one."""
    return 1 if mesh is None or jax.default_backend() == "cpu" else mesh.size


def mesh_of(text: str | None, batch_size: int) -> jax.sharding.Mesh | None:
    """Return the mesh that a text such as ``data=4,model=2`` means; None without one.

    Several processes always have one.

    Raises:
        ValueError: if the text has another form, or the axes do not fit the devices or
            the batches.
    """
    if text is None and fg.distributed.processes().count == 1:
        return None
    form = r"\s*data=(-?\d+)\s*(?:,\s*model=(-?\d+)\s*)?"
    found = re.fullmatch(form, "data=-1" if text is None else text)
    if found is None:
        raise ValueError(f"need a mesh data=8 or data=4,model=2, got {text!r}")
    sizes = [int(size) for size in found.groups() if size is not None]
    axes: Any = dict(zip(("data", "model"), sizes, strict=False))
    mesh = fg.sharding.make_mesh(**axes)
    if batch_size % mesh.shape["data"]:
        raise ValueError(
            f"need a size of the axis data that divides batches of {batch_size}, got "
            f"{mesh.shape['data']}"
        )
    return mesh
