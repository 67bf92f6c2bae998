"""Every logger of images and histograms writes what its own library reads back."""

import sys
import warnings
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import jax.numpy as jnp
import numpy as np
import pytest
import tracked_runs
from linear_regression import DATA, STEP, first_state, quiet_fit
from resuming import KilledError, OwnError, kill_at, raise_at, saving_fit

import fngrad as fg
import fngrad.logging as logging
from fngrad.logging.media import as_image

CONFIG = {"rate": 0.1, "model": {"width": 8, "name": "mlp"}, "seed": 3}
FLAT = {"rate": "0.1", "model.width": "8", "model.name": "mlp", "seed": "3"}
PIXELS = (np.arange(60).reshape(4, 5, 3) * 4).astype(np.uint8)
GRAY = np.linspace(0, 1, 20).reshape(4, 5)
ENTRIES = np.array([0.5, -1.0, 2.0, 2.0, np.nan, 0.25], np.float32)
LIBRARIES = {
    "tensorboard": ("tensorboardX", "tensorboard"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}
WANDB_STATUSES = {"finished": [0], "failed": [1], "killed": ["preempting", 1]}


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Return a folder where the trackers may write, without a network."""
    folder = tmp_path_factory.mktemp("trackers")
    settings = {
        "TRACKIO_DIR": str(folder / "trackio"),  # read when trackio is imported
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONFIG_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield folder


class Tracker:
    """A kind of logger, with a place and a name of its own, and a reader."""

    def __init__(self, kind, folder, offline):
        self.kind, self.folder, self.offline = kind, folder, offline
        self.project = f"{folder.name}-{kind}"
        for library in LIBRARIES[kind]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # while it imports others
                pytest.importorskip(library)

    def make(self) -> Any:
        if self.kind == "tensorboard":
            return logging.tensorboard(self.folder / "events")
        if self.kind == "wandb":
            return logging.wandb(self.project, dir=self.folder)
        if self.kind == "trackio":
            return logging.trackio(self.project, auto_log_cpu=False)
        uri = (self.folder / "mlflow").as_uri()
        return logging.mlflow(self.project, tracking_uri=uri)

    def read(self):
        if self.kind == "tensorboard":
            return tracked_runs.tensorboard_run(self.folder / "events")
        if self.kind == "wandb":
            return tracked_runs.wandb_run(self.folder)
        if self.kind == "trackio":
            return tracked_runs.trackio_run(self.offline / "trackio", self.project)
        return tracked_runs.mlflow_run(self.folder / "mlflow", self.project)

    @property
    def config(self):
        return (CONFIG, FLAT) if self.kind == "mlflow" else CONFIG

    def statuses(self, *endings):
        """Return what the reader should find of a run that ended in these ways."""
        if self.kind == "mlflow":
            return [endings[-1].upper()]
        if self.kind == "wandb":
            return [status for each in endings for status in WANDB_STATUSES[each]]
        return None  # there is none to record it in

    def key(self, name):
        return name.replace("a/b", "a.b") if self.kind == "mlflow" else name


@pytest.fixture(params=LIBRARIES)
def tracker(request, offline, tmp_path):
    return Tracker(request.param, tmp_path, offline)


def test_what_was_logged_is_read_back(tracker):
    with tracker.make() as logger:
        logger.configure(CONFIG)
        logger(1, {"loss": 0.5, "val/worst": float("nan")})
        logger(7, {"loss": jnp.float32(0.25), "high": np.inf, "a": 1, "a/b": 2})
        logger.images(7, {"sample": PIXELS, "gray": GRAY})
        logger.histograms(7, {"layer/w": ENTRIES, "b": jnp.zeros(3, jnp.bfloat16)})
        logger.histograms(8, {"layer/w": ENTRIES[:4]})
    found = tracker.read()
    assert found.config == tracker.config
    assert found.status == tracker.statuses("finished")
    assert found.scalars["loss"] == [(1, 0.5), (7, 0.25)]
    assert found.scalars["high"] == [(7, np.inf)]
    assert found.scalars["a"] == [(7, 1)]
    assert found.scalars[tracker.key("a/b")] == [(7, 2)]
    assert found.scalars["layer/w/nonfinite"] == [(7, 1), (8, 0)]
    assert "b/nonfinite" not in found.scalars
    ((step, worst),) = found.scalars["val/worst"]
    assert step == 1
    assert np.isnan(worst)
    np.testing.assert_array_equal(found.images["sample"], PIXELS)
    gray = np.rint(255 * GRAY).astype(np.uint8)[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(found.images["gray"], gray)
    counts, edges = np.histogram(ENTRIES[:4].astype(np.float64), bins=64)
    weights, zeros = found.histograms["layer/w"], found.histograms["b"]
    np.testing.assert_array_equal(weights["counts"], counts)
    np.testing.assert_allclose(weights["edges"], edges, rtol=0, atol=1e-6)
    widest = (0, 0) if tracker.kind == "tensorboard" else (-0.5, 0.5)
    assert (zeros["edges"][0], zeros["edges"][-1]) == widest
    assert sum(zeros["counts"]) == max(zeros["counts"]) == 3


def log_twice(logger):
    logger(2, {"loss": 0.25})
    logger(3, {"bad": "text"})


def test_a_closed_logger_continues_its_run_which_fails_with_an_exception(tracker):
    logger = tracker.make()
    logger.configure(CONFIG)
    logger(1, {"loss": 0.5})
    logger.close()
    logger.close()
    with pytest.raises(TypeError, match="need a number at 'bad'"), logger:
        log_twice(logger)
    found = tracker.read()
    assert found.scalars["loss"] == [(1, 0.5), (2, 0.25)]
    assert found.config == tracker.config
    assert found.status == tracker.statuses("finished", "failed")


def test_a_run_begins_at_the_first_record_and_may_be_killed(tracker):
    logger = tracker.make()
    done = quiet_fit(num_steps=1)
    assert quiet_fit(done.state, num_steps=1, loggers=[logger]).stopped == "completed"
    fg.dry_run(STEP, first_state(), DATA, num_steps=1, loggers=[logger])
    with pytest.raises(ValueError, match="need one of num_steps and num_epochs"):
        quiet_fit(loggers=[logger])
    logger(1, {"loss": 0.5})
    logger.kill()
    found = tracker.read()  # the only run
    assert found.scalars["loss"] == [(1, 0.5)]
    assert found.status == tracker.statuses("killed")


def weights(state):
    return {"weights": jnp.clip(jnp.abs(state.params["w"][None]), 0, 1)}


def test_fit_tells_all_trackers_at_once_but_one_that_raises(offline, tmp_path):
    trackers = [Tracker(kind, tmp_path, offline) for kind in LIBRARIES]
    options = {
        "loggers": [raise_at(2, OwnError()), *(t.make() for t in trackers)],
        "callbacks": [
            fg.callbacks.histograms("w", every=2, of=["params"]),
            fg.callbacks.images(weights, every=2),
        ],
        "config": CONFIG,
    }
    with pytest.warns(UserWarning, match="continues without the logger fails, which"):
        result = quiet_fit(num_steps=3, log_every=1, **options)
    for tracker in trackers:
        found = tracker.read()
        assert found.config == tracker.config
        losses = result.history["loss"].tolist()
        assert found.scalars["loss"] == list(zip([1, 2, 3], losses, strict=True))
        assert sum(found.histograms["params/w"]["counts"]) == 2
        assert found.images["weights"].shape == (1, 2, 3)
        assert found.status == tracker.statuses("finished")


def test_tensorboard_shows_a_resumed_run_once_for_its_own_reader(tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / "events"
    options = {
        "callbacks": [fg.callbacks.histograms(every=3)],
        "config": CONFIG,
        "num_steps": 9,
        "log_every": 1,
    }
    with pytest.raises(KilledError):
        saving_fit(
            tmp_path / "a",
            loggers=[logging.tensorboard(folder), kill_at(7)],
            **options,
        )
    result = saving_fit(
        tmp_path / "a", loggers=[logging.tensorboard(folder)], **options
    )
    events = tracked_runs.tensorboard_events(folder)
    steps = [event.step for event in events.Scalars("loss")]
    assert steps == list(range(1, 10))
    assert [event.step for event in events.Histograms("params/w")] == [3, 6, 9]
    losses = [event.value for event in events.Scalars("loss")]
    np.testing.assert_array_equal(losses, result.history["loss"])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros(3), ValueError, r"need an image of shape .*got \(3,\) at 'x'"),
        (np.zeros((2, 2, 2)), ValueError, r"got \(2, 2, 2\) at 'x'"),
        (np.zeros((0, 2)), ValueError, r"got \(0, 2\) at 'x'"),
        (np.full((2, 2), 1.5), ValueError, r"need floats in \[0, 1\] .*1.5 to 1.5"),
        (np.full((2, 2), np.nan), ValueError, r"need floats in \[0, 1\]"),
        (np.zeros((2, 2), int), TypeError, "need uint8 or floats at 'x', got int64"),
        (np.zeros((2, 2), bool), TypeError, "need uint8 or floats at 'x', got bool"),
    ],
)
def test_what_is_not_an_image_is_refused_by_name(image, error, message):
    with pytest.raises(error, match=message):
        as_image("x", image)


def test_names_that_mlflow_does_not_allow_get_underscores(offline, tmp_path):
    tracker = Tracker("mlflow", tmp_path, offline)
    with tracker.make() as logger:
        logger.configure({})
        logger(1, {"cost_$x_$": 0.5, "../a": 1.0, "a//b": 2.0})
        with pytest.raises(ValueError, match="need names that differ in letters"):
            logger(2, {"a*b": 0.5, "a+b": 1.0})
    found = tracker.read().scalars
    assert found == {n: [(1, x)] for n, x in zip(ALLOWED, (0.5, 1, 2), strict=True)}


ALLOWED = ("cost__x__", "_/a", "a/_/b")


def test_names_that_are_folders_of_others_get_keys_that_last(offline, tmp_path):
    tracker = Tracker("mlflow", tmp_path, offline)
    with tracker.make() as logger:
        logger.configure({"c": 1, "c/d": 2, "rate": 0.1, "size": 3})
        logger(1, {"x/y": 0.0, "a/b": 1.0, "a": 2.0, "a/b/c": 3.0})
        logger(2, {"x": 4.0})
        with pytest.raises(ValueError, match="need names that differ in letters"):
            logger(3, {"a": 0.0, "a/b": 1.0, "a.b": 2.0})
    with pytest.warns(UserWarning, match=r"keeps .* the parameters \['rate'\], which"):
        logger.configure({"c": 1, "c/d": 2, "rate": 0.2, "more": 4})
    logger(3, {"x": 5.0, "a/b": 6.0})
    logger.close()
    assert tracker.read().scalars == {
        "a": [(1, 2.0)],
        "a.b": [(1, 1.0), (3, 6.0)],
        "a.b.c": [(1, 3.0)],
        "x/y": [(1, 0.0)],
        "x.value": [(2, 4.0), (3, 5.0)],
    }
    params = {"c": "1", "c.d": "2", "rate": "0.1", "size": "3", "more": "4"}
    assert tracker.read().config == (
        {"c": 1, "c/d": 2, "rate": 0.2, "more": 4},
        params,
    )


def test_mlflow_gets_no_more_metrics_and_params_than_a_request_may_have(monkeypatch):
    client = MagicMock()
    library = SimpleNamespace(
        MlflowClient=lambda uri: client,
        entities=SimpleNamespace(Metric=lambda *x: x, Param=lambda *x: x),
    )
    monkeypatch.setitem(sys.modules, "mlflow", library)
    logger = logging.mlflow(run_id="r")
    logger(3, {f"m{i}": float(i) for i in range(1001)})
    logger.configure({"long": "x" * 501, "nested": {str(i): i for i in range(100)}})
    sent = [call.kwargs for call in client.log_batch.call_args_list]
    metrics = [entry for call in sent for entry in call.get("metrics", [])]
    assert [(name, value, step) for name, value, _, step in metrics] == [
        (f"m{i}", float(i), 3) for i in range(1001)
    ]
    params = [entry for call in sent for entry in call.get("params", [])]
    assert params == [
        ("long", "x" * 500),
        *((f"nested.{i}", str(i)) for i in range(100)),
    ]
    assert [len(entries) for call in sent for entries in call.values()] == (
        [1000, 1, 100, 1]
    )


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_missing_tracker_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'pip install "fngrad\[{name}\]"'):
        getattr(logging, name)("project")
