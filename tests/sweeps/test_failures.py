"""A combination of static values that raises is recorded beside the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sweep_problems import assert_same_bits, light
from sweep_problems import quiet_sweep as any_sweep

import fngrad.sweeps as sweeps
import fngrad.sweeps.running.lane_training as lane_training

POINTS = {"learning_rate": np.array([0.1, 0.3])}


def choosing(point, key, size):
    """Train; one size does not fit, which tracing tells."""
    state, history = light(point, key)
    jnp.add(jnp.ones(3), jnp.ones(size))
    return state, history


def quiet_sweep(fn=choosing, **options):
    return any_sweep(POINTS, fn=fn, mode=2, **options)


def failing_sweep(**options):
    with pytest.warns(
        UserWarning, match=r"train_fn failed with size=2: TypeError: add"
    ):
        return quiet_sweep(static={"size": [3, 2, 1]}, **options)


def test_the_others_are_trained_and_the_failure_is_in_the_result():
    result = failing_sweep()
    (failure,) = result.notes["failures"]
    assert (failure.static, failure.points) == ({"size": 2}, [2, 3])
    assert failure.error.startswith("TypeError: add got incompatible shapes")
    assert "jnp.add(jnp.ones(3), jnp.ones(size))" in failure.traceback
    assert result.points["size"].tolist() == [3, 3, 2, 2, 1, 1]
    assert result.state[1] is None
    assert result.notes["modes"][1] is None
    for values in (*result.history.values(), result.notes["values"]):
        assert np.isnan(values[2:4]).all()
        assert np.isfinite(values[[0, 1, 4, 5]]).all()
    assert result.diverged_at.tolist() == [[-1] * 3] * 6
    assert "0 of 18 lanes diverged, 1 of 3 combinations failed" in repr(result)
    alone = quiet_sweep(static={"size": [3, 1]})
    for one, other in ((0, 0), (2, 1)):
        np.testing.assert_array_equal(result.state[one]["w"], alone.state[other]["w"])


def test_a_table_ranks_failures_last_and_names_them():
    result = failing_sweep()
    found = sweeps.table(result, also=["loss"])
    assert [row["size"] for row in found.rows[-2:]] == [2, 2]
    assert [row["failed"][:10] for row in found.rows] == [""] * 4 + ["TypeError:"] * 2
    assert [row["diverged"] for row in found.rows] == [0] * 6
    lines = str(found).splitlines()
    assert lines[1].split()[-1] == "failed"
    assert any(line.startswith("! size 2 failed: TypeError: add") for line in lines)
    assert "failed" not in str(sweeps.table(quiet_sweep(static={"size": [3]})))


def test_if_all_fail_the_first_exception_is_raised():
    with pytest.raises(TypeError, match="add got incompatible shapes") as error:
        quiet_sweep(static={"size": [4, 2]})
    note = "with size=4; all 2 combinations of static values failed"
    assert error.value.__notes__[-1] == note
    with pytest.raises(TypeError, match="add got incompatible shapes") as error:
        quiet_sweep(static={"size": [2]})
    assert "combinations" not in "".join(getattr(error.value, "__notes__", []))


def broken_once(monkeypatch, *errors):
    """Let the first blocks raise."""
    to_host, left = lane_training.to_host, list(errors)

    def broken(outputs):
        if left:
            raise left.pop(0)
        return to_host(outputs)

    monkeypatch.setattr(lane_training, "to_host", broken)
    monkeypatch.setattr(lane_training, "blocks_at_once", lambda devices: 1)


def test_an_error_at_run_time_is_recorded_and_the_folder_tries_again(
    tmp_path, monkeypatch
):
    def run():
        return quiet_sweep(static={"size": [3, 1]}, folder=tmp_path)

    with monkeypatch.context() as patched:
        broken_once(patched, jax.errors.JaxRuntimeError("INTERNAL: broken"))
        with pytest.warns(UserWarning, match="failed with size=3: .*RuntimeError: INT"):
            result = run()
    assert result.notes["failures"][0].error.endswith("RuntimeError: INTERNAL: broken")
    loaded = sweeps.load(tmp_path)
    assert loaded.notes["failures"][0].static == {"size": "3"}
    assert loaded.notes["failures"][0].points == [0, 1]
    again = run()
    assert again.notes["failures"] == []
    assert again.notes["restored"] == 6
    assert_same_bits(again, quiet_sweep(static={"size": [3, 1]}))


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError("full"), FloatingPointError("a NaN")]
)
def test_what_is_no_fault_of_the_combination_ends_the_sweep(monkeypatch, error):
    broken_once(monkeypatch, error)
    with pytest.raises(type(error)):
        quiet_sweep(static={"size": [3, 1]})


def test_an_interrupt_while_tracing_ends_the_sweep():
    def interrupted(point, key, size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet_sweep(interrupted, static={"size": [3, 1]})


def test_a_combination_that_is_mended_continues_in_the_folder(tmp_path):
    failing_sweep(folder=tmp_path)

    def mended(point, key, size):
        state, history = light(point, key)
        jnp.add(jnp.ones(3), jnp.ones(size if size != 2 else 1))
        return state, history

    result = quiet_sweep(mended, static={"size": [3, 2, 1]}, folder=tmp_path)
    assert result.notes["restored"] == 12
    assert result.notes["failures"] == []
    again = quiet_sweep(mended, static={"size": [3, 2, 1]}, folder=tmp_path)
    assert again.notes["restored"] == 18
    with (
        pytest.raises(ValueError, match=r"need the sweep .*train_fn: .* became .*None"),
        pytest.warns(UserWarning, match="failed with size=2"),
    ):
        quiet_sweep(static={"size": [3, 2, 1]}, folder=tmp_path)


def searched(study, sizes):
    """Search with one trial of each size, in batches of two."""
    for size in sizes:
        study.enqueue_trial({"learning_rate": 0.1, "size": size})
    return sweeps.search(
        choosing,
        {"learning_rate": sweeps.uniform(0.0, 0.3)},
        len(sizes),
        2,
        trials_per_batch=2,
        study=study,
        static={"size": [2, 1]},
        metric=("loss", "min"),
        progress=False,
    )


def test_a_search_whose_first_batch_fails_goes_on_and_one_without_a_value_raises():
    study = optuna.create_study()
    with pytest.warns(UserWarning, match="failed with size=2"):
        result = searched(study, [2, 2, 1, 1])
    is_told = [trial.state == TrialState.COMPLETE for trial in study.trials]
    assert is_told == [False, False, True, True]
    assert np.isfinite(result.notes["values"]).all(1).tolist() == is_told
    with (
        pytest.warns(UserWarning, match="failed with size=2"),
        pytest.raises(TypeError, match="add got incompatible shapes"),
    ):
        searched(study, [2])
    assert study.trials[-1].state == TrialState.FAIL
