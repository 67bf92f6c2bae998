"""Population based training: what is copied, perturbed and kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.sweeps.searching.population_based_training as population

N, ROUNDS, COUNT = 8, 6, 2
RANGES = {"rate": (1e-3, 0.5), "decay": (0.0, 0.9)}
POINTS = {
    "rate": jnp.geomspace(1e-3, 0.4, N),
    "decay": jnp.linspace(0.1, 0.8, N),
}


def init(point, key):
    return {"x": jax.random.normal(key, (3,)), "key": key, "step": jnp.int32(0)}


def advance(point, state, num_steps):
    """Descend on a square; a rate above 0.3 diverges at once."""
    rate = jnp.where(point["rate"] > 0.3, jnp.inf, point["rate"])
    x = state["x"] * (1 - rate) ** num_steps
    state = {"x": x, "key": state["key"], "step": state["step"] + num_steps}
    return state, {"loss": jnp.sum(x**2)[None], "seen": x}


def train(key, points=POINTS, **options):
    settings = {"rounds": ROUNDS, "steps_per_round": 3, "metric": ("loss", "min")}
    settings |= {"ranges": RANGES} | options
    return population.population_based_training(init, advance, points, key, **settings)


@pytest.fixture(scope="module")
def trained():
    return jax.device_get(jax.jit(train)(0))


def test_the_population_keeps_its_size_and_shapes(trained):
    assert trained.state["x"].shape == (N, 3)
    assert {name: x.shape for name, x in trained.points.items()} == {
        "rate": (ROUNDS, N),
        "decay": (ROUNDS, N),
    }
    assert trained.scores.shape == trained.parents.shape == (ROUNDS, N)
    assert trained.history["loss"].shape == (ROUNDS, N, 1)
    assert trained.history["seen"].shape == (ROUNDS, N, 3)
    np.testing.assert_array_equal(trained.state["step"], ROUNDS * 3)
    np.testing.assert_array_equal(trained.scores, trained.history["loss"][..., -1])


def test_nothing_is_copied_before_the_first_round(trained):
    np.testing.assert_array_equal(trained.parents[0], np.arange(N))
    for name, values in POINTS.items():
        np.testing.assert_array_equal(trained.points[name][0], values)


def test_only_the_worst_and_non_finite_members_are_replaced_by_the_best(trained):
    saw_non_finite = False
    for scores, parents in zip(trained.scores[:-1], trained.parents[1:], strict=True):
        finite = np.isfinite(scores)
        order = np.argsort(np.where(finite, scores, np.inf), kind="stable")
        replaced = set(order[N - COUNT :]) | set(np.flatnonzero(~finite))
        saw_non_finite |= not finite.all()
        for member, parent in enumerate(parents):
            if member in replaced:
                assert parent in order[:COUNT]
            else:
                assert parent == member
    assert saw_non_finite


def test_members_that_are_not_replaced_keep_their_bits(trained):
    for now in range(1, ROUNDS):
        own = trained.parents[now] == np.arange(N)
        for name in POINTS:
            before, after = trained.points[name][now - 1 : now + 1]
            np.testing.assert_array_equal(before[own], after[own])


def test_a_copy_continues_from_the_exact_state_of_its_parent(trained):
    """Repeat a round from the parent's state with the child's hyperparameters."""
    one = jax.jit(jax.vmap(lambda point, state: advance(point, state, 3)))
    for now in range(1, ROUNDS):
        start = trained.history["seen"][now - 1][trained.parents[now]]
        state = {
            "x": jnp.asarray(start),
            "key": jax.random.split(jax.random.key(0), N),
            "step": jnp.zeros(N, jnp.int32),
        }
        points = {name: jnp.asarray(trained.points[name][now]) for name in POINTS}
        _, history = one(points, state)
        np.testing.assert_allclose(
            history["loss"], trained.history["loss"][now], rtol=1e-6
        )


def test_a_childs_hyperparameters_are_the_parents_times_a_factor(trained):
    for name, (low, high) in RANGES.items():
        for now in range(1, ROUNDS):
            parents = trained.parents[now]
            moved = parents != np.arange(N)
            before = trained.points[name][now - 1][parents][moved]
            after = trained.points[name][now][moved]
            options = np.clip(before[:, None] * np.float32([0.8, 1.25]), low, high)
            assert np.all(np.isclose(after[:, None], options, rtol=1e-6).any(axis=1))


def test_hyperparameters_stay_in_range_and_resampled_ones_cover_it():
    found = train(1, rounds=30, resample=1.0)
    for name, (low, high) in RANGES.items():
        values = np.asarray(found.points[name])
        assert values.min() >= np.float32(low)
        assert values.max() <= np.float32(high)
    moved = np.asarray(found.parents) != np.arange(N)
    rates = np.asarray(found.points["rate"])[moved]
    # Log-uniform: half of about 65 draws lie below the geometric mean.
    below = np.mean(rates < np.sqrt(1e-3 * 0.5))
    assert 0.3 < below < 0.7
    decays = np.asarray(found.points["decay"])[moved]
    assert 0.3 < np.mean(decays < 0.45) < 0.7


def test_a_hyperparameter_without_a_range_is_unbounded():
    found = train(0, factors=(2.0, 2.0), ranges=None, rounds=3)
    moved = np.asarray(found.parents[1]) != np.arange(N)
    before = np.asarray(found.points["decay"][0])[found.parents[1]][moved]
    after = np.asarray(found.points["decay"][1])[moved]
    np.testing.assert_array_equal(after, 2 * before)


def test_the_lineage_traces_the_final_state_to_its_origin(trained):
    for member in range(N):
        line = population.lineage(trained.parents, member)
        assert line[-1] == member
        for now in range(1, ROUNDS):
            assert trained.parents[now][line[now]] == line[now - 1]
        # Along it the state is one training with that schedule of hyperparameters.
        x = trained.history["seen"][0][line[0]]
        for now in range(1, ROUNDS):
            rate = trained.points["rate"][now][line[now]]
            x = x * (1 - (rate if rate <= 0.3 else np.float32(np.inf))) ** 3
            np.testing.assert_allclose(
                trained.history["seen"][now][line[now]], x, rtol=1e-5, atol=1e-30
            )
    with pytest.raises(ValueError, match="need 0 <= member < 8, got member=8"):
        population.lineage(trained.parents, N)


def test_it_beats_the_same_population_without_copying(trained):
    alone = np.asarray(train(0, rounds=1, steps_per_round=ROUNDS * 3).scores[-1])
    ended = np.asarray(trained.scores[-1])
    assert np.median(ended) < np.median(np.where(np.isfinite(alone), alone, np.inf))


def test_vmapped_over_keys_each_population_equals_a_separate_run(trained):
    both = jax.jit(jax.vmap(train))(jnp.arange(2))
    np.testing.assert_array_equal(both.parents[0], trained.parents)
    np.testing.assert_allclose(both.scores[0], trained.scores, rtol=1e-6)
    assert np.any(np.asarray(both.parents[1]) != trained.parents)


def test_no_member_is_replaced_if_no_score_is_finite():
    everyone = {"rate": jnp.full(N, 0.4), "decay": jnp.full(N, 0.5)}
    found = train(0, points=everyone)
    np.testing.assert_array_equal(
        found.parents, np.broadcast_to(np.arange(N), (ROUNDS, N))
    )


exploit = jax.jit(population.exploit, static_argnames="mode")


def test_one_finite_member_is_the_parent_of_all_others():
    scores = jnp.array([jnp.nan, jnp.inf, 2.0, -jnp.inf, jnp.nan, jnp.nan])
    parents = exploit(jax.random.key(0), scores, 2)
    np.testing.assert_array_equal(parents, 2)


def test_equal_scores_rank_by_number_and_max_mirrors_min():
    key, scores = jax.random.key(3), np.ones(4, np.float32)
    np.testing.assert_array_equal(exploit(key, scores, 1), [0, 1, 2, 0])
    distinct = np.array([3.0, 1.0, 4.0, 2.0], np.float32)
    np.testing.assert_array_equal(
        exploit(key, distinct, 1), exploit(key, -distinct, 1, mode="max")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "need an int rounds >= 1"),
        ({"steps_per_round": 0}, "need an int steps_per_round >= 1"),
        ({"quantile": 0.6}, "need 0 < quantile <= 0.5, got quantile=0.6"),
        ({"factors": (1.2, 0.8)}, r"need 0 < factors\[0\] <= factors\[1\]"),
        ({"resample": 1.5}, "need 0 <= resample <= 1"),
        ({"ranges": {"rate": (1e-3, 0.5)}, "resample": 0.1}, "need a range for"),
        ({"ranges": {"speed": (0, 1)}}, r"need ranges of \['decay', 'rate'\]"),
        ({"ranges": {"rate": (0.5, 0.1)}}, "need low < high"),
        ({"ranges": {"rate": (1e-3, 0.1)}}, "need 'rate' within"),
        ({"points": {"rate": jnp.ones(1)}}, "with >= 2"),
        ({"points": {"rate": jnp.array([0.1, jnp.nan])}}, "finite points, got .*rate"),
        ({"points": POINTS | {"decay": jnp.ones(3)}}, r"'decay': \(3,\)"),
        ({"metric": ("val/loss", "min")}, r"need a metric among \['loss', 'seen'\]"),
        ({"metric": ("test/loss", "min")}, "selecting by the test data biases"),
        ({"metric": ("loss", "low")}, 'need metric=.name, "min" or "max".'),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train(0, **change)


def test_integer_hyperparameters_are_refused():
    points = POINTS | {"decay": jnp.arange(N)}
    with pytest.raises(TypeError, match="got dtype int32 for 'decay'"):
        train(0, points=points)


@pytest.mark.parametrize("outputs", [3, (1.0, 2.0), [(), {}], ((), {}, ())])
def test_invalid_outputs_are_refused(outputs):
    with pytest.raises(TypeError, match=r"need advance_fn.* -> \(state, history\)"):
        population.population_based_training(
            init, lambda *_: outputs, POINTS, 0, rounds=1, steps_per_round=1
        )


def test_a_metric_with_too_many_axes_is_refused():
    def wide(point, state, num_steps):
        state, history = advance(point, state, num_steps)
        return state, {"loss": jnp.ones((2, 2)) * history["loss"][0]}

    with pytest.raises(ValueError, match=r"got shape \(2, 2\) for 'loss'"):
        population.population_based_training(
            init, wide, POINTS, 0, rounds=1, steps_per_round=1, metric=("loss", "min")
        )
