"""Augmentation of images: maps of batches with keys, for `fngrad.data.Dataset.map`.

A map is a pure function ``(batch, key) -> batch`` that runs inside the program, so
batch t of a run is a function of (seed, t), and resuming is exact. Each image of a
batch has random numbers of its own. `serial` joins maps, `one_of` chooses among them:

    augment = serial(random_crop(padding=4), horizontal_flip(), cutout(8))
    data = fngrad.data.from_arrays({"x": images, "y": labels}, 128).map(augment)

``images`` and ``labels`` select the leaves of the batch, by default ``"x"`` and ``"y"``
(see `fngrad.tree.select`; ``"**"`` if the batch is the array itself). Several leaves
that are selected, such as an image and its mask, get the same random numbers. Images
have the shape ``(n, height, width)`` or ``(n, height, width, channels)`` and keep their
dtype. A probability, a magnitude or ``alpha`` may be data, also traced.

`rotate`, `shear`, `translate`, `affine`, `adjust_brightness` and its kin, `posterize`,
`solarize`, `autocontrast` and `equalize` are functions of one image; `per_image` makes
a map of such a function with random numbers, `random_affine` one of the first four.
"""

from typing import TYPE_CHECKING

from fngrad.data.augmentations.affine import affine, rotate, shear, translate
from fngrad.data.augmentations.color_jitter import color_jitter
from fngrad.data.augmentations.colors import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
)
from fngrad.data.augmentations.compositions import one_of, per_image, serial
from fngrad.data.augmentations.cutmix import cutmix
from fngrad.data.augmentations.cutout import cutout
from fngrad.data.augmentations.flips import horizontal_flip, vertical_flip
from fngrad.data.augmentations.mixed_labels import MixedLabels
from fngrad.data.augmentations.mixup import mixup
from fngrad.data.augmentations.rand_augment import (
    rand_augment,
    rand_augment_operations,
)
from fngrad.data.augmentations.random_affine import random_affine
from fngrad.data.augmentations.random_crop import random_crop
from fngrad.data.augmentations.random_erasing import random_erasing
from fngrad.data.augmentations.random_resized_crop import random_resized_crop
from fngrad.data.augmentations.tones import (
    adjust_sharpness,
    autocontrast,
    equalize,
    posterize,
    solarize,
)

__all__ = [
    "MixedLabels",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "adjust_sharpness",
    "affine",
    "autocontrast",
    "color_jitter",
    "cutmix",
    "cutout",
    "equalize",
    "horizontal_flip",
    "mixup",
    "one_of",
    "per_image",
    "posterize",
    "rand_augment",
    "rand_augment_operations",
    "random_affine",
    "random_crop",
    "random_erasing",
    "random_resized_crop",
    "rotate",
    "serial",
    "shear",
    "solarize",
    "translate",
    "vertical_flip",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    import fngrad.programs.keywords_elsewhere as _keywords
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
    _keywords.explain_package(globals(), {})
