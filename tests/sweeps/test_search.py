"""A search asks a study of Optuna for trials and tells it their medians."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from sweep_problems import assert_same_bits, quiet_sweep

import fngrad.sweeps as sweeps
import fngrad.sweeps.running.block_width as block_width
import fngrad.sweeps.running.lane_training as lane_training
import fngrad.sweeps.searching.studies as studies
from fngrad.sweeps.results.tables import scores
from fngrad.sweeps.searching.search_space import search_space

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {"rate": sweeps.log_uniform(1e-4, 10.0), "size": [1, 2, 4]}


def valley(point, key, scale=1.0):
    """Return a loss with noise, which is not finite at rates above 1."""
    noise = jax.random.key_data(key)[1].astype(jnp.float32) / 2.0**33
    loss = scale * jnp.log(point["rate"] / 0.1) ** 2 + noise * point["size"].astype(
        jnp.float32
    )
    curve = jnp.where(point["rate"] > 1, jnp.nan, loss) * jnp.array([2.0, 1.0])
    return {"key": key}, {"val/loss": curve, "val/score": -loss}


def searched(fn=valley, space=SPACE, num_trials=10, keys=3, **options):
    options = {"trials_per_batch": 4, "mode": 4, "progress": False} | options
    options = {"devices": jax.devices()[:1]} | options
    return sweeps.search(fn, space, num_trials, keys, **options)


@functools.cache
def whole():
    return searched()


def seeded_study(**options):
    sampler = optuna.samplers.TPESampler(seed=0)
    return optuna.create_study(sampler=sampler, **options)


@pytest.fixture
def compiled(monkeypatch):
    """Count what is compiled."""
    widths, compile_block = [], block_width.compile_block

    def counting(lanes, width):
        widths.append(width)
        return compile_block(lanes, width)

    monkeypatch.setattr(block_width, "compile_block", counting)
    return widths


def test_the_lanes_are_those_of_a_sweep_at_the_trials_points(compiled):
    result = searched()
    assert compiled == [4]  # three batches, one program
    assert result.history["val/loss"].shape == (10, 3, 2)
    assert result.notes["trials"].tolist() == list(range(10))
    assert result.points["size"].dtype == np.int64
    assert set(result.points["size"]) <= {1, 2, 4}
    assert_same_bits(result, quiet_sweep(result.points, 3, valley))
    assert_same_bits(result, whole())  # the seed decides the points
    other = searched(seed=1, num_trials=2)
    assert not np.isin(other.points["rate"], result.points["rate"]).any()


def medians(result):
    """Return the median of the loss over the seeds at each point, in float64."""
    data = np.asarray(jax.random.key_data(result.notes["keys"]))
    noise = data[:, 1].astype(np.float32) / 2.0**33
    rates, sizes = (result.points[name][:, None] for name in ("rate", "size"))
    return np.median(np.log(rates / 0.1) ** 2 + noise * sizes, axis=1)


def test_a_trial_is_told_the_median_and_infinity_where_it_diverged():
    down, up = whole(), searched(metric=("val/score", "max"))
    is_lost = down.points["rate"] > 1
    assert is_lost.any()
    expected = np.where(is_lost, np.inf, medians(down)), -medians(up)
    for result, values in zip((down, up), expected, strict=True):
        told = result.notes["study"].get_trials(deepcopy=False)
        assert {t.state for t in told} == {TrialState.COMPLETE}
        np.testing.assert_allclose([t.value for t in told], values, rtol=1e-4)


def test_a_trial_that_diverges_is_the_worst_to_maximize_too():
    def fn(point, key):
        return (), {"score": jnp.where(point["rate"] > 1, jnp.inf, point["rate"])}

    result = searched(fn, metric=("score", "max"))
    values = np.array([t.value for t in result.notes["study"].trials])
    is_lost = result.points["rate"] > 1
    assert is_lost.any()
    assert (values[is_lost] == -np.inf).all()
    assert np.isfinite(values[~is_lost]).all()


def asked_by_hand(study, space, sizes, values, sampler=None):
    """Ask for batches and tell their values; return the points."""
    asked = []
    for size in sizes:
        batch = []
        for _ in range(size):
            if sampler:
                study.sampler = sampler(len(study.trials))
            batch.append(study.ask(space))
        for trial in batch:
            study.tell(trial, values[trial.number])
        asked += [trial.params for trial in batch]
    return {name: [params[name] for params in asked] for name in space}


def assert_same_points(result, asked):
    assert {name: x.tolist() for name, x in result.points.items()} == asked


def test_the_points_are_those_of_asking_and_telling_by_hand():
    def new():
        sampler = optuna.samplers.TPESampler(seed=5, n_startup_trials=4)
        return optuna.create_study(sampler=sampler)

    study = new()
    space = {"rate": FloatDistribution(1e-3, 1.0, log=True), "size": [1, 2]}
    result = searched(space=space, keys=1, study=study)
    given = space | {"size": CategoricalDistribution([1, 2])}
    values = result.notes["values"][:, 0]
    assert_same_points(result, asked_by_hand(new(), given, (4, 4, 2), values))
    more = searched(space=space, keys=1, study=study, num_trials=2)
    assert more.notes["trials"].tolist() == [10, 11]


def test_without_a_study_the_sampler_depends_on_the_seed_and_the_trials_before():
    def sampler(number):
        mixed = np.random.SeedSequence([3, number]).generate_state(1)[0]
        return optuna.samplers.TPESampler(seed=int(mixed), constant_liar=True)

    space = {"rate": sweeps.log_uniform(1e-3, 1.0), "size": [1, 2, 3]}
    options = {"seed": 3, "num_trials": 24, "trials_per_batch": 12}
    result = searched(space=space, keys=1, **options)
    given = {
        "rate": FloatDistribution(1e-3, 1.0, log=True),
        "size": CategoricalDistribution([1, 2, 3]),
    }
    values = result.notes["values"][:, 0]
    by_hand = asked_by_hand(optuna.create_study(), given, (12, 12), values, sampler)
    assert_same_points(result, by_hand)


def test_a_space_may_be_said_in_ranges_numbers_and_distributions():
    space = {
        "a": sweeps.uniform(-1.0, 2.0),
        "b": sweeps.log_uniform(0.1, 2.0),
        "c": sweeps.choice([1, 2]),
        "d": [0.5, 1.0],
        "e": 3,
        "f": FloatDistribution(0.0, 1.0, step=0.25),
        "g": IntDistribution(1, 9),
    }
    static = {"h": IntDistribution(2, 10, step=2), "i": ["x", valley, None]}
    found = search_space(space, static)
    assert found.distributions == {
        "a": FloatDistribution(-1.0, 2.0),
        "b": FloatDistribution(0.1, 2.0, log=True),
        "c": CategoricalDistribution((1, 2)),
        "d": CategoricalDistribution((0.5, 1.0)),
        "e": CategoricalDistribution((3,)),
        "f": space["f"],
        "g": space["g"],
        "h": static["h"],
        "i": CategoricalDistribution(("x", "<function valley>", None)),
    }
    assert found.programs == 5 * 3
    kinds = [axis.dtype.kind for axis in found.axes.values()]
    assert kinds == ["f", "f", "i", "f", "i", "f", "i"]
    suggested = {"h": 4, "i": "<function valley>"}
    assert found.combination(suggested) == {"h": 4, "i": valley}


def interrupt_after(monkeypatch, blocks):
    train, done = lane_training.Training._train, []

    def interrupted(self, block, numbers):
        if len(done) == blocks:
            raise KeyboardInterrupt
        done.append(numbers)
        return train(self, block, numbers)

    monkeypatch.setattr(lane_training.Training, "_train", interrupted)
    monkeypatch.setattr(lane_training, "blocks_at_once", lambda devices: 1)


@pytest.mark.parametrize("blocks", [1, 5])
def test_a_search_that_was_stopped_resumes_with_the_same_bits(
    tmp_path, monkeypatch, blocks
):
    with monkeypatch.context() as patched:
        interrupt_after(patched, blocks)
        with pytest.raises(KeyboardInterrupt):
            searched(folder=tmp_path)
    with open(tmp_path / "study.log", "a") as journal:  # as a kill leaves it
        journal.write('{"op_code":4,"wor')
    (tmp_path / "study.log.lock").symlink_to("study.log")
    result = searched(folder=tmp_path)
    assert_same_bits(result, whole())
    assert result.notes["restored"] == 4 * blocks
    assert [t.state for t in result.notes["study"].trials] == [TrialState.COMPLETE] * 10


def test_a_stop_while_trials_are_asked_or_told_changes_nothing(tmp_path, monkeypatch):
    for name, calls in (("_ask", 6), ("tell", 6)):
        original, left = getattr(studies.Study, name), [None] * calls

        def stopping(self, *inputs, original=original, left=left):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return original(self, *inputs)

        with monkeypatch.context() as patched:
            patched.setattr(studies.Study, name, stopping)
            with pytest.raises(KeyboardInterrupt):
                searched(folder=tmp_path / name)
        assert_same_bits(searched(folder=tmp_path / name), whole())


def test_more_trials_continue_the_search_of_a_folder(tmp_path):
    first = searched(folder=tmp_path, num_trials=8)
    result = searched(folder=tmp_path, num_trials=10)
    assert result.notes["restored"] == 24
    assert_same_bits(result, whole())
    assert first.points["rate"].tolist() == result.points["rate"][:8].tolist()
    loaded = sweeps.load(tmp_path)
    assert str(sweeps.table(loaded)) == str(sweeps.table(result))
    assert loaded.notes["trials"] == list(range(10))
    with pytest.raises(ValueError, match="need num_trials >= 10, which the folder hol"):
        searched(folder=tmp_path, num_trials=9)
    with pytest.raises(ValueError, match=r"need the sweep that .*space: .* became"):
        searched(folder=tmp_path, space=SPACE | {"size": [1, 2]})
    with pytest.raises(ValueError, match=r"need the sweep that .*train_fn: .* became"):
        searched(lambda p, k: valley(p, k, 2.0), folder=tmp_path)


def records(point, key, activation, length):
    if length == 3:
        raise ValueError("three does not work")
    curve = activation(point["rate"]) * jnp.arange(1.0, length + 1.0)
    return {"last": curve[-1]}, {"val/loss": curve}


STATIC = {"activation": [jnp.abs, jnp.tanh], "length": IntDistribution(1, 5, step=2)}


def test_static_values_select_programs_and_one_that_raises_is_told_as_failed(compiled):
    with pytest.warns(UserWarning, match="length=3: ValueError: three") as warned:
        result = searched(records, static=STATIC, num_trials=16, mode="auto")
    used = list(zip(result.points["activation"], result.points["length"], strict=True))
    assert len(set(used)) == 6
    assert len(compiled) == 4  # of six programs two fail
    assert len(warned) == 2
    groups = np.split(np.array(used, object), np.cumsum(result.notes["counts"])[:-1])
    assert [len({tuple(row) for row in group}) for group in groups] == [1] * 6
    failed = np.concatenate([f.points for f in result.notes["failures"]])
    assert (result.points["length"][failed] == 3).all()
    assert (result.points["length"] == 3).sum() == len(failed)
    trials = result.notes["study"].trials
    for row, number in enumerate(result.notes["trials"]):
        assert trials[number].params["rate"] == result.points["rate"][row]
        assert trials[number].params["length"] == result.points["length"][row]
        is_failed = trials[number].state == TrialState.FAIL
        assert is_failed == (row in failed)
        function, length = used[row]
        if not is_failed:
            value = float(function(np.float32(result.points["rate"][row]))) * length
            np.testing.assert_allclose(trials[number].value, value, rtol=1e-5)
            np.testing.assert_allclose(result.notes["values"][row], value, rtol=1e-5)
    assert [state is None for state in result.state] == [
        group[0][1] == 3 for group in groups
    ]
    by_name = scores(result, "val/loss")
    np.testing.assert_array_equal(by_name, result.notes["values"])


def test_an_error_in_a_later_batch_keeps_the_trials_before(monkeypatch):
    to_host, calls = lane_training.to_host, []

    def broken(outputs):
        calls.append(outputs)
        if len(calls) == 4:
            raise jax.errors.JaxRuntimeError("INTERNAL: broken")
        return to_host(outputs)

    monkeypatch.setattr(lane_training, "to_host", broken)
    monkeypatch.setattr(lane_training, "blocks_at_once", lambda devices: 1)
    study = seeded_study()
    for scale in (2.0, 1.0, 2.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0):
        study.enqueue_trial({"scale": scale, "rate": 0.2, "size": 1})
    with pytest.warns(UserWarning, match=r"failed with scale=2.0: .*RuntimeError: IN"):
        result = searched(
            study=study, static={"scale": [1.0, 2.0]}, keys=2, num_trials=12
        )
    assert result.notes["counts"] == [2, 4, 6]
    assert result.notes["trials"].tolist() == [0, 2, 5, 6, 7, 8, 1, 3, 4, 9, 10, 11]
    assert result.notes["failures"][0].points == [2, 3, 4, 5]
    assert np.isnan(result.notes["values"][2:6]).all()
    assert np.isfinite(np.delete(result.notes["values"], range(2, 6), axis=0)).all()
    states = np.array([t.state == TrialState.FAIL for t in study.trials])
    assert np.flatnonzero(states).tolist() == [5, 6, 7, 8]


def test_trials_of_a_study_of_the_user_fail_with_the_search(monkeypatch):
    study = seeded_study()
    interrupt_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        searched(study=study)
    states = [t.state for t in study.trials]
    assert states == [TrialState.COMPLETE] * 4 + [TrialState.FAIL] * 4


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"num_trials": 0}, ValueError, "need an int num_trials >= 1"),
        ({"trials_per_batch": 0}, ValueError, "need an int trials_per_batch >= 1"),
        ({"metric": ("test/loss", "min")}, ValueError, "need a metric of the validati"),
        ({"metric": "val/cost"}, ValueError, "val/cost"),
        ({"seed": -1}, ValueError, "seed"),
        ({"mode": "fast"}, ValueError, "need mode"),
        ({"args": [1]}, TypeError, "need args, a tuple"),
        ({"space": {}}, ValueError, "need at least one hyperparameter in space, got n"),
        ({"space": [1]}, TypeError, r"need space=\{name: values\}, got \[1\]"),
        ({"static": ["a"]}, TypeError, r"need static=\{name: values\}, got"),
        ({"static": {"a": []}}, ValueError, r"need a list of values, .* got a=\[\]"),
        ({"static": {"rate": [1]}}, ValueError, "'rate' in space or in static, got it"),
        ({"static": {"a": [jnp.sin, jnp.sin]}}, ValueError, "differ in their texts"),
        ({"space": {"a": (1e-4, 0.1)}}, ValueError, "need sweeps.uniform"),
        ({"static": {"a": (8, 64)}}, ValueError, r"got the tuple a=\(8, 64\)"),
        ({"space": {"a": ["x", "y"]}}, TypeError, "need numeric points"),
        (
            {"space": {"a": CategoricalDistribution(["x"])}},
            TypeError,
            "need numbers for",
        ),
        (
            {"space": {"a": sweeps.Range(abs, "mine")}},
            ValueError,
            "need a range with bo",
        ),
        (
            {"study": seeded_study(direction="maximize")},
            ValueError,
            r"need a study with direction='minimize', .* got \['maximize'\]",
        ),
        (
            {"study": seeded_study(directions=["minimize"] * 2)},
            ValueError,
            r"got \['minimize', 'minimize'\]",
        ),
        (
            {"study": seeded_study(), "folder": "somewhere"},
            ValueError,
            "need folder or study, got both: a study has its own storage",
        ),
    ],
)
def test_bad_options_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        searched(**options)


def test_without_optuna_the_extra_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        ImportError, match=r'need optuna .*pip install "fngrad\[search\]"'
    ):
        searched()


def test_all_combinations_failing_raises_and_tells():
    study = seeded_study()
    with pytest.raises(ValueError, match="three does not work"):
        searched(records, study=study, static=STATIC | {"length": [3]})
    assert {t.state for t in study.trials} == {TrialState.FAIL}
    assert len({t.params["activation"] for t in study.trials}) == 2
