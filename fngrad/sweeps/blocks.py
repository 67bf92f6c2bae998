"""Lanes on their way: block after block, kept in chunks, in less memory if need be."""

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.sweeps.modes as modes
from fngrad.logging import ProgressBar
from fngrad.sweeps.program import Block, Lanes, to_host
from fngrad.sweeps.record import Record
from fngrad.sweeps.storage import Folder

CHUNKS = 100  # files of a sweep, at most, where the caller does not say


class Training(NamedTuple):
    """The lanes of one combination of static values, on their way."""

    number: int
    lanes: Lanes
    record: Record
    folder: Folder | None
    bar: ProgressBar
    chunk: int | None

    def run(self, mode: modes.Mode) -> dict[str, Any]:
        """Train the lanes that are not there yet; return how."""
        choice = self._choose(mode)
        how = {
            **choice._asdict(),
            "devices": len(self.lanes.devices),
            "compile_seconds": 0.0,
        }
        width = choice.width
        while not self.record.done.all():
            block = modes.fitting_block(self.lanes, width)
            how["width"] = block.width
            how["compile_seconds"] += block.compile_seconds
            if self.folder:
                self.folder.record_mode(self.number, how)
            try:
                self._run_blocks(block)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not modes.is_out_of_memory(error) or block.width == 1:
                    raise
                width = block.width // 2
                warnings.warn(
                    f"out of memory in a block of {block.width} lanes: going on with "
                    f"{width}, which may round otherwise; "
                    f"{self.record.done.sum()} lanes are done",
                    stacklevel=3,
                )
        return how

    def _choose(self, mode: modes.Mode) -> modes.Choice:
        recorded = self.folder.mode(self.number) if self.folder else None
        if recorded is None:
            return modes.choose(mode, self.lanes)
        width = recorded["width"]
        if mode != "auto" and modes.choose(mode, self.lanes).width != width:
            raise ValueError(
                f"need mode={width} or mode='auto' in a folder whose lanes were "
                f"trained in blocks of {width}, got {mode=}"
            )
        return modes.Choice(width, "recorded in the folder")

    def _run_blocks(self, block: Block) -> None:
        """Train block after block; what is done is kept whatever happens."""
        count, done = self.lanes.count, self.record.done
        chunk = self.chunk or -(-count // CHUNKS)
        begin = end = 0
        try:
            for first in range(0, count, block.lanes):
                numbers = np.arange(first, min(first + block.lanes, count))
                if done[numbers].all():
                    self._keep(begin, end)
                    begin = end = first + len(numbers)
                    continue
                padded = np.minimum(first + np.arange(block.lanes), count - 1)
                self.record.put(numbers, to_host(block.run(padded)))
                end = first + len(numbers)
                self.bar.advance(len(numbers))
                if end - begin >= chunk:
                    self._keep(begin, end)
                    begin = end
        finally:
            self._keep(begin, end)

    def _keep(self, begin: int, end: int) -> None:
        if self.folder and begin < end:
            self.folder.save(self.number, begin, end, self.record)
