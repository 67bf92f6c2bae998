"""Processes of scripts, forked from one that has imported fngrad.

They are processes as any, but for the seconds of importing: JAX starts in each of them
anew, since it never starts in the one they are forked from. Those of two origins hash
strings differently, as do processes that are started one by one.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[2]
ORIGIN = "import sys, forked; exec(forked.next_script(int(sys.argv[1])))"
IMPORTED = ("fngrad", "orbax.checkpoint", "jaxlib.mlir.dialects.mhlo")


class Forked:
    """A process of a script, with what the tests use of `subprocess.Popen`.

    Args:
        script: its text.
        *arguments: ``sys.argv[1:]`` of the script.
        variables: of its environment, besides those of this process.
        origin: which process it is forked from.
        stderr: of its own, or `subprocess.STDOUT`.
    """

    def __init__(self, script, *arguments, variables=None, origin=0, stderr=None):
        self._origin = _origin(origin)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        reading, writing = os.pipe()
        self.stdout = os.fdopen(reading, errors="replace")
        second = writing if stderr == subprocess.STDOUT else self._errors.fileno()
        request = {
            "script": script,
            "arguments": [str(x) for x in arguments],
            "environment": os.environ | (variables or {}),
        }
        self.pid = _ask(self._origin, request, [writing, second])
        os.close(writing)
        self.returncode = None

    def poll(self):
        """Return the status, below 0 for a signal, or None while it runs."""
        return self._wait(os.WNOHANG)

    def wait(self):
        """Wait for the end; return the status."""
        return self._wait(0)

    def _wait(self, options):
        if self.returncode is None:
            self.returncode = _ask(self._origin, {"pid": self.pid, "options": options})
        return self.returncode

    def send_signal(self, number):
        """Send a signal, unless the process is known to have ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self):
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout=300):
        """Wait for the end, at most so many seconds; return both outputs."""
        is_late = threading.Event()
        timer = threading.Timer(timeout, lambda: (is_late.set(), self.kill()))
        timer.start()
        with self.stdout, self._errors:
            output = self.stdout.read()
            self.wait()
            timer.cancel()
            timer.join()
            self._errors.seek(0)
            errors = self._errors.read()
        if is_late.is_set():
            raise subprocess.TimeoutExpired("a forked process", timeout, output)
        return output, errors


def run(script, *arguments, variables=None):
    """Run a script in a process of its own; return how it ended and what it printed."""
    process = Forked(script, *arguments, variables=variables)
    outputs = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, *outputs)


@functools.cache
def _origin(number):
    """Start a process to fork from; return the socket to it."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    compiled = jax.config.jax_compilation_cache_dir  # pyright: ignore
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support"))),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", ORIGIN, str(there.fileno())],
        env=environment,
        pass_fds=[there.fileno()],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
    )
    there.close()

    def end():
        here.close()
        process.wait()

    atexit.register(end)
    return here


def _ask(origin, request, files=()):
    socket.send_fds(origin, [json.dumps(request).encode()], files)
    return json.loads(origin.recv(100))


def next_script(descriptor):
    """Fork whenever asked, and return in the new process, which runs the script."""
    channel = socket.socket(fileno=descriptor)
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # not every version has it
            importlib.import_module(name)
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(channel, 1 << 20, 2)
        if not message:
            sys.exit()
        request = json.loads(message)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], request["options"])
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
        if answer == 0 and "script" in request:
            channel.close()
            return _begin(request, files)
        for file in files:
            os.close(file)
        channel.send(json.dumps(answer).encode())


def _begin(request, files):
    """Give a new process its outputs, arguments and variables; return its script."""
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    for output in (sys.stdout, sys.stderr):
        output.reconfigure(write_through=True)  # pyright: ignore
    sys.argv[1:] = request["arguments"]
    os.environ.clear()
    os.environ.update(request["environment"])
    return compile(request["script"], "<script>", "exec")
