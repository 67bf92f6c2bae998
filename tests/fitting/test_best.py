"""The best evaluation of a run: `history.best`, `restore_best`, `eval_first`."""

import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import ARRAYS, DATA, PARAMS, first_state, metric_fn, quiet_fit
from resuming import WATCHED, bits, killed_fit, saving_fit

import fngrad as fg
import fngrad.checkpoint.device_transfer as device_transfer
import fngrad.fitting.best_evaluation as best_evaluation
import fngrad.fitting.checkpointing as checkpointing
import fngrad.tree as tree
from fngrad.checkpoint.reading import load
from fngrad.fitting.hooks import STOP
from fngrad.training import TrainState

WORST = ("val/loss", "max")  # the first evaluation, so that the best is not the last
WATCHED_FIT = {k: v for k, v in WATCHED.items() if k != "log_every"}
AVERAGED = fg.chain(fg.sgd(0.05), fg.ema_params(0.5))


def leaf_bits(state):
    return {path: bits(leaf) for path, leaf in tree.leaf_paths(state).items()}


def assert_same_best(got, expected):
    assert (got.step, got.metrics, got.by) == (
        expected.step,
        expected.metrics,
        expected.by,
    )
    assert leaf_bits(got.state) == leaf_bits(expected.state)


def loss_with_statistics(params, batch, model_state):
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    seen = 0.5 * model_state + 0.5 * jnp.mean(batch["y"])
    return jnp.mean(error**2), ({}, seen)


def metric_with_statistics(params, batch, model_state):
    error = batch["x"] @ params["w"] + params["b"] - batch["y"] - model_state
    return {"loss": error**2}


def test_the_best_state_evaluates_to_the_reported_number_exactly():
    step = fg.make_step(loss_with_statistics, AVERAGED)
    state = fg.init_state(PARAMS, AVERAGED, 0, jnp.zeros(()))
    result = fg.fit(
        step,
        state,
        DATA,
        num_steps=20,
        metric_fn=metric_with_statistics,
        eval_data=ARRAYS,
        eval_every=5,
        keep_best=WORST,
        loop="python",
        progress=False,
    )
    best = result.history.best
    losses = result.history["val/loss"]
    assert best.step == result.history.steps("val/loss")[np.argmax(losses)] < 20
    again = fg.evaluate(metric_with_statistics, best.state, ARRAYS)
    assert again["loss"] == best.metrics["val/loss"] == np.max(losses)
    assert int(best.state.step) == best.step
    assert best.metrics["loss"] == result.history["loss"][best.step - 1]


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({}, ("val/loss", "min")),
        ({"keep_best": None}, None),
        ({"keep_best": WORST}, WORST),
        ({"early_stopping": fg.EarlyStopping("loss", mode="max")}, ("loss", "max")),
        (
            {"keep_best": None, "early_stopping": fg.EarlyStopping("val/loss")},
            ("val/loss", "min"),
        ),
        (
            {"keep_best": WORST, "early_stopping": fg.EarlyStopping("val/loss")},
            WORST,
        ),
    ],
)
def test_keep_best_decides_before_early_stopping(options, by):
    best = quiet_fit(num_steps=10, **WATCHED_FIT, **options).history.best
    assert (best and best.by) == by


def test_restore_best_returns_the_best_state_and_keeps_the_last_checkpoint(tmp_path):
    options = {"keep_best": WORST, "restore_best": True, "num_steps": 10}
    result = saving_fit(tmp_path, **options)
    assert int(result.state.step) == result.history.best.step == 5
    assert_same_best_state(result)
    assert fg.checkpoint.latest_step(tmp_path) == 10
    again = saving_fit(tmp_path, **options)  # there is nothing left to do
    assert int(again.state.step) == 5
    assert_same_best_state(again)


def assert_same_best_state(result):
    assert leaf_bits(result.state) == leaf_bits(result.history.best.state)


def replace(step, state, values):
    """Replace the state after the evaluation that is the best, as a callback may."""
    if step == 5:
        halved = jax.tree.map(lambda x: x / 2, state.params)
        return state._replace(params=halved)
    return None


@pytest.mark.parametrize(
    "options",
    [
        {"keep_best": WORST},
        {"keep_best": WORST, "callbacks": [replace]},
        {"early_stopping": fg.EarlyStopping("val/loss", 9, "max")},
        {"early_stopping": fg.EarlyStopping("loss", 9, "max"), "keep_best": WORST},
    ],
    ids=["checkpoint", "replaced", "early stopping", "both"],
)
def test_a_resumed_run_ends_with_the_same_best(tmp_path, options):
    expected = saving_fit(tmp_path / "whole", **options).history.best
    assert expected.step == 5
    killed_fit(tmp_path / "killed", at=13, **options)
    resumed = saving_fit(tmp_path / "killed", **options)
    assert resumed.history.notes["resumed"] == [12]
    assert_same_best(resumed.history.best, expected)


@pytest.fixture
def copied(monkeypatch):
    """The steps whose states are copied to the host."""
    steps = []

    def recording(a):
        steps.extend([int(a.step)] if isinstance(a, TrainState) else [])
        return device_transfer.take(a)

    for module in (best_evaluation, checkpointing):
        monkeypatch.setattr(module, "take", recording)
    return steps


def test_a_best_evaluation_and_its_checkpoint_share_one_copy(tmp_path, copied):
    options = {"keep_best": ("val/loss", "min"), "eval_every": 4, "keep": 9}
    result = saving_fit(tmp_path, 10, **options)
    assert fg.checkpoint.steps(tmp_path) == [4, 8, 10]
    assert result.history.best.step == 8
    assert copied == [4, 8, 10]
    restored = fg.checkpoint.restore(tmp_path, first_state(), step=8)
    assert leaf_bits(restored) == leaf_bits(result.history.best.state)


def test_a_state_that_a_callback_replaced_is_copied_anew(tmp_path, copied):
    result = saving_fit(tmp_path, 5, keep_best=WORST, callbacks=[replace])
    assert copied == [4, 5, 5]
    restored = fg.checkpoint.restore(tmp_path, first_state())
    assert leaf_bits(restored) == leaf_bits(result.state)
    assert leaf_bits(restored) != leaf_bits(result.history.best.state)


def test_the_best_state_goes_into_checkpoints_from_the_host(tmp_path, monkeypatch):
    state = property(lambda self: pytest.fail("it went back to the device"))
    monkeypatch.setattr(best_evaluation.BestEvaluation, "state", state)
    stopping = fg.EarlyStopping("val/loss", 9, "max")  # not what checkpoints go by
    saving_fit(tmp_path, 8, early_stopping=stopping)
    saved = load(tmp_path / "00000008")
    assert [saved.leaves[f"{part}/step"].data for part in ("best", "state")] == [5, 8]


def test_a_lost_best_is_searched_anew_with_a_warning(tmp_path):
    # Only its being the best saves step 21, and the last checkpoint is another one.
    options = {"keep_best": WORST, "eval_every": 7}
    killed_fit(tmp_path, at=13, **options)
    shutil.rmtree(tmp_path / "00000007")
    with pytest.warns(UserWarning, match="of step 7, has no undamaged checkpoint"):
        resumed = saving_fit(tmp_path, 24, **options)
    assert resumed.history.best.step == 21  # of 14, 21 and 24, the largest loss
    again = saving_fit(tmp_path, 30, **options)  # warns of no further loss
    assert again.history.notes["resumed"] == [12, 24]
    assert_same_best(again.history.best, resumed.history.best)
    assert leaf_bits(again.history.best.state) == leaf_bits(
        quiet_fit(num_steps=21).state
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric_fn": None, "eval_data": None}, "need metric_fn and eval_data for re"),
        (
            {"keep_best": None},
            "restore_best=True, got keep_best=None",
        ),
        (
            {"metric_fn": lambda p, b: {"x": b["y"]}},
            "'val/x'.; give keep",
        ),
        ({"restore_best": 1}, "need restore_best=True or False, got 1"),
        ({"eval_first": "yes"}, "need eval_first=True or False, got 'yes'"),
    ],
)
def test_restoring_without_a_metric_to_watch_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        quiet_fit(num_steps=2, **WATCHED_FIT | {"restore_best": True} | options)


def test_restoring_without_an_evaluation_warns():
    options = WATCHED_FIT | {"callbacks": [lambda *_: STOP], "log_every": 1}
    with pytest.warns(UserWarning, match="no evaluation was made"):
        result = quiet_fit(num_steps=9, restore_best=True, **options)
    assert int(result.state.step) == 1


def test_the_first_state_is_evaluated_on_request(tmp_path):
    seen = []
    options = {"callbacks": [lambda step, _, values: seen.append((step, set(values)))]}
    options |= {"eval_first": True, "keep_best": WORST}
    result = saving_fit(tmp_path / "whole", **options)
    np.testing.assert_array_equal(result.history.steps("val/loss"), [0, 5, 10, 15, 20])
    first = fg.evaluate(metric_fn, first_state(), ARRAYS)["loss"]
    assert result.history["val/loss"][0] == result.history.best.metrics["val/loss"]
    assert result.history["val/loss"][0] == first
    assert seen[0] == (0, {"val/loss"})
    assert seen[1][0] == 3
    killed_fit(tmp_path / "killed", at=0, **options)
    resumed = saving_fit(tmp_path / "killed", **options)
    assert_same_best(resumed.history.best, result.history.best)
    np.testing.assert_array_equal(
        resumed.history["val/loss"], result.history["val/loss"]
    )


@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": fg.EarlyStopping("loss", patience=9)},
        {"keep_best": ("loss", "min")},
    ],
)
def test_the_first_evaluation_has_no_metric_of_a_step_to_watch(options, tmp_path):
    result = saving_fit(tmp_path, eval_first=True, **options)
    assert result.stopped == "completed"
    assert result.history.best.step > 0


@pytest.mark.parametrize("mesh", [None, fg.sharding.make_mesh(jax.devices()[:1])])
def test_a_history_with_a_best_evaluation_can_be_pickled(mesh):
    history = quiet_fit(num_steps=5, mesh=mesh, **WATCHED_FIT).history
    assert_same_best(pickle.loads(pickle.dumps(history)).best, history.best)
