"""How a process ended: well, with a status, by a signal, at the time limit."""

import sys
import time

import pytest

from fngrad.accelerators.isolated_processes import problem_of, run_isolated


def ended(folder, code, *, time_limit=60.0, **environment):
    return run_isolated([sys.executable, "-c", code], folder, environment, time_limit)


def test_a_good_end_has_no_problem(tmp_path):
    assert ended(tmp_path, "print('made')") == ("", "made")


def test_the_environment_is_added(tmp_path):
    code = "import os; print(os.environ['GIVEN'], 'PATH' in os.environ)"
    assert ended(tmp_path, code, GIVEN="this").output == "this True"


def test_an_exception_is_an_exit_status_with_its_last_lines(tmp_path):
    found = ended(tmp_path, "print('x\\n' * 40); raise ValueError('why')")
    assert found.problem == "it failed: exit status 1"
    assert found.output.splitlines()[-1] == "ValueError: why"
    assert len(found.output.splitlines()) == 12


def test_a_crash_is_a_signal(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    assert ended(tmp_path, code).problem == "it crashed: signal SIGSEGV"


def test_a_kill_may_be_for_memory(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert (
        "SIGKILL, as when the host runs out of memory" in ended(tmp_path, code).problem
    )


def test_what_hangs_is_stopped_at_the_limit(tmp_path):
    began = time.monotonic()
    found = ended(tmp_path, "import time; time.sleep(60)", time_limit=0.5)
    assert found.problem == "it was stopped after 0.5 seconds without an answer"
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("status", "text"), [(-6, "signal SIGABRT"), (-99, "signal 99")]
)
def test_signals_have_names_where_they_have_any(status, text):
    assert problem_of(status, 1.0) == f"it crashed: {text}"
