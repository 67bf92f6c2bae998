"""Float64, switched on for a block of code."""

from typing import Any

import fngrad.numerics as numerics


def x64() -> Any:
    """Switch float64 on within a block."""
    return numerics.double_precision()
