"""An old run is moved aside on request, and the manifest says how a run ended."""

import contextlib
import json

import jax.numpy as jnp
import pytest
from linear_regression import DATA, OPTIMIZER, first_state, quiet_fit
from resuming import OwnError, raise_at

import fngrad.checkpoint as checkpoint
from fngrad.commands.run_records import read_run
from fngrad.files.locks import Lock, LockError
from fngrad.fitting.training_loop import fit
from fngrad.logging.run_names import RESUMED, new_run
from fngrad.training import make_step


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Draw nothing: that takes most of the time of a run of some steps."""
    from fngrad.logging import RunFolder

    monkeypatch.setattr(RunFolder, "draw", lambda *_: None)


def test_an_old_run_is_refused_with_the_ways_out(tmp_path):
    quiet_fit(num_steps=4, run_dir=tmp_path / "a")
    with pytest.raises(ValueError, match=r"logging\.new_run.*resume=\"overwrite\""):
        quiet_fit(num_steps=4, run_dir=tmp_path / "a")
    quiet_fit(num_steps=4, run_dir=tmp_path / "b", save_every=2)
    with pytest.raises(ValueError, match=r"logging\.new_run.*resume=\"overwrite\""):
        quiet_fit(num_steps=4, run_dir=tmp_path / "b", save_every=2, resume="never")


def test_overwrite_moves_the_old_run_aside_and_says_where(tmp_path, capsys):
    run = tmp_path / "a"
    options = {"run_dir": run, "save_every": 2, "resume": "overwrite"}
    for steps in (4, 6, 8):
        quiet_fit(num_steps=steps, config={"steps": steps}, **options)
    said = capsys.readouterr().err
    assert f"fit: moved the old {run} to {run}.1\n" in said
    assert f"fit: moved the old {run} to {run}.2\n" in said
    moved = [read_run(tmp_path / name) for name in ("a.1", "a.2", "a")]
    assert [r.config["steps"] for r in moved] == [4, 6, 8]
    assert [r.steps[-1] for r in moved] == [4, 6, 8]
    assert [r.status for r in moved] == 3 * ["completed"]


def test_checkpoints_elsewhere_are_moved_too_and_found_again(tmp_path):
    options = {"run_dir": tmp_path / "a", "checkpoint_dir": tmp_path / "saved"}
    quiet_fit(num_steps=4, **options)
    quiet_fit(num_steps=6, resume="overwrite", **options)
    assert checkpoint.steps(tmp_path / "saved.1") == [4]
    assert read_run(tmp_path / "a.1").steps == [4]
    assert read_run(tmp_path / "a").steps == [6]


def test_overwrite_without_an_old_run_begins_one(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    quiet_fit(num_steps=4, run_dir=tmp_path / "a", resume="overwrite")
    assert "moved" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_run_that_is_resumed_is_not_moved(tmp_path, monkeypatch):
    run = tmp_path / "a"
    options = {"run_dir": run, "save_every": 2, "resume": "overwrite"}
    quiet_fit(num_steps=4, **options)
    monkeypatch.setenv(RESUMED, str(run.resolve()))
    result = quiet_fit(num_steps=6, **options)
    assert result.history.notes["resumed"] == [4]
    assert not (tmp_path / "a.1").exists()


def test_a_folder_in_use_or_around_the_current_one_is_not_moved(tmp_path, monkeypatch):
    run = tmp_path / "a"
    quiet_fit(num_steps=4, run_dir=run)
    with Lock(run), pytest.raises(LockError, match="in use"):
        quiet_fit(num_steps=4, run_dir=run, resume="overwrite")
    monkeypatch.chdir(run)
    with pytest.raises(ValueError, match="holds the current folder"):
        quiet_fit(num_steps=4, run_dir=".", resume="overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nothing_is_moved_if_a_part_or_a_run_inside_is_in_use(tmp_path):
    options = {"run_dir": tmp_path / "a", "checkpoint_dir": tmp_path / "saved"}
    quiet_fit(num_steps=4, **options)
    with Lock(tmp_path / "saved"), pytest.raises(LockError, match="in use"):
        quiet_fit(num_steps=4, resume="overwrite", **options)
    quiet_fit(num_steps=4, run_dir=tmp_path)
    with Lock(tmp_path / "a"), pytest.raises(LockError, match="in use"):
        quiet_fit(num_steps=4, run_dir=tmp_path, resume="overwrite")
    assert (tmp_path / "a").is_dir()
    assert not (tmp_path / "a.1").exists()
    assert not tmp_path.with_name(f"{tmp_path.name}.1").exists()


def test_a_folder_without_a_run_is_not_moved(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    quiet_fit(num_steps=4, run_dir=tmp_path, resume="overwrite")
    assert "moved" not in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_resumed_run_that_new_run_names_is_not_moved(tmp_path, monkeypatch):
    run = new_run(tmp_path)
    options = {"save_every": 2, "resume": "overwrite"}
    quiet_fit(num_steps=4, run_dir=run, **options)
    monkeypatch.setenv(RESUMED, str(run.resolve()))
    result = quiet_fit(num_steps=6, run_dir=new_run(tmp_path), **options)
    assert result.history.notes["resumed"] == [4]


def test_the_manifest_says_how_a_run_ended(tmp_path):
    ends = {
        "completed": {},
        "failed": {"callbacks": [raise_at(2, OwnError("too slow"))]},
        "interrupted": {"callbacks": [raise_at(2, KeyboardInterrupt())]},
    }
    for status, options in ends.items():
        with contextlib.suppress(OwnError, KeyboardInterrupt):
            quiet_fit(num_steps=4, log_every=1, run_dir=tmp_path / status, **options)
        record = read_run(tmp_path / status)
        assert record.status == status
        assert record.manifest["ended"] >= record.started
    assert read_run(tmp_path / "failed").reason == "OwnError: too slow"
    seen = []

    def look(*_):
        seen.append(read_run(tmp_path / "now").status)

    quiet_fit(num_steps=4, run_dir=tmp_path / "now", callbacks=[look])
    assert set(seen) == {"running"}


def test_a_run_that_is_resumed_forgets_how_it_failed(tmp_path):
    options = {"num_steps": 4, "log_every": 1, "run_dir": tmp_path, "save_every": 1}
    with pytest.raises(OwnError):
        quiet_fit(callbacks=[raise_at(2, OwnError())], **options)
    assert read_run(tmp_path).status == "failed"
    quiet_fit(callbacks=[lambda *_: None], **options)
    record = read_run(tmp_path)
    assert (record.status, record.reason) == ("completed", "completed")
    assert record.manifest["failure"] is None


def test_the_manifest_keeps_the_autopsy(tmp_path):
    def log_of_the_parameters(params, batch):
        return jnp.sum(jnp.log(params["w"])) + 0.0 * params["b"] * batch["y"][0]

    step = make_step(log_of_the_parameters, OPTIMIZER)
    with pytest.raises(FloatingPointError):
        fit(step, first_state(), DATA, num_steps=2, run_dir=tmp_path, progress=False)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "log(0)" in manifest["autopsy"]
    assert manifest["failure"].startswith("NonFiniteError: ")
