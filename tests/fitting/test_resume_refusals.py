"""The checkpoints that fit refuses to resume from, and the arguments it refuses."""

import dataclasses
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from linear_regression import ARRAYS, DATA, OPTIMIZER, STEP, first_state, metric_fn
from resuming import killed_fit, saving_fit

import fngrad.checkpoint as checkpoint
import fngrad.tree as tree
from fngrad.fitting.training_loop import fit
from fngrad.optimizers import adam
from fngrad.training import init_state, make_step, snapshot


@pytest.fixture
def reached(tmp_path):
    """A folder with the checkpoints of steps 4 and 8."""
    killed_fit(tmp_path, at=9)
    assert checkpoint.steps(tmp_path) == [4, 8]
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"rate": 2}}, r"run in '.*' unchanged.*config.rate was absent, is"),
        ({"config": {"rate": 2}}, r"does not belong in config$"),
        ({"data": DATA.reseed(9)}, r"data.fingerprint was '\w+', is '\w+'$"),
        (
            {"data": dataclasses.replace(DATA, batch_size=5)},
            r"data.batch.x was 'float32\[6, 2\]', is 'float32\[5, 2\]'; .*"
            "data.batch_size was 6, is 5",
        ),
        ({"data": DATA.batch}, r"data.batch_size was 6, is None; data.fingerprint"),
        (
            {"state": init_state(first_state().params, OPTIMIZER, 7)},
            r"key was \[0, 0\]",
        ),
        (
            {"state": first_state()._replace(step=jnp.int32(9))},
            r"not beyond the checkpoint of step 8 in .* got the state of step 9",
        ),
        ({"resume": "never"}, r"without checkpoints for resume=.never., got .*step 8"),
    ],
)
def test_another_run_is_refused_naming_the_difference(reached, change, message):
    before = checkpoint.steps(reached)
    with pytest.raises(ValueError, match=message):
        saving_fit(reached, **change)
    assert checkpoint.steps(reached) == before


def test_another_optimizer_or_model_is_refused_naming_the_leaf(reached):
    other = adam(0.1)
    step = make_step(lambda p, b: jnp.mean((b["x"] @ p["w"] - b["y"]) ** 2), other)
    options = {"num_steps": 20, "checkpoint_dir": reached, "progress": False}
    message = r"opt_state/.*another optim.*resume=.overwrite. moves the old run aside"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        fit(step, init_state(first_state().params, other, 0), DATA, **options)
    wider = init_state({"w": jnp.zeros(2)}, OPTIMIZER, 0)
    with pytest.raises(checkpoint.CheckpointError, match=r"params/b"):
        fit(
            make_step(
                lambda p, b: jnp.mean((b["x"] @ p["w"] - b["y"]) ** 2), OPTIMIZER
            ),
            wider,
            DATA,
            **options,
        )


def contents(folder):
    return {
        path: path.read_bytes() for path in folder.glob("0*/**/*") if path.is_file()
    }


def halve(path):
    path.write_bytes(path.read_bytes()[:99])


def flip_a_bit_of_an_array(path):
    files = [file for file in path.parent.glob("arrays/**/*") if file.is_file()]
    file = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.filterwarnings("ignore:the checkpoint .* is damaged")
@pytest.mark.parametrize("resume", ["auto", "must", "never"])
@pytest.mark.parametrize("change", [halve, Path.unlink, flip_a_bit_of_an_array])
def test_a_folder_of_damaged_checkpoints_is_never_overwritten(reached, change, resume):
    for manifest in reached.glob("0*/manifest.json"):
        change(manifest)
    before = contents(reached)
    message = "need an undamaged checkpoint in .* got 2 damaged, the newest '0*8'"
    if resume == "never" and change is flip_a_bit_of_an_array:  # not read
        message = "need a folder without checkpoints"
    with pytest.raises(ValueError, match=message):
        saving_fit(reached, resume=resume)
    assert contents(reached) == before != {}


def test_a_folder_that_fit_did_not_write_is_refused(tmp_path):
    checkpoint.save(tmp_path, first_state())
    with pytest.raises(ValueError, match=r"written by fngrad.checkpoint.save"):
        saving_fit(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": "yes"}, "need resume to be one of"),
        ({"on_save_error": "ignore"}, "need on_save_error to be one of"),
        ({"save_every": 0}, "need an int save_every >= 1, got save_every=0"),
        ({"save_every": 1.5}, "need an int save_every >= 1, got save_every=1.5"),
        ({"save_minutes": 0}, "need save_minutes as a finite number > 0, got 0"),
        ({"save_minutes": "10"}, "need save_minutes as a finite number > 0, got '10'"),
        ({"save_minutes": float("inf")}, "need save_minutes as a finite .* got inf"),
        ({"keep": 0}, "need an int keep >= 1, got keep=0"),
        ({"keep_best": ("val/loss",)}, "need keep_best="),
        ({"keep_best": ("val/loss", "low")}, "need keep_best="),
        ({"keep_best": ("val/accuracy", "max")}, "got 'val/accuracy'"),
        ({"keep_best": ("a", "max"), "metric_fn": None}, "metric_fn and eval_data for"),
        ({"checkpoint_dir": None}, "need checkpoint_dir, or run_dir with save_every"),
        (
            {"checkpoint_dir": None, "save_every": None, "resume": "must"},
            "need checkpoint_dir, or run_dir with .* resume='must'",
        ),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        saving_fit(tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "path"),
    [("state", "params/w"), ("data", "arrays/x"), ("eval_data", "x")],
)
def test_what_was_donated_is_named_with_its_leaf(name, path):
    given = {"state": first_state(), "data": DATA, "eval_data": ARRAYS}
    given[name] = snapshot(given[name])
    tree.leaf_paths(given[name])[path].delete()
    with pytest.raises(RuntimeError, match=f"need {name} whose .* array at '{path}'"):
        fit(STEP, num_steps=2, progress=False, metric_fn=metric_fn, **given)


def test_a_missing_library_raises_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r'pip install "fngrad\[checkpoint\]"'):
        saving_fit(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_keep_best_without_checkpoints_keeps_it_on_the_host(tmp_path):
    options = {
        "checkpoint_dir": None,
        "save_every": None,
        "keep_best": ("val/loss", "max"),
    }
    result = saving_fit(tmp_path, **options, run_dir=tmp_path / "run")
    assert result.history.best.by == ("val/loss", "max")
    assert not (tmp_path / "run" / "checkpoints").exists()
