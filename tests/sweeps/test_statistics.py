"""The statistics of sweeps, on scores of a known distribution."""

import math

import jax
import numpy as np
import pytest

import fngrad.sweeps.results.statistics as statistics

RATES = {"learning_rate": np.array([0.01, 0.1, 1.0])}
LOSS, ACCURACY = ("val/loss", "min"), ("val/accuracy", "max")


def summarize(scores, points=None, metric=LOSS, diverged=None, **options):
    scores = np.asarray(scores, float)
    points = {"rate": np.arange(len(scores)) + 1.0} if points is None else points
    diverged = np.zeros(scores.shape, bool) if diverged is None else diverged
    return statistics.summarize(points, scores, diverged, metric, **options)


def separated(medians, seeds=6, spread=0.01):
    noise = np.random.default_rng(0).normal(size=(1, seeds))
    return np.asarray(medians)[:, None] + spread * noise


def test_points_are_ranked_by_the_median_over_seeds():
    scores = [[1.0, 2.0, 9.0], [3.0, 1.5, 1.0], [0.0, 2.5, 3.0]]
    found = summarize(scores)
    np.testing.assert_array_equal(found.median, [2.0, 1.5, 2.5])
    np.testing.assert_array_equal(found.order, [1, 0, 2])
    assert found.best == 1
    assert found.seeds == 3


def test_a_metric_to_maximise_is_the_mirror_of_one_to_minimise():
    scores = np.random.default_rng(1).normal(size=(4, 7))
    low, high = summarize(scores), summarize(-scores, metric=ACCURACY)
    np.testing.assert_array_equal(low.order, high.order)
    np.testing.assert_array_equal(low.median, -high.median)
    np.testing.assert_array_equal(low.low, -high.high)
    np.testing.assert_array_equal(low.high, -high.low)
    np.testing.assert_array_equal(low.p_best, high.p_best)


def test_ties_go_to_fewer_diverged_lanes_and_then_to_the_first_point():
    scores = [[1.0, 1.0, np.nan], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    np.testing.assert_array_equal(summarize(scores).order, [1, 2, 0])


def test_the_interval_covers_the_median_about_as_often_as_its_level():
    seeds, trials = 21, 600
    scores = np.random.default_rng(2).exponential(size=(trials, seeds))
    found = summarize(scores, points={}, resamples=600, level=0.9)
    covered = np.mean((found.low <= np.log(2)) & (np.log(2) <= found.high))
    # The order statistics of 21 give 92.2 %; the share of 600 trials has a standard
    # deviation of 1.2 %.
    assert 0.87 < covered < 0.96


@pytest.mark.parametrize(
    ("seeds", "share"), [(3, 0.75), (5, 0.94), (7, 0.87), (8, 0.93), (20, 0.94)]
)
def test_the_interval_covers_the_median_as_often_as_the_docstring_says(seeds, share):
    scores = np.random.default_rng(seeds).exponential(size=(1500, seeds))
    found = summarize(scores, points={}, resamples=1000)
    covered = np.mean((found.low <= np.log(2)) & (np.log(2) <= found.high))
    # The share of 1500 trials has a standard deviation of 0.6 to 1.1 %.
    assert covered == pytest.approx(share, abs=0.035)


def test_the_interval_of_five_seeds_is_their_range():
    scores = np.random.default_rng(3).normal(size=(1, 5))
    found = summarize(scores)
    assert (found.low[0], found.high[0]) == (scores.min(), scores.max())


def test_a_higher_level_widens_the_interval_and_another_key_changes_the_draws():
    scores = np.random.default_rng(4).normal(size=(3, 30))
    narrow, wide = summarize(scores, level=0.5), summarize(scores, level=0.99)
    assert np.all(narrow.high - narrow.low < wide.high - wide.low)
    same, typed = summarize(scores, key=0), summarize(scores, key=jax.random.key(0))
    np.testing.assert_array_equal(same.p_best, typed.p_best)
    other = summarize(scores, key=1)
    assert np.any(other.p_best != same.p_best)


def test_the_probability_of_being_best_is_right_for_two_points():
    seeds, rng = 9, np.random.default_rng(5)
    paired = rng.normal(size=seeds)
    found = summarize([paired, paired + 1e-6, paired - 1e-6])
    # Unpaired resamples would give about 1/3 to each.
    np.testing.assert_array_equal(found.p_best, [0, 0, 1])
    equal = summarize([paired, paired])
    np.testing.assert_array_equal(equal.p_best, [0.5, 0.5])
    mixed = summarize([[0.0, 0.0, 2.0], [1.0, 1.0, 1.0]], resamples=20_000)
    # The first wins where at least two of three draws are 0: 20 of 27 times.
    assert mixed.p_best[0] == pytest.approx(20 / 27, abs=0.015)


def test_a_diverged_lane_ranks_below_any_other_and_is_counted():
    scores = np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.3, np.nan, np.inf]])
    diverged = np.zeros(scores.shape, bool)
    diverged[0, :2] = True
    found = summarize(scores, diverged=diverged)
    np.testing.assert_array_equal(found.order, [1, 0, 2])
    np.testing.assert_array_equal(found.diverged, [2, 0, 2])
    np.testing.assert_array_equal(found.median, [np.inf, 0.2, np.inf])
    best = summarize(scores, metric=("val/loss", "max"), diverged=diverged)
    assert best.best == 1
    np.testing.assert_array_equal(best.median, [-np.inf, 0.2, -np.inf])


def test_it_is_an_error_if_all_lanes_diverged():
    with pytest.raises(ValueError, match="got 6 lanes, all diverged"):
        summarize(np.full((2, 3), np.nan))


def test_a_sound_result_has_no_warnings():
    found = summarize(separated([0.5, 0.1, 0.5]), RATES)
    assert found.warnings == ()


@pytest.mark.parametrize(("best", "word"), [(0, "least"), (2, "largest")])
def test_a_best_point_at_the_end_of_an_axis_gives_a_warning(best, word):
    medians = [0.5, 0.5, 0.5]
    medians[best] = 0.1
    constant = {"decay": np.full(3, 0.9), "optimizer": np.array(["a", "b", "c"])}
    (doubt,) = summarize(separated(medians), RATES | constant).warnings
    end = RATES["learning_rate"][best]
    assert doubt == (
        f"the best point has the {word} learning_rate tried ({end:g}): look beyond it"
    )


def test_zero_is_not_an_end_of_an_axis():
    decay = {"decay": np.array([0.0, 0.1, 0.2])}
    assert summarize(separated([0.1, 0.5, 0.5]), decay).warnings == ()


def test_few_seeds_close_points_and_divergence_give_warnings():
    few = summarize(separated([0.5, 0.1, 0.5], seeds=4), RATES)
    assert few.warnings == ("4 seeds are few: medians and intervals need 5 or more",)
    noise = np.random.default_rng(6).normal(size=(3, 8))
    noise[1] = noise[0, ::-1]
    near = summarize(np.array([[0], [0], [9]]) + noise, {})
    assert near.warnings == (
        "the seeds do not separate the two best points: the interval of their paired "
        "difference contains 0",
    )
    lost = separated([0.5, 0.1, 0.5], seeds=20)
    lost[1, 3] = np.nan
    assert "1 of 20 lanes of the best point diverged" in summarize(lost, RATES).warnings


@pytest.mark.parametrize("metric", [LOSS, ACCURACY])
def test_pairing_separates_points_whose_intervals_overlap(metric):
    shared = np.random.default_rng(9).normal(size=(1, 8))
    found = summarize(np.array([[0.0], [0.1], [0.05]]) + shared, {}, metric=metric)
    first, second = found.order[:2]
    assert found.low[second] < found.high[first]
    assert found.low[first] < found.high[second]
    assert found.warnings == ()
    equal = summarize(np.repeat(shared, 2, axis=0), {}, metric=metric)
    assert "do not separate the two best points" in equal.warnings[0]


def test_columns_of_vectors_have_no_ends():
    points = {"betas": np.array([[0.9, 0.99], [0.8, 0.99], [0.9, 0.9]])}
    assert summarize(separated([0.5, 0.1, 0.5]), points).warnings == ()


def test_the_ends_are_those_of_all_points_that_were_tried():
    left = {"learning_rate": np.array([0.1, 1.0])}
    scores = separated([0.5, 0.1])
    assert len(summarize(scores, left).warnings) == 1
    more = {"learning_rate": np.array([0.01, 0.1, 1.0, 10.0])}
    assert summarize(scores, left, tried=more).warnings == ()
    (doubt,) = summarize(scores[:1], {"learning_rate": [0.01]}, tried=more).warnings
    assert "the least learning_rate tried (0.01)" in doubt


def test_a_test_metric_is_refused_and_a_training_metric_gives_a_warning():
    scores = separated([0.5, 0.1, 0.5])
    for name in ("test/loss", "digits/test/accuracy"):
        with pytest.raises(ValueError, match="selecting by the test data biases"):
            summarize(scores, RATES, metric=(name, "min"))
    (doubt,) = summarize(scores, RATES, metric=("loss", "min")).warnings
    assert doubt == "loss is not a metric of the validation data (val/...)"


def test_a_comparison_is_paired():
    rng = np.random.default_rng(7)
    shared = 100 * rng.normal(size=10)
    a, b = shared, shared + 1 + 0.1 * rng.normal(size=10)
    found = statistics.compare_scores(a, b)
    assert found.difference == pytest.approx(np.median(a - b))
    assert -1.3 < found.low <= found.difference <= found.high < -0.7
    assert (found.wins, found.losses, found.ties) == (10, 0, 0)
    assert found.p_value == 2 / 2**10
    back = statistics.compare_scores(b, a, ACCURACY)
    assert (back.wins, back.low, back.high) == (10, -found.high, -found.low)
    assert str(found).startswith("val/loss, a minus b: -")


def test_a_diverged_lane_loses_its_comparison_and_two_of_them_tie():
    nan = np.nan
    found = statistics.compare_scores([1.0, 1.0, nan, nan], [2.0, nan, 1.0, nan])
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.difference == -0.5
    balanced = statistics.compare_scores([1.0, nan], [nan, 1.0])
    assert balanced.difference == 0.0
    best = statistics.compare_scores([1.0, 1.0, nan], [nan, nan, nan], ACCURACY)
    assert (best.wins, best.ties, best.difference) == (2, 1, np.inf)


def test_the_sign_test_is_exact():
    for n in (1, 4, 5, 20):
        for k in range(n + 1):
            a, b = [0] * k + [1] * (n - k) + [2], [1] * k + [0] * (n - k) + [2]
            tail = sum(math.comb(n, i) for i in range(min(k, n - k) + 1)) / 2**n
            expected = min(1.0, 2 * tail)
            assert statistics.sign_test(a, b) == pytest.approx(expected, rel=1e-12)


def test_ties_infinities_and_nan_do_not_count_in_the_sign_test():
    assert statistics.sign_test([1, np.inf, np.nan], [1, np.inf, 2]) == 1.0
    assert statistics.sign_test([1, np.nan, 0], [1, np.nan, 1]) == 1.0


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("resamples", [1, 41, 200, 2001])
def test_an_interval_cuts_as_many_resamples_below_as_above(level, resamples):
    found = statistics._interval(np.arange(float(resamples)), level)
    cut = math.floor((1 - level) / 2 * (resamples - 1))
    assert found == (cut, resamples - 1 - cut)


def test_holms_correction_multiplies_the_smallest_p_value_and_keeps_the_order():
    found = statistics.holm({"a": 0.01, "b": 0.2, "c": 0.011, "d": 0.9})
    assert found == pytest.approx({"a": 0.04, "c": 0.04, "b": 0.4, "d": 0.9})


def test_holms_corrected_p_values_are_at_most_1():
    found = statistics.holm({"a": 0.4, "b": 0.6, "c": 1.0})
    assert found == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert statistics.holm({}) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": ("val/loss", "least")}, 'need metric=.name, "min" or "max".'),
        ({"level": 1.0}, "need 0 < level < 1, got level=1.0"),
        ({"resamples": 0}, "need an int resamples >= 1, got resamples=0"),
        ({"points": {"rate": np.ones(2)}}, r"got shape \(2,\) for 'rate'"),
        ({"points": {"rate": np.ones(())}}, r"got shape \(\) for 'rate'"),
        ({"diverged": np.zeros((3, 5), bool)}, r"got \(3, 6\) and \(3, 5\)"),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    options = {"scores": separated([0.5, 0.1, 0.5]), "points": RATES} | change
    with pytest.raises(ValueError, match=message):
        summarize(**options)


def test_invalid_comparisons_are_refused():
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        statistics.compare_scores([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match='"min" or "max"'):
        statistics.compare_scores([1.0], [1.0], ("val/loss", "best"))
