"""Fingerprints tell programs apart by what they compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from fngrad.programs.fingerprints import fingerprints, of_array

X = jnp.arange(4.0)


def of(fn, cuts=lambda name: False):
    return fingerprints(jax.make_jaxpr(fn)(X, 2.0 * X), ["x", "y"], cuts)


@jax.custom_vjp
def own(x):
    return jnp.sin(x)


own.defvjp(lambda x: (own(x), x), lambda x, g: (g,))
FACTOR = np.float32(3.0) * np.ones(4, np.float32)

SAME = [
    (lambda x, y: jnp.sin(x) + y, lambda x, y: jax.jit(jnp.sin)(x) + y),
    (lambda x, y: jnp.sin(x) + y, lambda x, y: own(x) + y),
    (lambda x, y: jnp.sin(x) + y, lambda x, y: jax.checkpoint(jnp.sin)(x) + y),
    (lambda x, y: x * FACTOR + y, lambda x, y: x * jnp.array(FACTOR) + y),
    (lambda x, y: x + y, lambda x, y: (jnp.cos(y), x + y)[1]),
    (lambda x, y: x + y, lambda x, y: lax.optimization_barrier(x) + y),
]


@pytest.mark.parametrize("pair", SAME, ids=range(len(SAME)))
def test_programs_that_compute_the_same_in_the_same_way_are_equal(pair):
    assert of(pair[0]).outputs == of(pair[1]).outputs


def loop(factor, length=3, reverse=False):
    def body(carry, entry):
        return carry * factor, carry + entry

    return lambda x, y: lax.scan(body, x[0], y, reverse=reverse)


def until(limit, factor):
    condition, body = (lambda x: x[0] < limit), (lambda x: x * factor)
    return lambda x, y: lax.while_loop(condition, body, x)


def branches(first, second):
    return lambda x, y: lax.cond(x[0] > 1, first, second, y)


def gathered(mode):
    return lambda x, y: x.at[jnp.array([0, 9])].get(mode=mode)


DIFFERENT = {
    "operations": [lambda x, y: jnp.sin(x), lambda x, y: jnp.cos(x)],
    "operands": [lambda x, y: x - y, lambda x, y: y - x],
    "literals": [lambda x, y: 2.0 * x, lambda x, y: 3.0 * x],
    "constants": [lambda x, y: FACTOR * x, lambda x, y: (FACTOR + 1) * x],
    "parameters": [
        lambda x, y: jnp.cumsum(x),
        lambda x, y: lax.cumsum(x, reverse=True),
    ],
    "enums": [gathered("clip"), gathered("fill")],
    "scans": [loop(2.0), loop(3.0), loop(2.0, reverse=True)],
    "whiles": [until(9.0, 2.0), until(8.0, 2.0), until(9.0, 3.0)],
    "conds": [branches(jnp.sin, jnp.cos), branches(jnp.cos, jnp.sin)],
    "dtypes": [lambda x, y: x.astype(jnp.float16), lambda x, y: x.astype(jnp.bfloat16)],
    "keys": [
        functools.partial(lambda seed, x, y: jax.random.normal(jax.random.key(seed)), s)
        for s in (0, 1)
    ],
}


@pytest.mark.parametrize("programs", DIFFERENT.values(), ids=DIFFERENT)
def test_programs_that_differ_have_other_fingerprints(programs):
    found = [of(program).outputs[-1] for program in programs]
    assert len(set(found)) == len(programs)


def test_what_reads_a_cut_value_does_not_see_how_it_was_computed():
    def program(fn):
        return lambda x, y: y * checkpoint_name(fn(x), "g")

    def both(cuts):
        return [of(program(fn), cuts) for fn in (jnp.sin, jnp.cos)]

    sines, cosines = both(lambda name: name == "g")
    assert sines.outputs == cosines.outputs
    assert sines.named["g"] != cosines.named["g"]
    sines, cosines = both(lambda name: name == "other")
    assert sines.outputs != cosines.outputs


def test_only_the_first_value_with_a_name_is_cut():
    def program(first, second):
        def at(x, y):
            x = checkpoint_name(first(x), "g")
            return x, checkpoint_name(second(x), "g")

        return of(at, lambda name: True)

    sines, cosines = program(jnp.sin, jnp.exp), program(jnp.cos, jnp.exp)
    assert sines == cosines._replace(named=sines.named)
    assert sines.named["g"][1] == cosines.named["g"][1]
    assert sines.outputs[1] != program(jnp.sin, jnp.tanh).outputs[1]


def test_a_result_of_a_loop_counts_whatever_else_the_loop_stacks():
    def stacking(*more):
        def body(carry, entry):
            return 2.0 * carry, (carry + entry, *(fn(carry) for fn in more))

        return lambda x, y: lax.scan(body, x[0], y)[1][0]

    assert of(stacking()).outputs == of(stacking(jnp.sin, jnp.cos)).outputs


def test_the_lengths_of_loops_around_a_name_are_known():
    def program(x, y):
        def inner(carry, entry):
            return carry + checkpoint_name(entry, "in"), None

        def outer(carry, entry):
            return lax.scan(inner, carry, y)[0] + checkpoint_name(entry, "out"), None

        return lax.scan(outer, x[0], x[:3])[0]

    assert of(program).lengths == {"in": 12, "out": 3}


def test_arrays_are_equal_by_dtype_shape_and_bytes():
    assert of_array(np.ones(2, np.float32)) == of_array(jnp.ones(2))
    others = [
        np.ones(2),
        np.ones((2, 1)),
        np.zeros(2),
        np.float32(1),
        jax.random.key(1),
    ]
    assert len({of_array(x) for x in [*others, np.ones(2, np.float32)]}) == 6
    gone = jnp.ones(3)
    gone.delete()
    assert of_array(gone)
