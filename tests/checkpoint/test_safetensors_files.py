"""Weights in a safetensors file: bit for bit, by path, and what is refused."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from fngrad.checkpoint import (
    CheckpointError,
    load_safetensors,
    safetensors_metadata,
    save_safetensors,
)
from fngrad.checkpoint.device_transfer import named_dtype

CODES = {  # of the format's specification
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
TREE = {
    "layers": [{"weight": jnp.arange(6.0).reshape(2, 3)}, {"bias": jnp.ones(2)}],
    "empty": jnp.zeros((0, 4)),
    "scalar": jnp.float32(-0.0),
}


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


@pytest.fixture
def path(tmp_path):
    return save_safetensors(tmp_path / "a.safetensors", TREE, metadata={"from": "me"})


def test_a_tree_comes_back_bit_for_bit(path):
    jax.tree.map(same_bits, load_safetensors(path, like=TREE), TREE)
    abstract = jax.eval_shape(lambda: TREE)
    jax.tree.map(same_bits, load_safetensors(path, like=abstract), TREE)
    assert os.listdir(path.parent) == ["a.safetensors"]  # no temporary file is left


def test_the_library_itself_reads_the_file_by_leaf_path(path):
    found = safetensors.numpy.load_file(path)
    assert set(found) == {"layers/0/weight", "layers/1/bias", "empty", "scalar"}
    same_bits(found["layers/0/weight"], TREE["layers"][0]["weight"])
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata()["from"] == "me"
    assert safetensors_metadata(path) == {"from": "me"}


def test_a_file_of_the_library_itself_is_read(tmp_path):
    path, array = tmp_path / "b.safetensors", np.arange(4, dtype=np.int8)
    safetensors.numpy.save_file({"a.b": array}, path)
    same_bits(load_safetensors(path)["a.b"], array)
    assert safetensors_metadata(path) == {}


def test_every_dtype_of_the_format_keeps_its_bits(tmp_path):
    bits = np.random.default_rng(0).integers(0, 256, (3, 16), dtype=np.uint8)
    tree = {name: bits.view(named_dtype(name)) for name in CODES}
    tree["bool"] = bits > 100
    path = save_safetensors(tmp_path / "c.safetensors", tree)
    read = load_safetensors(path, like=tree)
    jax.tree.map(same_bits, read, tree)
    codes = {n: v["dtype"] for n, v in safetensors.deserialize(path.read_bytes())}
    assert codes == CODES | {"bool": "BOOL"}
    assert all(x.flags.writeable for x in read.values())


def test_what_is_not_contiguous_is_written_in_order(tmp_path):
    tree = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3).T}
    path = save_safetensors(tmp_path / "d.safetensors", tree)
    same_bits(safetensors.numpy.load_file(path)["w"], np.ascontiguousarray(tree["w"]))


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jnp.ones(2, jnp.int4), "got int4 at 'a/w'"),
        (jax.random.key(0), r"got key<fry> at 'a/w'; fngrad.checkpoint.save"),
        (np.ones(2, np.complex128), "got complex128 at 'a/w'"),
        (np.ones(2, jnp.float8_e4m3b11fnuz), "got float8_e4m3b11fnuz at 'a/w'"),
        (1.0, "need arrays.*got float at 'a/w'"),
    ],
)
def test_a_leaf_that_the_format_cannot_hold_is_named(tmp_path, leaf, message):
    with pytest.raises(CheckpointError, match=message):
        save_safetensors(tmp_path / "e.safetensors", {"a": {"w": leaf}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, r"shape: 'w' \(2, 3\) saved"),
        ({"w": jnp.ones((2, 3), int), "b": jnp.ones(2)}, "'w' float32 saved, int32"),
        ({"w": jnp.ones((2, 3))}, "only in the checkpoint: 'b'"),
        (
            {"w": jnp.ones((2, 3)), "b": jnp.ones(2), "c": jnp.ones(1)},
            "missing in the checkpoint: 'c'",
        ),
    ],
)
def test_another_tree_is_refused_with_its_differences(tmp_path, like, message):
    path = save_safetensors(
        tmp_path / "f.safetensors", {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
    )
    with pytest.raises(CheckpointError, match=message):
        load_safetensors(path, like=like)


def test_what_fits_can_be_taken_and_a_part_too(path):
    like = {"scalar": jnp.ones(()), "new": jnp.ones(2)}
    with pytest.warns(UserWarning, match=r"restored 1 of 2 leaves.*'new'"):
        read = load_safetensors(path, like=like, partial=True)
    same_bits(read["scalar"], TREE["scalar"])
    layers = load_safetensors(path, like=TREE["layers"], part="layers")
    jax.tree.map(same_bits, layers, TREE["layers"])
    with pytest.raises(ValueError, match="need like="):
        load_safetensors(path, part="layers")


def test_one_array_is_a_tree(tmp_path):
    path = save_safetensors(tmp_path / "g.safetensors", jnp.ones(3))
    same_bits(load_safetensors(path, like=jnp.zeros(3)), jnp.ones(3))


def test_a_file_that_is_cut_off_is_refused(path):
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="need a whole safetensors file"):
            load_safetensors(path)


def test_a_flipped_bit_is_refused_or_harmless(path):
    whole = path.read_bytes()
    expected = {k: np.asarray(v) for k, v in load_safetensors(path).items()}
    names = [k for k, v in expected.items() if v.size]
    start = len(whole) - sum(expected[k].nbytes for k in names)
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            read = load_safetensors(path)
        except CheckpointError:
            continue
        assert at < start, "a bit of an array was read as it is not"
        assert read.keys() == expected.keys()
        jax.tree.map(same_bits, read, expected)


def test_damage_to_an_array_names_it(path):
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"undamaged arrays.*got others at \["):
        load_safetensors(path)


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match="disk full"):
        save_safetensors(path, {"other": jnp.ones(1)})
    jax.tree.map(same_bits, load_safetensors(path, like=TREE), TREE)
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_a_dtype_that_jax_lacks_is_named(tmp_path):
    head = {"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    text = json.dumps(head).encode()
    path = tmp_path / "h.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0")
    with pytest.raises(CheckpointError, match="F4 at 'w'"):
        load_safetensors(path)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"got 3 at 'step': json.dumps"):
        save_safetensors(tmp_path / "i", {}, metadata={"step": 3})
    with pytest.raises(ValueError, match=r"begin with 'fngrad\.'"):
        save_safetensors(tmp_path / "i", {}, metadata={"fngrad.x": ""})
    with pytest.raises(ValueError, match="file system of this machine"):
        load_safetensors("gs://bucket/a.safetensors")
    with pytest.raises(CheckpointError, match="No such file"):
        load_safetensors(tmp_path / "none")
