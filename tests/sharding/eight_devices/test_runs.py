"""Runs, evaluations, checkpoints and curvature on eight devices."""

import functools

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import fngrad as fg
import fngrad.curvature as curvature
import fngrad.sharding as sharding
from fngrad.fitting.loops import ROWS
from fngrad.fitting.mesh import placed_run
from fngrad.sharding.constraints import split

PLACEMENTS = eight_devices.placements()
FLAT = PLACEMENTS["fsdp"][0]
RULE = eight_devices.FSDP
MODEL = fg.models.mlp([16, 32, 8])
OPTIMIZER = fg.adam(0.01)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 16)).astype(np.float32)
ARRAYS = {"x": X, "y": np.sin(X[:, :8])}
DATA = fg.data.from_arrays(ARRAYS, 16, seed=1)


def errors(params, batch):
    return (jax.vmap(MODEL.apply, (None, 0))(params, batch["x"]) - batch["y"]) ** 2


def loss_fn(params, batch):
    return jnp.mean(errors(params, batch))


def metric_fn(params, batch):
    return {"loss": errors(params, batch).mean(1)}


STEPS = {
    name: fg.make_step(loss_fn, OPTIMIZER, rule=rule, metrics=["layers/*"])
    for name, (_, rule) in PLACEMENTS.items()
} | {"one device": fg.make_step(loss_fn, OPTIMIZER, metrics=["layers/*"])}


def first_state():
    return fg.init_state(MODEL.init(jax.random.key(0)), OPTIMIZER, 0)


def fit(placement, data=DATA, step=None, **options):
    mesh, _ = PLACEMENTS.get(placement, (None, None))
    options = {"num_steps": 12, "progress": False, "mesh": mesh, **options}
    return fg.fit(step or STEPS[placement], first_state(), data, **options)


WANTED = fit("one device", metric_fn=metric_fn, eval_data=ARRAYS, eval_every=6)


@pytest.mark.parametrize("loop", ["python", "scan"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_run_is_that_of_one_device_and_compiles_once(placement, loop):
    result = fit(
        placement, loop=loop, metric_fn=metric_fn, eval_data=ARRAYS, eval_every=6
    )
    for name in ("loss", "val/loss", "grad_norm", "grad_norm/layers/0"):
        np.testing.assert_allclose(
            result.history[name], WANTED.history[name], rtol=1e-4
        )
    assert result.history.notes["compile_count"] == 1
    mesh, rule = PLACEMENTS[placement]
    where = sharding.shardings(result.state, mesh, rule)
    for leaf, place in zip(
        jax.tree.leaves(result.state), jax.tree.leaves(where), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_a_dry_run_has_the_memory_of_one_device_and_compiles_for_the_run():
    mesh, rule = PLACEMENTS["fsdp"]
    step, state = fg.make_step(loss_fn, OPTIMIZER, rule=rule), first_state()
    found = fg.dry_run(step, state, DATA, num_steps=3, mesh=mesh)
    one = eight_devices.bytes_here(sharding.shard_state(state, mesh, rule))
    assert found.memory.aliased == one + 4 * ROWS * len(found.metrics)
    assert not any(
        isinstance(x.sharding, NamedSharding) for x in jax.tree.leaves(state)
    )
    assert fit("fsdp", step=step, num_steps=3).history.notes["compile_count"] == 0


def test_reading_a_batch_takes_no_collective():
    data = jax.device_put(DATA, NamedSharding(FLAT, P()))
    step = jax.device_put(jnp.uint32(3), NamedSharding(FLAT, P()))

    @jax.jit
    def read(data, step):
        return split(data.batch(step), FLAT)

    assert read(data, step)["x"].sharding.spec == P("data")
    assert eight_devices.collectives(read.lower(data, step).compile()) == {}


def test_sources_and_iterables_and_functions_are_split():
    source = fg.data.from_source(ARRAYS, 100, 16, seed=1)
    with pytest.warns(UserWarning, match="cannot be asked for again"):
        listed = fit("fsdp", data=[DATA.batch(i) for i in range(12)])
    for result in (listed, fit("fsdp", data=DATA.batch), fit("fsdp", data=source)):
        np.testing.assert_allclose(
            result.history["loss"], WANTED.history["loss"], rtol=1e-4
        )
        assert result.history.notes["compile_count"] <= 1
    batch = source.on(FLAT).batch(0)
    assert batch["x"].sharding.spec == P("data")
    assert len(batch["x"].addressable_shards) == 8


def test_a_run_moves_between_numbers_of_devices(tmp_path):
    """Steps on 8, 1, 4 and 8 devices; what is restored has the bits that were saved."""
    few = sharding.make_mesh(jax.devices()[:4], data=4)
    step = STEPS["fsdp"]
    ends = []
    for steps, mesh in ((3, FLAT), (6, None), (9, few), (12, FLAT)):
        result = fg.fit(
            STEPS["one device"] if mesh is None else step,
            first_state(),
            DATA,
            num_steps=steps,
            checkpoint_dir=tmp_path,
            mesh=mesh,
            progress=False,
        )
        restored = fg.checkpoint.restore(tmp_path, first_state())
        jax.tree.map(
            np.testing.assert_array_equal, restored.params, result.state.params
        )
        ends.append(result)
    np.testing.assert_allclose(
        ends[-1].history["loss"], WANTED.history["loss"], rtol=1e-4
    )
    devices = jax.tree.leaves(ends[-1].state.params)[0].sharding.device_set
    assert len(devices) == 8
    another = fg.make_step(lambda p, batch: 2 * loss_fn(p, batch), OPTIMIZER)
    with pytest.raises(ValueError, match="need the loss of the run in"):
        fg.fit(
            another,
            first_state(),
            DATA,
            num_steps=15,
            checkpoint_dir=tmp_path,
            resume="must",
            progress=False,
        )


@pytest.mark.parametrize("size", [96, 100, 5])
def test_an_evaluation_is_that_of_one_device_with_a_remainder(size):
    arrays = {name: x[:size] for name, x in ARRAYS.items()}
    state = sharding.shard_state(WANTED.state, FLAT, RULE)
    want = fg.evaluate(metric_fn, WANTED.state, arrays, batch_size=16)
    source = fg.data.from_source(arrays, size, 5)
    for data in (arrays, source, source.on(FLAT)):
        got = fg.evaluate(metric_fn, state, data, batch_size=16)
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-5)
    narrow = fg.evaluate(metric_fn, state, arrays, precision="bfloat16")
    assert narrow["loss"] == pytest.approx(want["loss"], rel=0.05)


def test_a_run_under_jit_is_that_of_one_device():
    state = sharding.shard_state(first_state(), FLAT, RULE)
    data = jax.device_put(DATA, NamedSharding(FLAT, P()))
    program = jax.jit(
        lambda s, d: fg.run(STEPS["fsdp"], s, d, 12, metric_fn=metric_fn, eval_data=d)
    )
    end, history = program(state, data)
    np.testing.assert_allclose(history["loss"], WANTED.history["loss"], rtol=1e-4)
    assert history["val/loss"][-1] == pytest.approx(
        WANTED.history["val/loss"][-1], rel=1e-4
    )
    assert "data" in jax.tree.leaves(end.params)[1].sharding.spec


def test_what_the_mesh_cannot_do_is_refused():
    data = fg.data.from_arrays(ARRAYS, 12)
    with pytest.raises(ValueError, match="first axis is a multiple of the 8 devices"):
        fit("fsdp", data=data)
    with pytest.raises(ValueError, match=r"multiple of the 8 devices .* at 'x'"):
        sharding.shard_batch({"x": np.ones((12, 2))}, FLAT)
    other = sharding.shard_state(first_state(), FLAT, sharding.fsdp(min_size=1))
    with pytest.raises(ValueError, match="split as the step's rule splits it"):
        fg.fit(STEPS["fsdp"], other, DATA, num_steps=2, mesh=FLAT, progress=False)
    with pytest.raises(ValueError, match="a step with a rule for a state that is"):
        fg.fit(STEPS["one device"], other, DATA, num_steps=2, mesh=FLAT)


def test_long_runs_do_not_deadlock():
    """XLA aborts the process if the steps of a run are queued on one CPU's devices."""
    steps = {"num_steps": 400, "loop": "python"}
    assert fit("fsdp", **steps).state.step == 400
    source = fg.data.from_source(ARRAYS, 100, 16, seed=1)
    assert fit("fsdp", data=source, **steps).state.step == 400


def test_devices_left_idle_are_warned_about():
    with pytest.warns(UserWarning, match="on one of 8 devices: pass fit\\(mesh="):
        fg.fit(STEPS["fsdp"], first_state(), DATA, num_steps=1, progress=False)
    whole = fg.make_step(loss_fn, OPTIMIZER, rule=sharding.fsdp())
    with pytest.warns(UserWarning, match="splits no parameter.* has 512 entries"):
        fit("fsdp", step=whole, num_steps=1)


def test_a_rule_that_a_function_hides_from_the_step_is_warned_about():
    gathered = sharding.gathered(loss_fn, RULE)
    plain = fg.make_step(lambda params, batch: gathered(params, batch), OPTIMIZER)
    with pytest.warns(UserWarning, match="has the rule .* hides it from the step"):
        fit("fsdp", step=plain, num_steps=1)
    kept = functools.wraps(gathered)(lambda params, batch: gathered(params, batch))
    fit("fsdp", step=fg.make_step(kept, OPTIMIZER), num_steps=1)
    splits_none = sharding.gathered(loss_fn, sharding.fsdp(min_size=2**20))
    hidden = fg.make_step(lambda p, batch: splits_none(p, batch), OPTIMIZER)
    fit("fsdp", step=hidden, num_steps=1)  # there is nothing to warn of


def pair_metric(params, batch):
    return metric_fn(params, dict(zip(("x", "y"), batch, strict=True)))


def test_a_mesh_that_does_not_split_the_batch_is_warned_about():
    mesh = jax.sharding.Mesh(jax.devices(), ("model",))
    state = sharding.shard_state(first_state(), mesh, sharding.replicated)
    with pytest.warns(UserWarning, match="has no axis 'data': each of its 8 devices"):
        placed_run(None, STEPS["one device"], state, DATA, None)
    rows = jax.sharding.NamedSharding(mesh, P("model"))
    split_by_the_user = jax.device_put({"x": X[:96], "y": X[:96]}, rows)
    for data in ([split_by_the_user], fg.data.from_arrays(split_by_the_user, 8)):
        placed_run(None, STEPS["one device"], state, data, None)


@pytest.mark.parametrize("kind", [tuple, list])
def test_evaluation_data_of_any_tree_and_place_are_taken(kind):
    pair = kind(jax.device_put(list(ARRAYS.values()), jax.devices()[1]))
    want = WANTED.history["val/loss"][-1]
    result = fit("fsdp", metric_fn=pair_metric, eval_data=pair)
    assert result.history["val/loss"][-1] == pytest.approx(want, rel=1e-4)
    few = NamedSharding(sharding.make_mesh(jax.devices()[:4]), P())
    for data in (pair, jax.device_put(pair, few)):
        found = fg.evaluate(pair_metric, result.state, data)["loss"]
        assert found == pytest.approx(want, rel=1e-4)


def test_data_on_other_devices_are_placed_on_those_of_the_run():
    few = NamedSharding(sharding.make_mesh(jax.devices()[:4]), P())
    data = jax.device_put(DATA, few)
    with pytest.warns(UserWarning, match="cannot be asked for again"):
        listed = fit("fsdp", data=[data.batch(i) for i in range(12)])
    for result in (listed, fit("fsdp", data=data)):
        np.testing.assert_allclose(
            result.history["loss"], WANTED.history["loss"], rtol=1e-4
        )


def test_leaves_that_are_not_placed_follow_the_rule():
    state = first_state()
    state = state._replace(params=sharding.shard_state(state.params, FLAT, RULE))
    end = fg.fit(STEPS["fsdp"], state, DATA, num_steps=2, progress=False).state
    where = sharding.shardings(end, FLAT, RULE)
    for leaf, place in zip(jax.tree.leaves(end), jax.tree.leaves(where), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_a_source_is_read_in_parts_for_an_evaluation(monkeypatch):
    state = sharding.shard_state(WANTED.state, FLAT, RULE)
    seen = []

    source = fg.data.from_source(ARRAYS, 100, 5)
    part = type(source).part

    def spied(self, start, count):
        found = part(self, start, count)
        seen.append(found.arrays["x"].sharding.spec)
        return found

    monkeypatch.setattr(type(source), "part", spied)
    fg.evaluate(metric_fn, state, source, batch_size=30)
    assert seen == [P("data")] * 3 + [P()]


def test_a_step_without_jit_takes_a_batch_of_one_device():
    state = sharding.shard_state(first_state(), FLAT, RULE)
    state, metrics = STEPS["fsdp"](state, DATA.batch(0))
    assert metrics["loss"] == pytest.approx(WANTED.history["loss"][0], rel=1e-4)
    assert "data" in jax.tree.leaves(state.params)[1].sharding.spec


LOSS = sharding.gathered(loss_fn, RULE)


def with_a_nan():
    y = ARRAYS["y"].copy()
    y[7, 3] = np.nan
    return fg.data.from_arrays({"x": X, "y": y}, 16, seed=1)


def test_an_autopsy_finds_the_example_on_a_mesh():
    with pytest.raises(fg.NonFiniteError, match="batch/y is not finite in 1 entr"):
        fit("fsdp", data=with_a_nan())


def test_bad_steps_are_skipped_as_on_one_device():
    one, many = (
        fit(where, data=with_a_nan(), on_nonfinite="skip")
        for where in ("one device", "fsdp")
    )
    np.testing.assert_array_equal(many.history["skipped"], one.history["skipped"])
    assert 0 < many.history["skipped"].sum() < 12
    assert eight_devices.farthest(one.state.params, many.state.params) < 1e-4


SOPHIA = fg.sophia(0.01)
OTHER_STEPS = {
    "sophia": lambda loss: fg.steps.sophia(loss, SOPHIA),
    "sam": lambda loss: fg.steps.sam(loss, OPTIMIZER),
    "micro-batches": lambda loss: fg.make_step(loss, OPTIMIZER, micro_batches=2),
    "remat": lambda loss: fg.make_step(
        loss, OPTIMIZER, remat=jax.checkpoint_policies.dots_saveable
    ),
}


@pytest.mark.parametrize("name", OTHER_STEPS)
def test_steps_of_every_kind_take_a_gathered_loss(name):
    batch = jax.tree.map(lambda x: x[:16], ARRAYS)
    ends = []
    for loss, place in ((loss_fn, False), (LOSS, True)):
        optimizer = SOPHIA if name == "sophia" else OPTIMIZER
        state, given = fg.init_state(first_state().params, optimizer, 0), batch
        if place:
            state = sharding.shard_state(state, FLAT, RULE)
            given = sharding.shard_batch(batch, FLAT)
        step = jax.jit(OTHER_STEPS[name](loss))
        for _ in range(2):
            state, _ = step(state, given)
        ends.append(state.params)
    assert eight_devices.farthest(*ends) < 1e-4


def test_a_run_is_split_by_the_rule_of_the_steps_loss():
    plain, ruled = (fg.steps.sam(loss, OPTIMIZER) for loss in (loss_fn, LOSS))
    many = fit("fsdp", step=functools.partial(ruled))
    one = fit("one device", step=plain)
    assert eight_devices.farthest(one.state.params, many.state.params) < 1e-4
    wanted = sharding.shardings(many.state, FLAT, RULE)
    placed = jax.tree.map(
        lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), many.state, wanted
    )
    assert all(jax.tree.leaves(placed))
    assert many.history.notes["compile_count"] == 1


def model_fn(params, batch):
    return jax.vmap(MODEL.apply, (None, 0))(params, batch["x"])


def squares(outputs, batch):
    return jnp.mean((outputs - batch["y"]) ** 2)


PRODUCTS = {
    "hvp": (lambda f, p, b: curvature.hvp(f, p, b)(p), loss_fn),
    "ggn_vp": (lambda f, p, b: curvature.ggn_vp(f, p, b, loss_fn=squares)(p), model_fn),
}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_curvature_products_pass_in_forward_mode(name, placement):
    (product, fn), (mesh, rule) = PRODUCTS[name], PLACEMENTS[placement]
    batch = jax.tree.map(lambda x: x[:16], ARRAYS)
    params = first_state().params
    split = sharding.shard_state(params, mesh, rule)
    given = sharding.shard_batch(batch, mesh)
    on_mesh = sharding.gathered(fn, rule)
    one = jax.jit(lambda p, b: product(fn, p, b))(params, batch)
    many = jax.jit(lambda p, b: product(on_mesh, p, b))
    assert eight_devices.farthest(one, many(split, given)) < 1e-4
