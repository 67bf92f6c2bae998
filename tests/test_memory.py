"""What a program closes over is freed when the program is no longer used."""

import gc
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg

KEPT = 8  # the programs that each cache keeps
TIMES = KEPT + 3
ARRAYS = {"x": np.ones(4, np.float32)}
DATA = fg.data.from_arrays(ARRAYS, 2)
OPTIMIZER = fg.sgd(0.1)
PARAMS = jnp.ones(())


def loss_fn(w, batch):
    return jnp.mean(batch["x"] * w)


def errors(w, batch):
    return {"loss": batch["x"] * w}


STEP = fg.make_step(loss_fn, OPTIMIZER)


def quiet_fit(step=STEP, data=DATA, **options):
    state = fg.init_state(PARAMS, OPTIMIZER, 0)
    fg.fit(step, state, data, num_steps=1, progress=False, **options)


def mapped(captured):
    return DATA.map(lambda batch: {"x": batch["x"] + captured})


USES = {
    "a metric_fn of evaluate": lambda c: fg.evaluate(
        lambda w, batch: {"loss": batch["x"] * w + c}, PARAMS, ARRAYS
    ),
    "a map of evaluate's data": lambda c: fg.evaluate(errors, PARAMS, mapped(c)),
    "a loss of fit": lambda c: quiet_fit(
        fg.make_step(lambda w, batch: loss_fn(w, batch) + c[0], OPTIMIZER)
    ),
    "a map of fit's data": lambda c: quiet_fit(data=mapped(c)),
    "fit's function of the step": lambda c: quiet_fit(data=lambda step: {"x": c + 0}),
    "a metric_fn of fit": lambda c: quiet_fit(
        metric_fn=lambda w, batch: {"loss": batch["x"] * w + c},
        eval_data=ARRAYS,
        eval_every=1,
    ),
    "a map of fit's eval_data": lambda c: quiet_fit(
        metric_fn=errors, eval_data=mapped(c), eval_every=1
    ),
    "a callback of fit": lambda c: quiet_fit(callbacks=[lambda *_: c.fill(0)]),
    "a map of a batch": lambda c: mapped(c).batch(0),
}


SLOW = ("a map of evaluate's data", "a map of fit's data", "a map of fit's eval_data")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x in SLOW)) for x in USES]
)
def test_what_a_function_closes_over_is_kept_only_for_the_last_few(name):
    captured = []
    for _ in range(TIMES):
        array = np.zeros(1, np.float32)
        captured.append(weakref.ref(array))
        USES[name](array)
        del array
    gc.collect()
    alive = [each() is not None for each in captured]
    assert not any(alive[: TIMES - KEPT]), alive


def test_an_evaluation_compiles_once_for_a_function_that_stays():
    traces = []

    def counted(w, batch):
        traces.append(None)
        return errors(w, batch)

    for _ in range(3):
        fg.evaluate(counted, PARAMS, {"x": np.ones(6, np.float32)})
    assert len(traces) == 1
    quiet_fit(metric_fn=counted, eval_data=ARRAYS, eval_every=1)
    assert len(traces) == 2  # other shapes; the same program is checked and run
