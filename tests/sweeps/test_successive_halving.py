"""Successive halving, on trainings whose ranking is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad.sweeps import grid, rungs, successive_halving, sweep, table

# Near the target a loss is the square of a rounding error.
ROUNDING = {"rtol": 1e-5, "atol": 1e-11}
# On |x|**2 / 2 a rate nearer to 1 is better at any time, and above 2 diverges.
RATES = np.array([0.02, 0.5, 0.3, 0.05, 1.1, 0.1, 2.5, 0.2, 40.0])
RUNGS, SEEDS = (2, 6, 18), 3
TARGET = jnp.array([1.0, -2.0])


def parts(point):
    optimizer = fg.sgd(point["rate"])
    step = fg.make_step(
        lambda params, batch: jnp.sum((params - batch) ** 2) / 2, optimizer
    )
    return optimizer, step


def init(point, key, target):
    optimizer, _ = parts(point)
    return fg.init_state(jax.random.normal(key, target.shape), optimizer, key)


def advance(point, state, num_steps, target):
    _, step = parts(point)
    state, history = fg.run(step, state, lambda step: target, num_steps)
    last = jnp.sum((state.params - target) ** 2) / 2
    return state, history | {"val/loss": last}


def halve(rates=RATES, **options):
    settings = {"keys": SEEDS, "rungs": RUNGS, "args": (TARGET,)} | options
    return successive_halving(init, advance, grid(rate=rates), **settings)


@pytest.fixture(scope="module")
def halved():
    return halve()


@pytest.fixture(scope="module")
def full():
    def train(point, key, target):
        return advance(point, init(point, key, target), RUNGS[-1], target)

    return sweep(train, grid(rate=RATES), SEEDS, args=(TARGET,), progress=False)


def test_the_better_third_continues_and_the_best_point_wins(halved, full):
    np.testing.assert_array_equal(halved.reached, [0, 1, 1, 0, 2, 0, 0, 0, 0])
    np.testing.assert_array_equal(halved.survivors, [4])
    assert table(full).summary.best == 4


def test_steps_of_lanes_are_counted_exactly(halved):
    steps = [2, 6, 6, 2, 18, 2, 2, 2, 2]
    np.testing.assert_array_equal(halved.steps, steps)
    assert halved.lane_steps == SEEDS * sum(steps)
    assert halved.full_lane_steps == SEEDS * 9 * 18


def test_each_rung_trains_only_the_lanes_that_are_left():
    """The size of the mapped axis is the number of lanes in a rung's program."""
    programs = []

    @jax.custom_batching.custom_vmap
    def witnessed(rate, num_steps):
        return rate

    @witnessed.def_vmap
    def _(width, in_batched, rate, num_steps):
        programs.append((width, int(num_steps)))
        return rate, in_batched[0]

    def watched(point, state, num_steps, target):
        rate = witnessed(point["rate"], np.int32(num_steps))
        return advance({"rate": rate}, state, num_steps, target)

    successive_halving(
        init, watched, grid(rate=RATES), SEEDS, rungs=RUNGS, args=(TARGET,)
    )
    assert programs == [(9 * SEEDS, 2), (3 * SEEDS, 4), (SEEDS, 12)]


def test_the_history_of_a_point_ends_where_it_was_dropped(halved):
    losses = halved.history["loss"]
    assert losses.shape == (9, SEEDS, RUNGS[-1])
    trained = np.isfinite(losses).sum(axis=2)
    np.testing.assert_array_equal(
        trained, np.broadcast_to(halved.steps[:, None], trained.shape)
    )
    assert halved.history["val/loss"].shape == (9, SEEDS, len(RUNGS))
    np.testing.assert_array_equal(
        np.moveaxis(halved.scores, 0, 2), halved.history["val/loss"]
    )


def test_survivors_train_as_in_the_full_sweep(halved, full):
    alive = halved.survivors
    np.testing.assert_allclose(
        halved.final.notes["values"], full.notes["values"][alive], **ROUNDING
    )
    np.testing.assert_allclose(
        halved.final.history["loss"], full.history["loss"][alive], **ROUNDING
    )
    assert halved.final.history["loss"].shape == (len(alive), SEEDS, RUNGS[-1])
    np.testing.assert_array_equal(halved.final.state.step, RUNGS[-1])
    np.testing.assert_array_equal(halved.final.points["rate"], RATES[alive])


def test_chunks_change_nothing_but_rounding(halved):
    chunked = halve(chunk=4)
    np.testing.assert_array_equal(chunked.reached, halved.reached)
    np.testing.assert_allclose(chunked.scores, halved.scores, **ROUNDING)


def test_diverged_points_are_dropped_before_any_other():
    rates = np.array([40.0, 1e20, 0.01, 1e25, 1e30, 1e22])
    found = halve(rates, factor=1.5)
    # Four of six could continue; two have a finite loss, one of them to the end.
    np.testing.assert_array_equal(found.reached, [2, 0, 2, 0, 0, 0])
    np.testing.assert_array_equal(found.final.diverged_at[1], -1)
    assert np.all(found.final.diverged_at[0] > RUNGS[1])


def test_the_median_decides_before_the_number_of_diverged_lanes():
    """The rate 0 is better for two seeds of three and diverges for the third."""
    keys = jax.random.split(jax.random.key(0), 3)
    largest = jax.vmap(jax.random.uniform)(keys).max()

    def advance(point, x, num_steps):
        lost = (point["rate"] == 0) & (x == largest)
        return x, {"val/loss": jnp.where(lost, jnp.nan, point["rate"] + 1.0)}

    found = successive_halving(
        lambda point, key: jax.random.uniform(key),
        advance,
        grid(rate=[1.0, 0.0, 2.0]),
        keys,
        rungs=(1, 2),
    )
    np.testing.assert_array_equal(found.survivors, [1])
    np.testing.assert_array_equal((found.diverged_at >= 0).sum(axis=1), [0, 1, 0])


def test_diverged_at_counts_steps_from_the_start_for_all_points():
    def counting(point, x, num_steps):
        """Make the metric of rate 1 NaN at step 3 and that of rate 2 at step 0."""
        lost = jnp.arange(num_steps) + x == jnp.array([99, 3, 0])[point["rate"]]
        curve = jnp.where(lost, jnp.nan, point["rate"].astype(jnp.float32))
        return x + num_steps, {"val/loss": curve}

    points = {"rate": np.array([0, 1, 2])}
    found = successive_halving(
        lambda point, key: 0, counting, points, 2, rungs=(2, 6), factor=1.2
    )
    np.testing.assert_array_equal(found.diverged_at[:, 0], [-1, 3, 0])
    np.testing.assert_array_equal(found.final.diverged_at[:, 0], [-1, 3])


def test_the_table_of_survivors_warns_about_the_ends_of_all_points(halved):
    assert not any("tried" in line for line in table(halved.final).summary.warnings)
    left = halve(np.array([0.02, 0.5, 0.1, 0.2]))
    (doubt,) = [d for d in table(left.final).summary.warnings if "tried" in d]
    assert "the largest rate tried (0.5)" in doubt


def test_ties_go_to_the_first_points_and_max_mirrors_min():
    equal = halve(np.full(7, 0.3))
    np.testing.assert_array_equal(equal.reached, [2, 1, 1, 0, 0, 0, 0])

    def mirrored(point, state, num_steps, target):
        state, history = advance(point, state, num_steps, target)
        return state, {"val/score": -history["val/loss"]}

    best = successive_halving(
        init,
        mirrored,
        grid(rate=RATES),
        SEEDS,
        rungs=RUNGS,
        args=(TARGET,),
        metric=("val/score", "max"),
    )
    np.testing.assert_array_equal(best.survivors, [4])


def test_keys_are_paired(halved):
    keys = jax.random.split(jax.random.key(0), SEEDS)
    typed = halve(keys=keys)
    np.testing.assert_array_equal(typed.scores, halved.scores)
    shared = halve(np.full(3, 0.3)).scores[0]
    np.testing.assert_array_equal(shared[0], shared[1])
    assert len(np.unique(shared[0])) == SEEDS


def test_rungs_grow_by_the_factor_and_end_at_high():
    assert rungs(10, 270) == (10, 30, 90, 270)
    assert rungs(100, 100) == (100,)
    assert rungs(1, 16, factor=2) == (1, 2, 4, 8, 16)
    for low, high in ((7, 1000), (3, 10), (1, 2)):
        steps = rungs(low, high)
        assert steps[0] >= low
        assert steps[-1] == high
        assert list(steps) == sorted(set(steps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rungs": (4, 4)}, "need an int rung >= 5, got rung=4"),
        ({"rungs": (0, 4)}, "need an int rung >= 1, got rung=0"),
        ({"rungs": ()}, "need at least one rung"),
        ({"factor": 1.0}, "need factor > 1, got factor=1.0"),
        ({"chunk": 0}, "need an int chunk >= 1"),
        ({"keys": 0}, "need an int keys >= 1"),
        ({"keys": jax.random.key(0)}, "need keys, a number of seeds or typed keys"),
        ({"keys": jnp.zeros((3, 2), jnp.uint32)}, r"got uint32\[3, 2\]"),
        ({"metric": ("test/loss", "min")}, "selecting by the test data biases"),
        ({"metric": ("accuracy", "max")}, "need a metric among .*got 'accuracy'"),
        ({"rates": np.full(3, 1e30)}, "got 9 lanes, all diverged"),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        halve(**change)


def test_invalid_outputs_and_metrics_of_wrong_shape_are_refused():
    points = grid(rate=[0.1, 0.2])
    with pytest.raises(TypeError, match="history a dict of arrays by name, got"):
        successive_halving(
            lambda point, key: key, lambda point, s, n: (s, 1.0), points, rungs=(1,)
        )
    with pytest.raises(TypeError, match=r"-> \(state, history\).*got int"):
        successive_halving(
            lambda point, key: key, lambda point, s, n: 3, points, rungs=(1,)
        )
    with pytest.raises(ValueError, match=r"got shape \(0,\) of 'val/loss'"):
        successive_halving(
            lambda point, key: key,
            lambda point, s, n: (s, {"val/loss": jnp.ones(0)}),
            points,
            rungs=(1,),
        )
    with pytest.raises(ValueError, match=r"got shape \(2, 2\) of 'val/loss'"):
        successive_halving(
            lambda point, key: key,
            lambda point, s, n: (s, {"val/loss": jnp.ones((2, 2))}),
            points,
            rungs=(1,),
        )
