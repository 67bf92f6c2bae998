"""fit on examples that stay on the host: the bits of a run on arrays in memory."""

import itertools
import threading
import warnings

import jax
import numpy as np
import pytest
from linear_regression import (
    ARRAYS,
    DATA,
    STEP,
    first_state,
    loss_fn,
    metric_fn,
    quiet_fit,
)
from resuming import WATCHED, assert_same_run, killed_fit, reached, saving_fit

import fngrad as fg
import fngrad.data as data

ON_HOST = jax.tree.map(np.asarray, ARRAYS)


def source(read=None, **options):
    read = ON_HOST if read is None else read
    return data.from_source(read, 20, 6, seed=1, **options)


def reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("fngrad-read")]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert not reading_threads()


@pytest.mark.parametrize("prefetch", [0, 4])
def test_a_run_ends_with_the_bits_of_one_on_arrays_in_memory(prefetch):
    result = quiet_fit(data=source(prefetch=prefetch), num_steps=20, **WATCHED)
    assert_same_run(result, quiet_fit(num_steps=20, **WATCHED))


def test_auto_takes_the_python_loop_and_epochs_count_steps():
    result = quiet_fit(data=source(), num_epochs=3, loop="auto")
    assert int(result.state.step) == DATA.steps(3)
    assert result.history.notes["reason"] == "batches come from the host"
    assert result.history.notes["seconds"]["data"] > 0


def test_a_killed_run_resumes_without_a_warning_and_with_the_same_bits(tmp_path):
    killed_fit(tmp_path, at=12, data=source())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = saving_fit(tmp_path, data=source(), resume="must")
    assert_same_run(resumed, quiet_fit(num_steps=20, **WATCHED))


def test_other_examples_refuse_to_resume(tmp_path):
    killed_fit(tmp_path, at=12, data=source())
    changed = {**ON_HOST, "x": ON_HOST["x"] + 1}
    with pytest.raises(ValueError, match="fingerprint"):
        saving_fit(tmp_path, data=source(changed))


def test_a_rollback_reads_the_batches_of_its_checkpoint_again(tmp_path):
    optimizer = fg.tunable(fg.sgd, learning_rate=40.0)
    step = fg.make_step(loss_fn, optimizer)
    state = fg.init_state(first_state().params, optimizer, 0)

    def rolled_back(folder, data):
        return fg.fit(
            step,
            state,
            data,
            num_steps=120,
            checkpoint_dir=tmp_path / folder,
            save_every=10,
            keep_best=None,
            on_nonfinite="rollback",
            rollback_factor=0.25,
            loop="python",
            progress=False,
        )

    result = rolled_back("source", source())
    assert result.history.notes["rollbacks"]
    assert_same_run(result, rolled_back("dataset", DATA))


def test_a_callback_may_move_the_run_to_a_later_step():
    def run(data):
        def callback(step, state, values):
            return state._replace(step=state.step + 3) if step == 10 else None

        return quiet_fit(data=data, num_steps=20, log_every=5, callbacks=[callback])

    assert_same_run(run(source()), run(DATA))


class FailingRead:
    """Reads until it has read a number of batches."""

    def __init__(self, good):
        self.good = good

    def __call__(self, indices):
        self.good -= 1
        if self.good < 0:
            raise OSError("the disk is gone")
        return jax.tree.map(lambda x: x[indices], ON_HOST)


def test_an_error_of_the_reader_keeps_the_state_and_names_the_batch():
    # One batch is read for its shapes.
    failing = source(FailingRead(1 + 7), prefetch=2, threads=1)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        quiet_fit(data=failing, num_steps=20)
    assert int(reached(caught).state.step) == 7
    assert any("reading batch 7 of" in note for note in caught.value.__notes__)


def test_a_step_that_goes_bad_is_examined():
    poisoned = {**ON_HOST, "y": ON_HOST["y"].copy()}
    poisoned["y"][13] = np.nan
    with pytest.raises(fg.NonFiniteError) as caught:
        quiet_fit(data=source(poisoned), num_steps=20)
    batches = (source().indices(step) for step in itertools.count())
    first_bad = next(i for i, indices in enumerate(batches, 1) if 13 in indices)
    assert caught.value.autopsy is not None
    assert caught.value.autopsy.step == first_bad


def test_an_evaluation_reads_a_source_in_parts():
    reads = []

    def read(indices):
        reads.append(len(indices))
        return jax.tree.map(lambda x: x[indices], ON_HOST)

    def scaled(batch):
        return {**batch, "y": 2 * batch["y"]}

    state = first_state()
    expected = fg.evaluate(metric_fn, state, DATA.map(scaled))
    found = fg.evaluate(metric_fn, state, source(read).map(scaled), batch_size=8)
    assert reads == [8, 8, 4]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert type(found["loss"]) is float


def test_a_run_evaluates_on_a_source():
    watched = {**WATCHED, "eval_data": source()}
    result = quiet_fit(num_steps=10, **watched)
    expected = quiet_fit(num_steps=10, **WATCHED).history["val/loss"]
    np.testing.assert_allclose(result.history["val/loss"], expected, rtol=1e-6)


def test_an_evaluation_refuses_maps_that_take_a_key():
    noisy = source().map(lambda batch, key: batch)
    with pytest.raises(ValueError, match="without random maps"):
        fg.evaluate(metric_fn, first_state(), noisy)


def test_a_loop_inside_the_program_cannot_read_from_the_host():
    with pytest.raises(ValueError, match="got batches that come from the host"):
        quiet_fit(data=source(), num_steps=5, loop="scan")
    with pytest.raises(TypeError, match=r"fngrad\.fit takes them"):
        fg.run(STEP, first_state(), source(), 5)
