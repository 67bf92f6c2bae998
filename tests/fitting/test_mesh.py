"""Runs on a mesh of one device; `tests/sharding/eight_devices` has them on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from linear_regression import DATA, OPTIMIZER, STEP, first_state, loss_fn

import fngrad as fg
import fngrad.sharding as sharding
from fngrad.fitting.mesh import placed_run

HERE = sharding.make_mesh(jax.devices()[:1])
RULE = sharding.fsdp(min_size=1)
RULED = fg.make_step(loss_fn, OPTIMIZER, rule=RULE)


def fit(step=STEP, state=None, data=DATA, **options):
    state = first_state() if state is None else state
    options = {"num_steps": 4, "progress": False, "mesh": HERE, **options}
    return fg.fit(step, state, data, **options)


@pytest.mark.parametrize("step", [STEP, RULED], ids=["whole", "split"])
@pytest.mark.parametrize("loop", ["python", "scan"])
def test_a_run_on_a_mesh_of_one_device_is_the_run_without(step, loop):
    plain, placed = (fit(step, mesh=mesh, loop=loop) for mesh in (None, HERE))
    np.testing.assert_allclose(plain.history["loss"], placed.history["loss"], rtol=1e-6)
    assert placed.history.notes["compile_count"] <= 1
    for leaf in jax.tree.leaves(placed.state):
        assert leaf.sharding.mesh == HERE


def test_on_one_device_a_hidden_rule_is_no_warning():
    gathered = sharding.gathered(loss_fn, RULE)
    fit(fg.make_step(lambda params, batch: gathered(params, batch), OPTIMIZER))


def test_the_callers_state_stays_where_it_was():
    state = first_state()
    fit(state=state)
    assert all(
        not isinstance(x.sharding, NamedSharding) for x in jax.tree.leaves(state)
    )
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))


def test_iterables_and_functions_and_sources_run_on_a_mesh():
    want = fit(mesh=None).history["loss"]
    host = jax.tree.map(np.asarray, DATA.arrays)
    source = fg.data.from_source(
        host, DATA.size, DATA.batch_size, seed=DATA.key, shuffle=DATA.shuffle
    )
    batches = [DATA.batch(i) for i in range(4)]
    with pytest.warns(UserWarning, match="cannot be asked for again"):
        listed, generated = fit(data=batches), fit(data=(b for b in batches))
    for result in (listed, generated, fit(data=DATA.batch), fit(data=source)):
        np.testing.assert_allclose(result.history["loss"], want, rtol=1e-6)
        assert result.history.notes["compile_count"] <= 1


def test_what_a_callback_returns_is_placed_as_before():
    def callback(step, state, values):
        return state._replace(params=jax.tree.map(np.asarray, state.params))

    result = fit(callbacks=[callback], log_every=2)
    assert result.history.notes["compile_count"] <= 1
    np.testing.assert_allclose(
        result.history["loss"], fit(mesh=None).history["loss"], rtol=1e-6
    )


def test_a_run_on_a_mesh_resumes_without_one_and_back(tmp_path):
    want = fit(num_steps=6, mesh=None, loop="python").state
    options = {"checkpoint_dir": tmp_path, "loop": "python"}
    fit(num_steps=2, **options)
    fit(num_steps=4, mesh=None, **options)
    end = fit(num_steps=6, **options).state
    assert end.step == 6
    jax.tree.map(np.testing.assert_array_equal, end.params, want.params)


def test_evaluations_take_their_rows_on_the_mesh():
    def metric_fn(params, batch):
        return {"loss": jnp.atleast_1d(loss_fn(params, batch)), "rows": jnp.ones(1)}

    arrays = jax.tree.map(np.asarray, DATA.arrays)
    one = jax.tree.map(lambda x: x[:1], arrays)
    runs = [fit(mesh=m, metric_fn=metric_fn, eval_data=one) for m in (None, HERE)]
    assert runs[1].history["val/loss"] == pytest.approx(runs[0].history["val/loss"])


@pytest.mark.parametrize("given", [HERE, None], ids=["given", "the state's"])
def test_data_and_evaluations_are_placed_once_on_the_mesh(given):
    state = sharding.shard_state(first_state(), HERE)
    examples = [np.ones((3, 2)), (jnp.ones(3), DATA)]  # any tree of arrays
    mesh, _, data, eval_data = placed_run(given, STEP, state, DATA, examples)
    assert mesh == HERE
    for leaf in jax.tree.leaves((data, eval_data)):
        assert leaf.sharding.mesh == HERE
    again = placed_run(given, STEP, state, data, eval_data)
    for a, b in zip(
        jax.tree.leaves(again[2:]), jax.tree.leaves((data, eval_data)), strict=True
    ):
        assert a is b


def test_without_a_mesh_nothing_is_placed():
    state = first_state()
    assert placed_run(None, STEP, state, DATA, [1]) == (None, state, DATA, [1])


def test_a_state_on_a_mesh_trains_there_without_another_argument():
    state = sharding.shard_state(first_state(), HERE)
    end = fit(state=state, mesh=None)
    for leaf in jax.tree.leaves(end.state):
        assert leaf.sharding.mesh == HERE
    np.testing.assert_allclose(end.history["loss"], fit().history["loss"], rtol=1e-6)
    split = sharding.shard_state(first_state(), HERE, RULE)
    with pytest.raises(ValueError, match="need a step with a rule for a state that"):
        fit(STEP, split, mesh=None)


def test_a_state_placed_by_another_rule_is_refused():
    whole = sharding.shard_state(first_state(), HERE)
    split = sharding.shard_state(first_state(), HERE, RULE)
    with pytest.raises(ValueError, match="need a step with a rule for a state that"):
        fit(STEP, split)
    other = sharding.make_mesh(jax.devices()[:1], model=1)
    with pytest.raises(ValueError, match=r"on the mesh .*'data': 1.*model"):
        fit(STEP, sharding.shard_state(first_state(), other))
    with pytest.raises(TypeError, match="need a mesh, got str"):
        fit(mesh="data")
    with pytest.raises(TypeError, match=r"need a mesh of devices, .* AbstractMesh"):
        fit(mesh=HERE.abstract_mesh)
    assert fit(RULED, split).state.step == 4
    assert fit(STEP, whole).state.step == 4


def test_a_mesh_without_the_axis_of_the_batch_is_refused():
    other = sharding.make_mesh(jax.devices()[:1], dp=1)
    with pytest.raises(ValueError, match=r"'data', .* got {'dp': 1}; .*data=1"):
        fit(mesh=other)
    assert fit(mesh=sharding.make_mesh(jax.devices()[:1], data=1, model=1))


@pytest.mark.skipif(
    not hasattr(jax.sharding, "get_mesh"), reason="JAX 0.7 does not tell its devices"
)
def test_the_mesh_in_force_is_that_of_a_run():
    with jax.set_mesh(HERE):
        mesh, *_ = placed_run(None, RULED, first_state(), DATA, None)
        assert mesh == HERE
        end = fit(RULED, mesh=None).state
    assert jax.tree.leaves(end.params)[0].sharding.mesh == HERE


def test_a_step_without_jit_places_its_batch():
    state = sharding.shard_state(first_state(), HERE, RULE)
    after, metrics = RULED(state, jax.tree.map(np.asarray, DATA.batch(0)))
    assert metrics["loss"] == pytest.approx(fit().history["loss"][0], rel=1e-6)
    assert jax.tree.leaves(after.params)[0].sharding.mesh == HERE


def test_a_step_of_ones_own_takes_the_state_as_it_is():
    split = sharding.shard_state(first_state(), HERE, RULE)
    step = fg.steps.sam(sharding.gathered(loss_fn, RULE), OPTIMIZER)
    want = fit(step, mesh=None).state
    end = fit(step, split).state
    jax.tree.map(np.testing.assert_allclose, end.params, want.params)
