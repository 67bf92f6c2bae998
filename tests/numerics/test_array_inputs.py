"""Arrays of other libraries and byte orders are read by value or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg


class Nullable:
    """A dtype that NumPy does not have, like pandas' Int64."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name


class Column:
    """A column like those of pandas: not a NumPy array, but NumPy can read it."""

    def __init__(self, values, dtype, missing=()):
        self._values = values
        self.dtype = dtype
        self.shape = np.shape(values)
        self._missing = missing

    def __array__(self, dtype=None, copy=None):
        return np.array(self._values, dtype)

    def __len__(self):
        return len(self._values)

    def isna(self):
        return np.isin(np.arange(len(self)), self._missing)


class Categories(Column):
    cat = "accessor"


def column(*values, dtype=None):
    values = np.array(values, dtype)
    return Column(values, values.dtype)


def batch_of(x):
    return fg.data.from_arrays({"x": x}, "all").batch(0)["x"]


def mean_of(x):
    return fg.evaluate(lambda w, b: {"m": w * b["x"]}, jnp.ones(()), {"x": x})["m"]


TAKEN = {
    "int64": column(1, 2, 4, dtype=np.int64),
    "float64": column(1.0, 2.0, 4.0),
    "Int64": Column(np.array([1, 2, 4]), Nullable("Int64")),
    "big-endian floats": np.array([1, 2, 4], ">f4"),
    "big-endian doubles": np.array([1, 2, 4], ">f8"),
    "big-endian integers": np.array([1, 2, 4], ">i8"),
    "big-endian column": column(1, 2, 4, dtype=">i2"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_column_of_numbers_is_read_by_value(kind):
    batch = batch_of(TAKEN[kind])
    np.testing.assert_array_equal(batch, [1, 2, 4])
    assert batch.dtype in (jnp.int16, jnp.int32, jnp.float32)
    assert fg.sweeps.grid(x=TAKEN[kind])["x"].tolist() == [1, 2, 4]


@pytest.mark.parametrize("kind", ["float64", "big-endian floats"])
def test_a_column_of_numbers_is_evaluated(kind):
    np.testing.assert_allclose(mean_of(TAKEN[kind]), 7 / 3, rtol=1e-6)


REFUSED = {
    "nullable": (
        Column(np.array([1.0, np.nan]), Nullable("Int64"), missing=(1,)),
        r"Int64 at 'x' with missing entries: \.fillna\(value\).*to_numpy\(",
    ),
    "nullable bools": (
        Column(np.array([True, None]), Nullable("boolean"), missing=(1,)),
        "boolean at 'x' with missing entries",
    ),
    "nullable objects": (
        Column(np.array([1, 2], object), Nullable("Int64")),
        r"Int64 at 'x': \.astype\(np\.float32\) converts it to floats",
    ),
    "categories": (
        Categories(np.array(["a", "b"], object), Nullable("category")),
        r"category at 'x': \.cat\.codes numbers the categories",
    ),
    "objects": (
        column("a", 1, dtype=object),
        r"object at 'x': np\.unique\(x, return_inverse=True\)\[1\] numbers",
    ),
    "numbers as objects": (
        column(1, 2.5, None, dtype=object),
        r"object at 'x': \.astype\(np\.float32\) converts it to floats",
    ),
    "table": (
        np.array([[1, "a"]], object),
        "object at 'x': pass a dict of its columns",
    ),
    "bytes": (np.array([b"a", b"b"]), r"\|S1 at 'x': np\.unique"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), r"datetime64\[D\] at 'x': \(x - orig"),
    "durations": (np.array([1, 2], "m8[s]"), r"timedelta64\[s\] at 'x': \(x - origin"),
    "records": (np.zeros(2, [("a", "f4")]), "at 'x'"),
    "keys": (jax.random.split(jax.random.key(0), 2), "key<fry> at 'x'"),
}


@pytest.mark.parametrize("door", [batch_of, mean_of])
@pytest.mark.parametrize("kind", REFUSED)
def test_values_that_are_not_numbers_are_refused_with_a_remedy(kind, door):
    values, message = REFUSED[kind]
    with pytest.raises(TypeError, match=f"need numbers or bools, got .*{message}"):
        door(values)


@pytest.mark.parametrize("door", [batch_of, mean_of])
def test_integers_that_would_wrap_are_refused_in_a_column_too(door):
    message = "need integers that fit in int32, got values from 0 to 4294967301 at 'x'"
    for values in (column(0, 2**32 + 5), np.array([0, 2**32 + 5])):
        with pytest.raises(ValueError, match=message):
            door(values)
