"""Several processes that run one program: who is first, and what all agree on.

JAX connects the processes of a program (its multi-controller runtime): each sees all
devices and must start the same computations in the same order. What depends on one
process alone, such as its clock or a signal it got, must therefore be agreed on before
it decides what is computed: `Processes.agree`, `Processes.any`, `Processes.texts`.
"""

import atexit
import inspect
import logging
import os
import re
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import numpy as np

import fngrad.numerics as numerics

__all__ = ["PeerError", "Processes", "initialize", "processes"]

_T = TypeVar("_T")
_XLA_STATUS = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED): ")
_NO_CLUSTER = "coordinator_address should be defined"  # in the message of JAX
_PATIENCE = 5.0  # seconds for the others to end too, after an exit that failed
_WAITS = threading.Event()  # once JAX waits for the others at the exit
_KNOWN = threading.Event()  # once the others know how this process ends
_GRACE = 1.0  # seconds for the others to end before the first, without which JAX aborts


def __dir__() -> list[str]:
    return sorted(__all__)


class PeerError(RuntimeError):
    """An exception ended another process of the run, and so all, at the same step."""


class Processes(NamedTuple):
    """The processes of this program, as seen from this one."""

    rank: int = 0  # of this process, from 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process owns what there is once: folders, prints, loggers."""
        return self.rank == 0

    def agree(self, value: _T) -> _T:
        """Return the value that the first process passed.

        All processes call it at the same point of the program and wait for the first.

        Args:
            value: a number, or a tree of numbers or arrays whose structure, shapes and
                dtypes are the same in all processes.
        """
        if self.count == 1:
            return value
        from jax.experimental import multihost_utils

        told = multihost_utils.broadcast_one_to_all(value)
        return jax.tree.map(_like, value, told)

    def any(self, flag: bool) -> bool:
        """Return whether any process passed True; all call it and wait for all."""
        return bool(np.any(self.gather(np.bool_(flag))))

    def gather(self, value: Any) -> np.ndarray:
        """Return what each process passed, by rank; all call it and wait for all.

        Args:
            value: a number or an array, of one shape and dtype in all processes.
        """
        value = np.asarray(value)
        if self.count == 1:
            return value[None]
        from jax.experimental import multihost_utils

        # As bytes: nothing is cast, whatever the dtype and jax's precision.
        data = np.frombuffer(value.tobytes(), np.uint8)
        rows = np.ascontiguousarray(multihost_utils.process_allgather(data))
        return rows.reshape(-1).view(value.dtype).reshape(self.count, *value.shape)

    def least(self, number: int) -> int:
        """Return the smallest number that a process passed; all call it and wait."""
        return int(self.gather(np.int32(number)).min())

    def texts(self, text: str) -> list[str]:
        """Return the text of each process, by rank; all call it and wait for all.

        Example:
            >>> import fngrad as fg
            >>> fg.distributed.processes().texts("the only one")
            ['the only one']
        """
        if self.count == 1:
            return [text]
        own = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)
        sizes = self.gather(np.int32(own.size))
        if not sizes.any():
            return [""] * self.count
        # A power of two, so that few programs are compiled.
        padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
        padded[: own.size] = own
        pairs = zip(self.gather(padded), sizes, strict=True)
        return [row[:n].tobytes().decode(errors="surrogatepass") for row, n in pairs]


def _like(old: Any, new: Any) -> Any:
    """Return a number as one of Python if it was one."""
    is_number = isinstance(old, bool | int | float)
    return type(old)(new) if is_number else np.asarray(new)


def processes() -> Processes:
    """Return the processes of this program; one, unless `initialize` connected more.

    Example:
        >>> import fngrad as fg
        >>> fg.distributed.processes()  # on a laptop
        Processes(rank=0, count=1)
    """
    if not jax.distributed.is_initialized():
        return Processes(0, 1)  # without starting a backend
    return Processes(jax.process_index(), jax.process_count())


def check_connected() -> None:
    """Raise if JAX knows of processes that `initialize` did not connect.

    This starts a backend.

    Raises:
        RuntimeError: if so.
    """
    count = jax.process_count()
    if count > 1 and not jax.distributed.is_initialized():
        raise RuntimeError(
            "need fngrad.distributed.initialize() as the first call of the program, "
            f"got {count} processes that JAX found without it, as on a TPU pod: the "
            "failure of one would leave the others waiting"
        )


def others_know() -> None:
    """Note that the others were told what ends this process: none waits for it."""
    _KNOWN.set()


def may_be_of_another(error: BaseException) -> bool:
    """Return whether an exception may say that another process left a computation.

    JAX raises its own kind, or ValueError with a status of XLA.
    """
    is_status = isinstance(error, ValueError) and _XLA_STATUS.match(str(error))
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(is_status)


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 100,
    exit_seconds: int = 300,
    **options: Any,
) -> Processes:
    """Connect the processes of a program; call it first, in each of them.

    Without arguments JAX finds the others on Slurm, Cloud TPU, Kubernetes and by the
    variable ``JAX_COORDINATOR_ADDRESS``; where there are none, nothing is done, so that
    a script that begins with this call also runs on one host. An exception that would
    end one process is printed there and ends it at once: the others, which wait for it
    in their next computation, then end too, instead of waiting for minutes. So does
    `sys.exit` with a message or a status other than 0, if it ends the program: when
    this process's threads and the exit handlers registered after this call are done, it
    gives the others 5 seconds to end too, each with its own status. ``sys.exit(0)`` is
    a normal end, and so is ``raise SystemExit(1)``, of which Python tells nobody: call
    `sys.exit` instead.

    Args:
        coordinator_address: ``host:port`` of the first process.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        heartbeat_seconds: how long a process may be silent, as when it is stopped,
            until the others end, >= 1.
        exit_seconds: how long a process that has finished waits for the others to
            finish, such as the first one that draws pictures, >= 1; then JAX ends all.
            Before JAX 0.8 it is JAX's own limit.
        options: further arguments of `jax.distributed.initialize`.

    Returns:
        The processes.

    Raises:
        ValueError: if some of the three are given and the rest cannot be found.
        RuntimeError: if JAX has computed before, or the others do not answer.
    """
    given = {
        "coordinator_address": coordinator_address,
        "num_processes": _given(num_processes, "JAX_NUM_PROCESSES"),
        "process_id": _given(process_id, "JAX_PROCESS_ID"),
    }
    is_alone = not any(value is not None for value in given.values())
    limits = {
        "heartbeat_timeout_seconds": numerics.check_count(
            "heartbeat_seconds", heartbeat_seconds, 1
        ),
        "shutdown_timeout_seconds": numerics.check_count(
            "exit_seconds", exit_seconds, 1
        ),
    }
    known = inspect.signature(jax.distributed.initialize).parameters
    limits = {name: limit for name, limit in limits.items() if name in known}
    try:
        jax.distributed.initialize(**given, **limits, **options)
    except ValueError as error:
        if is_alone and _NO_CLUSTER in str(error):
            return processes()
        raise
    sys.excepthook = _end_process
    sys.exit = _raise_exit
    atexit.register(_WAITS.set)  # runs before the handler of JAX, which is older
    return processes()


def _given(number: int | None, variable: str) -> int | None:
    """Return an argument, or else what a variable of the launcher says."""
    if number is None and variable in os.environ:
        return int(os.environ[variable])
    return number


def _end_process(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an exception and end the process, without JAX's wait for the others.

    They may be waiting for this one in a computation, which fails once it has ended.
    """
    try:
        traceback.print_exception(kind, error, trace)
    finally:
        _end_at_once(1, f"process {jax.process_index()} ends at once")


def _end_at_once(status: int, text: str) -> NoReturn:
    try:
        print(f"{text}, so that no other waits for it", file=sys.stderr)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(_GRACE)
    finally:  # also if nobody reads what is printed
        os._exit(status)


class _Exit(SystemExit):
    """What `sys.exit` raises: it sees whether it ends the program, and how.

    The interpreter asks for the status of the exception that ends a program, outside of
    any frame of Python; whoever catches it asks from a frame.
    """

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "code" and not _has_caller():
            _end_in_time(value)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return SystemExit, self.args  # as pickled by a process of a pool


# In messages.
_Exit.__name__ = _Exit.__qualname__ = SystemExit.__name__
_Exit.__module__ = SystemExit.__module__


def _raise_exit(status: Any = None, /) -> NoReturn:
    """Raise SystemExit, as `sys.exit` does, which ends this process.

    With a message or a status other than 0 it does so within seconds, also if the
    others do not end, as they wait for this one in a computation. In another thread
    than the main one it ends the thread.
    """
    # A thread ends silently by an exception of this very class alone.
    is_main = threading.current_thread() is threading.main_thread()
    kind = _Exit if is_main else SystemExit
    raise kind() if status is None else kind(status)


def _has_caller() -> bool:
    """Return whether code of Python called the caller of this function."""
    frame = inspect.currentframe()
    caller = frame and frame.f_back
    return caller is not None and caller.f_back is not None


def _end_in_time(status: Any) -> None:
    """End this process some seconds after JAX begins to wait for the others.

    Nothing is done for the status of success, or without others.
    """
    is_number = status is None or isinstance(status, int)
    number = (status or 0) & 0xFF if is_number else 1
    if not (number and jax.distributed.is_initialized()):
        return
    rank = jax.process_index()  # while there is a backend
    text = f"process {rank} exits by {status!r}, others do not; it ends at once"

    def end() -> None:
        _WAITS.wait()
        _KNOWN.wait(_PATIENCE)
        _end_at_once(number, text)

    # Now, as no thread can be started once the interpreter ends.
    threading.Thread(target=end, daemon=True).start()
