"""fit refuses a batch that is drawn while JAX traces, and trains on a constant one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scalar_regression import ARRAYS, DATA, fit

import fngrad as fg
import fngrad.data as data

RNG = np.random.default_rng(0)


def entries():
    return iter([{name: x + i for name, x in ARRAYS.items()} for i in range(20)])


def drawn(step):
    return {"x": RNG.normal(size=4).astype(np.float32), "y": ARRAYS["y"][:4]}


def gathered(step):
    rows = RNG.integers(0, 2**20, 4) % 8
    return {name: jnp.asarray(x)[rows] for name, x in ARRAYS.items()}


def scaled(step):
    batch = DATA.batch(step)
    return batch | {"x": batch["x"] * float(RNG.random())}


def seeded(step):
    key = jax.random.key(int(RNG.integers(0, 2**30)))
    return {"x": jax.random.normal(key, (4,)), "y": ARRAYS["y"][:4]}


def alternating():
    counts = itertools.count()
    return lambda step: ARRAYS | ({"z": ARRAYS["x"]} if next(counts) % 2 else {})


def next_of(batches):
    return lambda step: next(batches)


DRAWN = {
    "next": lambda: next_of(entries()),
    "jitted": lambda: jax.jit(next_of(entries())),
    "normal": lambda: drawn,
    "rows": lambda: gathered,
    "a scale": lambda: scaled,
    "a seed": lambda: seeded,
    "structure": alternating,
}


@pytest.mark.parametrize("kind", DRAWN)
def test_a_batch_that_changes_from_call_to_call_is_refused(kind):
    message = (
        r"need a function of the step alone, got .*, with a batch.* that changes from "
        r"call to call: .*an iterable of batches.*jax\.random\.fold_in\(key, step\)"
    )
    with pytest.raises(ValueError, match=message):
        fit(data=DRAWN[kind]())


def test_the_leaf_that_changes_is_named():
    with pytest.raises(ValueError, match=r"got drawn, with a batch at 'x' that"):
        fit(data=drawn)


KEY = jax.random.key(1)


class Rows:
    """Batches by a method that is compiled."""

    @functools.partial(jax.jit, static_argnums=0)
    def batch(self, step):
        return DATA.batch(step)


class Draws:
    """Batches by a compiled method that draws on the host."""

    @functools.partial(jax.jit, static_argnums=0)
    def batch(self, step):
        return drawn(step)


def test_a_jitted_method_that_draws_is_refused():
    with pytest.raises(ValueError, match="changes from call to call"):
        fit(data=Draws().batch)


CONSTANT = {
    "arrays": lambda step: ARRAYS,
    "copies": lambda step: {name: x.copy() for name, x in ARRAYS.items()},
    "of JAX": lambda step: jax.tree.map(jnp.asarray, ARRAYS),
    "NaN": lambda step: ARRAYS | {"z": np.array([np.nan, 1.0], np.float32)},
    "seeded": lambda step: {
        "x": np.random.default_rng(0).normal(size=4).astype(np.float32),
        "y": ARRAYS["y"][:4],
    },
    "by key": lambda step: {
        name: jax.random.normal(jax.random.fold_in(KEY, step), (4,)) for name in "xy"
    },
    "a batch": lambda step: DATA.batch(step),
    "jitted": jax.jit(DATA.batch),
    "a jitted method": Rows().batch,
}


@pytest.mark.parametrize("kind", CONSTANT)
@pytest.mark.filterwarnings("error")
def test_a_function_of_the_step_alone_trains(kind):
    step = fg.make_step(lambda w, b: jnp.mean((b["x"] * w - b["y"]) ** 2), fg.sgd(0.01))
    assert fit(step, data=CONSTANT[kind]).stopped == "completed"


def noisy(batch):
    return batch | {"x": batch["x"] + RNG.normal(size=4).astype(np.float32)}


def shifted(batch, key):
    return batch | {"x": batch["x"] + jax.random.normal(key, (4,))}


@pytest.mark.parametrize("kind", ["dataset", "source"])
def test_a_map_that_draws_on_the_host_is_refused(kind):
    whole = DATA if kind == "dataset" else data.from_source(ARRAYS, 8, 4)
    assert fit(data=whole.map(shifted)).stopped == "completed"
    message = r"need maps that are functions of the batch .* got shifted, noisy, with a"
    with pytest.raises(ValueError, match=message):
        fit(data=whole.map(shifted).map(noisy))
