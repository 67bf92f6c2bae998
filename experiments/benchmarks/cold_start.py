"""What a script costs from its start to a trained network, in fngrad and in the peers.

Claim: from the start of Python to a network trained for 20 epochs, a script with fngrad
costs at most 1.5 times the CPU seconds of one written by hand in JAX, and with JAX's
compilation cache, from the second run on, at most 1.0 times the seconds that the latter
takes without it.

Command:  python -m experiments.benchmarks.cold_start
Minutes:  forty on two cores, with the peers; two for ``--models mlp --repeats 1``.
Expected: against the hand-written script the MLP costs 0.83 times the CPU seconds, the
          CNN 0.89, the transformer 1.4, the sweep 0.65; with the cache 0.33, 0.32, 0.87
          and 0.36. Drawing the weights is half of the hand-written MLP:
          against one that draws them by NumPy and reads the digits without scikit-learn
          the MLP costs about 2.

Every script of `cold_start_scripts` runs in a process of its own, and they take turns;
a ratio is the median of the ratios within a turn. The networks are an MLP
64-128-128-10, a small CNN, a transformer of 4 layers, and a sweep of 64 learning rates
of an MLP 64-32-10, all with Adam. The hand-written script draws its weights by
`jax.random.normal` in their shapes, has Adam written out, and loads the digits by
scikit-learn. A second table lists what JAX
compiled, by stage and program. A framework that is not installed is left out, as is one
that has no script for a model.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import experiments.benchmarks.cold_start_scripts as cold_start_scripts
from fngrad.programs.optional_imports import import_extra
from fngrad.programs.text_tables import table

STAGES = ("import", "data", "init", "first step", "train")
AGAINST = "jax by hand"
SCRIPTS = {  # name -> framework, loop, and whether the cache is on
    AGAINST: ("jax", "-", False),
    "fngrad auto": ("fngrad", "auto", False),
    "fngrad python": ("fngrad", "python", False),
    "fngrad scan": ("fngrad", "scan", False),
    "fngrad auto, cached": ("fngrad", "auto", True),
    "jax by hand, cached": ("jax", "-", True),
    "equinox": ("equinox", "-", False),
    "torch eager": ("torch", "-", False),
    "keras on jax": ("keras", "-", False),
}
PEERS_MODELS = ("mlp", "cnn")  # for which there are scripts of the peers
ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    models: tuple[str, ...] = ("mlp", "cnn", "transformer", "sweep")
    scripts: tuple[str, ...] = tuple(SCRIPTS)  # the rows
    repeats: int = 3  # turns
    python: str = sys.executable  # runs the peers' scripts
    programs: int = 12  # rows of the table of compilations


class Run(NamedTuple):
    """What one process printed."""

    stages: dict[str, list[float]]  # name -> CPU seconds, wall seconds
    programs: list[list[Any]]  # stage, program, seconds of compiling
    loss: float

    def cpu(self) -> float:
        """Return the CPU seconds of all stages."""
        return sum(cpu for cpu, _ in self.stages.values())

    def wall(self) -> float:
        """Return the wall seconds of all stages."""
        return sum(wall for _, wall in self.stages.values())


def run_script(config: Config, name: str, model: str, cache: str) -> Run | None:
    """Run a script in a process of its own; None if its framework is not installed."""
    framework, loop, is_cached = SCRIPTS[name]
    is_peer = framework in ("equinox", "torch", "keras")
    python = config.python if is_peer else sys.executable
    # Empty means unset: without bytecode every import would compile the sources again.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if is_cached:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    command = [python, "-m", cold_start_scripts.__name__, framework, model, loop]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT
    )
    if done.returncode and "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise RuntimeError(f"{name} of {model} failed:\n{done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def measure(config: Config, model: str) -> dict[str, list[Run]]:
    """Return the runs of every script for a model, taken in turns."""
    runs: dict[str, list[Run]] = {}
    names = [
        name
        for name in config.scripts
        if model in PEERS_MODELS or SCRIPTS[name][0] in ("fngrad", "jax")
    ]
    with tempfile.TemporaryDirectory() as cache:
        for name in names:
            if SCRIPTS[name][2]:
                run_script(config, name, model, cache)  # fills the cache
        for _ in range(config.repeats):
            for name in list(names):
                run = run_script(config, name, model, cache)
                if run is None:
                    print(f"{name}: not installed")
                    names.remove(name)
                else:
                    runs.setdefault(name, []).append(run)
    return runs


def seconds_table(runs: dict[str, list[Run]]) -> str:
    """Write one row per script: CPU seconds by stage, in all, wall, and the ratio."""
    rows = [["CPU seconds", *STAGES, "all", "wall", "programs", "ratio"]]
    for name, made in runs.items():
        stages = [
            statistics.median(run.stages.get(stage, [0.0])[0] for run in made)
            for stage in STAGES
        ]
        whole = [statistics.median(run.cpu() for run in made)]
        whole.append(statistics.median(run.wall() for run in made))
        shown = f"{ratio(runs, name):.2f}" if AGAINST in runs else "-"
        count = str(len(made[-1].programs))
        rows.append([name, *(f"{s:.2f}" for s in stages + whole), count, shown])
    return table(rows, left=1)


def ratio(runs: dict[str, list[Run]], name: str) -> float:
    """Return the median, over the turns, of the CPU seconds against the script by hand.

    Args:
        runs: by script, in turns.
        name: of the script.
    """
    pairs = zip(runs[name], runs[AGAINST], strict=True)
    return statistics.median(run.cpu() / base.cpu() for run, base in pairs)


def programs_table(runs: dict[str, list[Run]], most: int) -> str:
    """Write the programs that took longest to compile, in the last turn."""
    rows = [["script", "stage", "program", "count", "seconds"]]
    for name, made in runs.items():
        counts: Counter[tuple[str, str]] = Counter()
        seconds: Counter[tuple[str, str]] = Counter()
        for stage, program, spent in made[-1].programs:
            counts[stage, program] += 1
            seconds[stage, program] += spent
        for (stage, program), spent in seconds.most_common(most):
            count = str(counts[stage, program])
            rows.append([name, stage, program, count, f"{spent:.2f}"])
    return table(rows, left=3)


def main(config: Config) -> None:
    """Measure all models."""
    unknown = sorted({*config.scripts} - SCRIPTS.keys())
    if unknown:
        raise SystemExit(f"need scripts among {sorted(SCRIPTS)}, got {unknown}")
    print(f"{os.cpu_count()} cores, {config.repeats} turns")
    for model in config.models:
        runs = measure(config, model)
        print(f"\n{model}\n{seconds_table(runs)}\n")
        print(programs_table(runs, config.programs))


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))
