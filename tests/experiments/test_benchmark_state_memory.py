"""The benchmark of the state's memory holds what it claims, at a small size."""

import pytest

import experiments.benchmarks.state_memory as state_memory


@pytest.mark.slow
def test_state_and_peak_shrink_and_the_table_says_so(capsys):
    config = state_memory.Config(width=128, depth=3, batch_size=4, repeats=0)
    sizes = state_memory.main(config)
    names = ("float32", "16 bits", "8 bits", "4 bits")
    full, short, eight, four = (sizes[name] for name in names)
    assert short.temporaries <= 1.01 * full.temporaries
    assert short.state <= 0.501 * full.state
    assert eight.state <= 0.27 * full.state
    assert four.state <= 0.14 * full.state
    assert four.peak < eight.peak < short.peak < full.peak
    shown = capsys.readouterr().out
    for name in sizes:
        assert shown.count(name) >= 2
    assert f"{eight.peak / full.peak:.2f}" in shown
