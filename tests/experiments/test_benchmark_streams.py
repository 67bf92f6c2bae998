"""The benchmark of streams compares the same losses, at a small size."""

import pytest

import experiments.benchmarks.streams as streams

pytestmark = pytest.mark.any_flags  # most of their time is compilation


@pytest.mark.slow
def test_sources_train_with_the_losses_of_arrays_in_memory(capsys):
    config = streams.Config(examples=300, batch_size=16, steps=6, repeats=0)
    fractions = streams.main(config)
    assert fractions["MLP"].keys() >= {"in memory", "4 ahead", "none ahead"}
    assert fractions["MLP"]["in memory"] == 0
    assert fractions["CNN"]["none ahead"] > 0
    shown = capsys.readouterr().out
    assert shown.count("equal") == 6
