"""Steps that are not finite: raising, skipping, rolling back, the autopsy."""

import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import DATA, PARAMS, STEP, X, Y, first_state, loss_fn, quiet_fit

import fngrad.checkpoint as checkpoint
import fngrad.data.dataset as dataset
import fngrad.fitting.nonfinite as nonfinite
import fngrad.postmortem as postmortem
from fngrad.fitting.checkpointing import Saver
from fngrad.fitting.nonfinite import MAX_ROLLBACKS, MAX_SKIPS, NonFiniteError
from fngrad.fitting.training_loop import fit
from fngrad.logging import csv, read_jsonl
from fngrad.optimizers import adam, sgd
from fngrad.steps import skip_bad_steps
from fngrad.training import init_state, make_step, run, snapshot
from fngrad.transforms.core import named
from fngrad.transforms.masking import freeze, partition
from fngrad.transforms.tunable_hyperparameters import tunable

pytestmark = pytest.mark.usefixtures("usual_signals")

BAD_ARRAYS = {"x": X, "y": Y.at[7].set(jnp.nan)}
BAD = dataset.from_arrays(BAD_ARRAYS, batch_size=6, seed=1)
BATCH = DATA.batch(0)
HIT = [t for t in range(12) if 7 in BAD.indices(t)]  # steps with that example


def test_skipping_keeps_all_but_the_step_counter():
    skipping = jax.jit(skip_bad_steps(STEP), donate_argnums=0)
    kept, state = first_state(), snapshot(first_state())
    for t in range(8):
        state, metrics = skipping(state, BAD.batch(t))
        assert metrics["skipped"] == (t in HIT)
        assert metrics["is_finite"] == (t not in HIT)
        if t not in HIT:
            kept, _ = jax.jit(STEP)(kept._replace(step=jnp.int32(t)), BAD.batch(t))
    chex.assert_trees_all_equal(state.params, kept.params)
    chex.assert_trees_all_equal(state.opt_state, kept.opt_state)
    assert state.step == 8


def test_skipping_changes_no_bit_of_a_run_that_stays_finite():
    step = make_step(loss_fn, adam(0.1))
    state = init_state(PARAMS, adam(0.1), 0)
    for loop in ("python", "scan"):
        options = {"num_steps": 20, "progress": False, "loop": loop}
        plain = fit(step, state, DATA, **options)
        guarded = fit(step, state, DATA, on_nonfinite="skip", **options)
        chex.assert_trees_all_equal(plain.state.params, guarded.state.params)
        chex.assert_trees_all_equal(plain.state.opt_state, guarded.state.opt_state)
        np.testing.assert_array_equal(plain.history["loss"], guarded.history["loss"])


def test_skipping_works_for_steps_that_return_only_a_loss():
    def step(state, batch):
        return STEP(state, batch)[0], {"loss": jnp.where(state.step == 1, jnp.nan, 1.0)}

    _, history = run(skip_bad_steps(step), first_state(), DATA, 3)
    np.testing.assert_array_equal(history["skipped"], [False, True, False])


def test_skipping_without_norms_keeps_parameters_finite():
    def explosive(params, batch):
        return jnp.sum(jnp.sqrt(params["w"]))

    step = make_step(explosive, sgd(0.1), metrics="loss")
    state = init_state({"w": jnp.array([1.0, 0.0])}, sgd(0.1), 0)
    state, metrics = skip_bad_steps(step)(state, None)
    assert metrics["skipped"]
    assert not metrics["is_finite"]
    np.testing.assert_array_equal(state.params["w"], [1.0, 0.0])


def test_a_metric_called_skipped_is_refused():
    twice = skip_bad_steps(skip_bad_steps(STEP))
    with pytest.raises(ValueError, match="not taken, got a second 'skipped'"):
        jax.eval_shape(twice, first_state(), DATA.batch(0))


def test_fit_skips_bad_steps_and_records_them():
    result = quiet_fit(data=BAD, num_steps=12, on_nonfinite="skip")
    np.testing.assert_array_equal(np.flatnonzero(result.history["skipped"]), HIT)
    assert np.isfinite(result.state.params["w"]).all()
    again = quiet_fit(data=BAD, num_steps=12, on_nonfinite="skip", loop="scan")
    # Inside a loop the newest XLA rounds the input of a branch differently, by one
    # unit in the last place.
    chex.assert_trees_all_close(result.state.params, again.state.params, rtol=1e-4)


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_a_run_that_skips_resumes_with_the_same_bits(loop, tmp_path):
    options = {"data": BAD, "on_nonfinite": "skip", "loop": loop}
    whole = quiet_fit(num_steps=12, **options)
    assert HIT[0] < 5 < HIT[-1]
    for last in (5, 12):
        resumed = quiet_fit(num_steps=last, checkpoint_dir=tmp_path, **options)
    chex.assert_trees_all_equal(whole.state.params, resumed.state.params)
    chex.assert_trees_all_equal(whole.state.opt_state, resumed.state.opt_state)
    for name in whole.history:
        np.testing.assert_array_equal(whole.history[name], resumed.history[name])


def test_the_autopsy_examines_the_last_skipped_steps():
    def silent(params, batch):  # its gradient is bad, its loss is not
        return loss_fn(params, batch) + jnp.sum(jnp.sqrt(batch["t"] * params["w"] ** 2))

    def data(t):
        bad = jnp.where(t == 1, jnp.nan, 0.0)
        late = jnp.where(t < 12, 1.0, 0.0)
        return {**BATCH, "t": late + bad}

    step = make_step(silent, sgd(0.1), metrics="loss")
    state = init_state({**PARAMS, "w": jnp.ones(2)}, sgd(0.1), 0)
    with pytest.raises(NonFiniteError, match="10 steps in a row") as error:
        fit(step, state, data, num_steps=40, on_nonfinite="skip", progress=False)
    found = error.value.autopsy
    assert (error.value.step, found.step) == (23, 13)
    assert (found.phase, found.operation) == ("backward", "div")


def test_a_step_that_cannot_be_hashed_is_refused():
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, state, batch):
            return STEP(state, batch)

    with pytest.raises(TypeError, match="can be hashed, got Unhashable"):
        fit(Unhashable(), first_state(), DATA, num_steps=2, on_nonfinite="skip")


@pytest.mark.parametrize("count", [MAX_SKIPS, MAX_SKIPS + 1])
def test_too_many_skips_in_a_row_raise(count):
    def step(state, batch):
        is_bad = (state.step >= 5) & (state.step < 5 + count)
        return STEP(state, batch)[0], {"loss": jnp.where(is_bad, jnp.inf, 1.0)}

    def train():
        return fit(
            step, first_state(), DATA, num_steps=40, progress=False, on_nonfinite="skip"
        )

    if count == MAX_SKIPS:
        assert train().history["skipped"].sum() == count
        return
    with pytest.raises(NonFiniteError, match="10 steps in a row were skipped") as error:
        train()
    assert error.value.step == 5 + count


def test_the_error_carries_the_autopsy():
    with pytest.raises(NonFiniteError, match="went bad with its batch") as error:
        quiet_fit(data=BAD, num_steps=12)
    found = error.value.autopsy
    assert error.value.step == found.step == HIT[0] + 1
    np.testing.assert_array_equal(found.indices, [7])
    assert str(found) in str(error.value)


def test_the_autopsy_begins_at_the_newest_checkpoint(tmp_path):
    data = dataset.from_arrays(BAD_ARRAYS, batch_size=1, shuffle=False)
    with pytest.raises(NonFiniteError) as error:
        quiet_fit(data=data, num_steps=20, checkpoint_dir=tmp_path, save_every=3)
    assert checkpoint.latest_step(tmp_path) == 6
    assert error.value.autopsy.step == 8
    assert len(error.value.autopsy.metrics["loss"]) == 2  # steps 7 and 8


def failing(step, state, data, at, check):
    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")


def interrupted(step, state, data, at, check):
    signal.raise_signal(signal.SIGINT)
    check()


def unprintable(step, state, data, at, check):
    class Unprintable:
        def __str__(self):
            raise TypeError("no words")

    return Unprintable()


@pytest.mark.parametrize(
    ("autopsy", "words"),
    [
        (failing, "the search ended without one: RESOURCE_EXHAUSTED"),
        (interrupted, "the search ended without one: interrupted"),
        (unprintable, "the search ended without one: no words"),
    ],
)
def test_a_failing_autopsy_does_not_hide_the_error(autopsy, words, monkeypatch, capsys):
    monkeypatch.setattr(postmortem, "autopsy", autopsy)
    with pytest.raises(NonFiniteError, match=words) as error:
        quiet_fit(data=BAD, num_steps=12)
    assert error.value.step == HIT[0] + 1
    assert error.value.autopsy is None
    assert "not finite at step" in capsys.readouterr().err


def test_an_autopsy_has_a_time_limit(monkeypatch):
    monkeypatch.setattr(nonfinite, "MAX_SECONDS", -1)
    with pytest.raises(NonFiniteError, match="it took more than -1 s"):
        quiet_fit(data=BAD, num_steps=12)


def test_with_an_iterable_the_error_says_how_to_make_an_autopsy():
    batches = [jax.tree.map(np.asarray, BAD.batch(t)) for t in range(12)]
    with (
        pytest.warns(UserWarning, match="cannot be resumed"),
        pytest.raises(NonFiniteError, match=r"fngrad\.autopsy\(step, state") as error,
    ):
        quiet_fit(data=batches, num_steps=None)
    assert error.value.autopsy is None


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    def breaking(step, state, values):
        if step == 4:
            params = {**state.params, "b": jnp.float32(jnp.nan) * state.params["b"]}
            return state._replace(params=params)
        return None

    with (
        pytest.warns(UserWarning, match="the state of step 4 is not saved: 'params/b'"),
        pytest.raises(NonFiniteError, match=r"went bad|ended without one"),
    ):
        quiet_fit(
            num_steps=10,
            log_every=2,
            callbacks=[breaking],
            checkpoint_dir=tmp_path,
            save_every=2,
        )
    assert checkpoint.latest_step(tmp_path) == 2


def test_a_mask_of_infinities_among_the_parameters_is_saved(tmp_path):
    optimizer = partition([("mask", freeze()), ("**", sgd(0.1))])
    params = {**PARAMS, "mask": jnp.array([0.0, -jnp.inf])}
    state = init_state(params, optimizer, 0)
    options = {"num_steps": 4, "save_every": 2, "checkpoint_dir": tmp_path}
    fit(make_step(loss_fn, optimizer), state, DATA, progress=False, **options)
    assert checkpoint.latest_step(tmp_path) == 4


def test_parameters_that_go_bad_while_metrics_stay_finite_are_found_before_saving(
    tmp_path,
):
    def silent(state, batch):
        scale = jnp.where(state.step == 4, jnp.inf, 1.0)
        params = jax.tree.map(lambda x: x * scale, STEP(state, batch)[0].params)
        return state._replace(step=state.step + 1, params=params), {"size": scale * 0}

    with pytest.raises(NonFiniteError, match="got step 6") as error:
        fit(
            silent,
            first_state(),
            DATA,
            num_steps=9,
            checkpoint_dir=tmp_path,
            save_every=3,
            progress=False,
        )
    assert error.value.autopsy.step == 5
    assert checkpoint.latest_step(tmp_path) == 3


STEEP = tunable(sgd, learning_rate=40.0)  # stable below 2 / curvature


def quartic(params, batch):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 4)


STEEP_STEP = make_step(quartic, STEEP)


def steep_fit(folder, step=STEEP_STEP, **options):
    state = init_state({"w": jnp.zeros(2)}, STEEP, 0)
    options = {
        "num_steps": 40,
        "checkpoint_dir": folder / "checkpoints",
        "run_dir": folder / "run",
        "save_every": 7,
        "log_every": 1,
        "loop": "python",
        "progress": False,
        "on_nonfinite": "rollback",
        "rollback_factor": 0.25,
    } | options
    return fit(step, state, DATA, **options)


def test_a_rollback_lowers_the_learning_rate_and_goes_on(tmp_path, capsys):
    result = steep_fit(tmp_path)
    rollbacks = result.history.notes["rollbacks"]
    assert result.state.step == 40
    assert len(rollbacks) >= 2
    assert rollbacks[0]["restored"] == 0
    assert rollbacks[0]["learning_rate"] == [40.0]
    assert rollbacks[0]["lowered_to"] == [10.0]
    assert rollbacks[1]["learning_rate"] == [10.0]
    rate = 40.0 * 0.25 ** len(rollbacks)
    assert result.history["learning_rate"][-1] == np.float32(rate)
    np.testing.assert_array_equal(result.history.steps("loss"), np.arange(1, 41))
    assert np.isfinite(result.history["loss"]).all()
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 41))
    np.testing.assert_allclose(
        [record["loss"] for record in records], result.history["loss"]
    )
    assert (
        "rolling back to step 0 and lowering the learning rate from 40 to 10"
        in capsys.readouterr().err
    )


def test_after_a_rollback_a_csv_file_has_each_step_once(tmp_path):
    steep_fit(tmp_path, loggers=[csv(tmp_path / "m.csv"), lambda step, values: None])
    _, *rows = (tmp_path / "m.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in rows] == list(range(1, 41))


def test_a_rollback_survives_being_killed(tmp_path):
    class KilledError(KeyboardInterrupt):  # which saves nothing
        pass

    def kill(step, state, values):
        if step == 10:
            raise KilledError

    whole = steep_fit(tmp_path / "whole")
    with pytest.raises(KilledError):
        steep_fit(tmp_path / "cut", callbacks=[kill])
    resumed = steep_fit(tmp_path / "cut")
    chex.assert_trees_all_equal(whole.state.params, resumed.state.params)
    chex.assert_trees_all_equal(whole.state.opt_state, resumed.state.opt_state)
    np.testing.assert_array_equal(whole.history["loss"], resumed.history["loss"])
    assert whole.history.notes["rollbacks"] == resumed.history.notes["rollbacks"]
    assert resumed.history.notes["resumed"] == [7]


def test_a_learning_rate_in_a_named_part_is_lowered(tmp_path):
    optimizer = named("fast", STEEP)
    state = init_state({"w": jnp.zeros(2)}, optimizer, 0)
    lowered = nonfinite.lower_learning_rates(state, 0.25)
    assert list(nonfinite.learning_rates(lowered).values()) == [10.0]


def test_rollbacks_without_progress_end_the_run(tmp_path):
    step = make_step(lambda params, batch: quartic(params, batch) * jnp.nan, STEEP)
    with pytest.raises(
        NonFiniteError, match="10 rollbacks in a row made no progress"
    ) as error:
        steep_fit(tmp_path, step=step)
    assert len(error.value.history.notes["rollbacks"]) == MAX_ROLLBACKS


def test_a_rollback_without_a_checkpoint_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Saver, "newest", lambda self: None)  # as if all were damaged
    with pytest.raises(NonFiniteError, match="There is no checkpoint to roll back to"):
        steep_fit(tmp_path)


def test_a_state_that_cannot_be_saved_is_not_reported_as_skipped_steps(tmp_path):
    def poison(step, state, values):
        return state._replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))

    options = {"checkpoint_dir": tmp_path, "save_every": 6, "log_every": 4}
    with pytest.raises(NonFiniteError, match="got step 6") as error:
        quiet_fit(num_steps=9, on_nonfinite="skip", callbacks=[poison], **options)
    assert "in a row" not in str(error.value)


def test_a_rollback_without_what_it_needs_is_refused(tmp_path):
    options = {"num_steps": 4, "on_nonfinite": "rollback"}
    with pytest.raises(ValueError, match="need checkpoint_dir, or run_dir"):
        quiet_fit(**options)
    with pytest.raises(ValueError, match=r"need a learning rate in the state .* with"):
        quiet_fit(checkpoint_dir=tmp_path, **options)
    with pytest.raises(ValueError, match="need 0 < rollback_factor < 1, got 1"):
        steep_fit(tmp_path, rollback_factor=1)
    batches = [jax.tree.map(np.asarray, DATA.batch(0))]
    with (
        pytest.warns(UserWarning, match="cannot be resumed"),
        pytest.raises(ValueError, match="got an iterable"),
    ):
        quiet_fit(data=batches, checkpoint_dir=tmp_path, **options)
    with pytest.raises(ValueError, match="need on_nonfinite to be one of"):
        quiet_fit(num_steps=2, on_nonfinite="stop")
