"""Event files of TensorBoard."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fngrad.files.json_values import to_json
from fngrad.logging.histograms import histogram_of
from fngrad.logging.media import MediaLogger, NonfiniteCounts, as_image
from fngrad.logging.writers import floats_of, in_utf8
from fngrad.programs.optional_imports import import_extra


def tensorboard(folder: str | Path) -> MediaLogger:
    """Log to TensorBoard event files, without TensorFlow: one curve per name.

    Each logger writes a file of its own. ``cut(step)`` makes TensorBoard hide the
    records of later steps in earlier files. The config is shown as text.

    Args:
        folder: the one for ``tensorboard --logdir``; it is made.

    Raises:
        ImportError: if tensorboardX is missing
            (``pip install "fngrad[tensorboard]"``), or pillow for images.
        OSError: if the folder cannot be made.
        TypeError: at a call, if a value is not a number; its name is given.
        ValueError: at a call, if an image is not one, see `fngrad.logging.media`.
    """
    make_writer = import_extra("tensorboardX", "tensorboard").SummaryWriter
    where = os.path.realpath(folder)
    Path(where).mkdir(parents=True, exist_ok=True)
    events = _Events(make_writer, where)
    return MediaLogger(
        events.write,
        events.close,
        events.cut,
        f"tensorboard({str(folder)!r})",
        images=events.images,
        histograms=events.histograms,
        configure=events.configure,
        fail=events.close,
        kill=events.close,
    )


class _Events:
    def __init__(self, make_writer: Callable[..., Any], folder: str):
        self._make_writer, self._folder = make_writer, folder
        self._writer: Any = None  # opened by the first record
        self._nonfinite = NonfiniteCounts()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in floats_of(step, values).items():
            self._opened().add_scalar(in_utf8(name), value, step)

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def cut(self, step: int) -> None:
        self.close()
        self._open(purge_step=step + 1)

    def images(self, step: int, images: Mapping[str, Any]) -> None:
        for name, image in images.items():
            pixels = as_image(name, image)
            self._opened().add_image(in_utf8(name), pixels, step, dataformats="HWC")

    def histograms(self, step: int, histograms: Mapping[str, Any]) -> None:
        found = {name: histogram_of(name, x) for name, x in histograms.items()}
        for name, x in found.items():
            size = int(x.counts.sum())
            limits, counts = x.edges[1:].tolist(), x.counts.tolist()
            if x.low == x.high:  # TensorBoard widens what has one value itself
                limits, counts = [x.high], [size]
            self._opened().add_histogram_raw(
                in_utf8(name),
                min=x.low,
                max=x.high,
                num=size,
                sum=x.mean * size,
                sum_squares=x.rms * x.rms * size,
                bucket_limits=limits,
                bucket_counts=counts,
                global_step=step,
            )
        self.write(step, self._nonfinite.of(found))

    def configure(self, config: Any) -> None:
        text = json.dumps(to_json(config, "config"), indent=2)
        indented = "\n".join(f"    {line}" for line in text.splitlines())  # as code
        self._opened().add_text("config", indented, 0)

    def _opened(self) -> Any:
        if self._writer is None:
            self._open()
        return self._writer

    def _open(self, purge_step: int | None = None) -> None:
        # Without a suffix two files of the same second would have the same name, and
        # the second would replace the first.
        suffix = f".{time.time_ns()}.{os.getpid()}"
        self._writer = self._make_writer(
            self._folder, purge_step=purge_step, filename_suffix=suffix
        )
