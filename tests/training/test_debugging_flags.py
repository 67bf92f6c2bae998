"""Training under JAX's debugging flags: nothing crashes, and faults are found."""

import functools
import traceback

import flagged
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg

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


@pytest.mark.parametrize("flag", FLAGS, indirect=True)
@pytest.mark.parametrize(
    ("feed", "loop"),
    [
        ("dataset", "python"),
        ("dataset", "scan"),
        ("function", "auto"),
        pytest.param(
            *("iterable", "python"),
            marks=pytest.mark.filterwarnings("ignore:batches from an iterable"),
        ),
    ],
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


@functools.cache
def usual(name):
    return jax.device_get(flagged.CALLERS[name]())


# What raised, or took other ways, under one of them; the rest is for the slow tests.
TELLING = ("jax_disable_jit", "jax_debug_nans", "jax_debug_key_reuse")
SLOW_ONES = [
    pytest.param(flag, marks=() if flag in TELLING else pytest.mark.slow)
    for flag in FLAGS
    if flag != "jax_transfer_guard"
]


@pytest.mark.parametrize("flag", SLOW_ONES, indirect=True)
@pytest.mark.parametrize("name", flagged.CALLERS)
def test_what_trains_or_measures_gives_its_usual_numbers(flag, name):
    want = usual(name)
    jax.config.update(flag, FLAGS[flag])
    got = jax.device_get(flagged.CALLERS[name]())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-6), got, want)


@pytest.mark.parametrize("flag", ["jax_transfer_guard"], indirect=True)
@pytest.mark.parametrize("name", flagged.CALLERS)
def test_a_guard_of_transfers_speaks_for_itself(flag, name):
    """Points, seeds and rates come from the host."""
    jax.config.update(flag, FLAGS[flag])
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        flagged.CALLERS[name]()


@pytest.mark.parametrize("flag", ["jax_debug_nans", "jax_debug_infs"], indirect=True)
@pytest.mark.parametrize("name", flagged.TRAINERS)
def test_a_sweep_points_at_the_operation_that_gives_nan(flag, name):
    def spoilt(*arguments):
        state, history = flagged.TRAINED[name](*arguments)
        bad = jnp.log(history["loss"] - history["loss"])  # -inf
        return state, {"loss": bad - bad if flag == "jax_debug_nans" else bad}

    jax.config.update(flag, FLAGS[flag])
    with pytest.raises(FloatingPointError):
        flagged.TRAINERS[name](spoilt)


@pytest.mark.parametrize(
    "flag",
    [
        "jax_disable_jit",
        "jax_debug_nans",
        "jax_debug_infs",
        pytest.param("jax_check_tracer_leaks", marks=pytest.mark.slow),
        "jax_debug_key_reuse",
    ],
    indirect=True,
)
def test_an_autopsy_finds_the_operation(flag):
    jax.config.update(flag, FLAGS[flag])
    assert flagged.examined() == "div"
