"""Random trees are restored; random damage is named or harmless, never silent."""

import itertools
import json
import os
import shutil
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_trees import Pair, bits, fail

import fngrad.checkpoint.array_files as array_files
import fngrad.checkpoint.manifest as manifest
from fngrad.checkpoint import CheckpointError, Checkpoints, restore, save, steps

fuzz = hypothesis.settings(max_examples=40, deadline=None, database=None)

NUMPY_ONLY = ("float64", "int64", "uint64", "complex128")  # without x64
PLAIN = ("float16", "float32", "int8", "uint8", "int32", "uint16", "complex64")
ODD = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz")
FEW_BITS = ("int4", "uint4", "bool")


@st.composite
def arrays(draw: Any) -> Any:
    name = draw(st.sampled_from([*NUMPY_ONLY, *PLAIN, *ODD, *FEW_BITS]))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    count = int(np.prod(shape))
    dtype = np.dtype(getattr(jnp, name))
    if name in FEW_BITS:
        values = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
        return jnp.array(np.array(values).astype(dtype).reshape(shape))
    size = count * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    array = np.frombuffer(raw, dtype).reshape(shape)
    if name in NUMPY_ONLY or draw(st.booleans()):
        return array
    return jnp.array(array)


leaves = st.one_of(
    arrays(),
    st.none(),
    st.just(()),
    st.builds(jax.random.key, st.integers(0, 9)),
    st.just(jnp.arange(100_000.0)),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "a/b", ""]), inner, max_size=3),
        st.dictionaries(st.integers(0, 3), inner, max_size=2),
        st.builds(Pair, inner, inner),
        st.tuples(inner, inner),
    ),
    max_leaves=8,
)


def has_distinct_paths(a: Any) -> bool:
    entries, _ = jax.tree_util.tree_flatten_with_path(a)
    paths = ["/".join(str(_key(part)) for part in path) for path, _ in entries]
    return len(set(paths)) == len(paths)


def _key(part: Any) -> Any:
    """Return the key, index or name in an entry of a key path."""
    return next(getattr(part, n) for n in ("key", "idx", "name") if hasattr(part, n))


@fuzz
@hypothesis.given(a=trees)
def test_any_tree_is_restored_bit_for_bit_or_refused_by_path(a):
    with tempfile.TemporaryDirectory() as folder:
        if not has_distinct_paths(a):
            with pytest.raises(CheckpointError, match="need one path per leaf, got 's"):
                save(folder, a, step=0)
            return
        save(folder, a, step=0)
        back = restore(folder, a)
    assert jax.tree.structure(back) == jax.tree.structure(a)
    for got, expected in zip(jax.tree.leaves(back), jax.tree.leaves(a), strict=True):
        assert bits(got) == bits(expected)
        assert isinstance(got, np.ndarray) == isinstance(expected, np.ndarray)


STATE = {
    "w": np.random.default_rng(0).normal(size=(40, 50)).astype("float32"),
    "zeros": np.zeros((30, 30), np.float32),
    "few": np.arange(5, dtype=np.int8),
    "step": np.int32(7),
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Return a folder with steps 1 and 2, which hold the same state."""
    folder = tmp_path_factory.mktemp("good")
    for step in (1, 2):
        save(folder, STATE, step=step)
    return folder


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(path: Path, draw: Any) -> None:
    content = bytearray(path.read_bytes())
    place = draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << draw(st.integers(0, 7))
    path.write_bytes(content)


def truncate(path: Path, draw: Any) -> None:
    os.truncate(path, draw(st.integers(0, path.stat().st_size - 1)))


def extend(path: Path, draw: Any) -> None:
    path.write_bytes(path.read_bytes() + draw(st.binary(min_size=1, max_size=4)))


def overwrite(path: Path, draw: Any) -> None:
    content = bytearray(path.read_bytes())
    place = draw(st.integers(0, len(content) - 1))
    noise = draw(st.binary(min_size=1, max_size=64))[: len(content) - place]
    content[place : place + len(noise)] = noise
    path.write_bytes(content)


def swap(path: Path, draw: Any) -> None:
    step = next(p for p in path.parents if p.name == "00000002")
    other = draw(st.sampled_from(files_of(step)))
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


DAMAGES = {
    "flip": flip,
    "truncate": truncate,
    "extend": extend,
    "overwrite": overwrite,
    "swap": swap,
    "empty": lambda path, draw: path.write_bytes(b""),
    "delete": lambda path, draw: path.unlink(),
}


@hypothesis.settings(fuzz, max_examples=120)
@hypothesis.given(data=st.data())
def test_damage_is_named_and_the_step_before_is_used(data, two_steps):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "damaged"
        shutil.copytree(two_steps, folder)
        path = data.draw(st.sampled_from(files_of(folder / "00000002")))
        kind = data.draw(st.sampled_from(sorted(DAMAGES)))
        DAMAGES[kind](path, data.draw)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            saved = Checkpoints(folder).newest()
    assert saved is not None
    for name, leaf in STATE.items():
        assert bits(saved.leaves[f"state/{name}"].data) == bits(leaf)
    messages = [str(warning.message) for warning in caught]
    if saved.step == 2:
        assert messages == []
    else:
        assert len(messages) == 1
        assert f"the checkpoint {folder / '00000002'} is damaged" in messages[0]
        assert kind == "swap" or path.name in messages[0].partition("is not used")[2]


@pytest.fixture
def damaged(two_steps, tmp_path):
    """Return a copy of the folder with steps 1 and 2, to damage."""
    folder = tmp_path / "folder"
    shutil.copytree(two_steps, folder)
    return folder


FILES = ("_METADATA", "manifest.ocdbt", "manifest.json")


@pytest.mark.parametrize(
    ("kind", "name"),
    [*itertools.product(("flip", "truncate", "empty", "delete"), FILES)],
)
def test_each_damage_of_each_file_is_refused_by_name(kind, name, damaged):
    path = next(p for p in files_of(damaged / "00000002") if p.name == name)
    DAMAGES[kind](path, lambda strategy: 3)
    with pytest.raises(CheckpointError) as caught:
        restore(damaged, STATE, step=2)
    assert str(path) in str(caught.value)
    shows = kind == "flip" and name != "manifest.json"
    assert steps(damaged) == ([1, 2] if shows else [1])


def test_arrays_that_orbax_reads_wrongly_are_refused_by_leaf(damaged, monkeypatch):
    original = array_files.read

    def flipped(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
        arrays = {name: array.copy() for name, array in original(folder, names).items()}
        arrays[names[-2]][3] ^= 4
        return arrays

    monkeypatch.setattr(array_files, "read", flipped)
    with pytest.raises(CheckpointError, match="got others, leaf state/w"):
        restore(damaged, STATE, step=2)


def test_an_error_inside_orbax_is_reported_with_the_folder(damaged, monkeypatch):
    def fails(folder: Path, names: list[str]) -> Any:
        raise KeyError("surprise")

    monkeypatch.setattr(array_files, "read", fails)
    with pytest.raises(CheckpointError, match=r"00000002, .* got KeyError: 'surprise'"):
        restore(damaged, STATE)


def test_latest_skips_damage_with_a_warning_and_fails_if_none_is_left(damaged):
    for number, step in enumerate(("00000002", "00000001")):
        (damaged / step / "arrays" / "_METADATA").write_bytes(b"")
        if number == 0:
            with pytest.warns(UserWarning, match="00000002 is damaged .*_METADATA"):
                assert restore(damaged, STATE)["step"] == 7
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(CheckpointError, match="need a good checkpoint"),
    ):
        restore(damaged, STATE)


def rewrite(step: Path, **changes: Any) -> None:
    """Change a manifest together with its checksum."""
    path = step / "manifest.json"
    content = json.loads(path.read_text())["content"] | changes
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    path.write_text(json.dumps({"crc32": checksum, "content": content}))


def test_a_newer_format_is_neither_skipped_nor_deleted(damaged):
    rewrite(damaged / "00000002", format=1)
    assert restore(damaged, STATE, step=2)["step"] == 7
    rewrite(damaged / "00000002", format=3, versions={"fngrad": "9.0"})
    checkpoints = Checkpoints(damaged, keep=1)
    for read in (
        lambda: restore(damaged, STATE, step=2),
        lambda: restore(damaged, STATE),
        lambda: steps(damaged),
        checkpoints.newest,
    ):
        with pytest.raises(CheckpointError, match=r"1 or 2, got 3 .* fngrad 9\.0"):
            read()
    checkpoints.save(3, {"state": STATE})
    with pytest.raises(CheckpointError, match=r"delete old steps.* fngrad 9\.0"):
        checkpoints.wait()
    assert {"00000001", "00000002", "00000003"} < set(os.listdir(damaged))


def test_a_dtype_that_this_jax_does_not_know_is_not_damage(damaged):
    content = json.loads((damaged / "00000002" / "manifest.json").read_text())
    leaves = [leaf | {"data_dtype": "float3"} for leaf in content["content"]["leaves"]]
    rewrite(damaged / "00000002", leaves=leaves)
    with pytest.raises(CheckpointError, match="this JAX knows, got 'float3', leaf sta"):
        restore(damaged, STATE)


@pytest.mark.parametrize("function", ["_sizes", "_checksum_of_file"])
def test_what_cannot_be_read_now_is_neither_skipped_nor_deleted(
    function, damaged, monkeypatch
):
    checkpoints = Checkpoints(damaged, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, function, fail(OSError(24, "Too many open files")))
        with pytest.raises(CheckpointError, match="Too many open files"):
            checkpoints.newest()
        with pytest.raises(CheckpointError, match="Too many open files"):
            restore(damaged, STATE)
    checkpoints.save(3, {"state": STATE})
    checkpoints.close()
    assert steps(damaged) == [2, 3]


def test_a_broken_disk_is_damage(damaged, monkeypatch):
    original = manifest.read

    def read(folder: Path) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            if folder.name == "00000002":
                patch.setattr(Path, "read_bytes", fail(OSError(5, "I/O error")))
            return original(folder)

    monkeypatch.setattr(manifest, "read", read)
    with pytest.warns(UserWarning, match="00000002 is damaged .* I/O error"):
        assert Checkpoints(damaged).newest().step == 1


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(damaged, monkeypatch):
    monkeypatch.setattr(os, "listdir", fail(PermissionError(13, "denied")))
    for read in (Checkpoints(damaged).newest, lambda: steps(damaged)):
        with pytest.raises(CheckpointError, match=r"a folder to read, got .* denied"):
            read()


def test_files_of_other_programs_are_not_damage(damaged):
    for folder in (damaged, damaged / "00000002", damaged / "00000002" / "arrays"):
        (folder / ".DS_Store").write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Checkpoints(damaged).newest().step == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "1", '{"crc32": 1}', "\x00", "[" * 9999]
)
def test_a_malformed_manifest_is_damage(text, damaged):
    (damaged / "00000002" / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="manifest"):
        restore(damaged, STATE, step=2)
    assert steps(damaged) == [1]


def test_a_file_or_a_broken_link_in_place_of_a_step_is_damage(tmp_path):
    (tmp_path / "00000003").write_text("")
    (tmp_path / "00000004").symlink_to("nowhere")
    assert steps(tmp_path) == []
    with pytest.warns(UserWarning, match="is damaged"):
        assert Checkpoints(tmp_path).newest() is None
