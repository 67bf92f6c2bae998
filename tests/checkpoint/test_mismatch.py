"""A checkpoint of another tree is refused, and the differences are named."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from saved_trees import Pair, abstract, assert_same, bias_state

import fngrad as fg
from fngrad.checkpoint import CheckpointError, restore, save
from fngrad.numerics.low_bit_codes import Coded, Coding, encode
from fngrad.transforms.quantize import quantize_state


def test_another_optimizer_is_named(tmp_path):
    save(tmp_path, bias_state(fg.adam(0.1)))
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path, bias_state(fg.sgd(0.1, momentum=0.9)))
    for part in (
        "missing in the checkpoint: 'opt_state/trace/",
        "only in the checkpoint: 'opt_state/scale_by_adam/mu/w'",
        "It has another optimizer.",
        "partial=True",
    ):
        assert part in str(caught.value)


def test_another_model_is_named_and_long_lists_are_cut(tmp_path):
    layers = {f"layer{i}": jnp.ones(2) for i in range(9)}
    save(tmp_path, bias_state(fg.sgd(0.1), **layers))
    other = {f"layer{i}": jnp.ones(3) for i in range(9)}
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path, bias_state(fg.sgd(0.1), **other))
    for part in (
        "with another shape: 'params/layer0' (2,) saved, (3,) wanted",
        "and 5 more",
        "It has another model.",
    ):
        assert part in str(caught.value)
    assert "layer4" not in str(caught.value)


def test_a_dtype_is_never_cast(tmp_path):
    save(tmp_path, {"n": jnp.int32(2**24 + 1), "w": jnp.ones(2, jnp.bfloat16)}, step=0)
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path, {"n": jnp.float32(0), "w": jnp.ones(2, jnp.float16)})
    for part in ("'n' int32 saved, float32", "'w' bfloat16 saved, float16 wanted"):
        assert part in str(caught.value)


def test_a_key_of_another_implementation_and_a_raw_key_are_refused(tmp_path):
    save(tmp_path, {"key": jax.random.key(0)}, step=0)
    with pytest.raises(CheckpointError, match="key<fry> saved, key<rbg> wanted"):
        restore(tmp_path, {"key": jax.random.key(0, impl="rbg")})
    with pytest.raises(CheckpointError, match=r"'key' \(\) saved, \(2,\) wanted"):
        restore(tmp_path, {"key": jax.random.key_data(jax.random.key(0))})


def test_another_coding_with_the_same_shapes_is_refused(tmp_path):
    signed, unsigned = (
        {"m": encode(jnp.ones(4), Coding(8, signed=sign), 2)} for sign in (True, False)
    )
    save(tmp_path, signed, step=0)
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path, unsigned)
    for part in ("with another structure: 'm'", "signed=True", "signed=False"):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"need leaves that fit .* got none"):
        restore(tmp_path, unsigned, partial=True)
    assert_same(restore(tmp_path, signed), signed)


SETS = """
import sys
import jax
import jax.numpy as jnp
from fngrad.checkpoint import restore, save

class Module:
    def __init__(self, w):
        self.w = w

names = frozenset({"alpha", "beta", "gamma", "delta", "epsilon"})
jax.tree_util.register_pytree_node(
    Module, lambda m: ((m.w,), ("names", names)), lambda aux, w: Module(*w)
)
if len(sys.argv) > 2:
    save(sys.argv[1], Module(jnp.ones(2)), step=0)
print(list(names), restore(sys.argv[1], Module(jnp.zeros(2))).w)
"""


def test_a_static_set_matches_in_a_process_that_orders_it_differently(tmp_path):
    shown = []
    for seed, *more in (("1", "save"), ("2",)):
        command = [sys.executable, "-c", SETS, str(tmp_path), *more]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.stdout.endswith("[1. 1.]\n"), done.stderr
        shown.append(done.stdout)
    assert shown[0] != shown[1]


def test_quantised_and_stacked_optimizers_are_restored(tmp_path):
    stacked = fg.stack_leaves(quantize_state(fg.adam(0.1), 8, 2, min_size=1))
    state = bias_state(stacked, a=jnp.ones(4), b=jnp.zeros(4))
    assert any(isinstance(x, Coded) for x in jax.tree.leaves(state, is_leaf=_is_coded))
    save(tmp_path, state)
    assert_same(restore(tmp_path, state), state)
    renamed = bias_state(stacked, a=jnp.ones(4), c=jnp.zeros(4))
    with pytest.raises(CheckpointError, match=r"structure: 'opt_state/stack_leaves"):
        restore(tmp_path, renamed)


def test_moments_in_bfloat16_are_restored_and_not_taken_for_others(tmp_path):
    short, plain = (
        bias_state(optimizer, a=jnp.ones(4), b=jnp.zeros(4))
        for optimizer in (quantize_state(fg.adam(0.1), 16), fg.adam(0.1))
    )
    save(tmp_path, short)
    assert_same(restore(tmp_path, short), short)
    with pytest.raises(CheckpointError, match="opt_state/quantize_state"):
        restore(tmp_path, plain)


def _is_coded(x: Any) -> bool:
    return isinstance(x, Coded)


def test_containers_of_another_type_with_the_same_paths_match(tmp_path):
    save(tmp_path, {"first": jnp.ones(2), "second": [jnp.zeros(1)]}, step=0)
    like = Pair(jnp.zeros(2), (jnp.ones(1),))
    assert_same(restore(tmp_path, like), Pair(jnp.ones(2), (jnp.zeros(1),)))


def test_partial_restores_what_fits_and_warns_of_the_rest(tmp_path):
    save(tmp_path, bias_state(fg.adam(0.1), body=jnp.full(2, 5.0), head=jnp.ones(3)))
    like = bias_state(fg.sgd(0.1), body=jnp.zeros(2), head=jnp.zeros(4))
    with pytest.warns(UserWarning, match=r"kept as they are: 'params/head'") as caught:
        back = restore(tmp_path, like, partial=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert_same(back.params, {"body": jnp.full(2, 5.0), "head": jnp.zeros(4)})
    with pytest.raises(CheckpointError, match="abstract leaf at 'params/head'"):
        restore(tmp_path, abstract(like), partial=True)


def test_partial_does_not_warn_when_every_leaf_fits(tmp_path):
    state = bias_state(fg.adam(0.1))
    save(tmp_path, state)
    assert_same(restore(tmp_path, state.params, part="params", partial=True), state[2])
    assert_same(restore(tmp_path, state, partial=True), state)


def test_the_error_for_a_missing_part_lists_its_siblings(tmp_path):
    state = {"params": {"layers": [{"weight": jnp.ones(2)}] * 2}}
    save(tmp_path, state, step=0)
    words = r"got 'params/layers/7/bias': 'params/layers' has \['0', '1'\]"
    with pytest.raises(CheckpointError, match=words):
        restore(tmp_path, jnp.ones(2), part="params/layers/7/bias")
    with pytest.raises(CheckpointError, match=r"got 'weights': it has \['params'\]"):
        restore(tmp_path, jnp.ones(2), part="weights")
    with pytest.raises(CheckpointError, match=r"keep_best names in .* steps \[0\]"):
        restore(tmp_path, state, step="best")


def test_the_error_for_a_wrong_folder_names_the_right_one(tmp_path):
    state = bias_state(fg.sgd(0.1))
    step = save(tmp_path / "run" / "checkpoints", state, step=3)
    for options in ({}, {"step": "best"}, {"step": 3}):
        with pytest.raises(CheckpointError, match=r"the run .* in '.*run/checkpoints'"):
            restore(tmp_path / "run", state, **options)
    with pytest.raises(CheckpointError, match=r"itself a checkpoint.*run/checkpoints'"):
        restore(step, state)
    with pytest.raises(CheckpointError, match="the folder does not exist"):
        restore(tmp_path / "nun", state)


def test_partial_warns_that_the_step_is_restored_too(tmp_path):
    state = bias_state(fg.sgd(0.1))
    save(tmp_path, state._replace(step=jnp.int32(7)))
    other = bias_state(fg.sgd(0.1), w=jnp.ones(3), head=jnp.ones(2))
    with pytest.warns(UserWarning, match=r'step is restored too, 7: .*part="params"'):
        got = restore(tmp_path, other, partial=True)
    assert int(got.step) == 7
    with pytest.warns(UserWarning, match=r"restored 1 of 2 leaves") as warned:
        params = restore(tmp_path, other.params, part="params", partial=True)
    assert "step" not in str(warned[0].message)
    assert_same(params["w"], state.params["w"])
