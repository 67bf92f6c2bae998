"""A checkpoint that version 0.1 wrote is still restored bit for bit.

A checkpoint holds the names of parts and the texts of static values, so it cannot be
restored once one of them changes. The bits are stored beside it as text, read from the
state and not from the checkpoint: nothing is computed again, so no rounding matters.

``python tests/checkpoint/test_compatibility.py FOLDER`` writes such a fixture for a
later version.
"""

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad.checkpoint import restore, save
from fngrad.schedules import warmup_cosine

FIXTURE = Path(__file__).parent / "checkpoint_of_0_1"


def optimizer() -> fg.Transform:
    """Return an optimizer with a state of every kind."""
    coded = fg.tunable(fg.adamw, learning_rate=0.01, weight_decay=0.1)
    momentum = fg.chain(fg.trace(0.9), fg.scale_by_learning_rate(0.1))
    rate = warmup_cosine(0.0, 0.1, 2, 8)
    groups = [
        ("embed", fg.freeze()),
        ("body/*", fg.quantize_state(coded, bits=8, block_size=16, min_size=16)),
        ("head", fg.quantize_state(momentum, 4, 8, signed="**/trace/**", min_size=16)),
        ("norms/**", fg.stack_leaves(fg.adam(rate))),
        ("**", fg.chain(fg.sgd(0.1), fg.stochastic_round(key=3))),
    ]
    return fg.chain(fg.skip_nonfinite(fg.partition(groups)), fg.ema_params(0.9))


def initial_state() -> fg.TrainState:
    """Return the state of step 0; its structure is compared with the checkpoint."""
    params = {
        "embed": jnp.arange(4, dtype=jnp.float16),
        "body": [_wave((4, 8)), _wave((8,))],
        "head": _wave((8, 4)),
        "norms": {"a": _wave((3,)), "b": _wave((3,)), "c": _wave(())},
        "narrow": _wave((5,)).astype(jnp.bfloat16),
    }
    counts = {"mean": jnp.zeros(4), "seen": jnp.int32(0)}
    return fg.init_state(params, optimizer(), key=7, model_state=counts)


@functools.cache
def like() -> fg.TrainState:
    """Return the shapes and dtypes of that state."""
    return jax.eval_shape(initial_state)


def _wave(shape: tuple[int, ...]) -> jax.Array:
    return jnp.cos(jnp.arange(np.prod(shape), dtype=jnp.float32)).reshape(shape)


def _loss(params: Any, model_state: Any, batch: jax.Array) -> Any:
    pairs = enumerate(jax.tree.leaves(params))
    loss = sum(jnp.sum((x.astype(jnp.float32) - i * batch) ** 2) for i, x in pairs)
    mean = 0.5 * model_state["mean"] + batch
    return loss, ({}, {"mean": mean, "seen": model_state["seen"] + 1})


def write(folder: Path) -> None:
    """Train for three steps; write the checkpoint, and its bits as text beside it."""
    state = initial_state()
    step = jax.jit(fg.make_step(_loss, optimizer()))
    for batch in (0.1, 0.2, 0.3):
        state, _ = step(state, jnp.float32(batch))
    save(folder, state)
    lines = [f"{json.dumps(path)}: {json.dumps(bits)}" for path, bits in _bits(state)]
    (folder / "bits.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _bits(state: Any) -> list[tuple[str, tuple[str, list[int], str]]]:
    """Return each leaf's path, and its dtype, shape and bytes in hexadecimal."""
    return [(path, _bits_of(leaf)) for path, leaf in fg.tree.leaf_paths(state).items()]


def _bits_of(leaf: jax.Array) -> tuple[str, list[int], str]:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    little = data.astype(data.dtype.newbyteorder("<"))
    return str(leaf.dtype), list(leaf.shape), little.tobytes().hex()


def test_a_checkpoint_of_version_0_1_is_restored_bit_for_bit(tmp_path):
    folder = shutil.copytree(FIXTURE, tmp_path / "copy")
    expected = json.loads((folder / "bits.json").read_text())
    state = restore(folder, like=like())
    got = {path: list(bits) for path, bits in _bits(state)}
    assert list(got) == list(expected)
    assert [path for path in got if got[path] != expected[path]] == []


def test_the_fixture_holds_state_of_every_kind():
    saved = json.loads((FIXTURE / "bits.json").read_text())
    dtypes = {dtype for dtype, _, _ in saved.values()}
    assert dtypes >= {"bfloat16", "float16", "float32", "int32", "uint8", "key<fry>"}
    (manifest,) = FIXTURE.glob("*/manifest.json")
    text = manifest.read_text()
    for static in ("Coding(bits=8, signed=True)", "Coding(bits=4", "Members(paths="):
        assert static in text
    for part in ("tunable", "partition", "stack_leaves", "model_state"):
        assert part in text


def test_the_parameters_of_version_0_1_are_restored_alone(tmp_path):
    folder = shutil.copytree(FIXTURE, tmp_path / "copy")
    expected = json.loads((folder / "bits.json").read_text())
    params = restore(folder, like=like().params, part="params")
    for path, bits in _bits(params):
        assert list(bits) == expected[f"params/{path}"]


def test_a_part_of_version_0_1_is_restored_into_a_larger_model(tmp_path):
    folder = shutil.copytree(FIXTURE, tmp_path / "copy")
    expected = json.loads((folder / "bits.json").read_text())
    larger = like().params | {"new": jnp.ones(2), "narrow": jnp.ones(2)}
    with pytest.warns(UserWarning, match="restored 7 of 9 leaves"):
        params = restore(folder, like=larger, part="params", partial=True)
    assert params["new"].tolist() == params["narrow"].tolist() == [1, 1]
    assert list(_bits_of(params["head"])) == expected["params/head"]


@pytest.mark.slow
def test_a_state_restored_from_version_0_1_trains_on(tmp_path):
    folder = shutil.copytree(FIXTURE, tmp_path / "copy")
    state = restore(folder, like=like())
    state, metrics = jax.jit(fg.make_step(_loss, optimizer()))(state, jnp.float32(0.4))
    assert state.step == 4
    assert metrics["is_finite"]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
