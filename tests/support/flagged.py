"""What is called under JAX's debugging flags: small, and of a few numbers."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from fngrad import curvature, gradcheck, postmortem, sweeps

RATES = np.array([0.1, 0.3], np.float32)
METRIC = ("loss", "min")
STEPS = 3


def loss_fn(w, batch):
    return jnp.mean((w - batch) ** 2)


def parts(point):
    optimizer = fg.sgd(point["learning_rate"])
    return optimizer, fg.make_step(loss_fn, optimizer, metrics="loss")


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
        *(init, advance_fn, points, 0),
        rounds=2,
        steps_per_round=2,
        metric=METRIC,
        ranges={"learning_rate": (0.01, 0.5)},
    )
    return found.history["loss"]


def ranged(train_fn=train):
    return sweeps.learning_rate_range_test(train_fn, 0.01, 0.5, 4, keys=2).losses


def examined(loss_fn=loss_fn):
    optimizer = fg.sgd(0.1)
    step = fg.make_step(lambda w, b: loss_fn(w, b) / jnp.sum(w - 1), optimizer)
    state = fg.init_state(jnp.ones(2), optimizer, key=0)
    return postmortem.autopsy(step, state, lambda step: jnp.zeros(2)).operation


def f(w):
    return jnp.sum(jnp.sin(w) ** 2)


def checked():
    return gradcheck.check_gradients(f, jnp.asarray(W))


W = np.array([0.5, -0.25, 1.0], np.float32)
CALLERS = {
    "a sweep": lambda: swept(mode="auto"),
    "a sweep as one block": lambda: swept(mode="vmap"),
    "a sweep that goes on": resumed,
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
