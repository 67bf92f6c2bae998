"""Chains, names, groups, tunables: how transforms compose."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree
from fngrad.optimizers import adam, rmsprop, sgd
from fngrad.transforms.core import (
    Transform,
    apply_updates,
    chain,
    identity,
    named,
    report,
)
from fngrad.transforms.description import describe
from fngrad.transforms.masking import freeze, masked, partition
from fngrad.transforms.momentum_buffers import trace
from fngrad.transforms.noise import add_noise
from fngrad.transforms.scaling import scale, scale_by_learning_rate
from fngrad.transforms.tunable_hyperparameters import set_hyperparameters, tunable

PARAMS = {
    "embed": {"weight": jnp.full((2, 2), 2.0)},
    "head": {"bias": jnp.array([1.0]), "weight": jnp.array([[1.0], [2.0]])},
}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def apply(transform, grads=GRADS, params=PARAMS):
    return transform.update(grads, transform.init(params), params)[0]


def paths(transform, params=PARAMS):
    return list(tree.leaf_paths(transform.init(params)))


def test_a_chain_applies_its_parts_in_order():
    updates = apply(chain(scale(3.0), lambda_transform(lambda u: u + 1.0)))
    np.testing.assert_array_equal(updates["head"]["bias"], [4.0])


def lambda_transform(fn):
    return Transform(
        init=lambda params: (),
        update=lambda updates, state, params: (jax.tree.map(fn, updates), state),
    )


def test_an_unnamed_transform_is_named_after_its_maker():
    def count_up():
        def init(params):
            return {"n": jnp.zeros(())}

        return Transform(init, lambda u, s, p: (u, {"n": s["n"] + 1}))

    assert paths(chain(count_up())) == ["count_up/n"]


def test_two_stateful_parts_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two parts with state are called 'trace'"):
        chain(trace(0.9), trace(0.99)).init(PARAMS)
    both = chain(named("fast", trace(0.9)), named("slow", trace(0.99)))
    assert {path.split("/")[0] for path in paths(both)} == {"fast", "slow"}


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_name_without_meaning_is_refused(name):
    with pytest.raises(ValueError, match="need a name"):
        named(name, trace(0.9))


def test_a_named_chain_is_one_part():
    inner = named("inner", chain(trace(0.9), scale_by_learning_rate(0.1)))
    assert set(inner.init(PARAMS)) == {"inner"}
    assert set(inner.init(PARAMS)["inner"]) == {"trace", "scale_by_learning_rate"}
    expected = apply(chain(trace(0.9), scale_by_learning_rate(0.1)))
    chex.assert_trees_all_equal(apply(inner), expected)


def test_an_object_that_is_not_a_transform_is_refused():
    with pytest.raises(TypeError, match=r"need a transform.*got int"):
        chain(3)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({}, ValueError, "at least one leaf"),
        ({"a": {"n": jnp.arange(3)}}, TypeError, "got int32 at 'a/n'"),
        ({"a": jax.nn.relu}, TypeError, r"got jit|got PjitFunction|got .* at 'a'"),
    ],
)
def test_bad_parameters_are_refused_at_init(params, error, message):
    with pytest.raises(error, match=message):
        sgd(0.1).init(params)


def test_functions_among_the_parameters_are_pointed_to_split():
    with pytest.raises(TypeError, match=r"fngrad\.split"):
        sgd(0.1).init({"w": jnp.ones(1), "f": lambda x: x})


def test_gradients_that_do_not_fit_are_refused_by_path():
    optimizer = sgd(0.1)
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"need gradients.*'head/bias' is missing"):
        optimizer.update({"embed": GRADS["embed"], "head": {}}, state, PARAMS)
    wrong = tree.map_with_path(
        lambda path, g: g[None] if path == "head/bias" else g, GRADS
    )
    with pytest.raises(ValueError, match=r"'head/bias' needs shape \(1,\)"):
        optimizer.update(wrong, state, PARAMS)
    wrong = tree.map_with_path(
        lambda path, g: g.astype(complex) if path == "head/bias" else g, GRADS
    )
    with pytest.raises(ValueError, match=r"real gradient .*complex64 at 'head/bias'"):
        optimizer.update(wrong, state, PARAMS)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (sgd(0.1), "'trace/momentum/embed/weight' is missing|'trace/.*' is missing"),
        (adam(0.1), "'scale_by_adam/.*' is not expected"),
    ],
)
def test_a_state_of_another_optimizer_is_refused(other, message):
    optimizer = sgd(0.1, momentum=0.9)
    with pytest.raises(ValueError, match=message):
        optimizer.update(GRADS, other.init(PARAMS), PARAMS)


def test_a_state_of_another_dtype_or_shape_is_refused():
    optimizer = sgd(0.1, momentum=0.9)
    state = optimizer.init(PARAMS)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state["trace"])
    with pytest.raises(ValueError, match="needs dtype"):
        optimizer.update(GRADS, state | {"trace": narrow}, PARAMS)
    short = jax.tree.map(lambda x: x[:1] if x.ndim else x, state["trace"])
    with pytest.raises(ValueError, match="needs shape"):
        optimizer.update(GRADS, state | {"trace": short}, PARAMS)


def test_updates_are_added_in_the_wider_dtype():
    params = jnp.array([256.0], jnp.bfloat16)
    update = jnp.array([0.75], jnp.float32)  # half a unit in the last place and more
    moved = apply_updates(params, jnp.array([1.5], jnp.float32))
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(moved.astype(jnp.float32), [258.0])
    np.testing.assert_array_equal(apply_updates(params, update), params)
    with pytest.raises(ValueError, match="need updates shaped like the parameters"):
        apply_updates({"a": params}, {"b": params})


def test_the_first_group_that_selects_a_leaf_takes_it():
    updates = apply(
        partition(
            [("**/bias", scale(1.0)), ("head/**", scale(2.0)), ("**", scale(3.0))]
        )
    )
    assert float(updates["head"]["bias"][0]) == 1.0
    assert float(updates["head"]["weight"][0, 0]) == 2.0
    assert float(updates["embed"]["weight"][0, 0]) == 3.0


def test_a_partition_is_its_groups_run_apart():
    whole = partition([("embed/**", adam(0.1)), ("**", sgd(0.2, momentum=0.9))])
    apart = [(adam(0.1), "embed"), (sgd(0.2, momentum=0.9), "head")]
    state = whole.init(PARAMS)
    states = [tx.init(PARAMS[part]) for tx, part in apart]
    for scale_of_step in (1.0, -2.0, 0.5):
        grads = tree.scale(scale_of_step, GRADS)
        updates, state = whole.update(grads, state, PARAMS)
        for i, (tx, part) in enumerate(apart):
            expected, states[i] = tx.update(grads[part], states[i], PARAMS[part])
            chex.assert_trees_all_equal(updates[part], expected)


def test_a_leaf_without_a_group_is_refused():
    with pytest.raises(ValueError, match="got none for 'head/bias'"):
        partition([("embed/**", sgd(0.1))]).init(PARAMS)


def test_groups_are_checked():
    with pytest.raises(ValueError, match="at least one group"):
        partition([])
    with pytest.raises(ValueError, match="need a different glob for each group"):
        partition([("**", sgd(0.1)), ("**", sgd(0.2))])
    with pytest.raises(ValueError, match=r"need a glob that selects a leaf.*'embd/\*'"):
        partition([("embd/*", freeze()), ("**", sgd(0.1))]).init(PARAMS)


@pytest.mark.parametrize(
    "mask",
    [
        "head/**",
        {"embed": False, "head": True},
        lambda path, leaf: path.startswith("head"),
    ],
)
def test_an_unselected_leaf_never_gets_its_raw_gradient(mask):
    updates = apply(masked(sgd(0.1), mask))
    np.testing.assert_array_equal(updates["embed"]["weight"], 0.0)
    np.testing.assert_allclose(updates["head"]["bias"], -0.1)


def test_in_the_middle_of_a_chain_the_rest_can_be_handed_on():
    updates = apply(masked(scale(5.0), "head/**", otherwise=identity()))
    np.testing.assert_array_equal(updates["embed"]["weight"], 1.0)
    np.testing.assert_array_equal(updates["head"]["bias"], 5.0)


def test_frozen_leaves_keep_no_state_and_are_not_trainable():
    optimizer = partition([("embed/**", freeze()), ("**", adam(0.1))])
    assert not any("embed/weight" in path for path in paths(optimizer))
    assert not optimizer.trainable("embed/weight", None)
    assert optimizer.trainable("head/bias", None)
    assert sgd(0.1).trainable is None


def test_frozen_leaves_may_be_integers():
    params = {"table": jnp.arange(3), "w": jnp.ones(2)}
    optimizer = partition([("table", freeze()), ("**", sgd(0.1))])
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_array_equal(updates["table"], 0)
    assert updates["table"].dtype == params["table"].dtype


def test_the_report_of_a_group_is_found_under_its_glob():
    optimizer = partition([("embed/**", sgd(0.1)), ("**", sgd(0.2))])
    told = report(optimizer, GRADS, optimizer.init(PARAMS), PARAMS)
    assert {name: round(float(v), 6) for name, v in told.items()} == {
        "partition/embed/**/scale_by_learning_rate/learning_rate": 0.1,
        "partition/**/scale_by_learning_rate/learning_rate": 0.2,
    }


def test_a_tunable_follows_the_baked_in_trajectory_to_the_last_bit():
    baked = rmsprop(3e-3, decay=0.95, momentum=0.9, centered=True)
    tuned = tunable(
        rmsprop, learning_rate=3e-3, decay=0.95, momentum=0.9, centered=True
    )
    assert trajectory(baked) == trajectory(tuned)


def trajectory(optimizer, steps=20):
    @jax.jit
    def step(params, state, t):
        grads = jax.tree.map(lambda p: jnp.sin(p * t), params)
        updates, state = optimizer.update(grads, state, params)
        return apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for t in range(1, steps):
        params, state = step(params, state, jnp.float32(t))
    return [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(params))]


def test_a_new_value_compiles_nothing():
    optimizer = tunable(adam, learning_rate=1e-3, b1=0.9)
    update = jax.jit(chex.assert_max_traces(optimizer.update, n=1))
    state = optimizer.init(PARAMS)
    _, state = update(GRADS, state, PARAMS)
    before, _ = update(GRADS, state, PARAMS)
    state = set_hyperparameters(state, learning_rate=2e-3)
    after, _ = update(GRADS, state, PARAMS)
    chex.assert_trees_all_close(after, tree.scale(2.0, before), rtol=1e-6)


def test_a_hyperparameter_that_is_not_a_float_stays_static():
    state = tunable(rmsprop, learning_rate=0.1, centered=True, momentum=None).init(
        PARAMS
    )
    assert set(state["tunable"].hyperparameters) == {"learning_rate"}
    with pytest.raises(ValueError, match="at least one float"):
        tunable(sgd, learning_rate=lambda step: 0.1)


def test_tunables_work_in_chains_groups_and_under_vmap():
    optimizer = chain(
        scale(1.0),
        partition([("embed/**", tunable(sgd, learning_rate=0.1)), ("**", sgd(0.2))]),
    )
    state = optimizer.init(PARAMS)

    def first_update(learning_rate):
        new = set_hyperparameters(state, learning_rate=learning_rate)
        return optimizer.update(GRADS, new, PARAMS)[0]

    updates = jax.vmap(first_update)(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(updates["embed"]["weight"][:, 0, 0], [-0.5, -1.0])
    np.testing.assert_allclose(updates["head"]["bias"][:, 0], [-0.2, -0.2])


def test_tunables_inside_tunables_are_set():
    def outer(momentum):
        return chain(trace(momentum), tunable(sgd, learning_rate=0.1))

    state = tunable(outer, momentum=0.9).init(PARAMS)
    state = set_hyperparameters(state, learning_rate=0.5, momentum=0.8)
    inner = state["tunable"].inner["tunable"].hyperparameters
    np.testing.assert_allclose(inner["learning_rate"], 0.5)
    np.testing.assert_allclose(state["tunable"].hyperparameters["momentum"], 0.8)


def test_keys_and_flags_of_arrays_stay_static():
    noisy = tunable(add_noise, eta=0.1, gamma=0.5, key=jax.random.key(0))
    assert set(noisy.init(PARAMS)["tunable"].hyperparameters) == {"eta", "gamma"}
    flagged = tunable(sgd, learning_rate=0.1, momentum=0.9, nesterov=np.bool_(True))
    apply(flagged)


def test_unknown_hyperparameters_are_refused():
    state = tunable(sgd, learning_rate=0.1).init(PARAMS)
    with pytest.raises(ValueError, match=r"\['learning_rate'\], got \['lr'\]"):
        set_hyperparameters(state, lr=0.2)
    with pytest.raises(ValueError, match="need a scalar for learning_rate"):
        set_hyperparameters(state, learning_rate=jnp.ones(2))
    with pytest.raises(ValueError, match=r"0.0 <= learning_rate"):
        tunable(sgd, learning_rate=-0.1)


def test_tunables_report_their_values():
    optimizer = tunable(sgd, learning_rate=0.1)
    told = report(optimizer, GRADS, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(told["tunable/learning_rate"], 0.1)


@pytest.mark.parametrize("shallow_first", [True, False])
def test_the_table_separates_leaves_whose_paths_have_one_ending(shallow_first):
    inner = "a" if not shallow_first else "z"  # trees are sorted by name
    params = {"weight": jnp.ones(3), inner: {"weight": jnp.ones(3)}}
    table = describe(partition([("weight", freeze()), ("**", trace(0.9))]), params)
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert "none" in lines["weight"]
    assert "no " in lines["weight"]
    assert "12 bytes" in lines[f"{inner}/weight"]
    assert "6 parameters, 3 trainable" in lines["total"]


def test_the_table_counts_every_state_of_a_leaf():
    optimizer = chain(named("fast", trace(0.9)), named("slow", trace(0.99)), sgd(0.1))
    assert "fast/trace, slow/trace: 24 bytes" in describe(optimizer, jnp.ones(3))
    assert "fast/trace, slow/trace: 24 bytes" in describe(
        optimizer, {"step": jnp.ones(3)}
    )
    groups = [named(name, chain(trace(0.9), scale(1.0))) for name in ("a", "b")]
    assert "trace/trace, trace/trace: 24 bytes" in describe(
        chain(*groups), {"w": jnp.ones(3)}
    )


def test_an_integer_gradient_of_a_float_leaf_is_refused():
    optimizer = sgd(0.1)
    wrong = jax.tree.map(lambda g: g.astype(int), GRADS)
    with pytest.raises(TypeError, match=r"float array as gradient, got int32"):
        optimizer.update(wrong, optimizer.init(PARAMS), PARAMS)


def test_the_float0_gradient_of_a_frozen_integer_leaf_is_taken():
    params = {"table": jnp.arange(3), "w": jnp.ones(3)}
    loss = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)
    optimizer = partition([("table", freeze()), ("**", sgd(0.1))])
    updates, _ = optimizer.update(loss(params), optimizer.init(params), params)
    np.testing.assert_array_equal(updates["table"], 0)
    np.testing.assert_allclose(updates["w"], -0.2)


def test_foreign_code_sees_gradients_in_the_dtype_of_its_parameters():
    seen = []

    class Foreign:
        def init(self, params):
            return jax.tree.map(jnp.zeros_like, params)

        def update(self, updates, state, params):
            seen.append(updates.dtype)
            return updates, state + updates

    params = jnp.ones(2, jnp.bfloat16)
    optimizer = chain(scale(1.0), Foreign())
    state = optimizer.init(params)
    _, state = optimizer.update(params.astype(jnp.float32), state, params)
    assert seen == [jnp.bfloat16]
    assert state["Foreign"].dtype == jnp.bfloat16


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match="need one path per leaf"):
        sgd(0.1).init({"a/b": jnp.ones(2), "a": {"b": jnp.ones(3)}})
