"""What is saved is restored bit for bit, on its devices, or refused by name."""

import functools
import json
import re
import warnings
from typing import Any

import float64_mode
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import run
from saved_trees import Pair, abstract, assert_same, bias_state, bits

import fngrad as fg
from fngrad.checkpoint import CheckpointError, latest_step, restore, save, steps
from fngrad.files.locks import Lock
from fngrad.numerics.low_bit_codes import Coding, encode


def everything() -> dict[str, Any]:
    """Return leaves of every kind that JAX has without x64."""
    key = jax.random.key(3)
    rows = jnp.arange(6.0).reshape(2, 3)
    floats = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2]
    return {
        "narrow": [jnp.linspace(-2, 2, 5).astype(dtype) for dtype in floats],
        "int4": [jnp.arange(-3, 4).astype(jnp.int4), jnp.arange(3).astype(jnp.uint4)],
        "counts": (jnp.int8([-1]), jnp.uint32(7), jnp.array([True, False])),
        "complex": jnp.complex64(1 - 2j),
        "minus zero": [-jnp.zeros(()), -jnp.zeros((2, 2)), jnp.float16(-0.0)],
        "not finite": jnp.array([jnp.nan, jnp.inf, -jnp.inf]),
        "keys": [key, jax.random.split(key, (2, 2)), jax.random.key(1, impl="rbg")],
        "empty": [jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32), (), {}, None, []],
        "pair": Pair(encode(rows, Coding(8, signed=True), 2), None),
        "odd/name.é": {"": jnp.ones(1), " ": jnp.ones(2), "allow_pickle": rows.T},
    }


def test_every_kind_of_leaf_is_restored_bit_for_bit(tmp_path):
    original = everything()
    save(tmp_path, original, step=5)
    assert_same(restore(tmp_path, original), original)
    assert_same(restore(tmp_path, abstract(original)), original)


def test_a_nan_keeps_its_payload(tmp_path):
    payloads = np.array([0x7FC00001, 0xFFC12345, 0x7F800001], np.uint32)
    save(tmp_path, payloads.view(np.float32), step=0)
    back = restore(tmp_path, jax.ShapeDtypeStruct((3,), jnp.float32))
    assert bits(back)[2] == payloads.tobytes()


def test_double_precision_is_restored_with_x64_and_refused_without(tmp_path):
    with float64_mode.x64():
        original = {"w": jnp.array([1 / 3, 1e300]), "n": jnp.array(2**60)}
        assert original["w"].dtype == np.float64
        save(tmp_path, original, step=0)
        assert_same(restore(tmp_path, original), original)
        like = abstract(original)
    with pytest.raises(CheckpointError, match=r"enable_x64 .* leaf 'state/n'"):
        restore(tmp_path, like)
    narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), like)
    with pytest.raises(CheckpointError, match="'w' float64 saved, float32 wanted"):
        restore(tmp_path, narrow)


def test_numpy_arrays_stay_numpy_arrays_also_in_double_precision(tmp_path):
    original = {"loss": np.array([0.1, np.nan]), "steps": np.arange(2), "n": np.int8(3)}
    save(tmp_path, original, step=0)
    back = restore(tmp_path, original)
    assert_same(back, original)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(back))


def test_a_root_that_is_a_leaf_and_a_tree_without_leaves_are_restored(tmp_path):
    save(tmp_path / "leaf", jnp.float32(3), step=0)
    assert restore(tmp_path / "leaf", jnp.float32(0)) == 3
    save(tmp_path / "none", {"a": (), "b": None}, step=0)
    assert restore(tmp_path / "none", {"a": (), "b": None}) == {"a": (), "b": None}


def test_a_train_state_has_its_step_and_other_trees_need_one(tmp_path):
    state = bias_state(fg.adam(0.1))._replace(step=jnp.int32(40))
    assert save(tmp_path, state) == tmp_path / "00000040"
    save(tmp_path, state._replace(step=jnp.int32(100)))
    assert steps(tmp_path) == [40, 100]
    assert latest_step(tmp_path) == 100
    assert restore(tmp_path, state).step == 100
    assert restore(tmp_path, state, step=40).step == 40
    with pytest.raises(ValueError, match="need step= for a dict, got None"):
        save(tmp_path, {"w": jnp.ones(1)})
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="need an int step >= 0"):
            save(tmp_path, state, step=wrong)


def test_a_folder_without_checkpoints_has_none(tmp_path):
    for folder in (tmp_path, tmp_path / "not there"):
        assert steps(folder) == []
        assert latest_step(folder) is None
        message = re.escape(f"in '{folder}', got none")
        with pytest.raises(CheckpointError, match=message):
            restore(folder, jnp.ones(1))
    assert not (tmp_path / "not there").exists()


def test_the_error_for_a_missing_step_lists_the_steps(tmp_path):
    save(tmp_path, jnp.ones(1), step=3)
    with pytest.raises(CheckpointError, match=r"got step=4: it has \[3\]"):
        restore(tmp_path, jnp.ones(1), step=4)
    with pytest.raises(ValueError, match='need a step, "latest" or "best", got'):
        restore(tmp_path, jnp.ones(1), step="newest")


def test_a_step_saved_again_replaces_what_is_read(tmp_path):
    first = save(tmp_path, jnp.float32(1), step=3)
    second = save(tmp_path, jnp.float32(2), step=3)
    assert (first.name, second.name) == ("00000003", "00000003-1")
    assert steps(tmp_path) == [3]
    assert restore(tmp_path, jnp.float32(0)) == 2
    assert restore(tmp_path, jnp.float32(0), step=3) == 2


def test_the_best_is_the_first_to_reach_the_best_finite_metric(tmp_path):
    for step, loss in enumerate((3.0, float("nan"), 1.0, 1.0, 2.0)):
        save(tmp_path, jnp.int32(step), step=step, metrics={"val/loss": loss})
    assert restore(tmp_path, jnp.int32(0), step="best") == 2
    save(tmp_path / "other", jnp.int32(0), step=0, metrics={"accuracy": 1.0})
    with pytest.raises(CheckpointError, match="need a good checkpoint"):
        restore(tmp_path / "other", jnp.int32(0), step="best")


def test_a_part_is_restored_by_its_path(tmp_path):
    state = bias_state(fg.adam(0.1), w=jnp.ones(3), deep={"b": jnp.zeros(2)})
    save(tmp_path, state)
    assert_same(restore(tmp_path, state.params, part="params"), state.params)
    assert_same(restore(tmp_path, jnp.ones(2), part="params/deep/b"), jnp.zeros(2))
    assert_same(restore(tmp_path, state.opt_state, part="opt_state"), state.opt_state)
    assert restore(tmp_path, (), part="model_state") == ()
    with pytest.raises(CheckpointError, match=r"got 'parms': it has \['key', 'opt_st"):
        restore(tmp_path, state.params, part="parms")
    with pytest.raises(CheckpointError, match='are part="params"'):
        restore(tmp_path, state.params)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (1.5, "got float at 'state/x/0'"),
        ("text", "got str at 'state/x/0'"),
        (np.array("text"), r"got dtype <U4 at 'state/x/0'"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), "got MaskedArray at 'state/x/0'"),
        (np.array([1.0], ">f4"), r"byte order, got dtype >f4 at 'state/x/0'"),
        (
            jax.ShapeDtypeStruct((2,), jnp.float32),
            "got ShapeDtypeStruct at 'state/x",
        ),
    ],
    ids=["float", "str", "text", "masked", "byte order", "abstract"],
)
def test_what_is_not_an_array_of_numbers_is_refused_by_path(leaf, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, {"x": [leaf]}, step=0)
    assert list(tmp_path.iterdir()) == []


def test_a_traced_leaf_is_refused_by_path(tmp_path):
    state = bias_state(fg.sgd(0.1))
    with pytest.raises(CheckpointError, match="got leaf 'state/step' while it is trac"):
        jax.jit(lambda state: save(tmp_path, state))(state)
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_several_runs_needs_a_step(tmp_path):
    state = jax.tree.map(lambda x: jnp.stack([x, x]), bias_state(fg.adam(0.1)))
    with pytest.raises(ValueError, match=r"several runs, got steps of shape \(2,\)"):
        save(tmp_path, state)
    save(tmp_path, state, step=3)
    assert_same(restore(tmp_path, state), state)


def test_two_leaves_with_the_same_path_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="got 'state/a/b' twice"):
        save(tmp_path, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, step=0)


def test_a_donated_state_is_refused_by_path_but_still_gives_the_shapes(tmp_path):
    original = {"w": jnp.ones(3), "b": jnp.zeros(2)}
    save(tmp_path, original, step=0)
    jax.block_until_ready(jax.jit(jnp.negative, donate_argnums=0)(original["w"]))
    with pytest.raises(CheckpointError, match="leaf 'state/w' whose memory"):
        save(tmp_path, original, step=1)
    state = bias_state(fg.sgd(0.1))
    jax.block_until_ready(jax.jit(lambda x: x + 1, donate_argnums=0)(state.step))
    with pytest.raises(CheckpointError, match="leaf 'state/step' whose memory"):
        save(tmp_path, state)
    assert restore(tmp_path, original)["w"].sum() == 3


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"notes\.fn"):
        save(tmp_path, jnp.ones(1), step=0, notes={"fn": print})
    for metric in (np.ones(2), None, "low"):
        with pytest.raises(TypeError, match=r"metrics\.loss"):
            save(tmp_path, jnp.ones(1), step=0, metrics={"loss": metric})
    assert list(tmp_path.iterdir()) == []


def test_restored_arrays_can_be_donated_again_and_again(tmp_path):
    original = {"w": jnp.arange(64.0), "key": jax.random.key(0)}
    device = jax.devices()[0]
    save(tmp_path, original, step=0)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any) -> Any:
        key, _ = jax.random.split(state["key"])
        return {"w": state["w"] + 1, "key": key}

    for like in (original, jax.device_put(original, device)):
        state = restore(tmp_path, like)
        assert state["w"].committed == like["w"].committed
        for _ in range(3):
            old, pointer = state, state["w"].unsafe_buffer_pointer()
            state = jax.block_until_ready(step(state))
            assert old["w"].is_deleted()
            assert state["w"].unsafe_buffer_pointer() == pointer
        assert_same(state["w"], jnp.arange(64.0) + 3)
        assert not state["w"].weak_type


def test_the_manifest_describes_the_step(tmp_path):
    state = bias_state(fg.adam(0.1))
    path = save(tmp_path, state, metrics={"val/loss": 0.5}, notes={"by": "hand"})
    content = json.loads((path / "manifest.json").read_text())["content"]
    assert content["format"] == 1
    assert content["step"] == 0
    assert content["metrics"] == {"val/loss": 0.5}
    assert content["notes"] == {"by": "hand"}
    assert {"python", "fngrad", "jax", "numpy", "orbax-checkpoint"} <= set(
        content["versions"]
    )
    by_path = {entry["path"]: entry for entry in content["leaves"]}
    weight = by_path["state/params/w"]
    assert (weight["dtype"], weight["shape"]) == ("float32", [3])
    assert by_path["state/key"]["dtype"] == "key<fry>"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*\+00:00", content["time"])


DEVICES = """
import sys, warnings
import jax
warnings.simplefilter("error")
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from fngrad.checkpoint import restore, save

def over(count, *axes):
    return NamedSharding(Mesh(np.array(jax.devices()[:count]), "x"), P(*axes))

def same(a, b):
    return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

w = jnp.arange(64.0).reshape(8, 8)
eight = {
    "w": jax.device_put(w, over(8, "x")),
    "columns": jax.device_put(w, over(8, None, "x")),
    "all": jax.device_put(w, over(8)),
    "last": jax.device_put(w, jax.devices()[7]),
    "key": jax.device_put(jax.random.key(0), over(8)),
}
save(sys.argv[1], eight, step=0)
for count in (8, 2, 1):
    like = {name: jax.device_put(leaf, over(count, "x") if name == "w" else over(count))
            for name, leaf in eight.items()}
    for given in (like, jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)):
        back = restore(sys.argv[1], given)
        for name, leaf in back.items():
            assert leaf.sharding == like[name].sharding, (name, leaf.sharding)
            assert leaf.committed
            if name != "key":
                assert same(leaf, w), name
        step = jax.jit(lambda t: jax.tree.map(lambda x: x * 2, t), donate_argnums=0)
        del back["key"]
        out = jax.block_until_ready(step(back))
        assert all(leaf.is_deleted() for leaf in back.values())
        assert same(out["w"], 2 * w)
print("fine")
"""


def test_a_sharded_state_is_restored_to_eight_two_or_one_device(tmp_path):
    done = run(DEVICES, tmp_path)
    assert done.stdout == "fine\n", done.stderr
    like = {name: jnp.zeros((8, 8)) for name in ("w", "columns", "all", "last")}
    back = restore(tmp_path, {**like, "key": jax.random.key(1)})
    assert_same(back["w"], jnp.arange(64.0).reshape(8, 8))
    assert len(back["w"].devices()) == 1


def test_reading_neither_writes_nor_needs_a_lock(tmp_path):
    save(tmp_path, jnp.ones(1), step=0)
    before = sorted(path.name for path in tmp_path.iterdir())
    with Lock(tmp_path, name=".writing"):
        assert restore(tmp_path, jnp.zeros(1)) == 1
        with pytest.raises(CheckpointError, match="for checkpoints that nobody else"):
            save(tmp_path, jnp.ones(1), step=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restore(tmp_path, jnp.zeros(1)) == 1


def test_the_folder_is_the_first_argument(tmp_path):
    with pytest.raises(TypeError, match=r"got dict; .* save\(folder, state\)"):
        save({"w": jnp.ones(2)}, tmp_path, step=1)  # pyright: ignore
    with pytest.raises(TypeError, match=r"got dict; .* restore\(folder, like\)"):
        restore({"w": jnp.ones(2)}, tmp_path)  # pyright: ignore
