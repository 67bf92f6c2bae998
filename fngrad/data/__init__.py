"""Data sets: arrays in memory, bundled ones, files, and how to split them."""

from typing import TYPE_CHECKING

import fngrad.data.augmentations as augmentations
from fngrad.data.arrays import windows
from fngrad.data.bundled import breast_cancer, diabetes, digits
from fngrad.data.dataset import Dataset, from_arrays
from fngrad.data.files import csv_file, idx_file, idx_files
from fngrad.data.sources import Source, from_source
from fngrad.data.splitting import Splits, split, standardize

__all__ = [
    "Dataset",
    "Source",
    "Splits",
    "augmentations",
    "breast_cancer",
    "csv_file",
    "diabetes",
    "digits",
    "from_arrays",
    "from_source",
    "idx_file",
    "idx_files",
    "split",
    "standardize",
    "windows",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
