"""Sources: the batches of arrays in memory, from disk, ahead of the steps."""

import itertools
import threading
from collections import UserDict

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.data as data
import fngrad.data.order_ahead as order_ahead
from fngrad.data.sources import Source
from fngrad.numerics.precision import double_precision

N = 11
ARRAYS = {
    "x": np.arange(N * 3, dtype=np.float64).reshape(N, 3),
    "y": np.arange(N, dtype=np.int64),
}


class Ascending:
    """Rows as HDF5 gives them: only at indices that ascend, each once."""

    def __init__(self, rows):
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype

    def __getitem__(self, indices):
        assert np.all(np.diff(indices) > 0)
        return self.rows[indices]


class Sequence:
    """One example at a time, as grain and torch give them."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        assert type(i) is int
        return {name: rows[i] for name, rows in ARRAYS.items()}


class Table(Sequence):
    """Examples with a shape that is not an array's, as Hugging Face's datasets have."""

    shape = (N, 2)


class Column:
    """A column whose ``[i]`` is the row named i, as pandas has them."""

    def __init__(self, rows):
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype
        self.iloc = self

    def __getitem__(self, names):
        raise AssertionError("rows are asked for by name")

    def __array__(self, dtype=None, copy=None):
        return self.rows


def on_disk(folder):
    for name, rows in ARRAYS.items():
        np.save(folder / name, rows)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}


READERS = {
    "a function": lambda _: lambda i: {name: x[i] for name, x in ARRAYS.items()},
    "a memory map": on_disk,
    "ascending rows": lambda _: {name: Ascending(x) for name, x in ARRAYS.items()},
    "a sequence": lambda _: Sequence(),
    "a list": lambda _: [Sequence()[i] for i in range(N)],
    "a table": lambda _: Table(),
    "columns": lambda _: {name: Column(x) for name, x in ARRAYS.items()},
    "grain": lambda _: grain.MapDataset.source(Sequence()).map(dict),
}


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for mine, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", list(READERS))
@pytest.mark.parametrize("remainder", ["wrap", "drop"])
def test_batches_are_those_of_arrays_in_memory(tmp_path, kind, remainder):
    options = {"seed": 5, "remainder": remainder}
    source = data.from_source(READERS[kind](tmp_path), N, 4, **options)
    dataset = data.from_arrays(ARRAYS, 4, **options)
    assert source.steps(3) == dataset.steps(3)
    assert source.steps_per_epoch == dataset.steps_per_epoch
    for step, batch in zip(range(7), source.batches(), strict=False):
        same(batch, dataset.batch(step))


def test_the_order_without_shuffling_and_the_whole_at_once():
    read = READERS["a function"](None)
    same(
        data.from_source(read, N, 4, shuffle=False).batch(2),
        data.from_arrays(ARRAYS, 4, shuffle=False).batch(2),
    )
    whole = data.from_source(read, N, "all").batch(3)
    same(whole, jax.tree.map(jnp.asarray, ARRAYS))


def test_maps_and_seeds_are_those_of_arrays_in_memory():
    def noisy(batch, key):
        noise = jax.random.normal(key, batch["x"].shape)
        return {**batch, "x": batch["x"] + noise}

    def both(made):
        return made.map(noisy).reseed(8).batch(2)

    source = data.from_source(READERS["a function"](None), N, 4)
    same(both(source), both(data.from_arrays(ARRAYS, 4)))


def test_a_batch_holds_an_example_twice_where_epochs_meet():
    source = data.from_source({"x": Ascending(ARRAYS["x"])}, N, 10, seed=3)
    indices = source.indices(1)
    assert len(set(indices.tolist())) < 10
    np.testing.assert_array_equal(source.batch(1)["x"], ARRAYS["x"][indices])


class Recorder:
    """Counts what is read, and can be made to fail."""

    def __init__(self, fails_at=0):
        self.reads = 0
        self.lock = threading.Lock()
        self.fails_at = fails_at

    def __call__(self, indices):
        with self.lock:
            self.reads += 1
            if self.reads == self.fails_at:
                raise OSError("the disk is gone")
        return {"i": indices}


def readers_alive():
    return [t for t in threading.enumerate() if t.name.startswith("fngrad-read")]


def test_batches_are_read_ahead_but_not_too_far():
    recorder = Recorder()
    batches = data.from_source(recorder, N, 2, prefetch=3, threads=1).batches()
    next(batches)
    batches.close()  # waits for what was begun
    assert 1 <= recorder.reads <= 3
    assert not readers_alive()


def test_threads_read_at_the_same_time():
    both = threading.Barrier(2)

    def read(indices):
        both.wait(60)  # passes only if a second thread comes
        return {"i": indices}

    batches = data.from_source(read, N, 2, prefetch=2, threads=2).batches()
    next(batches)
    batches.close()


def test_without_prefetch_nothing_is_read_before_it_is_asked_for():
    recorder = Recorder()
    batches = data.from_source(recorder, N, 2, prefetch=0).batches()
    assert recorder.reads == 0
    next(batches)
    assert recorder.reads == 1
    assert not readers_alive()


def test_an_error_in_a_thread_names_its_batch():
    recorder = Recorder(fails_at=3)
    batches = data.from_source(recorder, N, 2, prefetch=2, threads=1).batches(5)
    next(batches)
    next(batches)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        next(batches)
    assert caught.value.__notes__ == [
        "reading batch 7 of Source(Recorder, 11 examples, batch_size=2, "
        "shuffle=True, remainder='wrap')"
    ]
    assert not readers_alive()


def gone(indices):
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("reads", "what"),
    [
        (lambda source: source.batch(2), "batch 2"),
        (lambda source: source.fingerprint(), "three examples"),
        (lambda source: source.part(3, 4), "examples 3 to 6"),
    ],
)
def test_an_error_says_what_was_read(reads, what):
    with pytest.raises(OSError, match="the disk is gone") as caught:
        reads(data.from_source(gone, N, 4))
    (note,) = caught.value.__notes__
    assert note.startswith(f"reading {what} of Source(gone, 11 examples, ")


@pytest.mark.parametrize("step", [1.5, "1", True, None])
def test_a_step_is_an_integer_as_for_arrays_in_memory(step):
    read = READERS["a function"](None)
    for made in (data.from_arrays(ARRAYS, 4), data.from_source(read, N, 4)):
        with pytest.raises(TypeError, match="need an integer scalar as step"):
            made.batch(step)


@pytest.mark.parametrize("start", [-1, 1.5, True])
def test_batches_begin_at_a_step(start):
    source = data.from_source(READERS["a function"](None), N, 4)
    with pytest.raises(ValueError, match="need an int start >= 0"):
        source.batches(start)


def test_threads_read_under_the_settings_of_the_one_that_asks():
    def mixed(batch):
        return {"x": batch["x"] + batch["y"][:, None]}

    source = data.from_source(READERS["a function"](None), N, 4)
    with jax.default_device(jax.devices()[-1]):
        assert next(source.batches())["x"].devices() == {jax.devices()[-1]}
    with double_precision():
        assert next(source.batches())["x"].dtype == np.float64
    with pytest.raises(ValueError, match="implicit dtype promotion"):
        next(source.map(mixed).batches())  # strict, as in all tests
    with jax.numpy_dtype_promotion("standard"):
        next(source.map(mixed).batches())


def test_a_buffer_that_the_reader_fills_again_is_copied():
    buffer = np.zeros((2, 1), np.float32)

    def read(indices):
        buffer[:] = indices[:, None]
        return buffer

    source = data.from_source(read, N, 2, shuffle=False)
    first = source.batch(0)
    source.batch(1)
    np.testing.assert_array_equal(first[:, 0], [0, 1])


def fingerprint(read=None, size=N, batch_size=4, **options):
    read = READERS["a function"](None) if read is None else read
    return data.from_source(read, size, batch_size, **options).fingerprint()


def changed(i):
    rows = ARRAYS["x"].copy()
    rows[i] += 1
    return {**ARRAYS, "x": rows}


def test_a_fingerprint_tells_examples_and_orders_apart():
    known = fingerprint()
    assert known == fingerprint(prefetch=0, threads=1)
    others = {
        fingerprint(seed=1),
        fingerprint(batch_size=5),
        fingerprint(shuffle=False),
        fingerprint(remainder="drop"),
        fingerprint(fingerprint="version 2"),
        *(fingerprint(changed(i)) for i in (0, N // 2, N - 1)),
    }
    assert len(others) == 8
    assert known not in others


def test_a_fingerprint_of_ones_own_reads_nothing():
    recorder = Recorder()
    data.from_source(recorder, N, 2, fingerprint="version 2").fingerprint()
    assert recorder.reads == 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: data.from_source(3, N, 2), TypeError, "need a function of indices"),
        (
            lambda: data.from_source(UserDict(ARRAYS), N, 2),
            TypeError,
            "need a dict of arrays, got UserDict",
        ),
        (
            lambda: data.from_source(iter([ARRAYS]), N, 2),
            TypeError,
            "fit takes an iterable of batches as it is",
        ),
        (lambda: data.from_source(ARRAYS, N + 1, 2), ValueError, "need size=11"),
        (lambda: data.from_source(Sequence(), 5, 2), ValueError, "need size=11"),
        (lambda: data.from_source({"x": [1, 2]}, 2, 2), TypeError, "got int at 'x/0'"),
        (lambda: data.from_source(ARRAYS, N, 12), ValueError, "batch_size=12"),
        (lambda: data.from_source(ARRAYS, N, 2, prefetch=-1), ValueError, "prefetch"),
        (lambda: data.from_source(ARRAYS, N, 2, threads=0), ValueError, "threads"),
        (lambda: data.from_source(ARRAYS, 0, 2), ValueError, "size >= 1"),
        (
            lambda: data.from_source(ARRAYS, N, 2, fingerprint=3),  # type: ignore[arg-type]
            TypeError,
            "need a string as fingerprint",
        ),
        (
            lambda: data.from_source(lambda i: i[:1], N, 2).batch(0),
            ValueError,
            r"need 2 examples from read, .*got shape \(1,\)",
        ),
        (
            lambda: data.from_source(lambda i: i.astype(str), N, 2).batch(0),
            TypeError,
            "need numbers or bools",
        ),
        (
            lambda: data.from_source(lambda i: None, N, 2).batch(0),
            ValueError,
            "need at least one array from read",
        ),
        (
            lambda: data.from_source(lambda: None, N, 2),
            TypeError,
            "need a function of indices, .*got <lambda>",
        ),
        (
            lambda: data.from_source(
                {"x": np.ma.masked_equal(ARRAYS["y"], 3)}, N, N
            ).batch(0),
            ValueError,
            "masked",
        ),
        (
            lambda: data.from_source(
                list(np.ma.masked_equal(ARRAYS["x"], 3)), N, N
            ).batch(0),
            ValueError,
            "masked",
        ),
        (
            lambda: data.from_source(data.Splits(ARRAYS, ARRAYS, ARRAYS), N, 2),
            TypeError,
            "splits.train",
        ),
        (
            lambda: data.from_source(data.from_arrays(ARRAYS, 2), N, 2),
            TypeError,
            "got a Dataset, which has batches",
        ),
        (lambda: data.from_source(ARRAYS, N, 2).batch(-1), ValueError, "0 <= step"),
    ],
)
def test_bad_sources_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_million_examples_take_no_memory():
    source = data.from_source(lambda i: i, 10**9, 4)
    assert isinstance(source, Source)
    assert fg.tree.leaf_paths(source.order).keys() == {"key"}
    assert source.batch(10**6).shape == (4,)


def test_a_memory_map_is_not_copied_as_a_whole_without_a_warning(tmp_path):
    maps = on_disk(tmp_path)
    with pytest.warns(UserWarning, match=r"map at 'x', 264 bytes, .*from_source"):
        data.from_arrays({"x": maps["x"]}, 4)
    data.from_arrays({"x": np.asarray(maps["x"])}, 4)


def test_one_program_orders_many_steps_as_each_is_ordered(monkeypatch):
    calls, program = [], order_ahead._indices

    def counted(order, steps):
        calls.append(len(steps))
        return program(order, steps)

    monkeypatch.setattr(order_ahead, "_indices", counted)
    source = data.from_source(lambda indices: {"i": indices}, 13, 5, seed=3)
    got = [b["i"] for b in itertools.islice(source.batches(817), 2000)]
    assert len(calls) <= 4
    assert min(calls) > 800
    some = range(0, 2000, 97)
    expected = [source.indices(817 + t) for t in some]
    np.testing.assert_array_equal([got[t] for t in some], expected)
