"""Lanes on their way: block after block, kept in chunks, in less memory if need be."""

import contextlib
import time
import warnings
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

import fngrad.sweeps.running.modes as modes
from fngrad.logging import ProgressBar
from fngrad.sweeps.running.probes import try_widths
from fngrad.sweeps.running.program import Block, Lanes, to_host
from fngrad.sweeps.running.record import Record
from fngrad.sweeps.running.storage import Folder

TRIED_ROUNDS = 8  # of blocks trained at once; a shorter sweep tries no other width
CHUNKS = 100  # files of a sweep, at most, where the caller does not say


class Training(NamedTuple):
    """The lanes of one combination of static values, on their way."""

    number: int
    lanes: Lanes
    jaxpr: Any  # of one lane
    record: Record
    folder: Folder | None
    bar: ProgressBar
    chunk: int | None

    def run(self, mode: modes.Mode) -> dict[str, Any]:
        """Train the lanes that are not there yet; return how."""
        choice, is_open = self._choose(mode)
        how = {
            **choice._asdict(),
            "devices": len(self.lanes.devices),
            "compile_seconds": 0.0,
        }
        width = choice.width
        while not self.record.done.all():
            block = modes.fitting_block(self.lanes, width)
            how["compile_seconds"] += block.compile_seconds
            try:
                if is_open:
                    block, is_open = self._fastest(block, how), False
                how["width"] = block.width
                self._note(how)
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

    def _choose(self, mode: modes.Mode) -> tuple[modes.Choice, bool]:
        """Return the first choice, and whether another may turn out to be better."""
        recorded = self.folder.mode(self.number) if self.folder else None
        if recorded is None:
            choice = modes.choose(mode, self.lanes, self.jaxpr)
            is_cpu = self.lanes.devices[0].platform == "cpu"
            return choice, mode == "auto" and is_cpu and self._is_long(choice.width)
        width = recorded["width"]
        if mode != "auto" and modes.choose(mode, self.lanes, self.jaxpr).width != width:
            raise ValueError(
                f"need mode={width} or mode='auto' in a folder whose lanes were "
                f"trained in blocks of {width}, got {mode=}"
            )
        return modes.Choice(width, "recorded in the folder"), False

    def _is_long(self, width: int) -> bool:
        """Say whether a first block that is trained alone costs next to nothing."""
        rounds = self.lanes.count / (width * modes.blocks_at_once(self.lanes.devices))
        return rounds >= TRIED_ROUNDS

    def _fastest(self, block: Block, how: dict[str, Any]) -> Block:
        """Train the first block, and try other widths if the rest takes long."""
        begin = time.perf_counter()
        numbers = np.arange(block.lanes)
        outputs = to_host(block.run(np.minimum(numbers, self.lanes.count - 1)))
        blocks = -(-self.lanes.count // block.lanes)
        seconds = time.perf_counter() - begin
        rest = seconds * (blocks - 1) / modes.blocks_at_once(self.lanes.devices)
        budget = modes.memory_budget(self.lanes.devices)
        trial = try_widths(self.lanes, self.jaxpr, block, rest, budget)
        how["reason"] += f"; {trial.reason}"
        how["compile_seconds"] += trial.compile_seconds
        how["width"] = trial.width
        if trial.width != block.width:
            block = modes.fitting_block(self.lanes, trial.width)
            how["compile_seconds"] += block.compile_seconds
            return block
        first = numbers[numbers < self.lanes.count]
        self.record.put(first, outputs)
        self.bar.advance(len(first))
        self._note(how)
        self._keep(0, len(first))
        return block

    def _run_blocks(self, block: Block) -> None:
        """Train what is not done; what is done is kept whatever happens."""
        chunk = self.chunk or -(-self.lanes.count // CHUNKS)
        begin = end = 0
        try:
            with contextlib.closing(self._outputs(block)) as blocks:
                for numbers, outputs in blocks:
                    first, last = int(numbers[0]), int(numbers[-1]) + 1
                    if first != end:
                        self._keep(begin, end)
                        begin = first
                    self.record.put(numbers, outputs)
                    self.bar.advance(len(numbers))
                    end = last
                    if end - begin >= chunk:
                        self._keep(begin, end)
                        begin = end
        finally:
            self._keep(begin, end)

    def _outputs(self, block: Block) -> Generator[tuple[np.ndarray, list[np.ndarray]]]:
        """Yield lanes and outputs block after block; several are trained at once."""
        count, done = self.lanes.count, self.record.done
        starts = range(0, count, block.lanes)
        blocks = [np.arange(first, min(first + block.lanes, count)) for first in starts]
        blocks = [numbers for numbers in blocks if not done[numbers].all()]

        def train(numbers: np.ndarray) -> list[np.ndarray]:
            padded = np.minimum(numbers[0] + np.arange(block.lanes), count - 1)
            return to_host(block.run(padded))

        pool = ThreadPoolExecutor(modes.blocks_at_once(self.lanes.devices))
        try:
            yield from zip(blocks, pool.map(train, blocks), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _note(self, how: dict[str, Any]) -> None:
        if self.folder:
            self.folder.record_mode(self.number, how)

    def _keep(self, begin: int, end: int) -> None:
        if self.folder and begin < end:
            self.folder.save(self.number, begin, end, self.record)
