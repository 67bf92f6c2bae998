"""A run says what of its programs changed since its checkpoint, and nothing else."""

import functools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

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
import fngrad.sharding as sharding
import fngrad.tree as tree
from fngrad.fitting.inputs import Feed
from fngrad.fitting.mesh import placed_run
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
    mesh=None,
    make=fg.make_step,
    params=PARAMS,
    **options,
):
    optimizer = optimizer or momentum(0.05)
    step = wrap(make(loss, optimizer, **options))
    state = fg.init_state(params, optimizer, 0)
    placed = placed_run(mesh, step, state, DATA, eval_data)
    mesh, state, data, eval_data = placed
    traced = check_step(step, state, Feed(data, mesh))
    evaluation = Evaluation.of(metric, eval_data, None)
    assert evaluation
    measured = evaluation.measured(state, traced.metrics)
    record = program_changes.record(traced, state, measured, mesh)
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


FROZEN = fg.partition([("b", fg.freeze()), ("*", momentum(0.05))])
PARTLY = fg.chain(fg.clip_by_global_norm(1.0), FROZEN)
NARROW = {
    "params": tree.cast_real(PARAMS, jnp.bfloat16),
    "loss": lambda params, batch: loss_fn(tree.widen(params), batch),
    "metric": lambda params, batch: metric_fn(tree.widen(params), batch),
}


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
        ({"optimizer": PARTLY, "micro_batches": 2}, {"optimizer": PARTLY}),
        ({**NARROW, "micro_batches": 2}, NARROW),
        ({"metric": jax.jit(metric_fn)}, {}),
        ({"metric": lambda p, b: metric_fn(p, b) | {"more": squared_errors(p, b)}}, {}),
    ],
)
def test_what_computes_the_same_is_not_called_a_change(options, known):
    record = recorded(**{"loss": loss_fn} | options)
    assert changed(record, recorded(**known) if known else FIRST) == []


def doubled(batch):
    return {key: 2 * x for key, x in batch.items()}


def from_source(arrays, batch_size=5, **options):
    return fg.data.from_source(arrays, 20, batch_size, **options)


# Evaluation data in many forms; those of one kind can be compared.
FORMS = {
    "arrays": [
        lambda x: x,
        lambda x: jax.tree.map(jnp.asarray, x),
        lambda x: {key: leaf.astype(">f8") for key, leaf in x.items()},
        lambda x: fg.data.from_arrays(x, 5, seed=3),
    ],
    "mapped arrays": [lambda x: fg.data.from_arrays(x, 5).map(doubled)],
    "source": [
        from_source,
        lambda x: from_source(x, batch_size=4, seed=3),
        lambda x: from_source(lambda i: {key: leaf[i] for key, leaf in x.items()}),
    ],
    "mapped source": [lambda x: from_source(x).map(doubled)],
    "source with an identity": [lambda x: from_source(x, fingerprint=str(x["x"][0]))],
}
DOUBLE = {key: np.asarray(x, np.float64) + 1e-9 for key, x in ARRAYS.items()}
SINGLE = {key: np.float32(x) for key, x in DOUBLE.items()}
EVALUATED = {  # by form, in both precisions
    f"{kind} {i}": (kind, recorded(eval_data=form(SINGLE)), form)
    for kind, forms in FORMS.items()
    for i, form in enumerate(forms)
}


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation_data_are_compared_as_arrays_of_jax(name):
    kind, single, form = EVALUATED[name]
    if "identity" not in name:
        assert changed(recorded(eval_data=form(DOUBLE)), single) == []
    others = recorded(eval_data=form(jax.tree.map(lambda x: -x, DOUBLE)))
    for known_kind, known, _ in EVALUATED.values():
        assert changed(single, known) == []
        assert changed(others, known) == ["eval_data"] * (known_kind == kind)


def of_scaled(factor):
    return lambda params, batch: factor * loss_fn(params, batch)


CHANGED = {key: -2 * x for key, x in ARRAYS.items()}
SAM = {"make": fg.steps.sam}
SOPHIA = {"make": fg.steps.sophia, "optimizer": fg.sophia(0.1)}
SEARCH = {"make": fg.steps.line_search, "optimizer": fg.sgd(1.0)}
POLYAK = {"make": fg.steps.polyak, "optimizer": fg.sgd(1.0)}
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
        (
            {"optimizer": momentum(lambda t: 0.05 * 0.9 ** t.astype(jnp.float32))},
            {},
            "optimizer",
        ),
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
        ({"loss": of_scaled(2.0), "micro_batches": 2}, {"micro_batches": 2}, "loss"),
        ({"optimizer": momentum(0.06), "micro_batches": 2}, {}, "optimizer"),
        # What evaluates the loss twice uses it in its rule.
        ({**SAM, "loss": of_scaled(2.0)}, SAM, "loss and optimizer"),
        ({**SAM, "optimizer": momentum(0.06)}, SAM, "optimizer"),
        ({**SAM, "rho": 0.1}, SAM, "optimizer"),
        ({**SAM, "adaptive": True}, SAM, "optimizer"),
        ({**SOPHIA, "loss": of_scaled(2.0)}, SOPHIA, "loss and optimizer"),
        ({**SOPHIA, "optimizer": fg.sophia(0.2)}, SOPHIA, "optimizer"),
        ({**SEARCH, "loss": of_scaled(2.0)}, SEARCH, "loss and optimizer"),
        ({**SEARCH, "slope_rtol": 0.2}, SEARCH, "optimizer"),
        ({**POLYAK, "loss": of_scaled(2.0)}, POLYAK, "loss"),
        ({**POLYAK, "f_min": -1.0}, POLYAK, "optimizer"),
    ],
)
def test_what_changed_is_named(options, known, names):
    record = recorded(**options)
    assert (
        changed(record, recorded(**known) if known else FIRST) == [names][: len(names)]
    )


def test_a_step_without_named_gradients_is_compared_as_a_whole():
    def step(state, batch):
        params = jax.tree.map(lambda x: factor * x, state.params)
        return state._replace(step=state.step + 1, params=params), {"loss": state.step}

    def wrapped(_):
        return lambda state, batch: step(state, batch)

    factor = 2.0
    known = recorded(wrap=wrapped)
    assert changed(recorded(wrap=wrapped), known) == []
    factor = 3.0
    assert changed(recorded(wrap=wrapped), known) == ["step"]
    assert changed(FIRST, known) == ["step"]


@pytest.mark.parametrize("name", ["jax", "numpy", "fngrad", "backend"])
def test_programs_that_other_versions_traced_are_not_compared(name):
    known = {**FIRST, "made_by": {**FIRST["made_by"], name: "another"}}
    assert changed(recorded(loss=of_scaled(2.0), eval_data=CHANGED), known) == []


def test_checkpoints_without_fingerprints_are_not_compared():
    assert changed(recorded(loss=of_scaled(2.0)), known=None) == []


def test_a_program_that_cannot_be_read_is_not_compared_with_a_warning(monkeypatch):
    monkeypatch.setattr(program_changes, "fingerprints", lambda *a, **k: 1 / 0)
    state = fg.init_state(PARAMS, momentum(0.05), 0)
    traced = check_step(fg.make_step(loss_fn, momentum(0.05)), state, Feed(DATA))
    record = program_changes.record(traced, state, None, None)
    check = functools.partial(program_changes.check, "'runs'", state=state)
    told = "those of the run in 'runs', so that resume=\"must\" refuses none"
    why = "reading the programs raised ZeroDivisionError: division by zero"
    for known, wanted in [(record, FIRST), (FIRST, record), (record, record)]:
        for may_change in (True, False):
            with pytest.warns(UserWarning, match=f"{told}: {why}$") as caught:
                check(known, wanted, may_change=may_change)
            assert len(caught) == 1


def test_on_another_mesh_the_loss_and_the_evaluation_data_are_compared():
    mesh = sharding.make_mesh(jax.devices()[:1])
    known = recorded(mesh=mesh)
    others = {
        "optimizer": momentum(0.06),
        "metric": lambda p, b: {"loss": 2 * squared_errors(p, b)},
    }
    assert changed(recorded(mesh=mesh, **others), known) == ["optimizer and metric_fn"]
    assert changed(recorded(**others), known) == []
    others |= {"loss": of_scaled(2.0), "eval_data": CHANGED}
    assert changed(recorded(**others), known) == ["loss and eval_data"]
    assert changed(recorded(**others, micro_batches=2), known) == ["eval_data"]


def of_many_operations(params, batch, key):
    x = jax.nn.relu(batch["x"]) + jax.random.normal(key, batch["x"].shape)
    x = jnp.sort(jnp.where(x > 0, jax.nn.logsumexp(x), x), axis=0)[jnp.array([2, 0])]
    x, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c), c), x, None, 3)
    x = jax.lax.cond(x[0, 0] > 0, jnp.sin, jax.nn.gelu, x)
    x = jax.lax.while_loop(lambda y: y[0, 0] > 9, lambda y: y / 2, x)
    return in_any_order(params, batch) + jnp.mean(x @ params["w"] + jnp.arange(2.0))


def test_another_process_records_the_same():
    script = (
        "import json, test_program_changes as t; "
        "print(json.dumps(t.recorded(loss=t.of_many_operations)))"
    )
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
    path = os.pathsep.join([*folders, *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = recorded(loss=of_many_operations)
    there = json.loads(done.stdout)
    assert {k: there[k] for k in ("step", "evaluation")} == {
        k: here[k] for k in ("step", "evaluation")
    }


def test_hyperparameters_that_json_cannot_hold_are_compared_too():
    def clipped(bound):
        clip = fg.tunable(fg.clip_by_global_norm, max_norm=bound)
        return fg.chain(clip, momentum(0.05))

    state = fg.init_state(PARAMS, clipped(float("inf")), 0)
    known = json.loads(json.dumps(recorded(optimizer=clipped(float("inf")))))
    assert list(known["hyperparameters"].values()) == ["Infinity"]
    check = functools.partial(program_changes.check, "", known, may_change=True)
    check(recorded(optimizer=clipped(float("inf"))), state)
    with pytest.warns(UserWarning, match="max_norm, inf, not with 0.25 of"):
        check(recorded(optimizer=clipped(0.25)), state)
