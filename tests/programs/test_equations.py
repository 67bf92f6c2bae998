"""Programs are read alike on every line of JAX, and under flags that change them."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from autopsy_problem import W, examine
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import primitives
from jax.ref import addupdate
from jax.sharding import AxisType, PartitionSpec
from jax_flags import EXCHANGING, SCAN, raised

import fngrad as fg
import fngrad.programs.equations as equations
import fngrad.programs.jaxprs as jaxprs
from fngrad.postmortem.interpreter import Interpreter
from fngrad.programs.fingerprints import fingerprints
from fngrad.programs.jaxprs import Program
from fngrad.programs.operation_counts import costs_of
from fngrad.sweeps.running.width_timing import heaviest_loop

X = jnp.arange(1.0, 4.0)


@jax.custom_vjp
def own(x):
    return jnp.sin(x) @ jnp.ones((3, 3))


own.defvjp(lambda x: (own(x), x), lambda x, g: (g,))


def called(x):
    """Call functions in all the ways whose primitives the flags exchange."""
    y = jax.checkpoint(lambda x: jnp.cos(own(x)))(x)
    return checkpoint_name(jax.nn.relu(y), "y"), x


def marks_of(fn, *args):
    inputs = [str(i) for i in range(len(args))]
    return fingerprints(jax.make_jaxpr(fn)(*args), inputs)


def in_slices(fn, *args):
    program, result = jaxprs.trace(fn, *args)
    values = dict(zip(program.inputs, jax.tree.leaves(args), strict=True))
    values |= program.constants
    pieces = list(jaxprs.slices(program))
    for piece in pieces:
        made = piece.run(*(values[v] for v in piece.inputs))
        values |= dict(zip(piece.outputs, made, strict=True))
    return result.unflatten([jaxprs.read(values, v) for v in program.outputs]), pieces


def read_in_all_ways(fn, x):
    program, _ = jaxprs.trace(fn, x)
    outputs, _ = in_slices(fn, x)
    passed = jaxprs.passed_through(program.closed)
    return outputs, costs_of(program), marks_of(fn, x), passed


@pytest.mark.parametrize("flag", EXCHANGING)
def test_calls_under_a_flag_are_read_as_without_it(flag):
    want, *others = read_in_all_ways(called, X)
    with raised(flag):
        outputs, costs, marks, passed = read_in_all_ways(called, X)
    jax.tree.map(np.testing.assert_array_equal, outputs, want)
    assert [costs, marks, passed] == others
    assert costs.products == 2 * 3 * 3
    assert len(marks.named["y"]) == 1
    assert passed == [None, 0]


@pytest.mark.parametrize("flag", EXCHANGING)
def test_an_autopsy_under_a_flag_looks_into_calls(flag):
    def loss_fn(params, batch):
        return jnp.sum(
            jax.checkpoint(lambda w: jax.nn.relu(-jnp.log(w - 1)))(params["w"])
        )

    with raised(flag):
        found = examine(loss_fn, W)
    assert (found.phase, found.operation) == ("forward", "log")
    assert found.leaf == "gradient/w"
    assert found.lines[0].startswith(f"{__file__}:")


def test_a_program_that_is_evaluated_is_a_call():
    if not hasattr(primitives, "create_call_primitive"):  # came with it
        pytest.skip(f"JAX {jax.__version__} has no primitive eval_jaxpr")
    inner = jax.make_jaxpr(lambda x: jnp.log(own(x) - 9.0))(X)

    def fn(x):
        return primitives.closed_call_p.bind(x, call_jaxpr=inner)[0]

    jaxpr = jax.make_jaxpr(fn)(X)
    assert [equations.name_of(e) for e in jaxpr.eqns] == ["eval_jaxpr"]
    marks, costs = fingerprints(jaxpr, ["0"]).outputs, costs_of(Program(jaxpr))
    assert marks == marks_of(lambda x: jnp.log(own(x) - 9.0), X).outputs
    assert costs.products == 2 * 3 * 3
    assert list(origins_of(fn, X)[0].values()) == ["log"]


def test_a_move_along_explicit_axes_computes_nothing():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))

    def fn(x):
        return jax.sharding.reshard(x, PartitionSpec("data")), x + 1.0

    with jax.set_mesh(mesh):
        program, _ = jaxprs.trace(fn, X)
        marks = marks_of(fn, X).outputs
    assert [equations.name_of(e) for e in program.closed.eqns] == ["reshard", "add"]
    assert costs_of(program).others == 3
    assert marks == marks_of(lambda x: (x, x + 1.0), X).outputs
    assert jaxprs.passed_through(program.closed) == [0, None]


def test_a_convolution_is_differentiated_under_the_flag_of_remat():
    layer = fg.layers.conv(2, 3, 3)
    params, x = layer.init(0), jnp.ones((5, 5, 2))

    def loss(params):
        return jnp.sum(layer.apply(params, x) ** 2)

    want = jax.grad(loss)(params)
    with raised("jax_remat3"):
        got = jax.jit(jax.grad(lambda p: loss(p)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), got, want)


def added(factor):
    def fn(x):
        total = jax.new_ref(jnp.zeros(3))
        first = total[...] + 1.0
        total[...] = factor * x
        jax.jit(lambda ref: ref.__setitem__(0, ref[1]))(total)
        return first, total[...], jnp.exp(x)

    return fn


def test_a_slice_has_all_that_reads_and_writes_a_reference():
    (first, total, other), pieces = in_slices(added(2.0), X)
    np.testing.assert_array_equal(first, [1, 1, 1])
    np.testing.assert_array_equal(total, [4, 4, 6])
    np.testing.assert_allclose(other, np.exp(X), 1e-6)
    assert [len(piece.outputs) for piece in pieces] == [2, 1]


def part_written(start):
    def fn(x):
        ref = jax.new_ref(x)
        ref[start : start + 2] = jnp.ones(2)
        return ref[...]

    return fn


def test_a_value_read_from_a_reference_depends_on_what_was_written():
    twice, again, thrice = (marks_of(added(f), X).outputs for f in (2.0, 2.0, 3.0))
    assert twice == again
    assert [a == b for a, b in zip(twice, thrice, strict=True)] == [True, False, True]
    first, second = (marks_of(part_written(i), X).outputs for i in (0, 1))
    assert first != second


def written(x):
    ref = jax.new_ref(x)
    ref[...] = jnp.log(ref[...] - 1.0)
    total = 2.0 * ref[...]
    ref[...] = jnp.ones(3)
    return total, ref[...], lax.fori_loop(0, 3, lambda i, c: c + ref[i], 0.0)


def origins_of(fn, x, repaired=()):
    program, _ = jaxprs.trace(fn, x)
    interpreter = Interpreter(program, repaired)
    outputs = interpreter.run([x])
    found = {
        at: equations.name_of(o.equations[0]) for at, o in interpreter.origins.items()
    }
    return found, outputs


def test_bad_numbers_are_followed_through_references():
    found, (total, last, looped) = origins_of(written, X)
    assert list(found.values()) == ["log"]
    assert total.sources == {*found}
    assert not last.sources | looped.sources
    assert float(looped.array) == 3.0
    found, (total, *_) = origins_of(written, X, repaired=found)
    assert not found
    np.testing.assert_allclose(total.array, 2 * np.append(1, np.log([1, 2])), 1e-6)


def test_an_equation_that_writes_bad_numbers_is_an_origin():
    def fn(x):
        ref = jax.new_ref(x)
        addupdate(ref, ..., x)
        return ref[...]

    found, (out,) = origins_of(fn, jnp.full(3, 2e38))
    assert list(found.values()) == ["addupdate"]
    assert out.sources == {*found}
    found, (out,) = origins_of(fn, jnp.full(3, 2e38), repaired=found)
    assert not found
    np.testing.assert_array_equal(out.array, np.ones(3))


def scanned(x):
    def body(carry, row):
        return jnp.log(carry @ row) - 2.0, carry.sum()

    return lax.scan(body, x, jnp.ones((4, 3, 3)))


def test_scans_of_references_are_read():
    plain = costs_of(jaxprs.trace(scanned, X)[0])
    marks = marks_of(scanned, X).outputs
    with raised(SCAN):
        program, _ = jaxprs.trace(scanned, X)
        (carry, sums), _ = in_slices(scanned, X)
        others = [
            marks_of(lambda x, n=n: scanned(x * n), X).outputs for n in (2.0, 3.0)
        ]
        assert others[0] == marks_of(lambda x: scanned(x * 2.0), X).outputs
    want = scanned(X)
    jax.tree.map(np.testing.assert_array_equal, (carry, sums), want)
    assert costs_of(program).products == plain.products == 4 * 2 * 9
    assert len({*marks, *others[0], *others[1]}) == 6
    assert jaxprs.passed_through(program.closed) == [None, None]
    assert heaviest_loop(program.closed) is None
    assert equations.outside_effects(program.closed) == []


def test_the_first_fault_of_a_scan_of_references_is_found():
    plain, _ = origins_of(scanned, X)
    with raised(SCAN):
        found, (carry, sums) = origins_of(scanned, X)
    assert list(found.values()) == list(plain.values()) == ["log"]
    assert [at[1] for at in found] == [at[1] for at in plain] == [1]  # the round
    assert carry.sources == sums.sources == {*found}


class Bare:
    """A program as JAX will hold it: what ``.jaxpr`` gave is the program itself."""

    def __init__(self, jaxpr):
        self.whole = jaxpr

    def __getattr__(self, name):
        if name == "jaxpr":
            raise AttributeError(name)
        return getattr(self.whole, name)


def test_no_program_is_asked_for_the_one_inside():
    whole = jax.make_jaxpr(lambda x: (scanned(x), x))(X)
    bare = Bare(whole)
    assert costs_of(Program(bare)) == costs_of(Program(whole))
    assert jaxprs.passed_through(bare)[-1] == 0
    assert fingerprints(bare, ["x"]) == fingerprints(whole, ["x"])
    assert heaviest_loop(bare) == heaviest_loop(whole)
    assert equations.with_constants(bare) is bare


def test_effects_outside_of_a_program_are_named():
    with contextlib.redirect_stdout(None):
        jaxpr = jax.make_jaxpr(lambda x: jax.debug.print("{}", added(2.0)(x)))(X)
    assert equations.outside_effects(jaxpr) == ["Debug"]
    assert equations.outside_effects(jax.make_jaxpr(added(2.0))(X)) == []
