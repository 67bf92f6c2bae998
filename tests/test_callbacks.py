"""Callbacks of `fngrad.callbacks`: a time limit, a trace, a watch for spikes."""

import gzip
import inspect
import json
import warnings
from typing import Any

import numpy as np
import pytest
from linear_regression import DATA, quiet_fit
from resuming import assert_same_run, saving_fit

import fngrad as fg
from fngrad.fitting.hooks import RunView
from fngrad.fitting.spikes import spikes
from fngrad.logging.history import History


class Clock:
    """Advances by some seconds per reading."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def __call__(self):
        self.now += self.seconds
        return self.now


def test_arguments_stay_few():
    assert len(inspect.signature(fg.fit).parameters) <= 30
    assert len(inspect.signature(fg.make_step).parameters) <= 8


def test_the_namespace_lists_only_callbacks():
    names = ["histograms", "images", "max_minutes", "profile", "spike"]
    assert dir(fg.callbacks) == names


def test_a_time_limit_ends_the_run_and_the_same_call_trains_on(tmp_path):
    expected = saving_fit(tmp_path / "whole")
    limit = fg.callbacks.max_minutes(1, clock=Clock(31))
    ended = saving_fit(tmp_path / "cut", callbacks=[limit])
    assert ended.stopped == "callback"
    reached = int(ended.state.step)
    assert 0 < reached < 20
    assert fg.checkpoint.latest_step(tmp_path / "cut") == reached
    result = saving_fit(
        tmp_path / "cut", callbacks=[fg.callbacks.max_minutes(1, clock=Clock(0))]
    )
    assert result.stopped == "completed"
    assert_same_run(result, expected)


def test_a_profile_holds_the_steps_asked_for_and_a_table(tmp_path, capsys):
    trace = fg.callbacks.profile(3, 5)
    result = quiet_fit(num_steps=8, callbacks=[trace], run_dir=tmp_path, log_every=100)
    (path,) = tmp_path.glob("profile/**/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [e["args"]["step_num"] for e in events if e.get("name") == "train"]
    assert [int(step) for step in steps] == [3, 4]
    assert list(tmp_path.glob("profile/**/*.xplane.pb"))
    text = (tmp_path / "profile" / "time.txt").read_text()
    assert text in capsys.readouterr().err
    rows = [line.split() for line in text.splitlines()]
    names = ["device", "host", "input", "compile", "evaluation", "saving", "other"]
    assert [row[0] for row in rows[1:-1]] == names
    assert rows[-1][:3] == ["all,", "2", "steps"]
    parts = sum(float(row[1]) for row in rows[1:-1])
    assert parts == pytest.approx(float(rows[-1][3]), abs=0.01)
    plain = quiet_fit(num_steps=8, log_every=100)
    np.testing.assert_array_equal(result.history["loss"], plain.history["loss"])


def test_a_profile_needs_a_folder():
    with pytest.raises(ValueError, match=r"need run_dir for profile\(3, 5\), or"):
        quiet_fit(num_steps=8, callbacks=[fg.callbacks.profile(3, 5)])


def test_a_profile_that_traced_nothing_says_so(tmp_path):
    late = fg.callbacks.profile(3, 5, tmp_path)
    text = r"profile\(3, 5\) traced nothing: .* the run ended at step 3$"
    with pytest.warns(UserWarning, match=text):
        ended = quiet_fit(num_steps=3, callbacks=[late])
    beyond = fg.callbacks.profile(1, 2, tmp_path)  # an earlier call may have traced
    quiet_fit(state=ended.state, num_steps=4, callbacks=[beyond])


def test_a_profile_whose_folder_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    seen = []
    callbacks = [
        fg.callbacks.profile(3, 5, tmp_path / "file"),
        lambda *a: seen.append(a),
    ]
    with pytest.raises(FileExistsError, match="file"):
        quiet_fit(num_steps=4, callbacks=callbacks, log_every=1)
    assert not seen


def reference_spikes(values, window, factor):
    found = []
    for at, value in enumerate(values):
        before = values[max(at - window, 0) : at]
        median = np.median(before) if at >= window else np.inf
        spread = np.median(np.abs(before - median)) if at >= window else 0.0
        found.append(value > median + max(factor * spread, abs(median)))
    return np.array(found)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("new", [1, 7, 40, 100])
def test_spikes_are_those_of_the_rule(new, sign):
    values = sign * (2 + np.random.default_rng(0).standard_cauchy(100) / 10)
    expected = reference_spikes(values, 8, 10.0)
    assert expected.any()
    np.testing.assert_array_equal(spikes(values, new, 8, 10.0), expected[-new:])


def test_what_is_not_finite_is_left_out_of_medians():
    values = np.array([1.0, np.nan, 1.0, np.inf, 1.0, np.nan, 1.5, 9.0])
    found = spikes(values, 8, 3, 10.0)
    np.testing.assert_array_equal(found, [0, 0, 0, 1, 0, 0, 0, 1])
    assert not spikes(np.full(4, np.nan), 4, 2, 10.0).any()
    assert spikes(np.ones(3), 5, 9, 1.0).shape == (3,)


def spiked(step):
    """Return a batch of the data, at step 15 with targets a hundred times as large."""
    import jax.numpy as jnp

    batch = DATA.batch(step)
    return {"x": batch["x"], "y": batch["y"] * jnp.where(step == 15, 100.0, 1.0)}


def test_a_spike_warns_once_per_window():
    watch = fg.callbacks.spike(window=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = quiet_fit(num_steps=20, data=spiked, callbacks=[watch])
    texts = [str(w.message) for w in caught]
    assert [text.split()[0] for text in texts] == ["loss", "grad_norm"]
    assert all("at step 16, far above" in text for text in texts)
    loss = result.history["loss"][15]
    assert f"loss is {loss:.4g}" in texts[0]


def test_a_watch_reads_no_more_of_the_history_than_a_window():
    """Whole columns would be copied for every chunk."""
    history = History()
    values = np.ones(5000)
    values[[4300, 4995]] = 9.0
    history.extend(np.arange(1, 5001), {"loss": values})
    history.__class__ = TailOnly
    watch = fg.callbacks.spike(window=8)
    unused: Any = None
    metrics, rest = frozenset({"loss"}), 3 * [unused]
    watch.begin(RunView(4990, None, metrics, history, unused, print, *rest))
    with pytest.warns(UserWarning, match="loss is 9 at step 4996, far above 1,"):
        watch.after(5000)


class TailOnly(History):
    """A history of which only a few records may be read."""

    def tail(self, name, count):
        assert count == 18
        return super().tail(name, count)

    def steps(self, name):
        raise AssertionError

    __getitem__ = steps


def test_a_spike_ends_the_run_on_request():
    watch = fg.callbacks.spike(window=8, metrics=["loss"], action="stop")
    with pytest.warns(UserWarning, match="loss is .* at step 16"):
        result = quiet_fit(num_steps=500, data=spiked, callbacks=[watch], log_every=4)
    assert result.stopped == "callback"
    assert 16 <= int(result.state.step) < 500


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fg.callbacks.max_minutes(0), "need minutes as a finite number > 0"),
        (lambda: fg.callbacks.profile(5, 5), "need an int last >= 6, got last=5"),
        (lambda: fg.callbacks.profile(0, 1, "gs://x"), "folder"),
        (lambda: fg.callbacks.spike(-1.0), "need factor as a finite number >= 0"),
        (lambda: fg.callbacks.spike(window=0), "need an int window >= 1"),
        (lambda: fg.callbacks.spike(action="end"), "need action to be one of"),
        (
            lambda: quiet_fit(num_steps=1, callbacks=[fg.callbacks.spike(metrics="x")]),
            r"need metrics of the step for spike, among \['grad_norm', .*got",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
