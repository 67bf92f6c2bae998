"""The learning rate range test, on a problem with a known stability limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad.sweeps import RangeTest, learning_rate_range_test

CURVATURES = np.array([4.0, 1.0, 0.1])  # so gradient descent is stable below 2 / 4


def train(point, key, curvatures):
    optimizer = fg.sgd(point["learning_rate"])
    step = fg.make_step(
        lambda x, batch: jnp.sum(batch * x**2) / 2, optimizer, metrics="loss"
    )
    state = fg.init_state(jax.random.normal(key, (3,)), optimizer, key)
    return fg.run(step, state, lambda step: curvatures, 30)


def measure(low=1e-4, high=10.0, num=64, **options):
    settings = {"keys": 3, "args": (jnp.asarray(CURVATURES, jnp.float32),)} | options
    return learning_rate_range_test(train, low, high, num, **settings)


@pytest.fixture(scope="module")
def found():
    return measure()


def test_the_suggestion_is_below_the_stability_limit_and_within_a_decade(found):
    limit = 2 / CURVATURES.max()
    assert limit / 10 <= found.suggestion < limit
    assert found.suggestion == min(found.lowest, found.divergence / 10)
    assert found.warnings == ()


def test_exactly_the_rates_above_the_limit_are_marked(found):
    limit = 2 / CURVATURES.max()
    np.testing.assert_array_equal(found.diverges, found.rates > limit)
    assert found.divergence == found.rates[found.rates > limit][0]
    assert np.all(np.isinf(found.losses[-1]))
    assert found.steepest < found.lowest < limit


def test_the_losses_are_those_of_the_trainings(found):
    keys = jax.random.split(jax.random.key(0), 3)
    starts = np.stack([jax.random.normal(key, (3,)) for key in keys])
    first = np.sum(CURVATURES * starts**2, axis=1) / 2
    assert found.first_loss == pytest.approx(np.median(first), rel=1e-6)
    steps = np.arange(27, 30)[:, None, None]
    x = starts * (1 - found.rates[20] * CURVATURES) ** steps
    expected = np.mean(np.sum(CURVATURES * x**2, axis=2) / 2, axis=0)
    np.testing.assert_allclose(found.losses[20], expected, rtol=1e-5)
    np.testing.assert_array_equal(found.median, np.median(found.losses, axis=1))


def test_rates_are_evenly_spaced_in_their_logarithm(found):
    assert found.rates[0] == pytest.approx(1e-4)
    assert found.rates[-1] == pytest.approx(10)
    np.testing.assert_allclose(np.diff(np.log(found.rates), 2), 0, atol=1e-12)


def test_a_range_that_misses_the_limit_gives_warnings():
    (doubt,) = measure(high=0.01, num=5).warnings
    assert doubt == "the loss still falls at the largest rate, 0.01: raise high"
    (doubt,) = measure(low=0.3, high=1.0, num=9).warnings
    assert doubt == "the suggestion is below the least rate, 0.3"
    early, late = measure(low=0.47, high=0.49, num=3).warnings
    assert early == "no rate up to 0.49 diverges: raise high"
    assert late == "the loss is lowest at the least rate, 0.47: lower low"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 2}, "need an int num >= 3, got num=2"),
        ({"low": 0.0}, "need 0 < low < high, got low=0.0 high=10.0"),
        ({"high": np.inf}, "need 0 < low < high"),
        ({"metric": "test/loss"}, "selecting by the test data biases"),
        ({"metric": "accuracy"}, "accuracy"),
        ({"low": 1e15, "high": 1e20, "num": 3}, "lower low"),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        measure(**change)


def test_a_metric_without_a_curve_is_refused():
    def last(point, key):
        return (), {"loss": point["learning_rate"]}

    with pytest.raises(ValueError, match=r"over two steps or more, got shape \(\)"):
        learning_rate_range_test(last, num=3, keys=1)


def test_a_small_rate_that_diverges_leaves_the_steepest_rate():
    def train(point, key):
        rate = point["learning_rate"]
        last = jnp.where(rate < 2e-3, jnp.inf, (jnp.log10(rate) + 1.0) ** 2)
        return (), {"loss": jnp.stack([jnp.float32(4.0), last])}

    found = learning_rate_range_test(train, 1e-3, 1e-1, num=5, keys=1)
    assert found.lowest == pytest.approx(1e-1)
    assert found.steepest == pytest.approx(10**-2.5)


def test_the_figure_marks_the_suggestion_and_diverging_rates(found):
    pytest.importorskip("matplotlib")
    assert isinstance(found, RangeTest)
    figure = found.plot("training loss (nats)")
    figure.canvas.draw()
    (axis,) = figure.axes
    assert axis.get_ylabel() == "training loss (nats)"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"suggestion: {found.suggestion:.2g}" in legend
    crosses = next(line for line in axis.lines if line.get_marker() == "x")
    np.testing.assert_array_equal(crosses.get_xdata(), found.rates[found.diverges])
