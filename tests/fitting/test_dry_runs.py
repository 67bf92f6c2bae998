"""A dry run accepts what fit accepts, measures what it takes, and writes nothing."""

import inspect
import pathlib
import threading
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import (
    ARRAYS,
    DATA,
    OPTIMIZER,
    STEP,
    first_state,
    loss_fn,
    metric_fn,
    quiet_fit,
)

import fngrad as fg
from fngrad.files.locks import Lock
from fngrad.fitting.arguments import Arguments
from fngrad.fitting.dry_runs import dry_run
from fngrad.fitting.iterables import Batches
from fngrad.fitting.validation import Evaluation
from fngrad.logging import RunFolder

HOST = jax.tree.map(np.asarray, ARRAYS)
EVALUATED = {"metric_fn": metric_fn, "eval_data": ARRAYS, "eval_every": 5}


def dry(data=DATA, step=STEP, state=None, **options):
    options = {"num_steps": 3, "progress": False} | options
    return dry_run(step, first_state() if state is None else state, data, **options)


def files_below(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    """Return the time of change and the content of every file and folder."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def fail(*arguments):
    raise AssertionError("called in a dry run")


def test_it_has_the_arguments_of_fit():
    functions = fg.dry_run, fg.fit
    own, fits = (inspect.signature(f, eval_str=True).parameters for f in functions)
    assert own == fits
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_step'"):
        dry_run(STEP, first_state(), DATA, num_step=3)  # pyright: ignore
    with pytest.raises(TypeError, match="missing a required argument: 'data'"):
        dry_run(STEP, first_state())  # pyright: ignore


def test_nothing_is_written_called_donated_or_left_running(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state, threads = first_state(), set(threading.enumerate())
    before = jax.tree.map(np.array, state._replace(key=jax.random.key_data(state.key)))
    found = dry(
        fg.data.from_source(HOST, 20, 6, seed=1),
        state=state,
        run_dir="runs/new",
        checkpoint_dir=tmp_path / "checkpoints",
        save_every=1,
        log_every=1,
        loggers=[fail],
        callbacks=[fail],
        config={"rate": 0.05},
        progress=True,
        **EVALUATED,
    )
    assert not list(tmp_path.iterdir())
    assert set(threading.enumerate()) == threads
    after = state._replace(key=jax.random.key_data(state.key))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert found.steps == 3


@pytest.mark.parametrize("loop", ["auto", "scan"])
def test_it_makes_the_first_step_and_compiles_for_fit(loop):
    step = fg.make_step(loss_fn, OPTIMIZER)  # of which no program is known
    found = dry(step=step, loop=loop, num_steps=4, **EVALUATED)
    result = fg.fit(
        step,
        first_state(),
        DATA,
        num_steps=1,
        loop="python" if loop == "auto" else loop,
        progress=False,
        **EVALUATED,
    )
    assert found.metrics == {n: result.history.last(n) for n in result.history}
    assert result.history.notes["compile_count"] == 0
    assert found.compile_seconds > 0
    assert found.step_seconds > 0
    assert found.evaluation_seconds > 0


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 12, **EVALUATED},
        {"num_steps": 0, **EVALUATED},
        {"num_epochs": 2, **EVALUATED, "eval_every": "epoch", "eval_first": True},
        {"num_steps": 5},
    ],
)
def test_it_counts_what_fit_makes(options):
    found = dry(**options | {"num_steps": options.get("num_steps")})
    history = quiet_fit(**options).history
    assert found.steps == len(history.get("loss", ()))
    assert found.evaluations == len(history.get("val/loss", ()))
    assert found.examples == 6
    seconds = {"compile_seconds": 1.5, "step_seconds": 0.25, "evaluation_seconds": 2}
    assert found._replace(steps=8, evaluations=3, **seconds).seconds == 9.5


def test_costs_and_memory_are_those_of_the_step_with_its_data():
    found = dry()
    batch = jax.eval_shape(lambda: DATA.batch(0))
    assert found.costs == fg.costs(STEP, first_state(), batch)
    state = sum(x.nbytes for x in jax.tree.leaves(first_state()))
    data = sum(x.nbytes for x in jax.tree.leaves(ARRAYS))
    assert found.memory.arguments >= state + data
    assert state <= found.memory.aliased < found.memory.arguments - data


def test_data_that_end_have_no_estimate_and_stay_whole():
    batches = [DATA.batch(i) for i in range(3)]
    with pytest.warns(UserWarning, match="cannot be asked for again"):
        found = dry(batches, num_steps=None, **EVALUATED)
    assert (found.steps, found.evaluations, found.seconds) == (None, None, None)
    assert repr(found).startswith("DryRun: unknown steps of 6 examples\ncompiling ")
    with pytest.warns(UserWarning, match="cannot be asked for again"):
        assert len(quiet_fit(data=batches).history["loss"]) == 3


def test_an_iterator_that_gives_each_batch_once_is_refused_and_not_read():
    given = []
    batches = (given.append(i) or DATA.batch(i) for i in range(3))
    with pytest.raises(
        TypeError, match="read again, got the iterator generator, whose"
    ):
        dry(batches)
    assert not given

    class Shared:
        def __iter__(self):
            return batches

    with pytest.raises(TypeError, match="got the iterator generator"):
        dry(Shared())
    assert not given


class Counting:
    """An iterator whose state is the dict that it goes on to change."""

    def __init__(self):
        self.state = {"step": 0}

    def __iter__(self):
        return self

    def __next__(self):
        self.state["step"] += 1
        return jax.tree.map(np.asarray, DATA.batch(self.state["step"]))

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_an_iterator_with_a_state_is_set_back():
    batches, shared = Counting(), Counting()
    next(batches)
    dry(batches)
    assert batches.state == {"step": 1}

    class Shared:
        def __iter__(self):
            return shared

    dry(Shared())
    assert shared.state == {"step": 0}


def test_checkpoints_hold_the_state_before_the_batch_not_the_one_after():
    batches = Batches(Counting(), lambda batch: batch)
    assert batches.notes() == {"json": {"step": 0}}
    next(iter(batches))
    saved = batches.notes()
    assert saved == {"json": {"step": 1}}
    for _ in range(2):  # as often as a run rolls back to one checkpoint
        next(batches.resume(saved))
        assert saved == {"json": {"step": 1}}


def no_images(state):
    raise AssertionError("called before the run is refused")


REFUSED = {
    "histograms for nobody": (
        {"callbacks": [fg.callbacks.histograms(every=1)]},
        ValueError,
        "need a logger that takes histograms",
    ),
    "images for nobody": (
        {"callbacks": [fg.callbacks.images(no_images, every=1)]},
        ValueError,
        "need a logger that takes images",
    ),
    "spikes of nothing": (
        {"callbacks": [fg.callbacks.spike(metrics="los")]},
        ValueError,
        "need metrics of the step for spike",
    ),
    "a profile without a folder": (
        {"callbacks": [fg.callbacks.profile(0, 1)], "run_dir": None},
        ValueError,
        r"need run_dir for profile\(0, 1\)",
    ),
    "a profile in a file": (
        {"callbacks": [fg.callbacks.profile(0, 1, __file__)]},
        FileExistsError,
        "is not a writable folder",
    ),
    "a config without names": (
        {"config": [0.05]},
        TypeError,
        "need a dataclass, NamedTuple or dict as config",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_fit_refuses_is_refused_before_a_run_folder_is_made(name, tmp_path):
    changes, kind, message = REFUSED[name]
    for run in (dry, quiet_fit):
        with pytest.raises(kind, match=message):
            run(num_steps=2, **{"run_dir": tmp_path / "run"} | changes)
        assert not (tmp_path / "run" / "manifest.json").exists()


def test_the_folder_of_another_run_without_checkpoints_is_refused(tmp_path):
    options = {"run_dir": tmp_path, "config": {"rate": 0.05}}
    RunFolder(tmp_path, config=options["config"], data=DATA.fingerprint())
    before = files_below(tmp_path)
    other = fg.data.from_arrays({"x": ARRAYS["x"], "y": -ARRAYS["y"]}, batch_size=6)
    for run in (dry, quiet_fit):
        with pytest.raises(ValueError, match=r"rate was 0\.05, is 0\.1"):
            run(num_steps=4, **options | {"config": {"rate": 0.1}})
        with pytest.raises(ValueError, match="data was"):
            run(data=other, num_steps=4, **options)
        if run is dry:
            assert files_below(tmp_path) == before
    assert dry(num_steps=4, **options).steps == 4


def test_a_run_that_early_stopping_has_ended_has_no_step_left(tmp_path, capsys):
    stopping = fg.EarlyStopping(patience=1, min_delta=1e3)
    options = {**EVALUATED, "checkpoint_dir": tmp_path, "early_stopping": stopping}
    stopped = quiet_fit(num_steps=50, **options)
    assert stopped.stopped == "early_stopping"
    found = dry(num_steps=50, **options)
    assert (found.steps, found.evaluations) == (0, 0)
    assert found.seconds == found.compile_seconds
    done = dry(num_steps=0, eval_first=True, **EVALUATED)
    assert (done.steps, done.evaluations) == (0, 0)
    assert "early stopping ends the run at step 10" in capsys.readouterr().err


def test_a_short_evaluation_is_timed_when_it_is_made_again(monkeypatch):
    pauses, values = [0.5, 0.0], Evaluation.values  # the first loads programs

    def slow_at_first(self, *arguments):
        time.sleep(pauses.pop(0))
        return values(self, *arguments)

    monkeypatch.setattr(Evaluation, "values", slow_at_first)
    found = dry(**EVALUATED)
    assert not pauses
    assert found.evaluation_seconds < 0.5


def test_a_backend_that_reports_no_memory_has_no_rows_of_it(monkeypatch):
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    for found in (dry(), fg.summary(STEP, first_state(), DATA.batch(0))):
        assert found.memory is None
        assert "FLOPs" in repr(found)
        assert "memory" not in repr(found)


def test_the_arguments_have_the_names_and_types_of_those_of_fit():
    hints = typing.get_type_hints(fg.fit)
    hints.pop("return")
    assert typing.get_type_hints(Arguments) == hints
    assert list(Arguments._fields) == list(inspect.signature(fg.fit).parameters)
    given = dict.fromkeys(Arguments._fields) | {"another local": 1}
    assert Arguments.among(given)._asdict().items() <= given.items()


def test_errors_of_the_data_and_of_the_step_are_those_of_fit():
    def read(rows):
        if 7 in rows:
            raise OSError("no example 7")
        return {name: leaf[rows] for name, leaf in HOST.items()}

    source = fg.data.from_source(read, 20, 6, seed=1, shuffle=False)
    with pytest.raises(OSError, match="no example 7"):
        dry(source)
    batch = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), DATA.batch(0))
    with (
        pytest.warns(UserWarning, match="cannot be asked for again"),
        pytest.raises(fg.NonFiniteError, match=r"got step 1 with .*loss=nan"),
    ):
        dry([batch])
    found = dry(lambda step: batch, num_steps=1, on_nonfinite="ignore")
    assert np.isnan(found.metrics["loss"])


def test_folders_that_fit_refuses_are_refused_and_not_changed(tmp_path):
    options = {"run_dir": tmp_path / "run", "save_every": 2, "config": {"rate": 0.05}}
    quiet_fit(num_steps=4, **options)
    before = files_below(tmp_path)
    resumed = dry(num_steps=9, **options)
    assert resumed.steps == 5
    expected = quiet_fit(num_steps=5).history
    assert resumed.metrics["loss"] == pytest.approx(expected.last("loss"), rel=1e-6)
    assert dry(num_steps=9, **options | {"resume": "overwrite"}).steps == 9
    refused = (
        ({"resume": "never"}, ValueError, 'without checkpoints for resume="never"'),
        ({"config": {"rate": 0.1}}, ValueError, r"rate was 0\.05, is 0\.1"),
        (
            {"save_every": None},
            ValueError,
            "another run folder, or the state of step 4",
        ),
        ({"run_dir": tmp_path / "b", "resume": "must"}, FileNotFoundError, "got none"),
    )
    for run in (dry, quiet_fit):
        for changes, kind, message in refused:
            with pytest.raises(kind, match=message):
                run(num_steps=9, **options | changes)
        if run is dry:
            assert files_below(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RuntimeError, match="need a folder that can be written, got"):
        dry(run_dir=tmp_path / "file" / "run")
    with Lock(tmp_path), pytest.raises(RuntimeError, match="in use by process"):
        dry(run_dir=tmp_path)


def test_a_dry_run_is_shown_in_few_lines():
    found = dry(num_steps=4, **EVALUATED)._replace(
        compile_seconds=1.5, step_seconds=0.002, evaluation_seconds=50e-6, steps=10**6
    )
    lines = repr(found).splitlines()
    assert lines[0] == "DryRun: 1,000,000 steps of 6 examples, about 0:33:22"
    assert lines[1] == "compiling      1.5 s"
    rate = f"{found.costs.flops / 0.002:.2g}"
    assert lines[2].split(maxsplit=1)[1].split() == [
        *("2", "ms", str(found.costs.flops), "FLOPs,", rate, "per", "second"),
    ]
    assert lines[3].split() == ["evaluation", "50", "us", "1", "times"]
    assert lines[4].startswith("memory ")
    assert found._repr_html_().endswith(f"{lines[-1]}</pre>")
