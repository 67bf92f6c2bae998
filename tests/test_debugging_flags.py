"""Training under JAX's debugging flags: nothing crashes, and faults are found."""

import functools
import tempfile
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad import curvature, gradcheck, postmortem, sweeps

ARRAYS = {"x": np.arange(8.0, dtype=np.float32), "y": np.ones(8, np.float32)}
OPTIMIZER = fg.adam(0.1)
FLAGS = {
    "jax_disable_jit": True,
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_check_tracer_leaks": True,
    "jax_enable_checks": True,
    "jax_debug_key_reuse": True,
    "jax_log_compiles": True,
    "jax_transfer_guard": "disallow",
}
FEEDS = {
    "dataset": lambda: fg.data.from_arrays(ARRAYS, 4),
    "function": lambda: lambda step: {"x": jnp.ones(4), "y": jnp.zeros(4)},
    "iterable": lambda: [{name: x[:4] for name, x in ARRAYS.items()}] * 5,
}


@pytest.fixture
def flag(request):
    old = getattr(jax.config, request.param)
    yield request.param
    jax.config.update(request.param, old)


def loss_fn(w, batch):
    return jnp.mean((batch["x"] * w - batch["y"]) ** 2)


def metric_fn(w, batch):
    return {"loss": (batch["x"] * w - batch["y"]) ** 2}


def flagged_fit(flag, feed, loop, loss_fn=loss_fn, **options):
    step = fg.make_step(loss_fn, OPTIMIZER)
    state = fg.init_state(jnp.zeros(()), OPTIMIZER, 0)
    data = FEEDS[feed]()
    jax.config.update(flag, FLAGS[flag])
    return fg.fit(step, state, data, num_steps=4, loop=loop, progress=False, **options)


# Each flag with both kinds of loop; every pair of a flag and a feed is slow.
LOOPS = {"dataset": ("python", "scan"), "function": ("auto",), "iterable": ("python",)}
FAST = {
    *((flag, "dataset") for flag in FLAGS),
    *((flag, feed) for flag in ("jax_disable_jit", "jax_debug_nans") for feed in FEEDS),
}


@pytest.mark.filterwarnings("ignore:batches from an iterable")
@pytest.mark.parametrize(
    ("flag", "feed", "loop"),
    [
        pytest.param(
            *(flag, feed, loop),
            marks=() if (flag, feed) in FAST else pytest.mark.slow,
        )
        for flag in FLAGS
        for feed, loops in LOOPS.items()
        for loop in loops
    ],
    indirect=["flag"],
)
def test_a_run_continues_as_usual(flag, feed, loop):
    evaluates = {"metric_fn": metric_fn, "eval_data": ARRAYS, "eval_every": 2}
    result = flagged_fit(flag, feed, loop, **evaluates)
    assert (result.stopped, int(result.state.step)) == ("completed", 4)
    assert np.isfinite(result.history["val/loss"]).all()


@pytest.mark.parametrize("flag", ["jax_debug_nans", "jax_debug_infs"], indirect=True)
@pytest.mark.parametrize("loop", ["python", "scan"])
def test_the_operation_that_gives_nan_is_pointed_at(flag, loop):
    def spoilt(w, batch):
        return loss_fn(w, batch) + jnp.log(w)  # -inf, and a gradient of inf

    def undefined(w, batch):
        return loss_fn(w, batch) + jnp.log(w - 1)

    bad = undefined if flag == "jax_debug_nans" else spoilt
    with pytest.raises(FloatingPointError) as error:
        flagged_fit(flag, "dataset", loop, bad)
    lines = [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
    assert bad.__name__ in lines


@pytest.mark.parametrize("flag", ["jax_disable_jit", "jax_debug_nans"], indirect=True)
def test_what_is_pure_works_too(flag):
    data = fg.data.from_arrays(ARRAYS, 4)
    step = fg.make_step(loss_fn, OPTIMIZER)
    state = fg.init_state(jnp.zeros(()), OPTIMIZER, 0)
    jax.config.update(flag, True)
    end, history = fg.run(step, state, data, 3, metric_fn=metric_fn, eval_data=ARRAYS)
    assert (int(end.step), history["val/loss"].shape) == (3, (1,))
    scores = fg.evaluate(metric_fn, end, ARRAYS, batch_size=3)
    np.testing.assert_allclose(scores["loss"], history["val/loss"][0], rtol=1e-5)


# Small calls of what trains or measures, under the flags.
RATES = np.array([0.1, 0.3], np.float32)
METRIC = ("loss", "min")
STEPS = 3


def distance(w, batch):
    return jnp.mean((w - batch) ** 2)


def parts(point):
    optimizer = fg.sgd(point["learning_rate"])
    return optimizer, fg.make_step(distance, optimizer, metrics="loss")


def init(point, key):
    k_init, k_run = jax.random.split(key)
    return fg.init_state(jax.random.normal(k_init, (2,)), parts(point)[0], k_run)


def advance(point, state, num_steps):
    return fg.run(parts(point)[1], state, lambda step: jnp.ones(2), num_steps)


def train(point, key):
    return advance(point, init(point, key), STEPS)


def swept(train_fn=train, **options):
    points = sweeps.grid(learning_rate=RATES)
    settings = {"keys": 2, "metric": METRIC, "progress": False} | options
    return sweeps.sweep(train_fn, points, **settings).history["loss"]


def resumed(train_fn=train, **options):
    with tempfile.TemporaryDirectory() as folder:
        first = swept(train_fn, folder=folder, chunk=2, mode=1, **options)
        again = swept(train_fn, folder=folder, chunk=2, mode=1, **options)
    np.testing.assert_array_equal(first, again)
    return again


def halved(advance_fn=advance):
    points = sweeps.grid(learning_rate=RATES)
    found = sweeps.successive_halving(
        init, advance_fn, points, keys=2, rungs=(1, 2), metric=METRIC
    )
    return found.history["loss"]


def evolved(advance_fn=advance):
    points = {"learning_rate": jnp.array([0.1, 0.3, 0.2, 0.4])}
    found = sweeps.population_based_training(
        init,
        advance_fn,
        points,
        0,
        rounds=2,
        steps_per_round=2,
        metric=METRIC,
        ranges={"learning_rate": (0.01, 0.5)},
    )
    return found.history["loss"]


def ranged(train_fn=train):
    return sweeps.learning_rate_range_test(train_fn, 0.01, 0.5, 4, keys=2).losses


def divided(w, batch):
    return distance(w, batch) / jnp.sum(w - 1)


def examined():
    optimizer = fg.sgd(0.1)
    step = fg.make_step(divided, optimizer, metrics="loss")
    state = fg.init_state(jnp.ones(2), optimizer, key=0)
    return postmortem.autopsy(step, state, lambda step: jnp.zeros(2)).operation


def f(w):
    return jnp.sum(jnp.sin(w) ** 2)


W = np.array([0.5, -0.25, 1.0], np.float32)
CALLERS = {
    "a sweep": lambda: swept(mode="auto"),
    "a sweep as one block": lambda: swept(mode="vmap"),
    "a sweep that continues": resumed,
    "successive_halving": halved,
    "population_based_training": evolved,
    "learning_rate_range_test": ranged,
    "check_gradients": lambda: (
        gradcheck.check_gradients(f, jnp.asarray(W)).leaves[0].numeric
    ),
    "taylor_test": lambda: gradcheck.taylor_test(f, jnp.asarray(W)).constant,
    "hessian": lambda: curvature.hessian(f, jnp.asarray(W)),
    "sharpness": lambda: curvature.sharpness(f, jnp.asarray(W), key=0),
    "trace": lambda: curvature.trace(f, jnp.asarray(W), key=0, num_samples=2),
    "critical_point": lambda: curvature.critical_point(f, jnp.asarray(W)),
}
# Each with the function that may be spoilt.
TRAINERS = {
    "sweep": swept,
    "successive_halving": halved,
    "population_based_training": evolved,
    "learning_rate_range_test": ranged,
}
TRAINED = {
    name: advance if trainer in (halved, evolved) else train
    for name, trainer in TRAINERS.items()
}


@functools.cache
def usual(name):
    return jax.device_get(CALLERS[name]())


# What took other ways under one of them; the rest is for the slow tests.
TELLING = {
    *(("jax_disable_jit", name) for name in CALLERS),
    *(("jax_debug_nans", name) for name in ("a sweep", "successive_halving")),
    *(("jax_debug_key_reuse", name) for name in ("a sweep", "trace")),
}
PAIRS = [
    pytest.param(flag, name, marks=() if (flag, name) in TELLING else pytest.mark.slow)
    for flag in FLAGS
    if flag != "jax_transfer_guard"
    for name in CALLERS
]


@pytest.mark.parametrize(("flag", "name"), PAIRS, indirect=["flag"])
def test_what_trains_or_measures_gives_its_usual_numbers(flag, name):
    want = usual(name)
    jax.config.update(flag, FLAGS[flag])
    got = jax.device_get(CALLERS[name]())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-6), got, want)


@pytest.mark.parametrize("flag", ["jax_transfer_guard"], indirect=True)
@pytest.mark.parametrize("name", CALLERS)
def test_a_guard_of_transfers_speaks_for_itself(flag, name):
    """Points, seeds and rates come from the host."""
    jax.config.update(flag, FLAGS[flag])
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        CALLERS[name]()


@pytest.mark.parametrize(
    "flag",
    ["jax_debug_nans", pytest.param("jax_debug_infs", marks=pytest.mark.slow)],
    indirect=True,
)
@pytest.mark.parametrize("name", TRAINERS)
def test_a_sweep_points_at_the_operation_that_gives_nan(flag, name):
    def spoilt(*arguments):
        state, history = TRAINED[name](*arguments)
        bad = jnp.log(history["loss"] - history["loss"])  # -inf
        return state, {"loss": bad - bad if flag == "jax_debug_nans" else bad}

    jax.config.update(flag, FLAGS[flag])
    with pytest.raises(FloatingPointError):
        TRAINERS[name](spoilt)


@pytest.mark.parametrize(
    "flag",
    [
        "jax_disable_jit",
        "jax_debug_nans",
        pytest.param("jax_debug_infs", marks=pytest.mark.slow),
        pytest.param("jax_check_tracer_leaks", marks=pytest.mark.slow),
        pytest.param("jax_debug_key_reuse", marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_an_autopsy_finds_the_operation(flag):
    jax.config.update(flag, FLAGS[flag])
    assert examined() == "div"
