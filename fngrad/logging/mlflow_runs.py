"""Runs of MLflow."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from fngrad.files.json_values import to_json
from fngrad.logging.histograms import histogram_of
from fngrad.logging.media import MediaLogger, as_image, nonfinite_counts
from fngrad.logging.writers import floats_of
from fngrad.programs.optional_imports import import_extra

_MOST_METRICS, _MOST_PARAMS = 1000, 100  # per request
_LONGEST = 500  # characters of a parameter that every server takes


def mlflow(
    experiment: str = "Default",
    *,
    run_name: str | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> MediaLogger:
    """Log to a run of MLflow.

    The run begins at this call and ends with the run of `fngrad.fit`, as failed if an
    exception ended that. MLflow keeps what was logged: after a rollback it holds the
    abandoned steps too. It has no histograms; they are JSON artifacts, one per name and
    step, with counts, edges, mean and root mean square. The config becomes parameters,
    whose nested names are joined by dots and whose values are cut after 500 characters,
    and the artifact ``config.json``, which is whole.

    Args:
        experiment: its name; it is made if needed.
        run_name: what the run is called; MLflow chooses a name by default.
        run_id: the run to continue, such as that of a killed process.
        tracking_uri: the server or store; by default that of ``mlflow`` itself, as
            ``MLFLOW_TRACKING_URI`` says. ``mlflow-skinny``, which the extra installs,
            reaches servers; a database of one's own needs ``mlflow``.
        tags: of a new run.

    Returns:
        The logger. Characters of names that MLflow does not allow are underscores.

    Raises:
        ImportError: if mlflow is missing (``pip install "fngrad[mlflow]"``), or pillow
            for images.
        TypeError: at a call, if a value is not a number; its name is given.
        ValueError: at a call, if two names of a record differ only in characters that
            MLflow does not allow, or an image is not one, see `fngrad.logging.media`.
        Exception: whatever MLflow raises.

    References:
        https://mlflow.org/docs/latest/ml/tracking
    """
    library = import_extra("mlflow", "mlflow", "mlflow-skinny")
    client = library.MlflowClient(tracking_uri)
    if run_id is None:
        run_id = _new_run(client, experiment, run_name, tags)
    run = _Run(library, client, run_id)
    run.open()
    return MediaLogger(
        run.write,
        lambda: run.end("FINISHED"),
        name=f"mlflow({experiment!r})",
        images=run.images,
        histograms=run.histograms,
        configure=run.configure,
        fail=lambda: run.end("FAILED"),
    )


class _Run:
    def __init__(self, library: Any, client: Any, run_id: str):
        self._library, self._client, self._id = library, client, run_id
        self._is_open = False

    def open(self) -> None:
        if not self._is_open:
            self._client.update_run(self._id, status="RUNNING")
            self._is_open = True

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self.open()
        now = time.time_ns() // 1_000_000
        metrics = [
            self._library.entities.Metric(name, float(value), now, step)
            for name, value in _named(floats_of(step, values)).items()
        ]
        for some in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(self._id, metrics=some)

    def images(self, step: int, images: Mapping[str, Any]) -> None:
        self.open()
        for name, image in _named(images).items():
            pixels = as_image(name, image)
            self._client.log_image(self._id, pixels, key=name, step=step)

    def histograms(self, step: int, histograms: Mapping[str, Any]) -> None:
        self.open()
        found = {name: histogram_of(name, x) for name, x in histograms.items()}
        for name, x in _named(found).items():
            lists = {"counts": x.counts.tolist(), "edges": x.edges.tolist()}
            content = {"step": step, **x._asdict(), **lists}
            path = f"histograms/{name}/step_{step:09d}.json"
            self._client.log_dict(self._id, content, path)
        self.write(step, nonfinite_counts(found))

    def configure(self, config: Any) -> None:
        self.open()
        plain = to_json(config, "config")
        flat = _named(_flat(plain)).items()
        params = [self._library.entities.Param(k, str(x)[:_LONGEST]) for k, x in flat]
        for some in _parts(params, _MOST_PARAMS):
            self._client.log_batch(self._id, params=some)
        self._client.log_dict(self._id, plain, "config.json")

    def end(self, status: str) -> None:
        if self._is_open:
            self._is_open = False
            self._client.set_terminated(self._id, status)


def _new_run(
    client: Any, experiment: str, name: str | None, tags: Mapping[str, str] | None
) -> str:
    known = client.get_experiment_by_name(experiment)
    number = known.experiment_id if known else client.create_experiment(experiment)
    return client.create_run(number, run_name=name, tags=dict(tags or {})).info.run_id


def _allowed(name: str) -> str:
    """Return a name with underscores for what MLflow takes for no name or for a path.

    Example:
        >>> from fngrad.logging.mlflow_runs import _allowed
        >>> _allowed("val/loss"), _allowed("a*b"), _allowed("../a")
        ('val/loss', 'a_b', '_/a')
    """
    words = re.sub(r"[^\w\-. /]", "_", name).split("/")
    return "/".join("_" if word in ("", ".", "..") else word for word in words)


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    allowed = {_allowed(name): value for name, value in values.items()}
    if len(allowed) < len(values):
        raise ValueError(
            "need names that differ in letters, digits or one of '_-. /', got "
            f"{sorted(values)}"
        )
    return allowed


def _flat(config: Any, before: str = "") -> dict[str, Any]:
    """Return the values of nested dicts by their keys, joined by dots."""
    if not isinstance(config, dict) or not config:
        return {before: config} if before else {}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{before}.{key}" if before else key)
    return flat


def _parts(entries: list[Any], most: int) -> Iterator[list[Any]]:
    for start in range(0, len(entries), most):
        yield entries[start : start + most]
