"""The point at which a model is evaluated is found in the state of any optimizer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad.optimizers.dog import dog
from fngrad.optimizers.schedule_free import (
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
)
from fngrad.transforms.averages import average_params
from fngrad.transforms.evaluation_point import eval_params, evaluation_point

PARAMS = {"a": {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}, "c": jnp.ones(3)}


def loss_fn(params, batch):
    leaves = jax.tree.leaves(params)
    return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in leaves)


def trained(optimizer, params=PARAMS):
    """Return the state after four steps."""
    step = fg.make_step(loss_fn, optimizer)
    state = fg.init_state(params, optimizer, key=0)
    steps = jax.jit(lambda s: jax.lax.fori_loop(0, 4, lambda _, s: step(s, ())[0], s))
    return steps(state)


@functools.cache
def trained_alone():
    return trained(schedule_free_sgd(0.1))


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def assert_moved(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.all(np.abs(np.asarray(x) - np.asarray(y)) > 1e-3)


def test_without_a_point_of_its_own_an_optimizer_is_evaluated_at_the_parameters():
    state = trained(fg.adamw(0.1))
    assert eval_params(state) is state.params


def test_a_state_without_an_optimizer_gives_its_parameters():
    class Bare(NamedTuple):
        params: Any

    assert eval_params(Bare(PARAMS)) is PARAMS


def test_a_state_without_parameters_is_refused():
    with pytest.raises(
        TypeError, match="need a TrainState or a state with params, got"
    ):
        eval_params(jnp.ones(2))


@functools.cache
def trained_with_adamw():
    return trained(schedule_free_adamw(0.1))


WRAPPED = {
    "alone": lambda o: o,
    "behind a clip": lambda o: fg.chain(fg.clip_by_global_norm(100.0), o),
    "named": lambda o: fg.named("slow", fg.chain(o, fg.identity())),
    "masked": lambda o: fg.masked(o, "**"),
    "accepted in a partition": lambda o: fg.partition([("**", o)]),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=list(WRAPPED))
def test_the_point_is_found_in_any_composition(wrap):
    want = trained_with_adamw().opt_state["schedule_free"].x
    state = trained(wrap(schedule_free_adamw(0.1)))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
        eval_params(state),
        want,
    )
    assert_moved(eval_params(state), state.params)


def test_the_point_is_found_in_a_tunable():
    plain = trained_alone()
    state = trained(fg.tunable(schedule_free_sgd, learning_rate=0.1))
    assert_same(eval_params(state), eval_params(plain))


def test_a_partition_mixes_points_and_parameters():
    groups = [
        ("a/w", schedule_free_sgd(0.1)),
        ("a/b", dog(init_step=("distance", 0.1), averaging=0.0)),
        ("**", fg.sgd(0.1)),
    ]
    state = trained(fg.partition(groups))
    states = state.opt_state["partition"]
    point = eval_params(state)
    assert_same(point["a"]["w"], states["a/w"]["schedule_free"].x["a"]["w"])
    assert_same(point["a"]["b"], states["a/b"]["average_params"].average["a"]["b"])
    assert_same(point["c"], state.params["c"])
    assert_moved(point["a"], state.params["a"])


def test_frozen_leaves_are_evaluated_unchanged_and_cost_no_memory():
    inner = fg.partition([("c", fg.freeze()), ("**", fg.sgd(0.1))])
    params = {**PARAMS, "c": jnp.arange(3)}
    state = trained(schedule_free(inner, 0.1), params)
    held = state.opt_state["schedule_free"]
    assert held.z["c"] is None
    assert held.x["c"] is None
    point = eval_params(state)
    assert_same(point["c"], params["c"])
    assert_moved(point["a"], state.params["a"])


def test_frozen_stacks_cost_no_memory_either():
    stacks, _ = fg.stack([jnp.ones(2), jnp.ones(2), jnp.ones(3)])
    inner = fg.partition([("float32[2]", fg.freeze()), ("**", fg.sgd(0.1))])
    held = schedule_free(inner, 0.1).init(stacks)["schedule_free"]
    assert held.z["float32[2]"].leaves is None
    assert held.x["float32[3]"].leaves.shape == (1, 3)


def test_the_point_has_the_parameters_dtypes():
    params = {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    state = trained(schedule_free_sgd(0.1), params)
    assert state.opt_state["schedule_free"].x["w"].dtype == jnp.float32
    point = eval_params(state)
    assert point["w"].dtype == jnp.bfloat16
    assert point["b"].dtype == jnp.float32


def test_none_in_the_model_stays_none():
    params, _ = fg.split({"w": jnp.array([2.0]), "activation": jnp.tanh})
    state = trained(schedule_free_sgd(0.1), params)
    assert eval_params(state)["activation"] is None
    assert_moved(eval_params(state)["w"], state.params["w"])


class Doubled(NamedTuple):
    """A state whose point is a function of the parameters, around another state."""

    z: Any
    inner: Any

    def eval_params(self, params):
        return jax.tree.map(lambda z, p: z + 2 * p, self.z, params)


def test_a_state_is_given_its_own_part_of_the_parameters():
    z = {"a": {"w": jnp.ones(2), "b": None}, "c": None}
    point = evaluation_point({"part": Doubled(z, ())}, PARAMS)
    assert_same(point["a"]["w"], 1 + 2 * np.asarray(PARAMS["a"]["w"]))
    assert_same(point["c"], PARAMS["c"])


def test_the_outermost_of_nested_states_decides():
    inner = trained_alone().opt_state
    z = jax.tree.map(jnp.zeros_like, PARAMS)
    point = evaluation_point(Doubled(z, inner), PARAMS)
    assert_same(point, jax.tree.map(lambda p: 2 * np.asarray(p), PARAMS))


def test_two_points_for_one_leaf_are_refused():
    optimizer = fg.chain(schedule_free_sgd(0.1), average_params())
    state = trained(optimizer)
    with pytest.raises(ValueError, match="need one evaluation point, got a second for"):
        eval_params(state)


def test_a_point_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="got a leaf 'd', which is not among"):
        evaluation_point(average_state({"d": jnp.ones(2)}), PARAMS)
    with pytest.raises(ValueError, match=r"of shape \(3,\) at 'c', got \(2,\)"):
        evaluation_point(average_state({"c": jnp.ones(2)}), PARAMS)


def average_state(average):
    return average_params().init(average)


def test_the_point_can_be_taken_under_jit_and_vmap():
    state = trained_alone()
    assert_same(jax.jit(eval_params)(state), eval_params(state))
    both = jax.tree.map(lambda x: np.stack([x, x]), state._replace(key=()))
    lanes = jax.vmap(eval_params)(both)
    assert_same(jax.tree.map(lambda x: np.asarray(x)[1], lanes), eval_params(state))


def metric_fn(params, batch):
    return {"w": params["w"] + batch, "b": params["b"] + batch}


OPTIMIZERS = {
    "schedule-free": schedule_free_sgd(0.1),
    "partition": fg.partition([("w", schedule_free_sgd(0.1)), ("b", fg.sgd(0.1))]),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_training_and_evaluation_measure_the_averaged_parameters(optimizer):
    params = {"w": jnp.array(1.0), "b": jnp.array(2.0)}
    step = fg.make_step(loss_fn, optimizer)
    state = fg.init_state(params, optimizer, key=0)
    data = fg.data.from_arrays({"x": np.arange(4.0)}, batch_size=2)
    watched = {"metric_fn": metric_fn, "eval_data": jnp.zeros(3)}
    fitted = fg.fit(step, state, data, num_steps=5, progress=False, **watched)
    last, history = fg.run(step, state, data, 5, **watched)

    point = eval_params(fitted.state)
    assert abs(point["w"] - fitted.state.params["w"]) > 1e-2
    evaluated = fg.evaluate(metric_fn, fitted.state, jnp.zeros(3))
    for name in ("w", "b"):
        want = pytest.approx(float(point[name]), rel=1e-6)
        assert fitted.history.last(f"val/{name}") == want
        assert evaluated[name] == want
        assert history[f"val/{name}"][-1] == want
        assert float(eval_params(last)[name]) == want
    plain = fg.evaluate(metric_fn, fitted.state.params, jnp.zeros(3))
    assert plain["w"] == pytest.approx(float(fitted.state.params["w"]))
