"""A step keeps the rule of its loss, whatever it is wrapped in."""

import functools

import jax
import jax.numpy as jnp
import pytest
from linear_regression import DATA, OPTIMIZER, first_state, loss_fn

import fngrad as fg
import fngrad.sharding as sharding
from fngrad.fitting.mesh import placed_run
from fngrad.sharding.rules import MadeWith, made_with, rule_of_function

HERE = sharding.make_mesh(jax.devices()[:1])
RULE = sharding.fsdp(min_size=1)
GATHERED = sharding.gathered(loss_fn, RULE)


def residuals(params, batch):
    return jnp.zeros(3)


OF_A_LOSS = {
    "make_step": lambda loss: fg.make_step(loss, OPTIMIZER),
    "sam": lambda loss: fg.steps.sam(loss, OPTIMIZER),
    "differentially_private": lambda loss: fg.steps.differentially_private(
        loss, OPTIMIZER, 1.0, 1.0
    ),
    "sophia": lambda loss: fg.steps.sophia(loss, fg.sophia(0.1)),
    "polyak": lambda loss: fg.steps.polyak(loss),
    "line_search": lambda loss: fg.steps.line_search(loss, fg.sgd(1.0)),
    "gauss_newton": lambda loss: fg.steps.gauss_newton(
        sharding.gathered(residuals, RULE)
    ),
    "levenberg_marquardt": lambda loss: fg.steps.levenberg_marquardt(
        sharding.gathered(residuals, RULE), OPTIMIZER
    ),
}
WRAPPED = {
    "partial": lambda step: functools.partial(step),
    "jit": jax.jit,
    "wraps": lambda step: functools.wraps(step)(lambda *args: step(*args)),
    "plateau": fg.steps.plateau,
    "freeze_diverged": fg.steps.freeze_diverged,
    "skip_bad_steps": fg.steps.skip_bad_steps,
    "partial of jit": lambda step: functools.partial(jax.jit(step)),
}


@pytest.mark.parametrize("name", OF_A_LOSS)
def test_a_step_has_the_rule_of_its_loss(name):
    assert rule_of_function(OF_A_LOSS[name](GATHERED)) is RULE


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_step_keeps_its_rule(wrap):
    assert rule_of_function(wrap(fg.make_step(loss_fn, OPTIMIZER, rule=RULE))) is RULE
    assert rule_of_function(wrap(fg.steps.sam(GATHERED, OPTIMIZER))) is RULE


def test_a_narrow_loss_keeps_its_rule():
    assert rule_of_function(fg.mixed_precision(GATHERED, "bfloat16")) is RULE


def test_a_step_without_a_rule_differs_from_one_that_fngrad_did_not_make():
    assert made_with(fg.make_step(loss_fn, OPTIMIZER)) == MadeWith(None)
    assert made_with(lambda state, batch: (state, {})) is None


class Penalized:
    """A model whose attribute ``rule`` is not about devices."""

    rule = "l2"

    def __call__(self, params, batch):
        return loss_fn(params, batch)


def test_an_attribute_rule_of_the_user_is_not_a_rule():
    model = Penalized()
    step = functools.partial(fg.make_step(model, OPTIMIZER))
    step.__dict__["rule"] = "l2"
    for each in (step, fg.steps.sam(model, OPTIMIZER)):
        assert rule_of_function(each) is None
        assert placed_run(HERE, each, first_state(), DATA, None)[0] == HERE


def test_a_loss_is_gathered_by_one_rule():
    again = sharding.fsdp(min_size=1)
    narrow = fg.mixed_precision(GATHERED, "bfloat16")
    for loss in (GATHERED, narrow):
        assert sharding.gathered(loss, again) is loss
        assert rule_of_function(fg.make_step(loss, OPTIMIZER, rule=again)) is RULE
        with pytest.raises(ValueError, match=r"need one rule, got a loss that .* gath"):
            fg.make_step(loss, OPTIMIZER, rule=sharding.fsdp(min_size=2))


@pytest.mark.parametrize("name", ["make_step", "sam"])
def test_fit_splits_the_state_by_the_rule_of_the_loss(name):
    step = functools.partial(OF_A_LOSS[name](GATHERED))
    mesh, state, *_ = placed_run(HERE, step, first_state(), DATA, None)
    assert mesh == HERE
    want = jax.tree.map(lambda s: s.spec, sharding.shardings(state, HERE, RULE))
    assert jax.tree.map(lambda x: x.sharding.spec, state) == want
    assert want != jax.tree.map(lambda _: jax.sharding.PartitionSpec(), state)
