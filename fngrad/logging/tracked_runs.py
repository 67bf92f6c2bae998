"""Runs of a tracker: those of Weights & Biases, and of trackio, with its interface.

Both keep what was logged: neither can remove the records of later steps, so after a
rollback they hold the abandoned steps too, and after a kill the steps since the last
checkpoint twice.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fngrad.files.json_values import to_json
from fngrad.logging.histograms import Histogram, histogram_of
from fngrad.logging.media import MediaLogger, NonfiniteCounts, as_image
from fngrad.logging.writers import floats_of
from fngrad.programs.optional_imports import import_extra

Status = Literal["finished", "failed", "killed"]


class TrackedRun:
    """A run that begins at its first record, and continues if one comes after its end.

    A tracker defines the methods that begin with an underscore.
    """

    def __init__(self) -> None:
        self._run: Any = None  # the last one that was begun, as the tracker has it
        self._is_open = False
        self._nonfinite = NonfiniteCounts()

    def logger(self, name: str) -> MediaLogger:
        """Return the logger of the run; the name is for messages."""
        return MediaLogger(
            self.write,
            functools.partial(self.end, "finished"),
            name=name,
            images=self.images,
            histograms=self.histograms,
            configure=self.configure,
            fail=functools.partial(self.end, "failed"),
            kill=functools.partial(self.end, "killed"),
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        floats = floats_of(step, values)
        self._log(self._opened(), int(step), floats)

    def images(self, step: int, images: Mapping[str, Any]) -> None:
        pixels = {name: as_image(name, image) for name, image in images.items()}
        self._log_images(self._opened(), int(step), pixels)

    def histograms(self, step: int, histograms: Mapping[str, Any]) -> None:
        found = {name: histogram_of(name, x) for name, x in histograms.items()}
        self._log_histograms(self._opened(), int(step), found)
        if counts := self._nonfinite.of(found):
            self._log(self._opened(), int(step), counts)

    def configure(self, config: Any) -> None:
        plain = to_json(config, "config")
        self._configure(self._opened(), plain)

    def end(self, status: Status) -> None:
        """End the run, if it is open."""
        if self._is_open:
            self._is_open = False
            self._finish(self._run, status)

    def _opened(self) -> Any:
        if not self._is_open:
            self._run = self._begin(self._run)
            self._is_open = True
        return self._run

    def _begin(self, last: Any) -> Any:
        """Begin a run, or continue the last one of this logger."""
        raise NotImplementedError

    def _log(self, run: Any, step: int, values: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _log_images(self, run: Any, step: int, images: dict[str, np.ndarray]) -> None:
        raise NotImplementedError

    def _log_histograms(
        self, run: Any, step: int, histograms: dict[str, Histogram]
    ) -> None:
        raise NotImplementedError

    def _configure(self, run: Any, config: Any) -> None:
        raise NotImplementedError

    def _finish(self, run: Any, status: Status) -> None:
        raise NotImplementedError


def wandb(project: str, **options: Any) -> MediaLogger:
    """Log to a run of Weights & Biases.

    The run begins at the first record, the config included, and is finished with the
    run of `fngrad.fit`: as failed if an exception ended that, and as preempted after
    one of its ``exit_signals``. Its charts are over ``step``. A second run of `fit`
    with the same logger continues it. With ``mode="offline"``, or
    ``WANDB_MODE=offline``, it is written below ``dir`` for ``wandb sync``.

    Args:
        project: where the run belongs.
        options: of ``wandb.init``, such as ``name``, ``config``, ``tags``, ``mode`` and
            ``dir``. A process that resumes a killed one continues its run with
            ``id=...`` and ``resume="allow"``.

    Raises:
        ImportError: if wandb is missing (``pip install "fngrad[wandb]"``), or pillow
            for images.
        TypeError: at a call, if a value is not a number; its name is given.
        ValueError: at a call, if an image is not one, see `fngrad.logging.media`.
        Exception: at a call, whatever wandb raises.

    References:
        https://docs.wandb.ai/ref/python
    """
    run = _Wandb(import_extra("wandb", "wandb"), project, options)
    return run.logger(f"wandb({project!r})")


def trackio(project: str, **options: Any) -> MediaLogger:
    """Log to a run of trackio, which has the interface of `wandb`.

    The run begins at the first record, the config included, and is finished with the
    run of `fngrad.fit`, however that ended: trackio has no status for failed runs. A
    second run of `fit` with the same logger continues it. Without ``space_id`` or
    ``server_url`` it is in a local database, in the folder ``TRACKIO_DIR``, and
    ``trackio show`` opens it. trackio has one open run per process: another logger
    finishes the one before.

    Args:
        project: where the run belongs.
        options: of ``trackio.init``, such as ``name``, ``config``, ``group`` and
            ``space_id``. A process that resumes a killed one continues its run with
            ``name=...`` and ``resume="allow"``.

    Raises:
        ImportError: if trackio is missing (``pip install "fngrad[trackio]"``).
        TypeError: at a call, if a value is not a number; its name is given.
        ValueError: at a call, if an image is not one, see `fngrad.logging.media`, or
            if a config comes after the first record.
        Exception: at a call, whatever trackio raises.

    References:
        https://huggingface.co/docs/trackio
    """
    run = _Trackio(import_extra("trackio", "trackio"), project, options)
    return run.logger(f"trackio({project!r})")


class _Wandb(TrackedRun):
    def __init__(self, library: Any, project: str, options: dict[str, Any]):
        super().__init__()
        self._library, self._project, self._options = library, project, options

    def _begin(self, last: Any) -> Any:
        again = {} if last is None else {"id": last.id, "resume": "allow"}
        options = {"reinit": "create_new", **self._options, **again}
        run = self._library.init(project=self._project, **options)
        run.define_metric("*", step_metric="step")
        return run

    def _log(self, run: Any, step: int, values: Mapping[str, Any]) -> None:
        run.log({"step": step, **values})

    def _log_images(self, run: Any, step: int, images: dict[str, np.ndarray]) -> None:
        # Both libraries take gray pixels without the axis of channels.
        pixels = {k: x[..., 0] if x.shape[-1] == 1 else x for k, x in images.items()}
        self._log(run, step, {k: self._library.Image(x) for k, x in pixels.items()})

    def _log_histograms(
        self, run: Any, step: int, histograms: dict[str, Histogram]
    ) -> None:
        make, pairs = self._library.Histogram, histograms.items()
        made = {k: make(np_histogram=(x.counts, x.edges)) for k, x in pairs}
        self._log(run, step, made)

    def _configure(self, run: Any, config: Any) -> None:
        run.config.update(config, allow_val_change=True)

    def _finish(self, run: Any, status: Status) -> None:
        if status == "killed":
            run.mark_preempting()
        run.finish(exit_code=int(status != "finished"))


class _Trackio(_Wandb):
    def _begin(self, last: Any) -> Any:
        again = {}
        if last is not None:
            # Without trackio's own entries, which begin with an underscore.
            config = {k: x for k, x in last.config.items() if not k.startswith("_")}
            again = {"name": last.name, "resume": "must", "config": config}
        return self._library.init(project=self._project, **{**self._options, **again})

    def _log(self, run: Any, step: int, values: Mapping[str, Any]) -> None:
        run.log(dict(values), step=step)

    def _configure(self, run: Any, config: Any) -> None:
        run.config.update(config)

    def _finish(self, run: Any, status: Status) -> None:
        run.finish()
