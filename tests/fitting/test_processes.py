"""Runs of several processes: the bits of one, and one ending for all."""

import signal
import time

import pytest
from launched import ends, launch
from shared_run import shared_fit, summary, told

BEGIN = """
import os, signal, sys, time
sys.path.insert(0, "tests/support")
import fngrad as fg
mine = fg.distributed.initialize(heartbeat_seconds=10)
from shared_run import *
folder, is_last = sys.argv[1], mine.rank == mine.count - 1
mesh = fg.sharding.make_mesh()
"""
TRAIN = """
logged, seen = [], []
options = dict(
    mesh=mesh, run_dir=folder, save_every=8, loggers=[lambda step, _: logged.append(step)],
    callbacks=[lambda step, *_: seen.append(step), send_at(signal.SIGINT, 20, is_last)],
)
tell(**summary(shared_fit(**options)))
tell(**summary(shared_fit(**options)), logged=logged, seen=seen)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """How two processes with two devices each ended, which Ctrl-C in one interrupted."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, ends(launch(BEGIN + TRAIN, 2, str(folder), devices=2))


def test_two_processes_stop_together_and_resume_with_the_bits_of_one(trained):
    want = summary(shared_fit())
    for process in trained[1]:
        assert process.status == 0, process.output
        first, second = told(process.output)
        assert (first["stopped"], first["step"]) == ("interrupted", 20)
        assert want.items() <= second.items()


def test_the_first_process_alone_writes_logs_and_prints(trained):
    folder, (first, second) = trained
    lines = ["fit: Ctrl-C at step 20, saved", "fit: resumes at step 20 of 40"]
    assert all(line in first.output for line in lines)
    steps = [10, 15, 20, 30, 40]
    assert [told(x.output)[1]["logged"] for x in (first, second)] == [steps, []]
    assert [told(x.output)[1]["seen"] for x in (first, second)] == [steps, steps]
    rest = [
        x for x in second.output.splitlines() if not x.startswith(("told", "[Gloo"))
    ]
    assert rest == []
    made = sorted(path.name for path in folder.iterdir() if path.name != "curves.png")
    assert made == [
        ".lock",
        "checkpoints",
        "config.json",
        "manifest.json",
        "metrics.jsonl",
    ]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == len(steps)
