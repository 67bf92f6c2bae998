"""Runs of several processes: the bits of one, and one ending for all."""

import random
import re
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
    mesh=mesh,
    run_dir=folder,
    save_every=8,
    loggers=[lambda step, _: logged.append(step)],
    callbacks=[lambda step, *_: seen.append(step), send_at(signal.SIGINT, 20, is_last)],
)
tell(**summary(shared_fit(**options)))
tell(**summary(shared_fit(**options)), logged=logged, seen=seen)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """How two processes of two devices ended, which Ctrl-C in one interrupted."""
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


ENDING = """
import jax, jax.numpy as jnp, numpy as np
import fngrad.checkpoint.shard_files as shard_files
import fngrad.fitting.training_loop as training_loop
import fngrad.logging.lines as lines
from fngrad.files.locks import Lock
FULL = OSError(28, "No space left on device")
fg.logging.RunFolder.draw = lambda *_: None  # which may take seconds the first time


def case(name, **options):
    tell_error(name, lambda: train(name, **options))
    tell(case=name, ended=time.time())


def train(name, **options):
    global current
    current = name
    options = dict(mesh=mesh, run_dir=f"{folder}/{name}", save_every=8) | options
    return shared_fit(**options)


def at(step, do, is_here=is_last):
    return [lambda now, *_: cause(do) if now == step and is_here else None]


def cause(do):
    tell(case=current, began=time.time())
    return do()


def fail():
    raise KeyError("of one process")


def full(*_):
    tell(case=current, began=time.time())
    raise FULL


def terminate():
    signal.raise_signal(signal.SIGTERM)


def fill_disk():
    if is_last:
        shard_files.write = full


write = shard_files.write
case("callback", callbacks=at(20, fail))
case("sigterm", callbacks=at(20, terminate))
case("sigint", callbacks=at(20, lambda: signal.raise_signal(signal.SIGINT)))
case("exit", callbacks=at(20, lambda: sys.exit(3)))
fill_disk()
case("shards")
shard_files.write = write
split = fg.data.from_arrays(fg.sharding.shard_batch({"x": X}, mesh), 8, seed=1)
held = sum(x.data.shape[0] for x in split.arrays["x"].addressable_shards)
assert held == 48 // mine.count and split.fingerprint() == DATA.fingerprint()
tell(case="apart", **summary(shared_fit(mesh=mesh, data=split)))
tell(case="function", **summary(shared_fit(mesh=mesh, data=DATA.batch)))
"""
ENDINGS = (
    ENDING
    + """
case("callback")  # the same call again
case("stop", callbacks=at(20, lambda: fg.STOP))
case("resume", resume="must" if is_last else "auto")
case("key", key=mine.rank)
case("order", data=DATA.reseed(mine.rank + 5))
case("folder", run_dir=f"{folder}/of_{mine.rank}")
usual = lines.LineFile.append
if mine.is_first:
    lines.LineFile.append = full
case("records")
lines.LineFile.append = usual


def read(indices):
    if is_last and reads.append(0) is None and len(reads) > 20:
        raise OSError("a broken disk")
    return {"x": X[indices]}


reads = []
source = fg.data.from_source(read, 48, 8, seed=1, fingerprint="", threads=1)
turned = source.map(lambda batch: {"x": batch["x"][::-1]})  # of both processes
case("data", data=turned)
reads = [0] * 18  # one to trace, one at step 15
case("evaluation", eval_data=source)
case("settings", log_every=10 + mine.rank)
if mine.is_first:
    with Lock(f"{folder}/lock"):
        case("lock")
else:
    case("lock")


def bad_loss(params, batch):
    return loss_fn(params, batch) + 2.0**-9 * jnp.log(1.0 + params["w"][0])


class Histograms:
    def __call__(self, step, values):
        pass

    def histograms(self, step, found):
        tell(case=f"histograms of {step}", count=int(found["params/w"].counts.sum()))


split = fg.sharding.fsdp(min_size=1)
case("nonfinite", step=fg.make_step(bad_loss, OPTIMIZER, rule=split))
state = fg.init_state({"w": jnp.zeros(8)}, OPTIMIZER, 0)
counted = fg.callbacks.histograms(every=20)
options = dict(callbacks=[counted], loggers=[Histograms()], on_nonfinite="ignore")
found = fg.dry_run(STEP, state, DATA, num_steps=40, mesh=mesh)
tell(case="dry run", steps=found.steps)
options["step"] = fg.make_step(loss_fn, OPTIMIZER, rule=split)
case("split", **options)
# The histograms of step 20 are still to be computed, by all, when the callback fails.
case("hook", **options | {"callbacks": [counted, *at(20, fail)]})
if mine.is_first:
    jax.profiler.start_trace = lambda *_, **__: full()
case("profile", callbacks=[fg.callbacks.profile(5, 6)])
train("end", callbacks=at(20, lambda: sys.exit(3), mine.is_first))
"""
)


FULL = "No space left on device"
SAVED = "a checkpoint holds its state too"
OTHERS = "need the same call of fit in all processes, got"
FIRST_ENDED = {  # how the first processes end and how the last, and what all say
    "callback": ("PeerError", "KeyError", "'of one process'", "step 20", SAVED),
    "sigterm": ("SystemExit", "SystemExit", "75"),
    "exit": ("PeerError", "SystemExit", "3", "step 20", SAVED),
    "shards": ("SaveError", "SaveError", f": OSError: [Errno 28] {FULL}"),
}
ENDED = FIRST_ENDED | {
    "resume": ("ValueError", "ValueError", f"{OTHERS} resume 'auto' in process 0"),
    "key": ("ValueError", "ValueError", f"{OTHERS} the state's key [0, 0]"),
    "order": ("ValueError", "ValueError", f"{OTHERS} the data's key [0, 5]"),
    "hook": ("PeerError", "KeyError", "'of one process'", "step 20", SAVED),
    "profile": ("OSError", "PeerError", FULL, "step 5", SAVED),
    "records": ("OSError", "PeerError", FULL, "step 10", SAVED),
    "data": ("PeerError", "OSError", "a broken disk", "step 19", SAVED),
    "evaluation": ("PeerError", "OSError", "a broken disk", "step 30", SAVED),
    "settings": ("ValueError", "ValueError", "got log_every 10 in process 0 and 11"),
    "lock": ("LockError", "PeerError", "in use by process"),
    "nonfinite": ("NonFiniteError", "NonFiniteError", "got step 19 with"),
}


def errors_of(found, want):
    """Return the errors that processes told, by case, after a comparison."""
    errors = [{x["case"]: x for x in each if "error" in x} for each in found]
    for case, (first, last, *words) in want.items():
        wanted = [first] * (len(found) - 1) + [last]
        assert [each[case]["error"] for each in errors] == wanted, case
        texts = [each[case]["text"] for each in errors]
        assert all(word in text for word in words for text in texts), (case, texts)
    assert all(each.keys() == want.keys() for each in errors)
    return errors


def stops_of(told):
    return {
        x["case"]: (x["stopped"], x["step"])
        for x in told
        if "stopped" in x and x["case"] not in ("apart", "function")
    }


@pytest.mark.slow
def test_what_ends_one_process_ends_all_at_the_same_step(tmp_path):
    ended = ends(launch(BEGIN + ENDINGS, 2, str(tmp_path), devices=2))
    seconds = time.time() - began_of("end", told(ended[0].output))
    assert [x.status for x in ended] == [3, 1], ended  # of an exit in the first
    assert seconds < 10
    assert "process 0 failed at step 20: SystemExit: 3" in ended[1].output
    found = [told(x.output) for x in ended]
    errors = errors_of(found, ENDED)
    for each in found:
        completed = dict.fromkeys(("callback", "split", "folder"), ("completed", 40))
        early = {"sigint": ("interrupted", 20), "stop": ("callback", 20)}
        assert stops_of(each) == early | completed
    assert not any((tmp_path / name).exists() for name in ("resume", "key", "order"))
    assert (tmp_path / "of_0").exists()
    assert not (tmp_path / "of_1").exists()
    cause, pointer = (each["nonfinite"]["text"] for each in errors)
    assert "log(-" in cause
    assert "the error of process 0 tells the cause" in pointer
    assert all({"case": "dry run", "steps": 40} in each for each in found)
    counts = [[x["count"] for x in each if "count" in x] for each in found]
    assert counts == [[8, 8], []]


def began_of(case, told):
    """Return when a failure began in a process, by what it told."""
    return next(x["began"] for x in told if x["case"] == case and "began" in x)


AFTERWARDS = """
finished = training_loop.finished


def finished_late(*arguments):
    if mine.rank == 1:
        cause(terminate)
    return finished(*arguments)


training_loop.finished = finished_late  # after the last meeting of all
case("late")
train("end", callbacks=at(20, terminate))
"""


@pytest.mark.slow
def test_four_processes_end_together_and_one_continues_with_the_bits_of_one(tmp_path):
    ended = ends(launch(BEGIN + ENDING + AFTERWARDS, 4, str(tmp_path)))
    assert [x.status for x in ended] == [75] * 4, ended
    found = [told(x.output) for x in ended]
    late = {"late": ("SystemExit", "SystemExit", "75")}
    errors_of(found, FIRST_ENDED | late)
    assert all(stops_of(each) == {"sigint": ("interrupted", 20)} for each in found)
    for case in ("callback", "sigterm", "sigint", "exit", "shards"):
        ends_of = [x for each in found for x in each if x["case"] == case]
        last = max(x.get("ended", 0) for x in ends_of)
        assert last - began_of(case, found[-1]) < 10, case
        folder = tmp_path / case / "checkpoints"
        resumed = shared_fit(checkpoint_dir=folder, progress=False)
        assert summary(resumed) == summary(shared_fit())
    for case in ("apart", "function"):  # apart, each held a fourth of the data
        assert all({"case": case, **summary(shared_fit())} in each for each in found)
    assert "process 3: OSError: [Errno 28]" in ended[0].output
    assert "fit: SIGTERM at step 40, saved: exits with status 75" in ended[0].output


KILLED = """
def end(step, *_):
    if step == 20 and mine.rank == int(sys.argv[2]):
        tell(at=time.time())
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))


shared_fit(mesh=mesh, checkpoint_dir=folder, save_every=8, callbacks=[end])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("count", "rank"), [(2, 0), (2, 1), (4, 2)])
def test_a_kill_of_one_process_ends_all_within_ten_seconds(tmp_path, count, rank):
    arguments = str(tmp_path), str(rank), "SIGKILL"
    ended = ends(launch(BEGIN + KILLED, count, *arguments, devices=4 // count))
    seconds = time.time() - told(ended[rank].output)[0]["at"]
    assert ended.pop(rank).status == -signal.SIGKILL
    assert all(x.status not in (0, None) for x in ended)
    assert seconds < 10
    if rank:  # JAX ends the others when the first one has ended
        name = f"computed with the others: process {rank} has died, as by a kill"
        assert any(name in x.output for x in ended), ended
    assert "has died" not in re.sub(f"process {rank} has died", "", str(ended))
    resume = "tell(**summary(shared_fit(mesh=mesh, checkpoint_dir=folder)))"
    (alone,) = ends(launch(BEGIN + resume, 1, str(tmp_path), devices=4))
    assert re.search("fit: resumes at step 1[56] of 40", alone.output)
    assert "Warning" not in alone.output
    assert not list(tmp_path.glob(".process-*"))
    assert summary(shared_fit()).items() <= told(alone.output)[0].items()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_one_process_ends_the_other_after_the_heartbeats_time(tmp_path, rank):
    started = launch(BEGIN + KILLED, 2, str(tmp_path), str(rank), "SIGSTOP", devices=2)
    stopped, other = started[rank], started[1 - rank]
    try:
        output, _ = other.communicate(timeout=100)
        ended = time.time()
    finally:
        stopped.kill()
        told_before, _ = stopped.communicate()
    assert other.returncode not in (0, None)
    assert ended - told(told_before)[0]["at"] < 30  # the heartbeat's 10 s and JAX's own
    assert "heartbeat" in output.lower()


MANY = """
options = dict(mesh=mesh, checkpoint_dir=folder, num_steps=800)
began = [lambda *_: tell(at=time.time())]
result = shared_fit(callbacks=began, save_every=int(sys.argv[2]), **options)
tell(**summary(result))
"""


@pytest.mark.slow
def test_after_twenty_kills_at_random_moments_a_run_has_the_bits_of_one_without(
    tmp_path,
):
    draw, script = random.Random(0), BEGIN + MANY
    for count in (2, 4, 2, 1) * 5:
        processes = launch(script, count, str(tmp_path), "3", devices=4 // count)
        victim = draw.choice(processes)
        while not victim.stdout.readline().startswith("told"):  # until it trains
            assert victim.poll() is None
        time.sleep(draw.uniform(0, 0.4))
        victim.kill()
        began = time.monotonic()
        ended = ends(processes)
        # Within 10 s, or the heartbeat's time where the others do not compute.
        assert time.monotonic() - began < 20, [x.output[-2000:] for x in ended]
        assert victim.returncode == -signal.SIGKILL
    first, second = ends(launch(script, 2, str(tmp_path), "100", devices=2))
    assert "fit: resumes at step" in first.output
    want = summary(shared_fit(num_steps=800)).items()
    assert want <= told(first.output)[-1].items()
    assert want <= told(second.output)[-1].items()
