"""The benchmark of convolutions prints its tables."""

import pytest

import experiments.benchmarks.convolutions as convolutions


@pytest.mark.slow
def test_the_benchmark_of_convolutions_prints_its_tables(capsys):
    config = convolutions.Config((0,), repeats=0, round_seconds=0.01, depth=2)
    convolutions.main(config)
    shown = capsys.readouterr().out
    assert shown.count("inside over outside") == 2
    assert "native, remat" in shown
