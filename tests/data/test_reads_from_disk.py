"""What reads arrays on disk as a whole warns of each, once and in the same words."""

import warnings

import jax
import numpy as np
import pytest
from scalar_regression import ARRAYS, DATA, STATE, STEP, fit, metric_fn

import fngrad as fg
import fngrad.data as data


class Stored:
    """An array as a dataset of h5py: its values are read when they are asked for."""

    file = "a.h5"

    def __init__(self, values):
        self._values = values
        self.shape, self.dtype = values.shape, values.dtype
        self.nbytes = values.nbytes
        self.whole_reads = 0

    def __len__(self):
        return len(self._values)

    def __getitem__(self, rows):
        return self._values[rows]

    def __array__(self, dtype=None, copy=None):
        self.whole_reads += 1
        return np.array(self._values, dtype)


def mapped(folder):
    for name, x in ARRAYS.items():
        np.save(folder / f"{name}.npy", x)
    return {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in ARRAYS}


def stored(folder):
    return {name: Stored(x) for name, x in ARRAYS.items()}


ON_DISK = {"memory map": mapped, "Stored on disk": stored}
both_kinds = pytest.mark.parametrize("kind", ON_DISK)


def standardized(arrays, folder):
    return data.standardize(data.Splits(arrays, ARRAYS, ARRAYS), "x", "y")


def evaluated_run(arrays, folder):
    jax.clear_caches()  # which may know the program of other arrays
    return fg.run(STEP, STATE, DATA, 2, metric_fn=metric_fn, eval_data=arrays)


READS = {
    "from_arrays": lambda arrays, folder: data.from_arrays(arrays, 4),
    "split": lambda arrays, folder: data.split(arrays, (0.5, 0.5), 0),
    "standardize": standardized,
    "evaluate": lambda arrays, folder: fg.evaluate(metric_fn, STATE, arrays),
    "eval_data of run": evaluated_run,
    "eval_data of fit": lambda arrays, folder: fit(
        metric_fn=metric_fn,
        eval_data=arrays,
        eval_every=1,
        checkpoint_dir=folder / "run",
        resume="overwrite",
    ),
}


def warned(read, *arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = read(*arguments)
    return result, [str(w.message) for w in caught]


@both_kinds
@pytest.mark.parametrize("name", READS)
def test_arrays_on_disk_are_not_read_whole_without_a_warning(name, kind, tmp_path):
    arrays = ON_DISK[kind](tmp_path)
    result, messages = warned(READS[name], arrays, tmp_path)
    prefix = "train/" if name == "standardize" else ""
    assert messages == [
        f"the {kind} at '{prefix}{leaf}', 32 bytes, is copied into memory as a whole; "
        "fngrad.data.from_source reads it batch by batch, and np.asarray of it is "
        "copied without this warning"
        for leaf in ARRAYS
    ]
    if kind == "Stored on disk":
        assert [x.whole_reads for x in arrays.values()] == [1, 1]
    expected, silent = warned(READS[name], ARRAYS, tmp_path)
    assert silent == []
    equal = np.testing.assert_array_equal
    if name in ("split", "standardize", "evaluate"):
        jax.tree.map(equal, result, expected)


@both_kinds
@pytest.mark.filterwarnings("error")
def test_arrays_on_disk_that_are_read_in_batches_need_no_warning(kind, tmp_path):
    arrays = ON_DISK[kind](tmp_path)
    source = data.from_source(arrays, 8, 4)
    result = fit(data=source, metric_fn=metric_fn, eval_data=source, eval_every=1)
    fg.evaluate(metric_fn, result.state, source)
    data.split(jax.tree.map(np.asarray, arrays), (0.5, 0.5), 0)
    if kind == "memory map":  # NumPy keeps the class
        data.split(jax.tree.map(np.copy, arrays), (0.5, 0.5), 0)
        data.split(jax.tree.map(lambda x: x.astype("f"), arrays), (0.5, 0.5), 0)
