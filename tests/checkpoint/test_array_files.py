"""Orbax gets the arrays themselves, as unsigned integers, and need not copy them."""

import copy
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from saved_trees import bits, fail

import fngrad.checkpoint.array_files as array_files
from fngrad.checkpoint import restore, save

KINDS = {
    "float32": (-np.zeros((2, 3), np.float32), "uint32", (2, 3)),
    "bfloat16": (np.array(-0.0, jnp.bfloat16), "uint16", ()),
    "int4": (np.arange(3).astype(jnp.int4), "uint8", (3,)),
    "bool": (np.array([[True], [False]]), "uint8", (2, 1)),
    "float64": (np.full((2, 2), 1e300), "uint64", (2, 2)),
    "complex64": (np.array(1 - 2j, np.complex64), "uint64", ()),
    "complex128": (np.full((3, 1), 1 - 2j), "uint64", (3, 1, 2)),
}


@pytest.mark.parametrize(("leaf", "dtype", "shape"), KINDS.values(), ids=KINDS)
def test_an_array_is_written_in_its_shape_as_unsigned_integers(
    leaf, dtype, shape, tmp_path
):
    path = save(tmp_path, leaf, step=0)
    assert bits(restore(tmp_path, leaf)) == bits(leaf)
    with orbax.Checkpointer(orbax.PyTreeCheckpointHandler()) as checkpointer:
        (written,) = checkpointer.restore(path / "arrays").values()
    assert (written.dtype, written.shape) == (np.dtype(dtype), shape)
    assert written.tobytes() == leaf.tobytes()


def _copied(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Any]:
    """Write an array; return what was copied meanwhile."""
    copied, original = [], copy.deepcopy

    def deepcopy(x: Any, *rest: Any) -> Any:
        copied.append(type(x))
        return original(x, *rest)

    monkeypatch.setattr(copy, "deepcopy", deepcopy)
    arrays = {"000000": np.arange(5, dtype=np.uint32)}
    array_files.write(folder, arrays)
    array_files.check(folder, arrays)
    return copied


def test_orbax_does_not_copy_the_arrays(tmp_path, monkeypatch):
    assert np.ndarray not in _copied(monkeypatch, tmp_path / "arrays")


def test_an_orbax_that_always_copies_writes_the_same(tmp_path, monkeypatch):
    original = orbax.type_handlers.NumpyHandler

    def before_0_12_5(**options: Any) -> Any:
        return fail(TypeError("unexpected keyword"))() if options else original()

    monkeypatch.setattr(orbax.type_handlers, "NumpyHandler", before_0_12_5)
    assert np.ndarray in _copied(monkeypatch, tmp_path / "arrays")
