"""The slices of a program together compute what the program computes."""

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.programs.jaxprs as jaxprs


def run_in_slices(fn, *args):
    program, result = jaxprs.trace(fn, *args)
    pieces = list(jaxprs.slices(program))
    values = dict(zip(program.inputs, jax.tree.leaves(args), strict=True))
    values |= program.constants
    for piece in pieces:
        made = piece.run(*(values[v] for v in piece.inputs))
        values |= dict(zip(piece.outputs, made, strict=True))
    outputs = [jaxprs.read(values, v) for v in program.outputs]
    return result.unflatten(outputs), pieces


def apart(leaves, step):
    weight = jnp.exp(-step)
    return [jnp.where(x > 0, weight * x, jnp.sqrt(-x)) for x in leaves], step + 1


def mixed(leaves, step):
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in leaves))
    return [x / norm for x in leaves], norm


LEAVES = [jnp.array([1.0, -2.0]), jnp.array([3.0, 4.0, -5.0]), jnp.array([-1.0])]


def test_slices_together_are_the_whole():
    for fn in (apart, mixed):
        got, _ = run_in_slices(fn, LEAVES, jnp.float32(0.5))
        want = fn(LEAVES, jnp.float32(0.5))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), got, want)


def test_leaves_that_are_treated_apart_are_in_slices_of_their_own():
    program, _ = jaxprs.trace(apart, LEAVES, jnp.float32(0.5))
    pieces = list(jaxprs.slices(program))
    large = [[v for v in piece.inputs if v in program.inputs[:3]] for piece in pieces]
    assert large == [[v] for v in program.inputs[:3]] + [[]]


def test_a_leaf_is_read_early_only_where_leaves_are_mixed():
    program, _ = jaxprs.trace(mixed, LEAVES, jnp.float32(0.5))
    first, *rest = jaxprs.slices(program)
    assert set(program.inputs[:3]) <= set(first.inputs)
    assert [len(set(program.inputs[:3]) & set(p.inputs)) for p in rest] == [1, 1]


def test_constants_literals_and_what_passes_through_are_known():
    table = jnp.arange(3.0)

    def fn(x, y):
        return x, 2.0, table[0] + y, jnp.zeros(2)

    got, _ = run_in_slices(fn, LEAVES[0], jnp.float32(1.5))
    want = fn(LEAVES[0], jnp.float32(1.5))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_slices_can_close_over_tracers():
    def scaled(factor, x):
        return run_in_slices(lambda y: [factor * y, jnp.sum(y)], x)[0]

    got = jax.jit(jax.vmap(scaled))(jnp.array([1.0, 3.0]), jnp.ones((2, 4)))
    np.testing.assert_array_equal(got[0][:, 0], [1.0, 3.0])
