"""A run that resumes says what of its programs changed, and refuses it if it must."""

import collections

import pytest
from linear_regression import ARRAYS, DATA, PARAMS, loss_fn, metric_fn

import fngrad as fg
from fngrad.optimizers import momentum


def of_scaled(factor):
    return lambda params, batch: factor * loss_fn(params, batch)


def resumed(folder, loss=loss_fn, optimizer=None, *, num_steps, state=None, **options):
    optimizer = optimizer or momentum(0.05)
    step = fg.make_step(loss, optimizer)
    state = fg.init_state(PARAMS, optimizer, 0) if state is None else state
    options = {"metric_fn": metric_fn, "eval_data": ARRAYS, "eval_every": 2} | options
    return fg.fit(
        step,
        state,
        DATA,
        num_steps=num_steps,
        checkpoint_dir=folder,
        progress=False,
        **options,
    )


def test_a_run_that_goes_on_with_another_loss_says_so_once(tmp_path):
    resumed(tmp_path, num_steps=2)
    another = {"loss": of_scaled(2.0), "num_steps": 4}
    refused = r'need the loss of the run in .* for resume="must", got another'
    with pytest.raises(ValueError, match=refused):
        resumed(tmp_path, **another, resume="must")
    told = (
        'continues with another loss than before; resume="must" would refuse it, '
        'resume="overwrite" moves the old run aside and trains anew'
    )
    with pytest.warns(UserWarning, match=told):
        resumed(tmp_path, **another)
    another["num_steps"] = 6
    result = resumed(tmp_path, **another, resume="must", loop="scan", log_every=1)
    assert result.state.step == 6


def test_recording_fingerprints_traces_no_program_again(tmp_path):
    counts = []
    for folder in (None, tmp_path):
        traced = collections.Counter()

        def loss(params, batch, traced=traced):
            traced["loss"] += 1
            return loss_fn(params, batch)

        def metric(params, batch, traced=traced):
            traced["metric"] += 1
            return metric_fn(params, batch)

        resumed(folder, loss, num_steps=3, metric_fn=metric)
        counts.append(dict(traced))
    # The step once for its shapes and once in the loop's program.
    assert counts == [{"loss": 2, "metric": 1}] * 2


def test_a_hyperparameter_of_the_state_is_the_checkpoints_with_a_warning(tmp_path):
    def optimizer(rate):
        return fg.tunable(momentum, learning_rate=rate)

    def lower(step, state, values):
        return fg.set_hyperparameters(state, learning_rate=0.25)

    def go_on(rate, num_steps, **options):
        nothing = {"metric_fn": None, "eval_data": None, "eval_every": "epoch"}
        options = nothing | options | {"num_steps": num_steps}
        return resumed(tmp_path, optimizer=optimizer(rate), **options)

    first = go_on(0.5, 1, callbacks=[lower])
    go_on(0.5, 2, state=first.state)
    text = "the checkpoint's learning_rate, 0.25, not with 0.125"
    with pytest.warns(UserWarning, match=text):
        go_on(0.125, 3, resume="must")
