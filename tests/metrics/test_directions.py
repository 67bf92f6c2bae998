"""The direction of a metric, everywhere that something is chosen by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.metrics as metrics
from fngrad.checkpoint import restore, steps
from fngrad.metrics.directions import FALLING, RISING, directed, direction
from fngrad.sweeps.results import tables

FALL = [
    *("loss", "error", "perplexity", "nll", "mse", "mae"),
    *("mean_squared_error", "log_loss"),
]
RISE = [
    *("accuracy", "top_k", "f1", "auroc", "r2", "precision", "recall"),
    "top_k_accuracy",
]
UNKNOWN = [
    *("my_loss", "loss_x", "Accuracy", "val/", "top_5", "lossy", "accuracy/x"),
    *("inaccuracy", "val"),
]


@pytest.mark.parametrize("prefix", ["", "val/", "a/b/", "accuracy/", "loss/"])
def test_the_last_component_of_a_name_decides(prefix):
    assert {direction(prefix + name) for name in FALL} == {"min"}
    assert {direction(prefix + name) for name in RISE} == {"max"}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_asks_for_a_direction(name):
    with pytest.raises(ValueError, match="which fall, and accuracy, top_k") as error:
        direction(name)
    assert f"the metric {name!r}" in str(error.value)
    with pytest.raises(ValueError, match="which fall") as error:
        directed(name)
    assert f'metric=({name!r}, "min" or "max")' in str(error.value)
    assert (direction(name, "min"), direction(name, "max")) == ("min", "max")


def test_an_explicit_direction_wins():
    assert direction("val/accuracy", "min") == "min"
    assert directed(("loss", "max")) == directed(["loss", "max"]) == ("loss", "max")


def test_every_scalar_metric_of_the_library_has_a_known_direction():
    functions = {name for name in metrics.__all__ if name.islower()}
    scalars = functions - {"confusion_matrix"}  # a matrix is not compared
    assert scalars <= {*FALLING, *RISING}


SCORES = [1.0, 2.0, 3.0, 2.5, 2.0, 1.5]


def scored_fit(name, *, scores=SCORES, **options):
    """Evaluate given scores after steps 1, 2, ... of a training."""
    optimizer = fg.sgd(1.0)
    step = fg.make_step(lambda w, batch: -w, optimizer)  # w counts the steps

    def metric_fn(w, batch):
        value = jnp.asarray(scores)[w.astype(jnp.int32) - 1]
        return {name: jnp.full(batch.shape, value)}

    state = fg.init_state(jnp.array(0.0), optimizer, 0)
    return fg.fit(
        step,
        state,
        lambda step: (),
        num_steps=len(scores),
        metric_fn=metric_fn,
        eval_data=jnp.zeros(2),
        eval_every=1,
        loop="python",
        progress=False,
        **options,
    )


@pytest.mark.parametrize("name", ["accuracy", "loss"])
def test_early_stopping_follows_the_direction_of_the_metric(name):
    sign = 1 if name in RISE else -1
    scores = [sign * score for score in SCORES]
    rule = fg.EarlyStopping(f"val/{name}", patience=2)
    result = scored_fit(name, scores=scores, early_stopping=rule)
    assert (result.stopped, int(result.state.step)) == ("early_stopping", 5)


def test_early_stopping_s_explicit_mode_wins():
    rule = fg.EarlyStopping("val/accuracy", patience=2, mode="min")
    assert int(scored_fit("accuracy", early_stopping=rule).state.step) == 3


@pytest.mark.parametrize(
    ("keep_best", "best"),
    [
        ("val/accuracy", 3),
        (("val/accuracy", "max"), 3),
        (("val/accuracy", "min"), 1),
    ],
)
def test_the_best_checkpoint_follows_the_direction_of_the_metric(
    tmp_path, keep_best, best
):
    scored_fit("accuracy", checkpoint_dir=tmp_path, keep=1, keep_best=keep_best)
    assert set(steps(tmp_path)) == {best, len(SCORES)}
    assert restore(tmp_path, jnp.zeros(()), step="best", part="params") == best


@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": fg.EarlyStopping("val/score")},
        {"keep_best": "val/score"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_fit_asks_for_a_direction_before_it_writes(tmp_path, options):
    with pytest.raises(ValueError, match="need a direction for the metric 'val/score'"):
        scored_fit("score", run_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


POINTS = {"x": np.array([1.0, 3.0, 2.0])}


def train(point, key, *, name="val/accuracy"):
    return (), {name: jnp.full(3, point["x"]) * jnp.ones(())}


def test_a_sweep_follows_the_direction_of_the_metric():
    result = fg.sweep(train, POINTS, 2, metric="val/accuracy", progress=False)
    assert result.notes["metric"] == ("val/accuracy", "max")
    assert tables.best_point(result) == {"x": 3.0}
    assert tables.best_point(result, "val/accuracy") == {"x": 3.0}
    assert tables.best_point(result, ("val/accuracy", "min")) == {"x": 1.0}
    assert tables.table(result, metric="val/accuracy").rows[0]["x"] == 3.0


def test_a_sweep_s_explicit_mode_stands_where_its_name_is_asked_for():
    lowest = ("val/accuracy", "min")
    result = fg.sweep(train, POINTS, 2, metric=lowest, progress=False)
    assert tables.best_point(result, "val/accuracy") == {"x": 1.0}
    assert tables.compare(result, 0, 1, metric="val/accuracy").wins == 2


def advance(point, state, num_steps):
    return state, {"val/accuracy": point["x"] + 0 * state}


def test_halving_and_populations_follow_the_direction_of_the_metric():
    halved = fg.sweeps.successive_halving(
        lambda point, key: jnp.zeros(()),
        advance,
        POINTS,
        2,
        rungs=(1, 3),
        metric="val/accuracy",
    )
    assert halved.survivors.tolist() == [1]
    members = {"x": jnp.array([1.0, 2.0, 3.0, 4.0])}
    population = fg.sweeps.population_based_training(
        lambda point, key: jnp.zeros(()),
        advance,
        members,
        0,
        rounds=2,
        steps_per_round=1,
        metric="val/accuracy",
    )
    assert population.parents[1].tolist() == [3, 1, 2, 3]


@pytest.mark.parametrize(
    "choose",
    [
        lambda: fg.sweep(train, POINTS, 1, metric="val/score", progress=False),
        lambda: fg.sweeps.successive_halving(
            advance, advance, POINTS, 1, rungs=(1,), metric="val/score"
        ),
        lambda: fg.sweeps.population_based_training(
            advance,
            advance,
            POINTS,
            1,
            rounds=1,
            steps_per_round=1,
            metric="val/score",
        ),
    ],
    ids=["sweep", "successive_halving", "population_based_training"],
)
def test_every_sweep_asks_for_a_direction(choose):
    with pytest.raises(ValueError, match="need a direction for the metric 'val/score'"):
        choose()


def test_a_range_test_refuses_a_metric_that_rises():
    with pytest.raises(ValueError, match="need a metric to minimize, got 'accuracy'"):
        fg.sweeps.learning_rate_range_test(train, metric="accuracy")


def scales(values, name="accuracy", metric=None, **options):
    """Return the scale after each step that watches a metric of given values."""
    optimizer = fg.chain(fg.sgd(1.0), fg.reduce_on_plateau(0.5, 1, **options))

    def loss_fn(w, value):
        return jnp.zeros(()) * w, {name: value}

    step = fg.steps.plateau(fg.make_step(loss_fn, optimizer), metric or name)
    state = fg.init_state(jnp.zeros(()), optimizer, 0)
    values = jnp.asarray(values)
    state, history = fg.run(step, state, lambda step: values[step], len(values))
    return np.asarray(history["reduce_on_plateau/scale"]), state


RISING_VALUES = [1.0, 2.0, 3.0, 2.9, 2.8, 2.7]
LATER = [1, 1, 1, 1, 0.5, 0.25]  # the effect of the last values comes a step later


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"mode": "max"},
        {"metric": ("accuracy", "max")},
        {"name": "score", "mode": "max"},
        {"name": "score", "metric": ("score", "max")},
        {"name": "loss_", "metric": ("loss_", "max"), "mode": "max"},
    ],
)
def test_a_plateau_of_a_metric_that_rises_comes_where_it_stops(arguments):
    np.testing.assert_array_equal(scales(RISING_VALUES, **arguments)[0], LATER)


@pytest.mark.parametrize(
    "arguments", [{"mode": "min"}, {"metric": ("accuracy", "min")}]
)
def test_a_plateau_s_explicit_mode_wins(arguments):
    falling = [-value for value in RISING_VALUES]
    np.testing.assert_array_equal(scales(falling, **arguments)[0], LATER)
    assert scales(RISING_VALUES, **arguments)[0][-1] < 0.25


def test_a_plateau_asks_for_a_direction():
    with pytest.raises(ValueError, match="need a direction for the metric 'score'"):
        scales(RISING_VALUES, name="score")
    with pytest.raises(ValueError, match="need one direction for 'score', got 'min'"):
        scales(RISING_VALUES, name="score", metric=("score", "min"), mode="max")
    with pytest.raises(ValueError, match="need mode="):
        fg.reduce_on_plateau(mode="up")  # pyright: ignore


@pytest.mark.parametrize("mode", [None, "min", "max"])
def test_a_plateau_s_state_has_the_same_paths_in_every_mode(mode):
    state = fg.reduce_on_plateau(mode=mode).init(jnp.zeros(2))
    plain = fg.reduce_on_plateau().init(jnp.zeros(2))
    assert list(fg.tree.leaf_paths(state)) == list(fg.tree.leaf_paths(plain))
    assert jax.tree.map(jnp.shape, state) is not None


def test_the_remedy_is_one_that_the_caller_takes():
    with pytest.raises(ValueError, match=r'give mode="min" or mode="max"\. Known'):
        direction("val/score")
    pair = r"give keep_best=\('val/score', \"min\" or \"max\"\)\. Known"
    with pytest.raises(ValueError, match=pair):
        directed("val/score", "keep_best")
