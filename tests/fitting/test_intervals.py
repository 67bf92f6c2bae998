"""The steps at which a run is logged by default."""

import pytest
from linear_regression import ARRAYS, DATA, quiet_fit
from resuming import KilledError, kill_at

from fngrad.data.dataset import from_arrays
from fngrad.fitting.inputs import Feed
from fngrad.fitting.intervals import ENDLESS, Intervals


def log_every(num_steps, first=0, data=DATA):
    intervals = Intervals(num_steps, None, None, None, None)
    return intervals.stops(Feed(data), first).log_every


def logged(**options):
    steps = []
    quiet_fit(loggers=[lambda step, values: steps.append(step)], **options)
    return steps


@pytest.mark.parametrize("first", [0, 1, 990])
@pytest.mark.parametrize("count", [1, 7, 20, 39, 999, 1999, 2000, 12_345, 10**7])
def test_any_run_has_at_least_twenty_records(count, first):
    every = log_every(first + count, first)
    assert count // every >= min(20, count)


def test_long_runs_are_logged_as_before():
    for count in (2000, 5000, 10_000, 50_000, 10**6):
        assert log_every(count) == min(max(100, count // 100), 1000)


@pytest.mark.filterwarnings("ignore:batches from an iterable")
def test_a_run_of_unknown_length_is_logged_every_hundred_steps():
    intervals = Intervals(None, None, None, None, None)
    batches = (DATA.batch(i) for i in range(3))
    stops = intervals.stops(Feed(batches), 0)
    assert (stops.log_every, stops.last) == (100, ENDLESS)


@pytest.mark.parametrize("remainder", ["drop", "wrap"])
@pytest.mark.parametrize("every", ["epoch", 1, 4])
def test_evaluations_are_counted_as_a_run_makes_them(every, remainder):
    data = from_arrays(ARRAYS, batch_size=6, remainder=remainder)
    for first in range(12):
        for last in range(first, 24):
            stops = Intervals(last, None, None, every, None).stops(Feed(data), first)
            made = [
                now for now in range(first + 1, last + 1) if stops.evaluates_at(now)
            ]
            assert stops.evaluations() == len(made)
    stops = Intervals(ENDLESS - 1, None, None, every, None).stops(Feed(data), 0)
    assert stops.evaluations() >= ENDLESS // 4  # each counted alone would take hours


def test_a_small_run_is_logged_twenty_times():
    assert logged(num_steps=40) == list(range(2, 41, 2))
    assert logged(num_steps=5) == [1, 2, 3, 4, 5]


def test_a_resumed_run_is_logged_at_the_same_steps(tmp_path):
    options = {"num_steps": 40, "checkpoint_dir": tmp_path, "save_every": 5}
    with pytest.raises(KilledError):
        quiet_fit(loggers=[kill_at(12)], **options)
    assert logged(**options) == list(range(12, 41, 2))


def test_an_extended_run_is_logged_by_its_new_length(tmp_path):
    options = {"checkpoint_dir": tmp_path, "save_every": 20}
    assert logged(num_steps=20, **options) == list(range(1, 21))
    assert logged(num_steps=100, **options) == list(range(24, 101, 4))
    with pytest.raises(KilledError):
        quiet_fit(num_steps=200, loggers=[kill_at(150)], **options)
    assert logged(num_steps=200, **options) == list(range(145, 201, 5))


def test_a_given_interval_is_kept_when_a_run_is_extended(tmp_path):
    options = {"checkpoint_dir": tmp_path, "save_every": 5}
    assert logged(num_steps=10, log_every=3, **options) == [3, 6, 9, 10]
    assert logged(num_steps=20, **options) == [12, 15, 18, 20]
