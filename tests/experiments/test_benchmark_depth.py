"""The benchmark of depth shows what it claims, at a small size."""

import pytest

import experiments.benchmarks.depth as depth


@pytest.mark.slow
def test_a_loop_with_remat_needs_the_least_memory(capsys):
    config = depth.Config(depths=(3,), features=16, length=32, batch_size=4)
    costs = {name: cost for (name, _), cost in depth.main(config).items()}
    least = costs["loop, remat"]
    assert least.temporaries < 0.6 * costs["one by one"].temporaries
    assert least.temporaries < costs["loop"].temporaries
    assert least.products > costs["loop"].products == costs["one by one"].products
    shown = capsys.readouterr().out
    assert all(name in shown for name in depth.LAYOUTS)
