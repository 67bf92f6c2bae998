"""Why a step went bad: replayed, and evaluated one operation after another."""

from fngrad.postmortem.diagnosis import autopsy
from fngrad.postmortem.findings import Autopsy

__all__ = ["Autopsy", "autopsy"]
