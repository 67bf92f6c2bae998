"""The processes of a sweep: each trains lanes of its own, all get the result.

Blocks of lanes are dealt out in turn, and after each round of blocks every process gets
the outputs of all. So every process has the whole result, the first one saves it, and
what goes wrong in one process is known to all after the round: a training that raises
is recorded by all, and blocks that do not fit in the memory of one are narrowed in all.
A process that ends takes the others with it, see `fngrad.distributed.initialize`.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fngrad.distributed import Processes, check_connected, processes

TEXT_LENGTH = 400  # of an exception, told to the other processes
_FINE, _OUT_OF_MEMORY, _FAILED = range(3)


class PeerEndedError(RuntimeError):
    """Another process of the program has ended."""


class PeerFailedError(RuntimeError):
    """The training raised in another process."""


class PeerOutOfMemoryError(MemoryError):
    """Memory ran out in another process."""


class Peers(Processes):
    """The processes of a sweep, as seen from this one."""

    __slots__ = ()

    def gather(self, value: Any) -> np.ndarray:
        """Return what each process passed, see `Processes.gather`.

        Raises:
            PeerEndedError: if another process has ended.
        """
        try:
            return super().gather(value)
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # of gloo, NCCL
            raise PeerEndedError(
                "need all processes of the sweep, got no answer of one: what it wrote "
                "last says why"
            ) from error

    def settle(self, error: Exception | None) -> Exception | None:
        """Tell an error, or that there is none; return the one of any process.

        Args:
            error: of this process. That of another one, which this function returned
                and the caller raised, is not told again.
        """
        if self.count == 1 or isinstance(error, PeerFailedError | PeerOutOfMemoryError):
            return error
        code = _FINE if error is None else _FAILED
        if error is not None and is_out_of_memory(error):
            code = _OUT_OF_MEMORY
        codes = self.gather(np.array(code, np.int32))
        worst = int(codes.max())
        if worst == _FINE:
            return None
        text = "" if error is None else f"{type(error).__name__}: {error}"
        texts = self.texts(text[:TEXT_LENGTH])
        if code == worst:
            return error
        rank = int(codes.argmax())
        text = f"process {rank}: {texts[rank]}"
        return PeerFailedError(text) if worst == _FAILED else PeerOutOfMemoryError(text)

    def check(self) -> None:
        """Raise the error that another process told instead of this call."""
        if error := self.settle(None):
            raise error

    def least(self, number: int) -> int:
        """Return the smallest number that a process passed."""
        self.check()
        return super().least(number)

    def first(self, number: int) -> int:
        """Return the number that the first process passed."""
        self.check()
        return int(self.gather(np.array(number, np.int32))[0])

    def share(
        self, leaves: Sequence[np.ndarray], like: Sequence[np.ndarray]
    ) -> list[list[np.ndarray]]:
        """Return the arrays of every process.

        Args:
            leaves: of this process, none if it has nothing to tell.
            like: arrays of the same shapes and dtypes.
        """
        if self.count == 1:
            return [list(leaves)]
        self.check()
        sizes = [x.nbytes for x in like]
        data = b"".join(x.tobytes() for x in leaves) or bytes(sum(sizes))
        parts = self.gather(np.frombuffer(data, np.uint8))
        ends = np.cumsum(sizes)[:-1]
        return [
            [
                part.view(x.dtype).reshape(x.shape)
                for part, x in zip(np.split(row, ends), like, strict=True)
            ]
            for row in parts
        ]

    def from_first(self, text: str) -> str:
        """Return the text that the first process passed."""
        self.check()
        return self.texts(text)[0]

    def check_same(self, described: Any) -> None:
        """Check that all processes train the same sweep.

        Args:
            described: what determines it, values of JSON.

        Raises:
            ValueError: if the values differ.
        """
        if self.count == 1:
            return
        self.check()
        text = json.dumps(described, sort_keys=True)
        hashed = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        first, *others = self.texts(hashed)
        for rank, other in enumerate(others, 1):
            if other != first:
                raise ValueError(
                    "need the same sweep, on as many devices, in all processes, got "
                    f"another in process {rank} than in process 0"
                )


def all_peers() -> Peers:
    """Return the processes of this program.

    Raises:
        RuntimeError: as `fngrad.distributed.check_connected`.
    """
    check_connected()
    return Peers(*processes())


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    text = str(error).lower()
    is_from_jax = isinstance(error, jax.errors.JaxRuntimeError)
    is_full = "resource_exhausted" in text or "out of memory" in text
    return isinstance(error, MemoryError) or (is_from_jax and is_full)
