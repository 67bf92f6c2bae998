"""Why a step went bad: it is replayed and evaluated operation by operation."""

from fngrad.postmortem.diagnosis import autopsy
from fngrad.postmortem.findings import Autopsy

__all__ = ["Autopsy", "autopsy"]


def __dir__() -> list[str]:
    return sorted(__all__)
