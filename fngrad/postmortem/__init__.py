"""Why a step went bad: replayed, and evaluated one operation after another."""

from fngrad.postmortem.diagnosis import autopsy
from fngrad.postmortem.report import Autopsy

__all__ = ["Autopsy", "autopsy"]
