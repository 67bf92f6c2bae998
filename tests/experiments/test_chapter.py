"""The chapter's experiments show what they claim, with tiny settings."""

import dataclasses
import json

import numpy as np
import pytest

import experiments.backpropagation as backpropagation
import experiments.closed_form_or_descent as closed_form_or_descent
import experiments.compare_optimizers as compare_optimizers
import experiments.linear_approximation as linear_approximation
import experiments.naive_or_gradient as naive_or_gradient
import experiments.races as races
import experiments.training_loop as training_loop


def results_in(runs, picture):
    """Return the manifest's results; check that the picture is a PNG file."""
    (folder,) = runs.iterdir()
    assert (folder / picture).read_bytes()[:4] == b"\x89PNG"
    return json.loads((folder / "manifest.json").read_text())["results"]


@pytest.mark.slow
def test_the_loop_by_hand_and_fngrads_have_equal_bits(tmp_path, capsys):
    config = training_loop.Config(steps=12, runs=tmp_path)
    training_loop.main(config)
    assert "equal bits: 12 of 12 steps" in capsys.readouterr().out
    results = results_in(tmp_path, "loop.png")
    assert results["largest_gap"] == 0
    assert results["accuracy"]["by hand"] == results["accuracy"]["fngrad"] > 0.15


@pytest.mark.slow
def test_loops_that_differ_have_different_bits(tmp_path):
    splits = training_loop.fg.data.digits()
    config = training_loop.Config(steps=3, runs=tmp_path)
    other = dataclasses.replace(config, learning_rate=0.11)
    pairs = zip(
        training_loop.by_hand(config, splits.train).visited,
        training_loop.with_fngrad(other, splits.train).visited,
        strict=True,
    )
    assert not any(training_loop.have_equal_bits(a, b) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.any_flags
def test_both_ways_to_the_slopes_agree_and_are_timed(tmp_path, capsys):
    config = naive_or_gradient.Config(
        hidden=(1, 2, 4), sample=5, examples=8, repeats=0, runs=tmp_path
    )
    naive_or_gradient.main(config)
    assert "work grows as n^" in capsys.readouterr().out
    costs = results_in(tmp_path, "cost.png")["costs"]
    assert [cost["weights"] for cost in costs] == [85, 160, 310]
    for cost in costs:
        assert cost["difference"] < 5e-3  # of float32's differences
        assert cost["naive"] > 0


def test_an_exponent_is_fitted_to_the_larger_half():
    n = np.array([1.0, 10.0, 100.0, 1000.0, 10000.0])
    times = 1e-3 + 1e-5 * n**2
    fitted = naive_or_gradient.exponent(n.tolist(), times.tolist())
    assert fitted == pytest.approx(2.0, abs=0.01)


@pytest.mark.slow
@pytest.mark.any_flags
def test_the_tangents_error_falls_as_the_square_of_the_distance(tmp_path):
    linear_approximation.main(linear_approximation.Config(examples=8, runs=tmp_path))
    results = results_in(tmp_path, "tangent.png")
    assert len(results) == 3
    for orders in results.values():
        assert orders["constant"] == pytest.approx(1.0, abs=0.05)
        assert orders["tangent"] == pytest.approx(2.0, abs=0.05)


@pytest.mark.slow
def test_signals_vanish_explode_or_keep_their_size(tmp_path, capsys):
    config = backpropagation.Config(
        depth=8, shown=(3, 7), seeds=2, examples=8, runs=tmp_path
    )
    backpropagation.main(config)
    assert "equal bits: yes" in capsys.readouterr().out
    factors = results_in(tmp_path, "signals.png")["factors"]
    for name, (early, late) in factors.items():
        if "vanishes" in name:
            assert late < 0.3 * early < 0.3
        elif "explodes" in name:
            assert late > 1.5 * early > 1.5
        else:
            assert 0.2 < late < 5


@pytest.mark.slow
@pytest.mark.any_flags
def test_descent_ends_where_the_closed_form_is(tmp_path, capsys):
    config = closed_form_or_descent.Config(
        steps=2000,
        sizes=(8, 16, 32),
        features=(5, 300),
        examples=100,
        repeats=0,
        runs=tmp_path,
    )
    closed_form_or_descent.main(config)
    assert "a million parameters" in capsys.readouterr().out
    results = results_in(tmp_path, "closed_form.png")
    assert all(abs(excess) < 1e-6 for excess in results["excess"].values())
    few, many = results["conditions"]
    assert many["condition"] > 100 * few["condition"]
    assert many["error"] > 100 * few["error"]


def test_the_sign_test_is_exact():
    a, b = np.arange(10.0), np.arange(10.0) + 1
    assert compare_optimizers.sign_test(a, b) == pytest.approx(2 / 2**10)
    assert compare_optimizers.sign_test(a, a) == 1.0
    never = np.full(10, np.inf)
    assert compare_optimizers.sign_test(a, never) == pytest.approx(2 / 2**10)
    assert compare_optimizers.sign_test(never, never) == 1.0


def test_holms_correction_multiplies_and_never_falls():
    corrected = compare_optimizers.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert corrected == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_a_difference_that_may_be_chance_is_not_called_one():
    def row(*steps):
        return races.Row(0.1, False, np.array(steps))

    rows = {
        "fast": row(*range(10, 20)),
        "slow": row(*range(30, 40)),
        "alike": row(11, 12, 13, 14, 15, 16, 17, 17, 17, 17),
    }
    said, p = compare_optimizers.statement(rows)
    assert said.startswith("fast needs fewer steps than slow (p = 0.0039)")
    assert "not distinguished from alike" in said
    assert p["alike"] > 0.05


def test_five_optimizers_are_compared_on_four_problems():
    config = compare_optimizers.Config()
    assert config.optimizers == ("sgd", "momentum", "rmsprop", "adagrad", "adam")
    made = {name: compare_optimizers.PROBLEMS[name]() for name in config.problems}
    assert {name: problem.name for name, problem in made.items()} == {
        "digits": "digits",
        "breast cancer": "breast cancer",
        "diabetes": "diabetes",
        "noisy quadratic": "noisy quadratic",
    }


def test_unknown_problems_are_refused(tmp_path):
    for names in (("digit",), ()):
        with pytest.raises(SystemExit, match=r"need problems among .'digits', "):
            compare_optimizers.main(
                compare_optimizers.Config(problems=names, runs=tmp_path)
            )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.any_flags
def test_optimizers_are_compared_on_each_problem(tmp_path, capsys):
    # The other two problems are those of the zoo.
    problems = ("breast cancer", "diabetes")
    config = compare_optimizers.Config(
        optimizers=("sgd", "adam"),
        problems=problems,
        rates=(0.01, 0.1),
        seeds=2,
        tuning_seeds=1,
        steps=20,
        path_steps=20,
        runs=tmp_path,
    )
    compare_optimizers.main(config)
    shown = capsys.readouterr().out
    results = results_in(tmp_path, "steps.png")
    assert tuple(results["races"]) == problems
    assert all(set(rows) == {"sgd", "adam"} for rows in results["races"].values())
    assert shown.count("needs fewer steps than") == len(problems)
    assert next(tmp_path.iterdir()).joinpath("paths.png").exists()
