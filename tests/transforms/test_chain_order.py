"""Parts that belong last in a chain, and what may follow them."""

import jax.numpy as jnp
import pytest

import fngrad as fg
from fngrad.optimizers.madgrad import scale_by_madgrad

PARAMS = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
LAST = {
    "ema_params": lambda: fg.ema_params(0.9),
    "average_params": fg.average_params,
    "stochastic_round": lambda: fg.stochastic_round(0),
    "proximal_decay": lambda: fg.proximal_decay(0.1, 0.1),
    "scale_by_madgrad": lambda: scale_by_madgrad(0.1),
}


def raises(optimizer, last):
    with pytest.raises(ValueError, match=f"need {last!r} last in a chain.* after it"):
        optimizer.init(PARAMS)


@pytest.mark.parametrize("name", LAST)
def test_a_part_that_belongs_last_is_not_followed_by_a_change(name):
    last = LAST[name]()
    fg.chain(fg.adam(1e-2), last).init(PARAMS)
    raises(fg.chain(last, fg.adam(1e-2)), name)  # with state
    raises(fg.chain(last, fg.clip(1.0)), name)  # without
    more = fg.named("more", fg.ema_params(0.5))
    raises(fg.chain(last, fg.trace(0.9), more), name)


def test_the_order_does_not_depend_on_how_chains_are_nested():
    a, last, b = fg.adam(1e-2), fg.ema_params(0.9), fg.scale(0.5)
    for wrong in (
        fg.chain(a, last, b),
        fg.chain(fg.chain(a, last), b),
        fg.chain(a, fg.chain(last, b)),
    ):
        raises(wrong, "ema_params")
    for right in (fg.chain(a, fg.chain(b, last)), fg.chain(fg.chain(a, b), last)):
        right.init(PARAMS)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (fg.skip_nonfinite, "skip_nonfinite"),
        (lambda rule: fg.accumulate(rule, 2), "accumulate"),
        (lambda rule: fg.named("own", rule), "own"),
        (lambda rule: fg.partition([("w", rule), ("**", fg.sgd(0.1))]), "partition"),
        (fg.quantize_state, "quantize_state"),
        (fg.stack_leaves, "stack_leaves"),
        (
            lambda rule: fg.tunable(lambda x: fg.chain(rule, fg.ema_params(x)), x=0.9),
            "tunable",
        ),
    ],
)
def test_a_wrapper_belongs_last_with_what_is_in_it(wrap, name):
    inside = wrap(fg.chain(fg.adam(1e-2), fg.named("average", fg.ema_params(0.9))))
    inside.init(PARAMS)
    raises(fg.chain(inside, fg.scale(0.5)), name)
    raises(fg.chain(fg.ema_params(0.9), inside), "ema_params")


def test_the_unit_of_chains_may_follow():
    fg.chain(fg.adam(1e-2), fg.ema_params(0.9), fg.identity()).init(PARAMS)


def test_averages_come_after_the_last_change():
    decay, rounded, mean = (
        LAST[name]() for name in ("proximal_decay", "stochastic_round", "ema_params")
    )
    fg.chain(fg.adam(1e-2), decay, rounded, mean, fg.average_params()).init(PARAMS)
    raises(fg.chain(fg.adam(1e-2), mean, rounded), "ema_params")
