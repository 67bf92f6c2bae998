"""Checkpoints: written atomically, checked, and restored bit for bit."""

from typing import TYPE_CHECKING

from fngrad.checkpoint.errors import CheckpointError
from fngrad.checkpoint.manager import Checkpoints
from fngrad.checkpoint.reading import Saved, latest_step, steps
from fngrad.checkpoint.safetensors_files import (
    load_safetensors,
    safetensors_metadata,
    save_safetensors,
)
from fngrad.checkpoint.saving import restore, save
from fngrad.checkpoint.tree_matching import rebuild

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Saved",
    "latest_step",
    "load_safetensors",
    "rebuild",
    "restore",
    "safetensors_metadata",
    "save",
    "save_safetensors",
    "steps",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)
