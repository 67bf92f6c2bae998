"""The slices of a program together give what the whole program gives."""

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.programs.jaxprs as jaxprs
from fngrad.programs.equations import scan_counts


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


def test_independent_leaves_are_in_separate_slices():
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


def through(x, y):
    """Pass x on through a call, a loop, branches and a barrier; compute the second."""
    x = jax.jit(jax.checkpoint(lambda x: jax.lax.optimization_barrier(x)))(x)

    def body(carry, entry):
        kept, total = carry
        return (kept, total + entry), None

    (x, total), _ = jax.lax.scan(body, (x, y), jnp.stack([y, y]))
    x, _ = jax.lax.while_loop(
        lambda c: c[1] < 9 * y, lambda c: (c[0], c[1] + y), (x, y)
    )
    return jax.lax.cond(y > 0, lambda: (x, total), lambda: (x, y))


def test_arguments_that_are_passed_on_are_found():
    closed = jax.make_jaxpr(through)(1.0, 2.0)
    assert jaxprs.passed_through(closed) == [0, None]
    stacked = jax.make_jaxpr(lambda x, y: jax.lax.scan(lambda *c: c, x, y))
    assert jaxprs.passed_through(stacked(1.0, jnp.ones(3))) == [0, 1]


def test_the_inputs_of_a_scan_are_counted_by_their_kinds():
    def fn(shared, first, second, rows):
        def body(carry, row):
            return (carry[0] + row * shared, carry[1] * row), row + shared

        return jax.lax.scan(body, (first, second), rows)

    jaxpr = jax.make_jaxpr(fn)(1.0, 2.0, 3.0, jnp.ones(4))
    (scan,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
    assert scan_counts(scan) == (1, 2)


def test_what_a_loop_exchanges_or_a_branch_changes_is_not_passed_on():
    def exchanged(x, y):
        return jax.lax.fori_loop(0, 3, lambda i, c: (c[1], c[0]), (x, y))

    def chosen(x, y):
        return jax.lax.cond(y > 0, lambda: x, lambda: y), 1.0, x * 1.0, y

    for fn, want in ((exchanged, [None, None]), (chosen, [None, None, None, 1])):
        assert jaxprs.passed_through(jax.make_jaxpr(fn)(1.0, 2.0)) == want
