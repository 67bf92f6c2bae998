"""A run says what of its programs changed since its checkpoint, and nothing else."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import (
    ARRAYS,
    DATA,
    PARAMS,
    loss_fn,
    metric_fn,
    squared_errors,
)

import fngrad as fg
import fngrad.fitting.program_changes as program_changes
from fngrad.fitting.inputs import Feed
from fngrad.fitting.step_checks import check_step
from fngrad.fitting.validation import Evaluation
from fngrad.optimizers import adamw, momentum
from fngrad.steps.skipping import skip_bad_steps


def recorded(
    loss=loss_fn,
    optimizer=None,
    metric=metric_fn,
    eval_data=ARRAYS,
    wrap=lambda step: step,
    **options,
):
    optimizer = optimizer or momentum(0.05)
    step = wrap(fg.make_step(loss, optimizer, **options))
    state = fg.init_state(PARAMS, optimizer, 0)
    traced = check_step(step, state, Feed(DATA))
    evaluation = Evaluation.of(metric, eval_data, None)
    assert evaluation
    measured = evaluation.measured(state, traced.metrics)
    record = program_changes.record(traced, state, measured, None)
    assert record["made_by"]
    return record


FIRST = recorded()


def changed(record, known=FIRST):
    """Return what a warning says has changed."""
    state = fg.init_state(PARAMS, momentum(0.05), 0)
    check = functools.partial(
        program_changes.check, "'runs'", known, record, state, may_change=True
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check()
    return [
        str(warning.message).partition("another ")[2].partition(" than")[0]
        for warning in caught
    ]


def with_metrics(params, batch):
    errors = squared_errors(params, batch)
    return jnp.mean(errors), {"worst": jnp.max(errors)}


def in_any_order(params, batch):
    parts = {"weights": params["w"], "more": params["w"] * 2.0, "no": params["b"]}
    assert sum(x.size for x in map(parts.get, set(parts))) == 5  # type: ignore
    return loss_fn(params, batch)


def closing_over(teacher):
    def loss(params, batch):
        return jnp.mean(squared_errors(params, batch)) + jnp.sum(params["w"] * teacher)

    return loss


def of_layers(remat):
    """A loss over a loop of layers, whose backward pass may compute them again."""
    body = jax.checkpoint(jnp.tanh) if remat else jnp.tanh

    def loss(params, batch):
        x, _ = jax.lax.scan(
            lambda x, _: (body(x * params["b"]), None), batch["x"], None, 3
        )
        return jnp.mean((x @ params["w"] - batch["y"]) ** 2)

    return loss


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, {}),
        ({"loss": jax.jit(loss_fn)}, {}),
        ({"loss": lambda p, batch: loss_fn(p, batch)}, {}),
        ({"loss": with_metrics}, {}),
        ({"loss": in_any_order}, {}),
        ({"loss": closing_over(np.ones(2))}, {"loss": closing_over(jnp.ones(2))}),
        ({"loss": of_layers(True)}, {"loss": of_layers(False)}),
        ({"remat": jax.checkpoint_policies.dots_saveable}, {}),
        ({"metrics": "loss"}, {}),
        ({"wrap": skip_bad_steps}, {}),
        ({"wrap": jax.jit}, {}),
        ({"micro_batches": 2}, {}),
        ({"metric": jax.jit(metric_fn)}, {}),
        ({"metric": lambda p, b: metric_fn(p, b) | {"more": squared_errors(p, b)}}, {}),
        ({"eval_data": fg.data.from_arrays(ARRAYS, 5, seed=3)}, {}),
    ],
)
def test_what_computes_the_same_is_not_called_a_change(options, known):
    record = recorded(**{"loss": loss_fn} | options)
    assert changed(record, recorded(**known) if known else FIRST) == []


def of_scaled(factor):
    return lambda params, batch: factor * loss_fn(params, batch)


CHANGED = {key: -2 * x for key, x in ARRAYS.items()}
SHORTER = {key: x[:9] for key, x in ARRAYS.items()}


@pytest.mark.parametrize(
    ("options", "known", "names"),
    [
        ({"loss": of_scaled(2.0)}, {}, "loss"),
        (
            {"loss": closing_over(np.ones(2))},
            {"loss": closing_over(np.zeros(2))},
            "loss",
        ),
        ({"optimizer": momentum(0.06)}, {}, "optimizer"),
        ({"optimizer": momentum(lambda t: 0.05 * 0.9 ** t.astype(jnp.float32))}, {}, "optimizer"),
        (
            {"optimizer": fg.chain(fg.clip_by_global_norm(1.0), momentum(0.05))},
            {},
            "optimizer",
        ),
        (
            {"optimizer": adamw(0.1, weight_decay=0.1)},
            {"optimizer": adamw(0.1, weight_decay=0.2)},
            "optimizer",
        ),
        (
            {"loss": of_scaled(2.0), "optimizer": momentum(0.06), "eval_data": CHANGED},
            {},
            "loss and optimizer and eval_data",
        ),
        ({"loss": of_scaled(2.0), "wrap": skip_bad_steps}, {}, "loss"),
        ({"optimizer": momentum(0.06), "wrap": skip_bad_steps}, {}, "optimizer"),
        ({"wrap": lambda step: lambda s, b: step(s, b)}, {}, ""),
        ({"metric": lambda p, b: {"loss": 2 * squared_errors(p, b)}}, {}, "metric_fn"),
        ({"eval_data": CHANGED}, {}, "eval_data"),
        ({"eval_data": SHORTER}, {}, "eval_data"),
    ],
)
def test_what_changed_is_named(options, known, names):
    record = recorded(**options)
    assert (
        changed(record, recorded(**known) if known else FIRST) == [names][: len(names)]
    )
