"""Train the lanes of one program, block by block, and save them in chunks.

If memory runs out, training continues in narrower blocks.
"""

import contextlib
import functools
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from fngrad.logging import ProgressBar
from fngrad.programs.caller_warnings import warn
from fngrad.sweeps.running.block_width import (
    Choice,
    Mode,
    blocks_at_once,
    choose,
    fitting_block,
    memory_budget,
)
from fngrad.sweeps.running.lane_outputs import LaneOutputs
from fngrad.sweeps.running.peers import is_out_of_memory
from fngrad.sweeps.running.program import Block, Lanes, compile_block, to_host
from fngrad.sweeps.running.storage import Folder
from fngrad.sweeps.running.width_timing import try_widths

MIN_ROUNDS = 8  # of blocks trained at once; a shorter sweep tries no other width
MAX_CHUNKS = 100  # files of a sweep, unless the caller sets the chunk's length


class Training(NamedTuple):
    """The lanes of one combination of static values, partly trained."""

    number: int  # of the combination
    lanes: Lanes
    jaxpr: Any  # of one lane
    blocks: dict[int, Block] | None  # the last one, kept for other points, by width
    collected: LaneOutputs
    folder: Folder | None
    bar: ProgressBar
    chunk: int | None
    recorded: dict[str, Any] | None = None  # how lanes that are done were trained

    def run(self, choice: Choice, is_open: bool) -> dict[str, Any]:
        """Train the lanes that are not done yet; return how they were trained."""
        how = {
            **choice._asdict(),
            "devices": len(self.lanes.devices),
            "compile_seconds": 0.0,
        }
        while not self.collected.done.all():
            block = self._compiled(how["width"], how)
            try:
                if is_open:
                    block, is_open = self._fastest(block, how), False
                how["width"] = block.width
                self._record(how)
                self._run_blocks(block)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or block.width == 1:
                    raise
                known = self.lanes.peers.settle(error)
                if known is not None and not is_out_of_memory(known):
                    raise known from error
                how["width"] = block.width // 2
                warn(
                    f"out of memory in a block of {block.width} lanes: continuing with "
                    f"{how['width']}, which may round differently; "
                    f"{self.collected.done.sum()} lanes are done"
                )
        if self.folder and self.folder.mode(self.number) is None:
            self._record(how)
        self._save(self.lanes.count)  # those of an earlier sweep too
        return how

    def _compiled(self, width: int, how: dict[str, Any]) -> Block:
        """Return a block of at most this width, and add up how long it compiled."""
        if self.blocks and width in self.blocks:
            return self.blocks[width].of(self.lanes)
        with self.bar.compiling():
            block = fitting_block(self.lanes, width)
            least = self.lanes.peers.least(block.width)
            if least < block.width:
                block = compile_block(self.lanes, least)
        how["compile_seconds"] += block.compile_seconds
        if self.blocks is not None:
            self.blocks.clear()
            self.blocks[block.width] = block
        return block

    def choose(self, mode: Mode) -> tuple[Choice, bool]:
        """Return the first choice of a width, and whether others should be timed."""
        if self.recorded is None:
            choice = choose(mode, self.lanes, self.jaxpr)
            is_cpu = self.lanes.devices[0].platform == "cpu"
            # In a long sweep, training the first block alone costs next to nothing.
            at_once = choice.width * blocks_at_once(self.lanes.devices)
            is_long = self.lanes.count / at_once >= MIN_ROUNDS
            peers, is_open = self.lanes.peers, mode == "auto" and is_cpu and is_long
            choice = choice._replace(width=peers.first(choice.width))
            return choice, bool(peers.first(is_open))
        width = self.recorded["width"]
        if mode != "auto" and choose(mode, self.lanes, self.jaxpr).width != width:
            raise ValueError(
                f"need mode={width} or mode='auto' to continue lanes that were trained "
                f"in blocks of {width}, got {mode=}"
            )
        return Choice(width, "recorded with the lanes that are done"), False

    def _fastest(self, block: Block, how: dict[str, Any]) -> Block:
        """Train the first block, and time other widths if the rest takes long."""
        started = time.perf_counter()
        first = self._left()[: block.lanes]
        outputs = self._train(block, first)
        peers = self.lanes.peers
        blocks = -(-self.lanes.count // (block.lanes * peers.count))
        seconds = time.perf_counter() - started
        rest = seconds * (blocks - 1) / blocks_at_once(self.lanes.devices)
        budget = memory_budget(self.lanes.devices)
        with self.bar.compiling():
            trial = try_widths(
                self.lanes, self.jaxpr, block, seconds=rest, budget=budget
            )
        how["reason"] += f"; {trial.reason}"
        how["compile_seconds"] += trial.compile_seconds
        how["width"] = peers.first(trial.width)
        if how["width"] != block.width:
            return self._compiled(how["width"], how)
        self._put(first, outputs)
        self._record(how)
        self._save(len(first))
        return block

    def _run_blocks(self, block: Block) -> None:
        """Train the remaining lanes; completed ones are saved whatever happens."""
        chunk = self.chunk or -(-self.lanes.count // MAX_CHUNKS)
        end = 0
        try:
            with contextlib.closing(self._outputs(block)) as blocks:
                for numbers, outputs in blocks:
                    self._put(numbers, outputs)
                    end = int(numbers[-1]) + 1
                    if len(self.collected.unsaved(end)) >= chunk:
                        self._save(end)
        finally:
            self._save(end)

    def _outputs(self, block: Block) -> Generator[tuple[np.ndarray, list[np.ndarray]]]:
        """Yield lanes and outputs block by block; several blocks train concurrently."""
        left, peers = self._left(), self.lanes.peers
        blocks = np.split(left, range(block.lanes, len(left), block.lanes))
        pool = ThreadPoolExecutor(blocks_at_once(self.lanes.devices))
        like = self.collected.emptied(block.lanes).leaves
        try:
            own = blocks[peers.rank :: peers.count]
            outputs = pool.map(functools.partial(self._train, block), own)
            for first in range(0, len(blocks), peers.count):
                shared = peers.share(next(outputs, []), like)
                yield from zip(
                    blocks[first : first + peers.count], shared, strict=False
                )
        finally:
            pool.shutdown(cancel_futures=True)

    def _train(self, block: Block, numbers: np.ndarray) -> list[np.ndarray]:
        """Train lanes; a block that they do not fill repeats the last one."""
        padding = block.lanes - len(numbers)
        return to_host(block.run(np.pad(numbers, (0, padding), mode="edge")))

    def _left(self) -> np.ndarray:
        """Return the numbers of the lanes that are not done, ascending."""
        return np.flatnonzero(~self.collected.done)

    def _put(self, numbers: np.ndarray, outputs: list[np.ndarray]) -> None:
        """Store outputs, and advance the bar."""
        self.bar.advance(len(numbers))
        self.collected.put(numbers, outputs)

    def _record(self, how: dict[str, Any]) -> None:
        if self.folder:
            self.folder.record_mode(self.number, how)

    def _save(self, end: int) -> None:
        """Save the lanes below ``end``, all of which are done, as one file."""
        unsaved = self.collected.unsaved(end)
        if self.folder and len(unsaved):
            first, last = int(unsaved[0]), int(unsaved[-1])
            self.folder.save(self.number, first, last + 1, self.collected)
