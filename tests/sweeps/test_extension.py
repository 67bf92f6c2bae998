"""Points, seeds and static values added to a sweep that is done."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_problems import assert_same_bits, light
from sweep_problems import quiet_sweep as any_sweep

import fngrad.sweeps as sweeps
import fngrad.sweeps.running.lane_training as lane_training

pytestmark = pytest.mark.xla_defaults  # bits depend on how XLA compiles

RATES = np.array([0.3, 0.01, 1e6, 0.1, 0.2])
EARLIER = {"learning_rate": RATES[[3, 1, 2]]}
WHOLE = {"learning_rate": RATES}


def quiet_sweep(points=WHOLE, keys=5, fn=light, **options):
    return any_sweep(points, keys, fn, **options)


@functools.cache
def earlier():
    return quiet_sweep(EARLIER, 3)


@functools.cache
def whole():
    return quiet_sweep()


@pytest.fixture
def trained(monkeypatch):
    """Count the lanes that are trained."""
    counts, train = [], lane_training.Training._train

    def counting(self, block, numbers):
        counts.append(len(numbers))
        return train(self, block, numbers)

    monkeypatch.setattr(lane_training.Training, "_train", counting)
    return counts


def test_only_new_points_and_seeds_are_trained_with_the_bits_of_one_sweep(trained):
    small, large = earlier(), whole()
    trained.clear()
    result = quiet_sweep(extend=small)
    assert_same_bits(result, large)
    assert sum(trained) == 25 - 9
    assert result.notes["restored"] == 9
    assert result.notes["modes"][0]["width"] == 4
    # A result that was extended can be extended, and may shrink.
    trained.clear()
    assert_same_bits(quiet_sweep(EARLIER, 3, extend=result), small)
    assert trained == []


def test_the_width_is_the_earlier_one():
    assert_same_bits(quiet_sweep(mode="auto", extend=earlier()), whole())
    with pytest.raises(
        ValueError, match="need mode=4 or mode='auto' to continue lanes"
    ):
        quiet_sweep(mode="map", extend=earlier())


def test_a_folder_is_extended_into_another_which_resumes(tmp_path, trained):
    old, new = tmp_path / "old", tmp_path / "new"
    quiet_sweep(EARLIER, 3, folder=old)
    kept, large = sorted((old / "lanes").iterdir()), whole()
    trained.clear()
    result = quiet_sweep(folder=new, extend=old, chunk=6)
    assert_same_bits(result, large)
    assert sum(trained) == 16
    assert sorted((old / "lanes").iterdir()) == kept
    trained.clear()
    assert quiet_sweep(folder=new).notes["restored"] == 25  # alone, the earlier too
    assert trained == []
    (new / "lanes" / sorted(new.glob("lanes/*"))[1].name).unlink()
    trained.clear()
    assert_same_bits(quiet_sweep(folder=new, extend=old), large)
    assert 0 < sum(trained) < 16


def test_lanes_taken_over_are_saved_where_nothing_is_trained(tmp_path, trained):
    small = earlier()
    trained.clear()
    quiet_sweep(EARLIER, 3, extend=small, folder=tmp_path)
    again = quiet_sweep(EARLIER, 3, folder=tmp_path, mode="auto")
    assert (again.notes["restored"], again.notes["modes"][0]["width"]) == (9, 4)
    assert_same_bits(again, small)
    assert trained == []


def scaled(point, key, scale, records=1):
    """Record curves of another length for each scale."""
    noise = jax.random.key_data(key)[1].astype(jnp.float32)
    curve = scale * (point["learning_rate"] + noise) * jnp.arange(3.0 * records)
    return {"last": curve[-1]}, {"val/loss": curve, "n": jnp.int32(records)}


def test_static_values_are_added_too(trained):
    grown = {"scale": [0.5, 2.0], "records": [2, 1]}
    few = {"scale": [2.0], "records": [1, 2]}
    large = quiet_sweep(fn=scaled, static=grown)
    small = quiet_sweep(EARLIER, 3, fn=scaled, static=few)
    trained.clear()
    result = quiet_sweep(fn=scaled, static=grown, extend=small)
    assert sum(trained) == 2 * 25 + 2 * 16
    assert_same_bits(result, large)
    assert result.history["val/loss"].shape == (20, 5, 6)


def test_a_combination_that_failed_is_trained_when_extended():
    def fn(point, key, size, mended):
        jnp.add(jnp.ones(3), jnp.ones(3 if mended else size))
        return light(point, key)

    static = {"size": [2, 3]}
    with pytest.warns(UserWarning, match="failed with size=2"):
        small = quiet_sweep(
            EARLIER, 3, functools.partial(fn, mended=False), static=static
        )
    mended = functools.partial(fn, mended=True)
    result = quiet_sweep(fn=mended, static=static, extend=small)
    assert result.notes["restored"] == 9
    assert result.notes["failures"] == []


def other(point, key):
    return light({"learning_rate": 2 * point["learning_rate"]}, key)


def test_another_training_is_refused(tmp_path):
    for options, name in (
        ({"fn": other}, "train_fn"),
        ({"fn": lambda point, key: ((), light(point, key)[1])}, "outputs"),
        ({"args": (np.ones(2),)}, "args"),
    ):
        fn = options.pop("fn", light)
        taking = fn if not options else lambda point, key, data: light(point, key)
        with pytest.raises(ValueError, match=rf"`extend` trained: .*{name}: .* became"):
            quiet_sweep(fn=taking, extend=earlier(), **options)


def test_lanes_in_common_are_required(tmp_path):
    message = "need points, keys and static of the whole sweep, those of `extend` incl"
    for options in (
        {"points": {"learning_rate": np.array([0.5])}},
        {
            "points": {"rate": RATES},
            "fn": lambda p, k: light({"learning_rate": p["rate"]}, k),
        },
        {"keys": jax.random.split(jax.random.key(9), 2)},
    ):
        with pytest.raises(ValueError, match=message):
            quiet_sweep(**options, extend=earlier())
    with pytest.raises(ValueError, match=r"lanes; static is {} there and {'scale': '2"):
        quiet_sweep(
            fn=lambda p, k, scale: light(p, k), static={"scale": [2]}, extend=earlier()
        )
    with pytest.raises(TypeError, match=r"need as extend the result .* got True"):
        quiet_sweep(extend=True)
    quiet_sweep(EARLIER, 3, folder=tmp_path)
    with pytest.raises(
        ValueError, match="need a folder for the whole sweep other than"
    ):
        quiet_sweep(folder=tmp_path, extend=str(tmp_path))
    with pytest.raises(ValueError, match="if it was loaded, pass its folder"):
        quiet_sweep(extend=sweeps.load(tmp_path))
    with pytest.raises(ValueError, match="need the state and the history as the sweep"):
        quiet_sweep(extend=earlier()._replace(state=None))
    with pytest.raises(FileNotFoundError, match=r"need the folder of a sweep, with sw"):
        quiet_sweep(extend=tmp_path / "lanes")


def test_a_folder_of_an_earlier_version_is_resumed_and_then_extended(tmp_path):
    quiet_sweep(EARLIER, 3, folder=tmp_path)
    file = tmp_path / "sweep.json"
    start, _, _ = file.read_text().partition('"lanes"')
    file.write_text(start.rstrip().rstrip(",") + "}")
    with pytest.raises(ValueError, match="earlier version of fngrad left out: the sam"):
        quiet_sweep(extend=tmp_path)
    assert quiet_sweep(EARLIER, 3, folder=tmp_path).notes["restored"] == 9
    assert quiet_sweep(extend=tmp_path).notes["restored"] == 9
