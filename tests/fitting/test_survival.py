"""Processes that train and are killed many times."""

import os
import random
import signal
import threading
import time

import jax
import pytest
from forked import Forked
from linear_regression import quiet_fit
from resuming import assert_same_run

import fngrad.checkpoint as checkpoint

pytestmark = pytest.mark.xla_defaults  # bits depend on how XLA compiles

SCRIPT = """
import hashlib
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg

folder, num_steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
save_every = 2 if pause else 100  # often while it is being killed
x = jnp.sin(jnp.arange(40.0)).reshape(20, 2)
arrays = {"x": x, "y": x @ jnp.array([1.0, -2.0]) + 0.5}


def metric_fn(params, batch):
    return {"loss": (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2}


def loss_fn(params, batch, key):
    return jnp.mean(metric_fn(params, batch)["loss"]) * jax.random.uniform(key)


def watch(step, state, values):
    print(step, flush=True)
    time.sleep(pause)


optimizer = fg.adam(0.01)
result = fg.fit(
    fg.make_step(loss_fn, optimizer),
    fg.init_state({"w": jnp.zeros(2), "b": jnp.zeros(())}, optimizer, 0),
    fg.data.from_arrays(arrays, batch_size=6),
    num_steps=num_steps,
    metric_fn=metric_fn,
    eval_data=arrays,
    eval_every=7,
    log_every=1,
    callbacks=[watch],
    checkpoint_dir=folder,
    save_every=save_every,
    keep_best=None,
    loop="python",
    progress=False,
)
digest = hashlib.sha256()
state = result.state._replace(key=jax.random.key_data(result.state.key))
leaves = fg.tree.leaf_paths(state)
for path in sorted(leaves):
    digest.update(path.encode() + np.asarray(leaves[path]).tobytes())
for name in sorted(result.history):
    digest.update(result.history[name].tobytes() + result.history.steps(name).tobytes())
print(result.stopped, digest.hexdigest())
"""


NUM_STEPS = 500  # more than a run makes until it is killed for the last time
PAUSE = 0.05  # seconds a step


class Runs:
    """Starts the training script, always in the same folder."""

    def __init__(self, folder):
        self.checkpoints = folder / "checkpoints"

    def start(self, pause=0.0, origin=0):
        return Forked(SCRIPT, self.checkpoints, NUM_STEPS, pause, origin=origin)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the last line of a run that nothing happens to."""
    runs = Runs(tmp_path_factory.mktemp("undisturbed"))
    return last_line(*runs.start(origin=1).communicate())


def last_line(out, err):
    assert out, err
    return out.rstrip("\n").rpartition("\n")[2]


def kill_somewhere(child, rng, folder, reached):
    """Kill a process while it starts, as it begins to train, or while it saves."""
    where = rng.random()
    if where < 0.3 and reached:
        time.sleep(rng.uniform(0, 1))
    elif where < 0.6 and reached:
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
    else:
        wait_for_a_checkpoint(child, folder, beyond=reached)
        time.sleep(rng.uniform(0, 0.3))
    child.kill()


def wait_for_a_checkpoint(child, folder, beyond=0):
    while (checkpoint.latest_step(folder) or 0) <= beyond:
        assert child.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_is_killed_25_times_ends_with_the_same_bits(
    tmp_path, seed, undisturbed
):
    rng = random.Random(seed)
    runs = Runs(tmp_path)
    reached = 0
    for _ in range(25):
        child = runs.start(pause=PAUSE)
        kill_somewhere(child, rng, runs.checkpoints, reached)
        _, err = child.communicate()
        assert child.returncode == -signal.SIGKILL, err
        if "resumes" in err:
            assert f"resumes at step {reached} of {NUM_STEPS}" in err
        assert "Error" not in err
        latest = checkpoint.latest_step(runs.checkpoints)
        assert latest is not None
        assert reached <= latest < NUM_STEPS
        reached = latest
    assert last_line(*runs.start().communicate()) == undisturbed


@pytest.mark.slow
def test_termination_exits_with_75_and_the_next_start_ends_with_the_same_bits(
    tmp_path, undisturbed
):
    runs = Runs(tmp_path)
    for wanted in ("10", "30"):
        child = runs.start(pause=PAUSE)
        while child.stdout.readline().strip() != wanted:
            assert child.poll() is None
        child.terminate()
        out, err = child.communicate()
        assert child.returncode == 75, err
        steps = [wanted, *out.split()]
        assert f"SIGTERM at step {steps[-1]}, saved: exits with status 75" in err
        assert checkpoint.latest_step(runs.checkpoints) == int(steps[-1]) < NUM_STEPS
    assert last_line(*runs.start().communicate()) == undisturbed


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, undisturbed):
    runs = Runs(tmp_path)
    first = runs.start(pause=1.0)  # longer than the second takes to begin
    first.stdout.readline()
    _, err = runs.start().communicate()
    assert f"in use by process {first.pid} on" in err
    wait_for_a_checkpoint(first, runs.checkpoints)  # reading is allowed
    first.kill()
    first.communicate()
    assert last_line(*runs.start().communicate()) == undisturbed


@pytest.fixture
def _quiet_interrupts():
    """Ignore a Ctrl-C that comes while no fit runs."""
    usual = signal.signal(signal.SIGINT, lambda number, frame: None)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.mark.slow
@pytest.mark.usefixtures("_quiet_interrupts")
def test_none_of_30_interrupts_loses_the_state(tmp_path):
    rng = random.Random(0)
    options = {"num_steps": 4000, "log_every": 1, "checkpoint_dir": tmp_path}
    options["callbacks"] = [lambda step, state, values: time.sleep(2e-3)]
    reached = 0
    for _ in range(30):
        result = interrupted_fit(rng.uniform(0, 0.2), **options)
        assert result.stopped == "interrupted"
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(result.state))
        assert len(result.history.get("loss", ())) == int(result.state.step)
        latest = checkpoint.latest_step(tmp_path) or 0
        assert reached <= latest == int(result.state.step)
        reached = latest
    assert 0 < reached < 4000
    resumed = quiet_fit(checkpoint_dir=tmp_path, num_steps=4000)
    assert_same_run(resumed, quiet_fit(num_steps=4000))


def interrupted_fit(delay, **options):
    """Interrupt a run once, after so many seconds or when its handler is installed.

    A second interrupt would end it without its state.
    """
    before = signal.getsignal(signal.SIGINT)

    def interrupt():
        time.sleep(delay)
        while signal.getsignal(signal.SIGINT) is before:
            time.sleep(1e-3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = quiet_fit(**options)
    thread.join()
    return result
