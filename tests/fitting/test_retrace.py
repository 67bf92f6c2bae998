"""Compilations are counted, and a second one of the same step gives a warning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import DATA, OPTIMIZER, STEP, first_state, loss_fn, quiet_fit

import fngrad.data.dataset as dataset
import fngrad.fitting.loops as loops
from fngrad.fitting.hooks import STOP
from fngrad.fitting.training_loop import fit
from fngrad.logging.compilations import Compilations
from fngrad.logging.run_folder import read_manifest
from fngrad.training import make_step


def fresh_step():
    return make_step(lambda params, batch: loss_fn(params, batch), OPTIMIZER)


def test_compilations_are_counted_once_per_step():
    step = fresh_step()
    first = fit(step, first_state(), DATA, num_steps=4, progress=False, loop="python")
    assert first.history.notes["compile_count"] == 1
    assert first.history.notes["compile_seconds"] > 0.0
    again = fit(step, first_state(), DATA, num_steps=4, progress=False, loop="python")
    assert again.history.notes["compile_count"] == 0
    assert again.history.notes["compile_seconds"] == 0.0


def test_the_compilations_of_choosing_a_loop_are_counted_and_recorded(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(loops, "SLOW_STEP", np.inf)  # on a busy machine, too
    result = fit(
        fresh_step(),
        first_state(),
        DATA,
        num_steps=10**7,
        log_every=50,
        callbacks=[lambda step, state, values: STOP],
        progress=False,
        run_dir=tmp_path,
    )
    notes = result.history.notes
    assert notes["compile_count"] == 2  # the Python loop's program and the scan's
    manifest = read_manifest(tmp_path)
    assert manifest["compile_count"] == 2
    assert manifest["compile_seconds"] == notes["compile_seconds"]


def test_data_of_another_shape_in_another_run_is_not_a_retrace():
    step = fresh_step()
    for size in (4, 5):
        data = dataset.from_arrays(DATA.arrays, batch_size=size)
        result = fit(step, first_state(), data, num_steps=2, progress=False)
        assert result.history.notes["compile_count"] == 1


def test_a_second_trace_in_a_run_gives_a_warning():
    name = "jax_default_matmul_precision"
    before = getattr(jax.config, name)

    def change(step, state, values):
        jax.config.update(name, "float32")

    try:
        with pytest.warns(UserWarning, match="arguments are unchanged"):
            result = fit(
                fresh_step(),
                first_state(),
                DATA,
                num_steps=4,
                log_every=2,
                callbacks=[change],
                progress=False,
                loop="python",
            )
    finally:
        jax.config.update(name, before)
    assert result.history.notes["compile_count"] == 2


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (np.zeros(3, np.float32), r"'x/w' was float32\[2\] and is float32\[3\]"),
        (np.zeros(2, np.int32), r"'x/w' was float32\[2\] and is int32\[2\]"),
        (0.5, r"'x/w' was float32\[2\] and is weak float32\[\]"),
    ],
)
def test_the_warning_names_the_leaf(second, words):
    compilations = Compilations()
    double = compilations.program(lambda x, y: (x, y), "x", "y", donates="y")
    double({"w": np.zeros(2, np.float32)}, jnp.ones(()))
    with pytest.warns(UserWarning, match=words):
        double({"w": second}, jnp.ones(()))
    assert compilations.count == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b.astype(jnp.bfloat16), "'params/b' needs dtype float32"),
        (lambda b: jnp.asarray(0.5), "a weak float32 at 'params/b'"),
        (lambda b: b[None], r"'params/b' needs shape \(\)"),
    ],
)
def test_a_state_of_another_type_from_a_callback_is_refused(change, words):
    def callback(step, state, values):
        return state._replace(params={**state.params, "b": change(state.params["b"])})

    with pytest.raises(ValueError, match=words):
        quiet_fit(num_steps=4, log_every=2, callbacks=[callback])


def test_a_users_error_about_deletion_is_not_rewritten():
    def refuse(x):
        raise ValueError("need rows, got none: all were deleted")

    program = Compilations().program(refuse, "x", donates="x")
    with pytest.raises(ValueError, match="all were deleted"):
        program(jnp.ones(2))


def test_a_deleted_array_that_a_step_closes_over_is_explained():
    scale = jnp.ones(2)
    step = make_step(lambda p, b: loss_fn(p, b) * scale.sum(), OPTIMIZER)
    scale.delete()
    with pytest.raises(RuntimeError, match="the step or its data close over"):
        fit(step, first_state(), DATA, num_steps=4, progress=False)


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_data_and_states_deleted_during_a_run_are_named(loop):
    arrays = jax.tree.map(lambda x: x + 0.0, DATA.arrays)
    data = dataset.from_arrays(arrays, batch_size=6)

    def lose_data(step, state, values):
        data.arrays["x"].delete()

    def lose_state(step, state, values):
        state.params["w"].delete()

    for callback, words in (
        (lose_data, "a deleted one: 'data/arrays/x'"),
        (lose_state, "a deleted one: 'carry/state/params/w'"),
    ):
        with pytest.raises(RuntimeError, match=words):
            fit(
                STEP,
                first_state(),
                data if callback is lose_data else DATA,
                num_steps=9,
                log_every=3,
                callbacks=[callback],
                progress=False,
                loop=loop,
            )
