"""What a step costs, from its program and from the compiled one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg

WIDTH, DEPTH, EXAMPLES = 8, 5, 4
OPTIMIZER = fg.adam(0.1)
X = jnp.ones((EXAMPLES, WIDTH))


def loss_fn(params, x):
    y, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params)
    return jnp.sum(y)


STEP = fg.make_step(loss_fn, OPTIMIZER, metrics="loss")


def first_state():
    params = jnp.full((DEPTH, WIDTH, WIDTH), 0.1)
    return fg.init_state(params, OPTIMIZER, 0)


@functools.cache
def summary_of_step():
    return fg.summary(STEP, first_state(), X)


def test_products_in_a_loop_count_by_its_length():
    one_product = 2 * EXAMPLES * WIDTH**2
    # Each layer: forward, and both derivatives but that of the first input, which a
    # scan computes too.
    assert summary_of_step().costs.products == 3 * DEPTH * one_product


def test_the_memory_is_that_of_state_and_batch_and_the_state_is_updated_in_place():
    state = first_state()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    memory = summary_of_step().memory
    assert memory.arguments == size + X.nbytes
    assert memory.aliased == size
    assert size <= memory.outputs <= size + 100  # and the metrics
    assert memory.total == memory.arguments + memory.outputs + memory.temporaries - size
    assert memory.temporaries > 0


def test_nothing_is_run_or_donated_and_shapes_are_enough():
    state, runs = first_state(), []

    def step(state, batch):
        jax.debug.callback(lambda: runs.append(None))
        return STEP(state, batch)

    fg.summary(step, state, X)
    jax.effects_barrier()
    assert not runs
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert fg.summary(STEP, *jax.eval_shape(lambda: (state, X))) == summary_of_step()


def test_a_summary_of_a_step_is_a_short_table():
    found = summary_of_step()
    lines = repr(found).splitlines()
    assert lines[0] == "StepSummary"
    assert [line.split()[0] for line in lines[1:]] == [
        *("FLOPs", "memory", "arguments", "outputs", "temporaries", "aliased"),
    ]
    assert lines[1].endswith(f"{found.costs.products:,} in products")
    assert lines[2].split()[1] == f"{found.memory.total:,}"
    spread = repr(found._replace(devices=8))
    assert "in products on 8 devices together" in spread
    assert found._repr_html_().endswith(f"{lines[-1]}</pre>")
    unknown = found._replace(costs=found.costs._replace(uncounted={"eigh": 2}))
    assert "uncounted    {'eigh': 2}" in repr(unknown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((loss_fn, first_state(), X), r"need a step .*got a loss from loss_fn"),
        ((OPTIMIZER, first_state(), X), "need a step.* got a transform as the step"),
        ((STEP, first_state().params, X), "need a TrainState between the step and"),
        (
            (STEP, first_state(), fg.data.from_arrays({"x": np.ones((4, 2))}, 2)),
            r"need a batch .*summary\(step, state, data.batch\(0\)\)",
        ),
    ],
    ids=["a loss", "an optimizer", "parameters", "a dataset"],
)
def test_what_is_not_a_step_with_state_and_batch_is_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        fg.summary(*arguments)
