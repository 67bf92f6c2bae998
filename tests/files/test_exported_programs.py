"""Programs in files: run without the code, on every platform, with every batch size."""

import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg

MODEL = fg.layers.serial(
    fg.layers.embedding(7, 4),
    fg.layers.multi_head_attention(4, 2, causal=True),
    fg.layers.linear(4, 3),
)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
PREDICT = fg.layers.batched(MODEL)
TOKENS = np.array([[1, 2, 3], [4, 5, 6], [0, 1, 0], [2, 4, 6], [1, 3, 5]], np.int32)
ALONE = """
import sys
from pathlib import Path
import jax, jax.export, numpy
program = jax.export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
x = numpy.load(sys.argv[2])
numpy.savez(sys.argv[3], whole=jax.jit(program.call)(x), one=program.call(x[:1]))
assert "fngrad" not in sys.modules
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("programs") / "new" / "model.bin"
    fg.export(PREDICT, PARAMS, TOKENS[:2], path)
    return path


def test_a_process_with_jax_alone_runs_the_file_at_any_batch_size(path, tmp_path):
    np.save(tmp_path / "x.npy", TOKENS)
    files = [path, tmp_path / "x.npy", tmp_path / "y.npz"]
    command = [sys.executable, "-c", ALONE, *map(str, files)]
    subprocess.run(command, check=True, cwd=tmp_path)
    with np.load(tmp_path / "y.npz") as found:
        expected = PREDICT(PARAMS, TOKENS)
        np.testing.assert_allclose(found["whole"], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["one"], expected[:1], rtol=1e-5, atol=1e-6)


def test_the_program_is_lowered_for_all_platforms_and_knows_what_it_takes(path):
    program = fg.load_exported(path)
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[0]) == "int32[batch,3]"
    with pytest.raises(ValueError, match="Shape mismatch"):
        program.call(TOKENS[:, :2])
    with pytest.raises(ValueError, match="Dtype mismatch"):
        program.call(TOKENS.astype(np.int8))


def test_parameters_that_stay_an_argument_are_given_by_path(tmp_path):
    shapes = jax.eval_shape(lambda: PARAMS)
    program = fg.export(PREDICT, shapes, TOKENS, tmp_path / "p.bin", keep_params=True)
    program = fg.load_exported(tmp_path / "p.bin")
    weights = fg.checkpoint.save_safetensors(tmp_path / "a.safetensors", PARAMS)
    y = program.call(fg.checkpoint.load_safetensors(weights), TOKENS)
    np.testing.assert_allclose(y, PREDICT(PARAMS, TOKENS), rtol=1e-5, atol=1e-6)
    half = jax.tree.map(lambda x: x / 2, fg.tree.leaf_paths(PARAMS))
    assert np.any(program.call(half, TOKENS) != y)


def test_a_batch_of_dicts_and_a_fixed_size():
    def weighted(w, batch):
        return {"y": batch["x"] @ w * batch["scale"]}

    example = {"x": jnp.ones((2, 3)), "scale": jnp.float32(3.0)}
    program = fg.export(
        weighted, jnp.ones(3), example, platforms="cpu", any_batch_size=False
    )
    np.testing.assert_array_equal(program.call(example)["y"], [9.0, 9.0])
    with pytest.raises(ValueError, match="mismatch"):
        program.call(example | {"x": jnp.ones((4, 3))})


def test_a_program_of_another_platform_says_so():
    program = fg.export(lambda w, x: w * x, jnp.ones(()), jnp.ones(2), platforms="tpu")
    with pytest.raises(ValueError, match=r"platforms '\('tpu',\)'.*'\('cpu',\)'"):
        program.call(jnp.ones(2))


@pytest.mark.parametrize("cut", [0, 10, 100, -1, -60])
def test_a_file_that_is_cut_off_is_refused(path, tmp_path, cut):
    (tmp_path / "cut.bin").write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"need a whole file of fngrad.export"):
        fg.load_exported(tmp_path / "cut.bin")


def test_a_flipped_bit_is_refused(path, tmp_path):
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        (tmp_path / "bit.bin").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            fg.load_exported(tmp_path / "bit.bin")


class Pair(NamedTuple):
    x: jax.Array


W, X = jnp.ones(2), jnp.ones((3, 2))


@pytest.mark.parametrize(
    ("fn", "params", "example", "more", "error", "message"),
    [
        (MODEL, PARAMS, TOKENS, {}, TypeError, r"got a layer; give fngrad.*batched"),
        (3, W, X, {}, TypeError, "need a function"),
        (jnp.dot, W, X, {"platforms": "gpu"}, ValueError, "'cuda'.*got .'gpu',."),
        (jnp.dot, W, X, {"platforms": ()}, ValueError, "need platforms"),
        (jnp.dot, W, {"a": X[0, 0]}, {}, ValueError, r"shape \(\) at 'a'; any_batch"),
        (jnp.dot, W, [X, W], {}, ValueError, "one batch size.*'0': 3, '1': 2"),
        (jnp.dot, W, [1.0], {}, TypeError, "need arrays, got float at '0'"),
        (jnp.dot, [1.0], X, {}, TypeError, "need arrays, got float at '0'"),
        (
            *(jnp.dot, {"w": jax.ShapeDtypeStruct((2,), "f4")}, X, {}),
            *(ValueError, "abstract leaf at 'w'; keep_params=True"),
        ),
    ],
)
def test_bad_arguments_are_refused(fn, params, example, more, error, message):
    with pytest.raises(error, match=message):
        fg.export(fn, params, example, **more)


def test_a_result_of_a_type_that_others_lack_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dicts, lists and tuples.*Pair"):
        fg.export(lambda w, x: Pair(x @ w), W, X, tmp_path / "pair.bin")
    assert not list(tmp_path.iterdir())


def test_a_function_that_needs_the_size_names_the_way_out():
    def branches(w, x):
        return x[: len(x) // 2] if len(x) > 2 else x

    with pytest.raises(Exception, match="batch") as caught:
        fg.export(branches, W, X)
    assert "any_batch_size=False" in "".join(caught.value.__notes__)
