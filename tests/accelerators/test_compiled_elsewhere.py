"""What comes back from the process that compiles, by workers that play it."""

import textwrap

import planned_networks
import pytest

from fngrad.accelerators.compiled_elsewhere import compiled_elsewhere, refused
from fngrad.accelerators.exported_steps import placed_step
from fngrad.accelerators.targets import parsed_target
from fngrad.programs.compiled_memory import Memory

GIB = 2**30
ANSWER = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
assert (folder / "request.pickle").is_file()
(folder / "program.txt").write_text("HloModule made")
(folder / "answer.json").write_text(json.dumps({ANSWER}))
"""
SIZES = {"arguments": 4, "outputs": 3, "temporaries": 10, "aliased": 2}


@pytest.fixture(scope="module")
def placed():
    return placed_step(*planned_networks.mlp(), {"data": 1})


@pytest.fixture
def compiled(tmp_path, placed):
    """Return a function that compiles by a worker of a given text."""

    def run(code, time_limit=60.0):
        worker = tmp_path / "worker.py"
        worker.write_text(textwrap.dedent(code))
        target = parsed_target("v5e:1x1")
        return compiled_elsewhere(placed, target, time_limit, worker)

    return run


def answering(**answer):
    return ANSWER.replace("{ANSWER}", repr({"seconds": 1.5, **answer}))


@pytest.mark.parametrize(("peak", "needed"), [(0, 15), (14, 15), (99, 99)])
def test_the_larger_estimate_of_the_memory_is_what_is_needed(compiled, peak, needed):
    found = compiled(answering(stays=[True], peak=peak, **SIZES))
    assert found.refusal == ""
    assert found.memory == Memory(**SIZES)
    assert found.memory.total == 15
    assert (found.peak, found.needed) == (peak or None, needed)
    assert (found.program, found.stays, found.seconds) == (
        "HloModule made",
        [True],
        1.5,
    )


def test_a_refusal_for_memory_has_its_number(compiled):
    text = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (52.94G) exceeds available HBM (15.75G)."
    )
    found = compiled(answering(refusal=text))
    assert (found.refusal, found.is_too_large) == (text, True)
    assert not found.is_unanswered
    assert found.needed == round(52.94 * GIB)
    assert found.memory is None


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
         "memory space hbm. Used 17.50G of 15.75G hbm. Exceeded by 1.75G.",
         round(17.5 * GIB)),
        ("RESOURCE_EXHAUSTED: Used 512.0M of 1.00G vmem", 2**29),
        ("RESOURCE_EXHAUSTED: something else", None),
        ("INTERNAL: Used 17.50G of 15.75G hbm", None),
    ],
)  # fmt: skip
def test_refusals_are_told_apart(text, needed):
    found = refused(text)
    assert found.needed == needed
    assert found.is_too_large is text.startswith("RESOURCE")


def test_long_refusals_are_cut():
    assert len(refused("INTERNAL: " + 10_000 * "x").refusal) == 603


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os; os.abort()", "gave no answer: it crashed: signal SIGABRT"),
        ("raise SystemExit('no libtpu')", "exit status 1\nno libtpu"),
        ("import time; time.sleep(60)", "stopped after 1 seconds without an answer"),
    ],
)
def test_a_crash_a_failure_and_a_hang_are_told_apart(compiled, code, problem):
    found = compiled(code, time_limit=1.0 if "sleep" in code else 60.0)
    assert problem in found.refusal
    assert found.is_unanswered
    assert not found.is_too_large


def test_the_worker_gets_the_environment_of_the_compiler(compiled, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    names = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "XLA_FLAGS")
    code = f"import os, sys; sys.exit(str([os.environ[n] for n in {names}]))"
    assert "['cpu', '1', '']" in compiled(code).refusal
