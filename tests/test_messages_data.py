"""Datasets of other libraries and data that can be read only once are refused."""

import grain
import numpy as np
import pytest
from scalar_regression import ARRAYS, DATA, STATE, STEP, both, fit, metric_fn, run

import fngrad as fg

UNREAD = {
    "generator": lambda: (ARRAYS for _ in range(2)),
    "function": lambda: lambda step: ARRAYS,
    "grain": lambda: grain.MapDataset.source([1.0, 2.0]).batch(2),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_data_without_random_access_are_not_evaluated(kind):
    message = r"need arrays of examples or a dataset .*np\.concatenate\(x\)"
    calls = (
        lambda data: fit(metric_fn=metric_fn, eval_data=data, eval_every=1),
        lambda data: run(metric_fn=metric_fn, eval_data=data),
        lambda data: fg.evaluate(metric_fn, STATE, data),
    )
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call(UNREAD[kind]())


def test_batches_in_a_list_are_not_examples():
    with pytest.raises(TypeError, match="the batch, a list of 2"):
        fg.evaluate(metric_fn, STATE, [ARRAYS, ARRAYS])


class Theirs:
    """A dataset of another library that gives a step's batch."""

    def batch(self, step):
        return DATA.batch(step)


class Columns:
    """A dataset as of Hugging Face: rows of lists, or of arrays in a format."""

    def __init__(self, kind=list):
        self._kind = kind

    def __len__(self):
        return 8

    def __getitem__(self, rows):
        return {n: self._row(x[rows]) for n, x in ARRAYS.items()}

    def _row(self, x):
        values = np.stack([x, x], axis=-1)
        return values if self._kind is np.asarray else values.tolist()

    def __iter__(self):
        return (self[i] for i in range(8))

    def batch(self, batch_size=None, drop_last_batch=False):
        return self

    def iter(self, batch_size, drop_last_batch=False):
        starts = range(0, 8, batch_size)
        return (self[i : i + batch_size] for i in starts)

    def with_format(self, kind):
        assert kind == "numpy"
        return Columns(np.asarray)


def examples():
    rows = [{name: x[i] for name, x in ARRAYS.items()} for i in range(8)]
    return grain.MapDataset.source(rows)


SOURCE = r"from_source\(theirs, len\(theirs\), batch_size\)"
FORMAT = r"theirs\.with_format\(\"numpy\"\)"
FOREIGN = {
    "map": (
        lambda: examples().batch(4),
        rf"where theirs\[i\] is an example, fngrad\.data\.{SOURCE} makes batches; "
        r"where theirs\[i\] is a batch, as of theirs\.batch\(batch_size\), fit takes "
        r"an iterable of batches, data=iter\(theirs\)$",
    ),
    "columns": (
        Columns,
        rf"where theirs\[i\] is an example, fngrad\.data\.from_source\({FORMAT}, len\("
        r"theirs\), batch_size\) makes batches; fit also takes an iterable of batches, "
        rf"data={FORMAT}\.iter\(batch_size\)$",
    ),
    "theirs": (
        Theirs,
        r"where theirs\.batch\(step\) is a batch, pass data=theirs\.batch$",
    ),
}


@both
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_dataset_of_another_library_is_refused(kind, train):
    make, ways_out = FOREIGN[kind]
    message = rf"need a dataset of fngrad\.data.*: {ways_out}"
    with pytest.raises(TypeError, match=message):
        train(data=make())
    if kind == "theirs":
        with pytest.raises(TypeError, match=message):
            fg.autopsy(STEP, STATE, Theirs())


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_the_remedies_of_the_message_train():
    expected = fit().state.params
    np.testing.assert_array_equal(fit(data=Theirs().batch).state.params, expected)
    np.testing.assert_array_equal(run(data=Theirs().batch)[0].params, expected)
    plain = fit(data=fg.data.from_arrays(ARRAYS, 4, shuffle=False)).state.params
    theirs = fit(data=iter(examples().batch(4))).state.params
    np.testing.assert_array_equal(theirs, plain)
    read = fg.data.from_source(examples(), 8, 4, shuffle=False)
    np.testing.assert_array_equal(fit(data=read).state.params, plain)


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_the_remedies_for_columns_train():
    whole, columns = Columns(np.asarray)[:], Columns().with_format("numpy")
    plain = fit(data=fg.data.from_arrays(whole, 4, shuffle=False)).state.params
    np.testing.assert_array_equal(fit(data=columns.iter(4)).state.params, plain)
    read = fg.data.from_source(columns, 8, 4, shuffle=False)
    np.testing.assert_array_equal(fit(data=read).state.params, plain)


READERS = {
    "rows": (Columns(), r"read\[i\]"),
    "a function": (lambda indices: Columns()[indices], "read"),
    "ragged": ([{"x": [1.0] * (i + 1)} for i in range(8)], r"read\[i\]"),
}


@pytest.mark.parametrize("kind", READERS)
def test_lists_of_numbers_are_not_read_as_many_arrays(kind):
    read, what = READERS[kind]
    message = rf"need arrays from {what}, got a list at 'x': .*{FORMAT}"
    with pytest.raises(TypeError, match=message):
        fit(data=fg.data.from_source(read, 8, 4))


def test_an_empty_list_is_no_list_of_numbers():
    source = fg.data.from_source([{"x": np.ones(2, "f"), "other": []}] * 8, 8, 2)
    assert source.batch(0)["other"] == []


def test_lists_of_arrays_are_read():
    pairs = [[np.float32(i), np.full(2, i)] for i in range(8)]
    nested = [{"pair": pair} for pair in pairs]
    for read, inside in ((pairs, lambda b: b), (nested, lambda b: b["pair"])):
        batch = inside(fg.data.from_source(read, 8, 4, shuffle=False).batch(1))
        np.testing.assert_array_equal(batch[0], [4, 5, 6, 7])
        assert batch[1].shape == (4, 2)


@pytest.mark.parametrize("make", [Columns, examples])
def test_a_dataset_of_another_library_that_is_evaluated_is_told_how(make):
    with pytest.raises(TypeError, match=r"where theirs\[i\] is an example, .*source\("):
        fg.evaluate(metric_fn, STATE, make())
    formatted = make().with_format("numpy") if make is Columns else make()
    source = fg.data.from_source(formatted, 8, 4)
    assert "loss" in fg.evaluate(metric_fn, STATE, source)
    with pytest.raises(
        TypeError, match=r"inside a program, got Source\(.*evaluate read"
    ):
        run(metric_fn=metric_fn, eval_data=source)


def test_a_dataset_that_can_only_be_iterated_over_is_an_iterable():
    stream = examples().to_iter_dataset().batch(4)
    plain = fit(data=fg.data.from_arrays(ARRAYS, 4, shuffle=False)).state.params
    np.testing.assert_array_equal(fit(data=stream).state.params, plain)
    with pytest.raises(TypeError, match=r"where fngrad\.fit takes them"):
        run(data=stream)


class Stream:
    """A dataset as torch's and Hugging Face's iterable ones, whose [] only raises."""

    def __getitem__(self, i):
        raise NotImplementedError

    def __iter__(self):
        return iter([DATA.batch(0), DATA.batch(1)])

    def batch(self, batch_size):
        return self


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_an_iterable_dataset_that_only_names_an_index_is_an_iterable():
    streamed = fit(data=Stream()).state.params
    np.testing.assert_array_equal(streamed, fit().state.params)


def test_parts_of_a_data_set_are_passed_one_by_one():
    splits = fg.data.Splits(ARRAYS, ARRAYS, ARRAYS)
    with pytest.raises(TypeError, match=r"from_arrays\(splits\.train, batch_size\)"):
        fg.fit(STEP, STATE, splits, num_steps=1)
    with pytest.raises(TypeError, match=r"got Splits: pass splits\.validation"):
        fg.evaluate(metric_fn, STATE, splits)
