"""Faults that the arguments or tracing reveal raise before the first step."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.checkpoint as checkpoint
import fngrad.logging as logging
from fngrad.files.local_paths import check_local
from fngrad.files.locks import Lock

ARRAYS = {"x": np.arange(4.0, dtype=np.float32)}
OPTIMIZER = fg.sgd(0.1)


def loss_fn(w, batch):
    return jnp.mean(batch["x"] * w)


def metric_fn(w, batch):
    return {"loss": batch["x"] * w, "pair": jnp.stack([batch["x"]] * 2, axis=1)}


def reporting(**metrics):
    return lambda w, batch: (loss_fn(w, batch), metrics)


def misspelt(w, batch):
    return {"loss": batch["X"] * w}


class Logs:
    """A logger with further attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __call__(self, step, values):
        raise AssertionError("called before the run is refused")


class NotCallable:
    """Not a logger: it has no ``__call__``."""


FAULTS = {
    "a metric_fn that fails": ({"metric_fn": misspelt}, KeyError, "X"),
    "a metric_fn that gives a mean": (
        {"metric_fn": lambda w, batch: {"loss": jnp.mean(batch["x"] * w)}},
        ValueError,
        "need metric 'loss' per example",
    ),
    "a mistyped metric to stop by": (
        {"early_stopping": fg.EarlyStopping("val/los")},
        ValueError,
        r"need a metric among .*'val/loss'.* early_stopping, got 'val/los'; "
        r"did you mean 'val/loss'\?$",
    ),
    "a metric to stop by that is not a scalar": (
        {"early_stopping": fg.EarlyStopping("val/pair", mode="min")},
        ValueError,
        "got 'val/pair'",
    ),
    "a mistyped metric to keep by": (
        {"keep_best": "val/accuracy", "save_every": 1},
        ValueError,
        r"need a metric among .*'val/loss'.* keep_best, got 'val/acc",
    ),
    "a patience that is not an integer": (
        {"early_stopping": fg.EarlyStopping(patience=2.5)},  # pyright: ignore
        ValueError,
        "need an int patience >= 1, got patience=2.5",
    ),
    "a min_delta that is not a number": (
        {"early_stopping": fg.EarlyStopping(min_delta=float("nan"))},
        ValueError,
        "need min_delta as a finite number >= 0 .*got min_delta=nan",
    ),
    "a negative min_delta": (
        {"early_stopping": fg.EarlyStopping(min_delta=-1.0)},
        ValueError,
        "got min_delta=-1.0",
    ),
    "an unknown mode": (
        {"early_stopping": fg.EarlyStopping(mode="low")},  # pyright: ignore
        ValueError,
        "need mode=.min. or mode=.max., got 'low'",
    ),
    "a step's metric called step": (
        {"loss_fn": reporting(step=1.0)},
        ValueError,
        r"not taken, got \['step'\] from the step",
    ),
    "a step's metric called as an evaluation's": (
        {"loss_fn": reporting(**{"val/loss": 1.0}), "metric_fn": None},
        ValueError,
        r"not taken, got \['val/loss'\] from the step",
    ),
    "a callback of two arguments": (
        {"callbacks": [lambda step, state: None]},
        TypeError,
        r"need functions of 3 arguments in callbacks, callback\(step, st",
    ),
    "callbacks that are not a list": (
        {"callbacks": lambda step, state, values: None},
        TypeError,
        r"need a list of functions for callbacks, got function",
    ),
    "a logger of three arguments": (
        {"loggers": [lambda step, state, values: None]},
        TypeError,
        r"need functions of 2 arguments in loggers, logger\(step, val",
    ),
    "a logger whose configure has another signature": (
        {"loggers": [Logs(configure=lambda config, name: None)], "config": {}},
        TypeError,
        r"need loggers whose optional method configure is called as logger\.configure",
    ),
    "a logger whose cut takes nothing": (
        {"loggers": [Logs(cut=lambda: None)]},
        TypeError,
        r"method cut is called as logger\.cut\(step\), got .*arguments \(\)",
    ),
    "a logger whose images are not a method": (
        {"loggers": [Logs(images=[])]},
        TypeError,
        r"called as logger\.images\(step, images\), got \[\] in .*Logs",
    ),
    "a logger that is not a function": (
        {"loggers": [NotCallable()]},
        TypeError,
        "need functions in loggers, got .*NotCallable",
    ),
    "a negative number of steps": ({"num_steps": -1}, ValueError, "got num_steps=-1"),
    "a loop that the data do not allow": (
        {"data": [ARRAYS], "loop": "scan", "eval_every": 1},
        ValueError,
        'need a dataset or a function of the step for loop="scan"',
    ),
    "a config that is not JSON": ({"config": {"a": object()}}, TypeError, "config"),
    "a log_every that is not an integer": (
        {"log_every": 1.5},
        ValueError,
        "need an int log_every",
    ),
}


@pytest.mark.filterwarnings("ignore:batches from an iterable")
@pytest.mark.parametrize("name", FAULTS)
def test_bad_arguments_raise_before_anything_is_written(tmp_path, name):
    changes, kind, message = FAULTS[name]
    given = {"metric_fn": metric_fn, "num_steps": 2, "loss_fn": loss_fn, "loop": "auto"}
    given |= {"data": fg.data.from_arrays(ARRAYS, 2), **changes}
    given |= {"eval_data": ARRAYS if given["metric_fn"] else None}
    loss, batches = given.pop("loss_fn"), []

    def counted(w, batch):
        batches.append(None)
        return loss(w, batch)

    step = fg.make_step(counted, OPTIMIZER)
    state = fg.init_state(jnp.zeros(()), OPTIMIZER, 0)
    for call in (fg.fit, fg.dry_run):
        with pytest.raises(kind, match=message):
            call(step, state, run_dir=tmp_path / "run", progress=False, **given)
        assert not list(tmp_path.iterdir())
        assert len(batches) <= 1  # traced, not run


@pytest.mark.parametrize("url", ["gs://b/run", "s3://b/run", "hdfs://h/r", "file:///r"])
@pytest.mark.parametrize("name", ["run_dir", "checkpoint_dir"])
def test_a_url_is_refused_as_a_folder(tmp_path, monkeypatch, name, url):
    monkeypatch.chdir(tmp_path)
    step = fg.make_step(loss_fn, OPTIMIZER)
    state = fg.init_state(jnp.zeros(()), OPTIMIZER, 0)
    data = fg.data.from_arrays(ARRAYS, 2)
    for folder in (url, pathlib.PurePosixPath(url)):
        with pytest.raises(ValueError, match=f"need {name} in a file system of this"):
            fg.fit(step, state, data, num_steps=1, progress=False, **{name: folder})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "write",
    [
        Lock,
        checkpoint.Checkpoints,
        lambda url: checkpoint.save(url, {"w": jnp.zeros(())}, step=1),
        lambda url: checkpoint.restore(url, {"w": jnp.zeros(())}),
        logging.RunFolder,
        logging.jsonl,
        logging.csv,
    ],
    ids=["Lock", "Checkpoints", "save", "restore", "RunFolder", "jsonl", "csv"],
)
def test_every_writer_refuses_a_url(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="in a file system of this machine, got 'gs:"):
        write("gs://bucket/run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "folder", ["runs/1", "C:/runs", "a:b", "lr=1e-3:x", "r:/x", "~"]
)
def test_a_local_folder_is_not_mistaken_for_a_url(folder):
    check_local("run_dir", folder)
    check_local("run_dir", pathlib.PurePosixPath(folder))
    check_local("run_dir", None)


def test_a_progress_that_is_not_a_bool_is_refused():
    with pytest.raises(TypeError, match="need progress=True or False, got <built-in"):
        fg.fit(
            fg.make_step(loss_fn, OPTIMIZER),
            fg.init_state(jnp.array(0.0), OPTIMIZER, key=0),
            fg.data.from_arrays(ARRAYS, 2),
            num_steps=1,
            progress=print,
        )
