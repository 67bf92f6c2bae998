"""A roofline: how long a step takes at a chip's peaks, and what bounds it."""

from typing import NamedTuple

from fngrad.accelerators.chips import Chip


class Times(NamedTuple):
    """Seconds that a step takes at the chip's peaks, each part alone."""

    compute: float  # matrix products and convolutions, at the peak of bfloat16
    memory: float  # of the chip
    network: float  # between chips, over all links at once

    @property
    def overlapped(self) -> float:
        """Seconds of the longest part: the others run at the same time."""
        return max(self)

    @property
    def apart(self) -> float:
        """Seconds of one part after the other."""
        return sum(self)

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        return max(self._fields, key=lambda name: getattr(self, name))

    @property
    def utilization(self) -> float:
        """The share of the peak FLOPs that is used at most."""
        return self.compute / self.overlapped if self.overlapped else 0.0


def times_on(chip: Chip, flops: float, moved: float, sent: float) -> Times:
    """Return the times of a step on one chip.

    Args:
        chip: with its peaks.
        flops: of products, on this chip.
        moved: bytes from and to its memory.
        sent: bytes to other chips.

    Example:
        >>> from fngrad.accelerators.chips import TPUS
        >>> from fngrad.accelerators.roofline import times_on
        >>> times = times_on(TPUS["v5e"], flops=197e9, moved=819e3, sent=200e6)
        >>> times.bound, round(1e3 * times.overlapped, 6), times.utilization
        ('compute', 1.0, 1.0)

    References:
        Williams, Waterman and Patterson 2009, "Roofline: an insightful visual
        performance model", https://doi.org/10.1145/1498765.1498785.
    """
    return Times(flops / chip.flops, moved / chip.bandwidth, sent / chip.link)
