"""Kill a training run again and again, and end with the bits of one left alone.

Claim: a run that was killed (SIGKILL), preempted (SIGTERM) and interrupted (SIGINT),
whose newest checkpoint was damaged once, ends with the same bits in parameters,
optimizer state, keys, metrics and evaluations as an undisturbed run.

Command:  python -m experiments.survive
Minutes:  two to three on two cores.
Expected: a row for each start, which continues from the last checkpoint of the one
          before (after the damage, from the one before that), exit status 75 after
          SIGTERM, and at the end "the same bits".

Each start makes the same call of `fngrad.fit`: a dense network learns handwritten
digits (scikit-learn's) with noise on the pixels, AdamW on a cosine schedule and an
average of the parameters.

The run folder (``runs/survive/...``) holds config.json, manifest.json with the rows,
and the checkpoints of both runs.
"""

import dataclasses
import hashlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import experiments.digits as digits
import fngrad as fg
import fngrad.checkpoint as checkpoint
from experiments.outputs import finish, new_folder, run_cli, table

ROOT = Path(__file__).resolve().parents[1]
LOG_EVERY = 20  # steps


@dataclasses.dataclass(frozen=True)
class Config:
    """What is done to the run, and how long it is."""

    signals: tuple[str, ...] = ("SIGKILL", "SIGTERM", "SIGINT", "SIGKILL", "SIGKILL")
    damage_after: int = 4  # which of these signals is followed by a flipped byte
    epochs: int = 250  # passes over the 1258 training images, 20 steps each
    save_every: int = 50  # steps
    pause: float = (
        0.02  # seconds to sleep every 20 steps, so that signals arrive in time
    )
    seed: int = 0  # of the moments at which signals are sent
    runs: Path = Path("runs/survive")  # where results go
    train_in: Path | None = (
        None  # set for the process that is killed: train in this folder only
    )


def train(config: Config, folder: Path) -> fg.FitResult:
    """Train, resuming from the folder's checkpoints."""
    splits = fg.data.digits()
    data = digits.make_data(digits.Config(), splits)
    rate = fg.schedules.cosine(3e-3, data.steps(config.epochs))
    optimizer = fg.chain(fg.adamw(rate), fg.ema_params(0.99))
    params = digits.MODEL.init(jax.random.key(0))
    return fg.fit(
        fg.make_step(digits.loss_fn, optimizer),
        fg.init_state(params, optimizer, key=0),
        data,
        num_epochs=config.epochs,
        metric_fn=digits.metric_fn,
        eval_data=splits.validation,
        checkpoint_dir=folder,
        save_every=config.save_every,
        log_every=LOG_EVERY,
        callbacks=[lambda step, state, values: time.sleep(config.pause)],
        config={"epochs": config.epochs},
        loop="python",
        progress=False,
    )


def digest(result: fg.FitResult) -> str:
    """Return a checksum of every bit of a state and its history."""
    state = result.state._replace(key=jax.random.key_data(result.state.key))
    arrays = fg.tree.leaf_paths(state)
    for name in result.history:
        arrays[f"history/{name}"] = result.history[name]
        arrays[f"steps/{name}"] = result.history.steps(name)
    total = hashlib.sha256()
    for path in sorted(arrays):
        total.update(path.encode() + np.asarray(arrays[path]).tobytes())
    return total.hexdigest()


def start(config: Config, folder: Path, pause: float) -> subprocess.Popen:
    """Begin or resume the training in a folder, in a new process."""
    options = {
        "--train-in": folder,
        "--epochs": config.epochs,
        "--save-every": config.save_every,
        "--pause": pause,
    }
    words = [str(word) for option in options.items() for word in option]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.survive", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def strike(child: subprocess.Popen, name: str, folder: Path, target: int) -> None:
    """Send a signal once there is a checkpoint of a step or a later one."""
    while child.poll() is None and (checkpoint.latest_step(folder) or 0) < target:
        time.sleep(0.02)
    child.send_signal(signal.Signals[name])


def flip_a_byte(folder: Path) -> int:
    """Damage the newest checkpoint in the middle of its largest file."""
    step = checkpoint.steps(folder)[-1]
    (newest,) = (
        p for p in folder.iterdir() if p.name.isdigit() and int(p.name) == step
    )
    files = [path for path in newest.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    return step


def report_of(child: subprocess.Popen) -> dict[str, Any]:
    """Wait for a process; return what it printed, parsed."""
    out, err = child.communicate()
    resumed = re.search(r"resumes at step (\d+)", err)
    ended = re.search(r"^(\w+) at step (\d+): (\w+)$", out, re.MULTILINE)
    if child.returncode not in (0, 75, -signal.SIGKILL):
        raise RuntimeError(err)
    return {
        "from": int(resumed[1]) if resumed else 0,
        "status": child.returncode,
        "warned": "damaged" in err or "Warning" in err,
        "digest": ended[3] if ended else None,
    }


def survive(config: Config, folder: Path) -> tuple[list[list[str]], str]:
    """Kill the run as often as asked, then let it end; return a table and its bits."""
    rng = np.random.default_rng(config.seed)
    last = digits.make_data(digits.Config(), fg.data.digits()).steps(config.epochs)
    blows = [*config.signals, None]
    rows = []
    damaged = None
    for count, name in enumerate(blows, 1):
        child = start(config, folder, config.pause if name else 0.0)
        if name:
            share = (count - rng.uniform(0.2, 0.8)) / len(blows)
            strike(child, name, folder, int(share * last))
        reported = report_of(child)
        reached = checkpoint.latest_step(folder)
        note = f"passed over the damaged step {damaged}" if damaged else ""
        damaged = None
        if name and count == config.damage_after:
            damaged = flip_a_byte(folder)
            note = f"then a byte of step {damaged} was flipped"
        row = [
            count,
            reported["from"],
            name or "nothing",
            reported["status"],
            reached,
            note,
        ]
        rows.append([str(cell) for cell in row])
        print(f"start {count} of {len(blows)}: {name or 'left alone'}", flush=True)
    return rows, reported["digest"]


def main(config: Config) -> dict[str, Any]:
    """Disturb one run, train another in peace, and compare their bits."""
    if config.train_in is not None:
        result = train(config, config.train_in)
        print(f"{result.stopped} at step {int(result.state.step)}: {digest(result)}")
        return {}
    unknown = set(config.signals) - {"SIGKILL", "SIGTERM", "SIGINT"}
    if unknown or not config.signals:
        raise SystemExit(
            f"need signals among SIGKILL, SIGTERM, SIGINT, got {config.signals}"
        )
    folder = new_folder(config)
    rows, survived = survive(config, folder.path / "killed")
    print("an undisturbed run", flush=True)
    steady = dataclasses.replace(config, pause=0.0)
    alone = digest(train(steady, folder.path / "undisturbed"))
    head = ["start", "from step", "struck by", "status", "checkpoint", "remark"]
    print(table(head, rows))
    are_equal = survived is not None and survived == alone
    print(f"killed:      {survived}\nundisturbed: {alone}")
    print("the same bits" if are_equal else "NOT the same bits")
    results = {"rows": rows, "digest": survived, "same": are_equal}
    finish(folder, results)
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
