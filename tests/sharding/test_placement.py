"""Where the leaves of a state are placed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import fngrad as fg
import fngrad.sharding as sharding
from fngrad.sharding.placement import check_batch

MESH = sharding.abstract_mesh(data=4)
HERE = sharding.make_mesh(jax.devices()[:1])
RULE = sharding.fsdp(min_size=64)
PARAMS = {"deep": {"w": jnp.ones((8, 16)), "b": jnp.ones(16)}, "w": jnp.ones((16, 8))}


def specs(optimizer, rule=RULE, params=PARAMS):
    state = jax.eval_shape(lambda: fg.init_state(params, optimizer, 0))
    where = sharding.shardings(state, MESH, rule)
    return {path: x.spec for path, x in fg.tree.leaf_paths(where).items()}


WRAPPED = {
    "adam": (fg.adam(0.1), ("mu", "nu")),
    "ema": (fg.chain(fg.sgd(0.1), fg.ema_params(0.9)), ("average",)),
    "tunable": (fg.tunable(fg.adam, learning_rate=0.1), ("mu", "nu")),
    "accumulate": (fg.accumulate(fg.adam(0.1), 2), ("mu", "nu")),
    "lookahead": (fg.lookahead(fg.adam(0.1)), ("mu", "nu")),
    "skip": (fg.skip_nonfinite(fg.adam(0.1)), ("mu", "nu")),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_belongs_to_a_parameter_is_split_as_it_is(name):
    optimizer, fields = WRAPPED[name]
    found = specs(optimizer)
    assert found["params/deep/w"] == P(None, "data")
    assert found["params/w"] == P("data", None)
    assert found["params/deep/b"] == P()
    for field in fields:
        own = {p: s for p, s in found.items() if f"/{field}/" in p}
        assert len(own) == 3, found
        for path, spec in own.items():
            parameter = path.split(f"/{field}/")[1]
            assert spec == found[f"params/{parameter}"]


def test_a_longer_path_wins_over_its_tail():
    params = {"a": {"w": jnp.ones((8, 16))}, "w": jnp.ones((8, 16))}
    rule = sharding.by_path([("a/w", P("data")), ("w", P(None, "data"))])
    found = specs(fg.momentum(0.1), rule, params)
    moments = {p: s for p, s in found.items() if p.startswith("opt_state")}
    assert [s for p, s in moments.items() if p.endswith("/a/w")] == [P("data")]
    others = [s for p, s in moments.items() if p.endswith("w") and "/a/w" not in p]
    assert others == [P(None, "data")]


def test_a_single_array_is_split_with_its_moments():
    found = specs(fg.adam(0.1), params=jnp.ones((8, 16)))
    assert found["params"] == P(None, "data")
    assert found["opt_state/scale_by_adam/mu"] == P(None, "data")


def test_scalars_and_keys_are_whole():
    found = specs(
        fg.chain(fg.add_noise(0.1, 0.55, key=0), fg.adam(0.1)),
        lambda *_: P("data"),
        {"w": jnp.ones(8)},
    )
    assert found["step"] == found["key"] == found["opt_state/add_noise/key"] == P()
    assert found["opt_state/scale_by_adam/mu/w"] == P("data")


def test_other_arrays_go_by_the_rule_and_are_whole_where_it_does_not_fit():
    found = specs(
        fg.adafactor(0.1),
        sharding.by_path([("**", P(None, "data"))]),
        {"w": jnp.ones((256, 512))},
    )
    factors = {
        p: s for p, s in found.items() if "opt_state" in p and "w" in p.split("/")[-1]
    }
    assert found["params/w"] == P(None, "data")
    assert set(factors.values()) == {P()}, found
    coded = specs(
        fg.quantize_state(fg.adam(0.1), min_size=1), RULE, {"w": jnp.ones((64, 64))}
    )
    codes = [s for p, s in coded.items() if "codes" in p]
    assert codes
    assert all("data" in spec for spec in codes), coded


def test_a_spec_that_does_not_fit_a_parameter_names_it():
    rule = sharding.by_path([("**/w", P("data"))])
    with pytest.raises(
        ValueError, match=r"fits 'deep/w', got .*4 devices do not divide"
    ):
        sharding.shardings({"deep": {"w": np.ones((6, 8))}}, MESH, rule)


def test_a_placed_state_is_a_copy_with_the_same_bits():
    state = fg.init_state(PARAMS, fg.adam(0.1), 3)
    placed = sharding.shard_state(state, HERE, RULE)
    for (path, a), b in zip(
        fg.tree.leaf_paths(state).items(), jax.tree.leaves(placed), strict=True
    ):
        assert b.sharding.mesh == HERE, path
        values = (jax.random.key_data(x) if fg.tree.is_key(x) else x for x in (a, b))
        np.testing.assert_array_equal(*values)
    jax.tree.map(lambda x: x.delete(), placed)
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))


def test_a_state_made_in_place_has_the_same_bits():
    model, optimizer = fg.models.mlp([4, 8, 2]), fg.adam(0.1)

    def make():
        return fg.init_state(model.init(jax.random.key(1)), optimizer, 2)

    state, plain = sharding.init_sharded(make, HERE, RULE), make()
    assert jax.tree.structure(state) == jax.tree.structure(plain)
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)
    assert {x.sharding.mesh for x in jax.tree.leaves(state)} == {HERE}


def test_a_batch_is_split_along_its_first_axis():
    batch = sharding.shard_batch({"x": np.ones((4, 3)), "scale": np.float32(2)}, HERE)
    assert batch["x"].sharding.spec == P("data")
    assert batch["scale"].sharding.spec == P()
    with pytest.raises(ValueError, match="multiple of the 4 devices of the mesh axis"):
        check_batch({"x": np.ones((6, 3))}, MESH)
    by_model = sharding.abstract_mesh(model=4)
    assert check_batch({"x": np.ones((6, 3))}, by_model) is None


def test_the_table_counts_the_bytes_of_one_device():
    state = jax.eval_shape(lambda: fg.init_state(PARAMS, fg.momentum(0.1), 0))
    where = sharding.shardings(state, MESH, RULE)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
    )
    lines = sharding.describe(abstract).splitlines()
    deep = next(line for line in lines if line.startswith("params/deep/w"))
    assert deep.split()[-2:] == ["128", "512"]
    _, *rows, total = [line.split() for line in lines]
    assert sum(int(row[-1]) for row in rows) == int(total[-1])
    assert sum(int(row[-2]) for row in rows) == int(total[-2])
    assert "one device" in sharding.describe({"w": jnp.ones(2)})


def test_a_placed_state_does_not_share_numpys_memory():
    raw = np.zeros(64 * 4 + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    x = raw[begin : begin + 256].view(np.float32)
    placed = sharding.shard_state({"w": x}, HERE)
    x[:] = 7
    np.testing.assert_array_equal(placed["w"], 0)
