"""`fngrad doctor`: whether JAX computes right, and on the device that is there."""

from typing import Literal

import fngrad.commands.texts as texts
from fngrad.accelerators.diagnosis import diagnose

UNWELL = 1  # exit status


def doctor(
    *, require: Literal["cpu", "gpu", "tpu"] | None = None, json: bool = False
) -> int:
    """Look at JAX and this machine for about ten seconds; exit with 1 at a problem.

    Devices, versions, memory, variables, precision, compiled programs on disk; a test
    against known values; the speed against the chip's peak. Warnings exit with 0.

    Args:
        require: the backend that is to be used; another is a problem.
        json: print JSON.
    """
    found = diagnose(require)
    print(texts.json_text(found.to_json()) if json else found)
    return 0 if found.is_well else UNWELL
