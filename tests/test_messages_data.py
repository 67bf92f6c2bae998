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


def examples():
    rows = [{name: x[i] for name, x in ARRAYS.items()} for i in range(8)]
    return grain.MapDataset.source(rows)


FOREIGN = {
    "map": lambda: examples().batch(4),
    "theirs": Theirs,
}


@both
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_dataset_of_another_library_is_refused(kind, train):
    ways_out = r"data=theirs\.batch.*data=iter\(theirs\).*from_source"
    message = rf"need a dataset of fngrad\.data.*{ways_out}"
    with pytest.raises(TypeError, match=message):
        train(data=FOREIGN[kind]())
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


def test_a_dataset_that_can_only_be_iterated_over_is_an_iterable():
    stream = examples().to_iter_dataset().batch(4)
    plain = fit(data=fg.data.from_arrays(ARRAYS, 4, shuffle=False)).state.params
    np.testing.assert_array_equal(fit(data=stream).state.params, plain)
    with pytest.raises(TypeError, match=r"where fngrad\.fit takes them"):
        run(data=stream)


def test_parts_of_a_data_set_are_passed_one_by_one():
    splits = fg.data.Splits(ARRAYS, ARRAYS, ARRAYS)
    with pytest.raises(TypeError, match=r"from_arrays\(splits\.train, batch_size\)"):
        fg.fit(STEP, STATE, splits, num_steps=1)
    with pytest.raises(TypeError, match=r"got Splits: pass splits\.validation"):
        fg.evaluate(metric_fn, STATE, splits)
