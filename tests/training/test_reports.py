"""A report is the update with metrics: it costs no second update."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.tree as tree
from fngrad.optimizers.registry import REGISTRY
from fngrad.transforms.core import from_report, report
from fngrad.transforms.step_length import scale_by_step_length
from fngrad.transforms.trust_ratio import scale_by_trust_ratio

PARAMS = {
    "layers": [{"w": jnp.ones((4, 3)), "b": jnp.ones(3)} for _ in range(2)],
    "scale": jnp.ones(()),
}
CLIPPED = fg.chain(fg.clip_by_global_norm(1.0), fg.adamw(0.1))
GROUPS = [("layers/0/**", fg.freeze()), ("**/w", fg.muon(0.1)), ("**", CLIPPED)]
WRAPPED = {
    "accumulate": fg.accumulate(CLIPPED, 2),
    "cautious": fg.cautious(CLIPPED),
    "chain": fg.chain(CLIPPED, scale_by_trust_ratio(), scale_by_step_length()),
    "ema_params": fg.chain(CLIPPED, fg.ema_params(0.9)),
    "lbfgs": fg.lbfgs(),
    "lookahead": fg.lookahead(CLIPPED),
    "loss_scaling": fg.loss_scaling(CLIPPED),
    "masked": fg.masked(CLIPPED, "**/w"),
    "named": fg.chain(fg.named("all", CLIPPED)),
    "partition": fg.partition(GROUPS),
    "bfloat16 moments": fg.quantize_state(CLIPPED, 16),
    "quantize_state": fg.quantize_state(CLIPPED, min_size=8, block_size=4),
    "reduce_on_plateau": fg.chain(CLIPPED, fg.reduce_on_plateau()),
    "schedule_free": fg.schedule_free(fg.rmsprop(0.1), 0.1),
    "skip_nonfinite": fg.skip_nonfinite(CLIPPED),
    "sophia": fg.sophia(0.1),
    "stack_leaves": fg.stack_leaves(CLIPPED),
    "tunable": fg.tunable(fg.adamw, learning_rate=0.1, b1=0.9),
}
OPTIMIZERS = {name: factory(0.1) for name, factory in REGISTRY.items()} | WRAPPED

MOST = 1.15  # a second update would be at least half as large again

# What reports something that no update computes, by how much, and why.
DEARER = {
    "accumulate": (1.75, "a waiting step reports the mean so far"),
    "loss_scaling": (1.75, "a skipped step reports the gradient that it skipped"),
    "skip_nonfinite": (1.75, "a skipped step reports the gradient that it skipped"),
}


def loss_fn(params: Any, batch: Any) -> jax.Array:
    return tree.vdot(params, params)


def program(optimizer: fg.Transform, metrics: Any) -> Any:
    """Return a step's program."""
    step = fg.make_step(loss_fn, optimizer, metrics=metrics)
    state = jax.eval_shape(lambda: fg.init_state(PARAMS, optimizer, 0))
    return jax.make_jaxpr(step)(state, None).jaxpr


def count(equations: Any) -> int:
    """Count equations, those of programs within them too."""
    return sum(1 + sum(map(count, programs_in(e.params))) for e in equations)


def programs_in(params: Any) -> list[Any]:
    inner = jax.tree.leaves(params, is_leaf=lambda x: hasattr(x, "eqns"))
    opened = [getattr(x, "jaxpr", x) for x in inner]
    return [x.eqns for x in opened if hasattr(x, "eqns")]


def needed(jaxpr: Any) -> list[Any]:
    """Return the equations that a program's results depend on."""
    wanted, kept = {v for v in jaxpr.outvars if not hasattr(v, "val")}, []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            wanted.update(v for v in equation.invars if not hasattr(v, "val"))
            kept.append(equation)
    return kept


@functools.cache
def norms(trainable: Any) -> int:
    """Count what the norms need."""
    idle = fg.identity()._replace(parts=(), name="idle", trainable=trainable)
    return count(program(idle, "norms").eqns) - count(program(idle, "loss").eqns)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_with_reports_is_hardly_larger_than_one_without(name):
    """Compare all equations with those that loss, state and norms need.

    Without reports means: the optimizer's update alone, of whose equations those count
    that the next state depends on, and the norms as the silent optimizer has them.
    """
    optimizer = OPTIMIZERS[name]
    silent = optimizer._replace(parts=(), name="silent", report=None)
    without = count(needed(program(silent, "loss"))) + norms(optimizer.trainable)
    whole = count(program(optimizer, "norms").eqns)
    most, _ = DEARER.get(name, (MOST, ""))
    assert whole <= most * without, f"{whole} equations, {without} without reports"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_reports_in_double_precision(name, dtype, x64):
    wide = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), PARAMS)
    step = fg.make_step(loss_fn, OPTIMIZERS[name])
    state = jax.eval_shape(lambda p: fg.init_state(p, OPTIMIZERS[name], 0), wide)
    _, metrics = jax.eval_shape(step, state, None)
    assert metrics["loss"].dtype == dtype


@pytest.mark.parametrize("name", DEARER)
def test_an_exception_is_one(name):
    optimizer = OPTIMIZERS[name]
    silent = optimizer._replace(parts=(), name="silent", report=None)
    without = count(needed(program(silent, "loss"))) + norms(None)
    assert count(program(optimizer, "norms").eqns) > MOST * without


def test_with_metrics_loss_no_norm_is_computed():
    text = str(program(fg.skip_nonfinite(fg.sgd(0.1)), "loss"))
    assert "sqrt" not in text
    assert "sqrt" in str(program(fg.skip_nonfinite(fg.sgd(0.1)), "norms"))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            lambda u, s, p: (tree.scale(2.0, u), s, {}),
            r"need .* at '0/layers/0/b', got",
        ),
        (lambda u, s, p: {"size": tree.norm(u)}, r"need \(updates, state, .*got dict"),
        (lambda u, s, p: (u, s), r"need \(updates, state, metrics\) .*got tuple"),
        (lambda u, s, p: ({}, u, s), r"need \(updates, state, metrics\) .*got tuple"),
    ],
)
def test_a_report_that_is_not_the_update_breaks_a_law(told, message):
    part = fg.Transform(lambda params: (), lambda u, s, p: (u, s), report=told)
    law = "law broken: report is the update with metrics: "
    with pytest.raises(ValueError, match=law + message):
        fg.check_transform(part, PARAMS)


def test_a_part_made_from_its_report_has_its_equation_once():
    def halve(updates, state, params):
        return tree.scale(0.5, updates), state, {"size": tree.norm(updates)}

    part = from_report(lambda params: (), halve, "halve")
    fg.check_transform(part)
    x = np.full(1, 4.0, np.float32)
    np.testing.assert_array_equal(jax.jit(part.update)(x, (), x)[0], [2.0])
    told = jax.jit(functools.partial(report, part))(x, {}, x)
    assert told == {"halve/size": 4.0}


@pytest.mark.parametrize(
    ("wrap", "size"),
    [(lambda t: t, 0.01), (fg.skip_nonfinite, 0.01), (fg.cautious, 0.01 * 2 / 3)],
)
def test_an_update_needs_no_names_that_a_report_needs(wrap, size):
    bound = fg.clip_by_global_norm
    twice = wrap(fg.chain(bound(1.0), fg.sgd(0.1), bound(0.01)))
    params = jnp.array([3.0, 4.0])
    state = twice.init(params)
    updates, _ = jax.jit(twice.update)(params, state, params)
    np.testing.assert_allclose(np.linalg.norm(updates), size, rtol=1e-5)
    with pytest.raises(ValueError, match=r"two parts report 'clip_by_.*; name them: "):
        jax.eval_shape(twice.report, params, state, params)


def test_a_skipped_step_reports_the_gradient_that_it_skips():
    optimizer = fg.skip_nonfinite(CLIPPED)
    params = jnp.ones(2)
    state = optimizer.init(params)
    tell = jax.jit(functools.partial(report, optimizer))
    for size, norm in ((3.0, 5.0), (np.inf, np.inf), (np.nan, np.nan)):
        told = tell(jnp.array([size, 4.0]), state, params)
        before = told["skip_nonfinite/clip_by_global_norm/norm_before"]
        np.testing.assert_array_equal(before, norm)
        rate = told["skip_nonfinite/scale_by_learning_rate/learning_rate"]
        np.testing.assert_allclose(rate, 0.1)


def test_the_derivative_of_the_reports_of_a_skipped_step_is_finite():
    def told(rate, gradient):
        optimizer, params = fg.skip_nonfinite(fg.sgd(rate)), jnp.ones(2)
        made = report(optimizer, gradient, optimizer.init(params), params)
        return made["skip_nonfinite/scale_by_learning_rate/learning_rate"]

    gradients = jnp.array([[1.0, 2.0], [1.0, jnp.nan]])
    slopes = jax.jit(jax.vmap(jax.grad(told), (None, 0)))(0.1, gradients)
    np.testing.assert_array_equal(slopes, [1.0, 0.0])


def test_a_searched_step_reports_the_length_with_which_it_began():
    optimizer = fg.chain(fg.sgd(1.0), scale_by_step_length(0.25))
    step = fg.steps.line_search(lambda w, batch: jnp.sum(w**2), optimizer)
    state = fg.init_state(jnp.ones(2), optimizer, key=0)
    _, metrics = jax.jit(step)(state, None)
    assert metrics["step_length"] != 0.25
    assert metrics["scale_by_step_length/step_length"] == 0.25


def test_a_searched_step_does_not_change_other_reports():
    def tell(updates, state, params):
        return updates, state, {"step_length": jnp.float32(7.0)}

    other = from_report(lambda params: (), tell, "mine")
    optimizer = fg.chain(fg.sgd(1.0), other, scale_by_step_length(0.25))
    step = fg.steps.line_search(lambda w, batch: jnp.sum(w**2), optimizer)
    state = fg.init_state(jnp.ones(2), optimizer, key=0)
    _, metrics = jax.jit(step)(state, None)
    assert metrics["mine/step_length"] == 7.0
    assert metrics["scale_by_step_length/step_length"] == 0.25
