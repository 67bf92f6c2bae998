"""Times by hand."""

import pytest

from fngrad.accelerators.chips import Chip
from fngrad.accelerators.roofline import Times, times_on

CHIP = Chip("test", flops=100.0, bandwidth=10.0, memory=1.0, link=2.0)


def test_each_part_takes_its_amount_over_the_peak():
    times = times_on(CHIP, flops=300.0, moved=20.0, sent=8.0)
    assert times == Times(compute=3.0, memory=2.0, network=4.0)
    assert (times.overlapped, times.apart, times.bound) == (4.0, 9.0, "network")
    assert times.utilization == 0.75


@pytest.mark.parametrize(
    ("amounts", "bound", "utilization"),
    [((500.0, 40.0, 2.0), "compute", 1.0), ((100.0, 40.0, 2.0), "memory", 0.25)],
)
def test_the_longest_part_bounds(amounts, bound, utilization):
    times = times_on(CHIP, *amounts)
    assert times.bound == bound
    assert times.utilization == utilization


def test_a_step_without_work_uses_nothing():
    assert times_on(CHIP, 0.0, 0.0, 0.0).utilization == 0.0
