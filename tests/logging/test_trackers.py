"""Every logger of images and histograms writes what its own library reads back."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tracked_runs

import fngrad.logging as logging

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


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Return a folder where the trackers may write, without a network."""
    folder = tmp_path_factory.mktemp("trackers")
    settings = {
        "TRACKIO_DIR": str(folder / "trackio"),  # read when trackio is imported
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield folder


@pytest.fixture(params=LIBRARIES)
def tracker(request, offline, tmp_path):
    """Return a function that makes a logger, and one that reads its run."""
    kind = request.param
    for library in LIBRARIES[kind]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # while the libraries import theirs
            pytest.importorskip(library)
    project = f"p{abs(hash(request.node.name)) % 10**9}"
    read = getattr(tracked_runs, f"{kind}_run")

    def make(**options: Any) -> Any:
        if kind == "tensorboard":
            return logging.tensorboard(tmp_path)
        if kind == "wandb":
            return logging.wandb(project, dir=tmp_path, **options)
        if kind == "trackio":
            return logging.trackio(project, auto_log_cpu=False, **options)
        return logging.mlflow(project, tracking_uri=tmp_path.as_uri(), **options)

    place = {"trackio": (offline / "trackio", project), "mlflow": (tmp_path, project)}
    return kind, make, lambda: read(*place.get(kind, (tmp_path,)))


def test_what_was_logged_is_read_back(tracker):
    kind, make, read = tracker
    with make() as logger:
        logger.configure(CONFIG)
        logger(1, {"loss": 0.5, "val/worst": float("nan")})
        logger(7, {"loss": jnp.float32(0.25), "high": np.inf})
        logger.images(7, {"sample": PIXELS, "gray": GRAY})
        logger.histograms(7, {"layer/w": ENTRIES, "b": jnp.zeros(3, jnp.bfloat16)})
    found = read()
    assert found.config == ((CONFIG, FLAT) if kind == "mlflow" else CONFIG)
    assert found.scalars["loss"] == [(1, 0.5), (7, 0.25)]
    assert found.scalars["high"] == [(7, np.inf)]
    assert found.scalars["layer/w/nonfinite"] == [(7, 1)]
    ((step, worst),) = found.scalars["val/worst"]
    assert step == 1
    assert np.isnan(worst)
    np.testing.assert_array_equal(found.images["sample"], PIXELS)
    gray = np.rint(255 * GRAY).astype(np.uint8)[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(found.images["gray"], gray)
    finite = ENTRIES[np.isfinite(ENTRIES)].astype(np.float64)
    counts, edges = np.histogram(finite, bins=64)
    weights, zeros = found.histograms["layer/w"], found.histograms["b"]
    np.testing.assert_array_equal(weights["counts"], counts)
    np.testing.assert_allclose(weights["edges"], edges, rtol=0, atol=1e-6)
    assert (zeros["edges"][0], zeros["edges"][-1]) == (-0.5, 0.5)
    assert sum(zeros["counts"]) == max(zeros["counts"]) == 3
