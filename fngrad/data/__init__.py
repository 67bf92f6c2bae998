"""Data sets: arrays in memory, bundled ones, files, and how to split them."""

from fngrad.data.arrays import windows
from fngrad.data.bundled import breast_cancer, diabetes, digits
from fngrad.data.dataset import Dataset, from_arrays
from fngrad.data.files import csv_file, idx_file, idx_files
from fngrad.data.splitting import Splits, split, standardize

__all__ = [
    "Dataset",
    "Splits",
    "breast_cancer",
    "csv_file",
    "diabetes",
    "digits",
    "from_arrays",
    "idx_file",
    "idx_files",
    "split",
    "standardize",
    "windows",
]
