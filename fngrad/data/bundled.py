"""Real data sets that come with scikit-learn, in fixed splits.

Each is divided 70 : 15 : 15 by `fngrad.data.split` with seed 0, classes in equal
proportion in all parts. Scaling uses only the training part.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from fngrad.data.splitting import Splits, split, standardize
from fngrad.programs.optional_imports import import_extra

FRACTIONS = (0.7, 0.15, 0.15)
SEED = 0

_FILES = {  # name, delimiter and number of header lines; the target is the last column
    "digits": [("digits.csv.gz", ",", 0)],
    "breast_cancer": [("breast_cancer.csv", ",", 1)],
    "diabetes": [
        ("diabetes_data_raw.csv.gz", None, 0),
        ("diabetes_target.csv.gz", None, 0),
    ],
}


def digits(*, standardized: bool = True, images: bool = False) -> Splits:
    """Return 1797 handwritten digits, 8 x 8 pixels, 10 classes.

    As ``Splits(train, validation, test)``; each part a dict ``{"x": ..., "y": ...}``.

    Args:
        standardized: whether to shift and scale all pixels alike, to mean 0 and
            deviation 1; raw pixels count from 0 to 16.
        images: whether ``x`` has shape (n, 8, 8, 1) or (n, 64).

    Returns:
        ``x`` float32, ``y`` int32, shape (n,): 1258, 269 and 270 examples.

    Raises:
        ImportError: if scikit-learn is not installed.

    References:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", 1998,
        https://doi.org/10.24432/C50P49 (its test set).
    """
    x, y = _load("digits")
    parts = _parts(x.reshape(-1, 8, 8, 1) if images else x, y.astype(np.int32), y)
    return standardize(parts, "x", axis=None) if standardized else parts


def breast_cancer(*, standardized: bool = True) -> Splits:
    """Return 569 tumours, 30 measurements of cell nuclei, 2 classes.

    As ``Splits(train, validation, test)``; each part a dict ``{"x": ..., "y": ...}``.

    Args:
        standardized: whether each measurement has mean 0 and deviation 1 in the
            training part.

    Returns:
        ``x`` float32, shape (n, 30); ``y`` int32, shape (n,), 0 malignant and
        1 benign: 398, 86 and 85 examples.

    Raises:
        ImportError: if scikit-learn is not installed.

    References:
        W. Wolberg et al., "Breast Cancer Wisconsin (Diagnostic)", 1995,
        https://doi.org/10.24432/C5DW2B.
    """
    x, y = _load("breast_cancer")
    parts = _parts(x, y.astype(np.int32), y)
    return standardize(parts, "x") if standardized else parts


def diabetes(*, standardized: bool = True) -> Splits:
    """Return 442 patients, 10 measurements, and the disease's progress in a year.

    As ``Splits(train, validation, test)``; each part a dict ``{"x": ..., "y": ...}``.

    Args:
        standardized: whether each measurement, and the target, has mean 0 and
            deviation 1 in the training part. The target counts from 25 to 346 raw.

    Returns:
        ``x`` float32, shape (n, 10); ``y`` float32, shape (n,): 309, 67 and 66
        examples.

    Raises:
        ImportError: if scikit-learn is not installed.

    References:
        B. Efron et al., "Least angle regression", 2004,
        https://doi.org/10.1214/009053604000000067.
    """
    # scikit-learn's own scaling uses all 442 patients, the test part too.
    x, y = _load("diabetes", scaled=False)
    parts = _parts(x, y.astype(np.float32), None)
    return standardize(parts, "x", "y") if standardized else parts


def _load(name: str, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the features and the targets of a data set.

    They are read from scikit-learn's files; importing it takes longer than that, mostly
    for scipy. Where the files are elsewhere, scikit-learn reads them itself.
    """
    try:
        folder = _folder()
        table, *target = (
            np.loadtxt(folder / file, delimiter=delimiter, skiprows=skipped)
            for file, delimiter, skipped in _FILES[name]
        )
    except FileNotFoundError:
        datasets = import_extra("sklearn.datasets", "data", "scikit-learn")
        return getattr(datasets, f"load_{name}")(return_X_y=True, **options)
    return (table, target[0]) if target else (table[:, :-1], table[:, -1])


def _folder() -> Path:
    """Return where scikit-learn keeps its files, without importing it."""
    try:
        found = importlib.util.find_spec("sklearn")
    except ValueError:  # an imported module without a spec
        found = None
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("sklearn")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"


def _parts(x: np.ndarray, y: np.ndarray, stratify: np.ndarray | None) -> Splits:
    arrays = {"x": x.astype(np.float32), "y": y}
    return Splits(*split(arrays, FRACTIONS, SEED, stratify=stratify))
