"""Loggers that take images and histograms too."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fngrad.logging.histograms import Histogram
from fngrad.logging.writers import FileLogger
from fngrad.programs.optional_imports import import_extra


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaLogger(FileLogger):
    """A logger of scalars, images, histograms and the config of a run.

    It is a context manager, which calls ``fail`` if an exception ends the block.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import fngrad as fg
        >>> with (
        ...     tempfile.TemporaryDirectory() as folder,
        ...     fg.logging.tensorboard(folder) as logger,
        ... ):
        ...     logger.configure({"rate": 0.1})
        ...     logger(10, {"loss": 0.5})
        ...     logger.images(10, {"sample": np.zeros((8, 8))})
        ...     logger.histograms(10, {"weights": np.ones(3)})
    """

    images: Callable[[int, Mapping[str, Any]], None]  # by name, see `as_image`
    histograms: Callable[[int, Mapping[str, Any]], None]  # or arrays, by name
    configure: Callable[[Any], None]
    fail: Callable[[], None]  # closes after an exception
    kill: Callable[[], None]  # closes after a signal that ends the process

    def __exit__(self, kind: Any, *error: Any) -> None:
        (self.close if kind is None else self.fail)()


def as_image(name: str, value: Any) -> np.ndarray:
    """Return the pixels of an image as uint8, shape (height, width, 1, 3 or 4).

    Args:
        name: of the image, for errors.
        value: of shape (height, width) or (height, width, channels) with 1, 3 or 4
            channels; uint8, or floats in [0, 1].

    Raises:
        ValueError: if it has another shape, or floats outside [0, 1].
        TypeError: if it has another dtype.
        ImportError: if pillow is missing (``pip install "fngrad[images]"``).
    """
    import_extra("PIL.Image", "images", "pillow")
    image = np.asarray(value)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or image.size == 0:
        raise ValueError(
            "need an image of shape (height, width) or (height, width, 1, 3 or 4), got "
            f"{np.shape(value)} at {name!r}"
        )
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind not in "fV":  # NumPy knows bfloat16 as V
        raise TypeError(f"need uint8 or floats at {name!r}, got {image.dtype}")
    image = image.astype(np.float64)
    if not np.all((image >= 0) & (image <= 1)):
        raise ValueError(
            f"need floats in [0, 1] for the image {name!r}, got {image.min():.4g} to "
            f"{image.max():.4g}"
        )
    return np.rint(255 * image).astype(np.uint8)


class NonfiniteCounts:
    """How many entries histograms leave out, by name.

    A name without any is left out, unless it had some before: a curve must return to 0.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def of(self, histograms: Mapping[str, Histogram]) -> dict[str, int]:
        """Return the counts of histograms, under ``<name>/nonfinite``."""
        self._seen |= {name for name, x in histograms.items() if x.nonfinite}
        return {
            f"{name}/nonfinite": found.nonfinite
            for name, found in histograms.items()
            if name in self._seen
        }
