"""A folder is written by one process at a time, and a crash leaves no lock behind."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

import fngrad.files.locks as locks
from fngrad.files.locks import Lock, LockError

HOLD = """
import sys, time
import importlib.util as util
spec = util.spec_from_file_location("locks", sys.argv[1])  # without jax, to start fast
locks = util.module_from_spec(spec)
spec.loader.exec_module(locks)
with locks.Lock(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_lock_in_one_process_is_refused_naming_the_holder(tmp_path):
    with Lock(tmp_path):
        with pytest.raises(LockError, match="need a folder for this run") as caught:
            Lock(tmp_path).__enter__()
        for part in (str(tmp_path), f"process {os.getpid()} on ", "since 20"):
            assert part in str(caught.value)
    with Lock(tmp_path):
        pass


def test_locks_of_different_names_are_independent(tmp_path):
    with Lock(tmp_path), Lock(tmp_path, name=".writing"), Lock(tmp_path / "below"):
        assert (tmp_path / "below" / ".lock").exists()


def test_a_process_holds_its_lock_until_it_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, locks.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(LockError, match=f"process {child.pid} on"):
            Lock(tmp_path).__enter__()
        child.send_signal(signal.SIGKILL)
    with Lock(tmp_path):
        holder = json.loads((tmp_path / ".lock").read_text())
        assert holder["pid"] == os.getpid()


FORK = """
import importlib.util as util
import os, signal, sys
spec = util.spec_from_file_location("locks", sys.argv[1])
locks = util.module_from_spec(spec)
spec.loader.exec_module(locks)
lock = locks.Lock(sys.argv[2]).__enter__()
child = os.fork()
if not child:
    print(os.getpid(), flush=True)
    signal.pause()
sys.stdin.readline()
if len(sys.argv) > 3:
    os._exit(0)  # without releasing the lock
lock.__exit__()
with locks.Lock(sys.argv[2]):
    print("again")
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are of other systems")
def test_a_fork_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
    command = [sys.executable, "-c", FORK, locks.__file__, str(tmp_path)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as let_go:
        let_go.stdout.readline()
        assert let_go.communicate("\n")[0] == "again\n"
    with subprocess.Popen([*command, "end"], **pipes) as ended:
        child = int(ended.stdout.readline())
        ended.stdin.write("\n")
        ended.stdin.flush()
        ended.wait()
        try:
            with Lock(tmp_path):
                os.kill(child, 0)  # it exists
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_between_fork_and_exec_does_not_hold_the_lock(tmp_path):
    with Lock(tmp_path) as lock:
        assert lock._file is not None
        shared = os.dup(lock._file)  # as such a child does
    try:
        with Lock(tmp_path):
            pass
    finally:
        os.close(shared)


def test_the_lock_file_is_kept_so_that_its_name_means_one_file(tmp_path):
    with Lock(tmp_path):
        before = (tmp_path / ".lock").stat().st_ino
    with Lock(tmp_path):
        assert (tmp_path / ".lock").stat().st_ino == before


def test_a_lock_whose_file_is_unreadable_still_holds(tmp_path):
    with Lock(tmp_path):
        (tmp_path / ".lock").write_text("[]")
        with pytest.raises(LockError, match="a process that cannot be identified"):
            Lock(tmp_path).__enter__()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LockError, match=r"folder that can be written, got '.*file/x'"):
        Lock(tmp_path / "file" / "x").__enter__()


def test_a_file_system_without_locks_warns_and_goes_on(tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(locks, "_lock", refuse)
    with pytest.warns(UserWarning, match="has no locks"), Lock(tmp_path):
        pass


def test_another_failure_to_lock_is_raised_with_its_cause(tmp_path, monkeypatch):
    def fail(file):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(locks, "_lock", fail)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with pytest.raises(LockError, match="broken disk"):
        Lock(tmp_path).__enter__()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_an_error_in_the_block_releases_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), Lock(tmp_path):
        raise ZeroDivisionError
    with Lock(tmp_path):
        pass


def test_a_lock_waits_for_a_reader_that_asks_whether_it_is_held(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    with Lock(tmp_path):
        assert locks.is_in_use(tmp_path)
    assert not locks.is_in_use(tmp_path)
    assert not locks.is_in_use(tmp_path / "not_there")
    reader = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _: os.close(reader))
    with Lock(tmp_path):
        assert locks.is_in_use(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock"]
