"""The benchmark of the training loop prints its ratios."""

import pytest

import experiments.benchmarks.training_loop as training_loop

pytestmark = pytest.mark.any_flags  # most of their time is compilation


@pytest.mark.slow
def test_the_benchmark_of_the_loop_prints_its_ratios(capsys):
    training_loop.main(
        training_loop.Config(
            models=("mlp 64-16-16-10",), repeats=0, round_seconds=0.01, peers=False
        )
    )
    shown = capsys.readouterr().out
    for words in ("fit over the best hand-written loop", "auto over the better loop"):
        assert words in shown
