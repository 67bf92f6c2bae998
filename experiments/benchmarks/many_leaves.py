"""What an update costs when the parameters are many small arrays.

Claim: Adam on 1000 leaves of 16 floats compiles and steps at least 10 times faster
with the leaves kept in one stack than as a plain tree.

Command:  python -m experiments.benchmarks.many_leaves
Minutes:  ten on two cores, nearly all of them compilation.
Expected: *tree* compiles in 30 s and steps in 36 ms, *stack_leaves* in 65 s and 18 ms,
          *stacks* in 0.7 s and 0.14 ms: 43 and 259 times faster than *tree* (one run on
          two busy cores).

The first table has the CPU seconds to trace, lower and compile the plain tree's update,
per rule, and the exponent of their growth in the number of leaves. Of 10, 100 and 1000
leaves, the three together: SGD 0.1, 0.2, 1.9; momentum 0.2, 0.6, 6.8; RMSProp 0.2, 1.3,
16; Adam 0.4, 1.9, 23, of which 4.7 are tracing, 2.7 lowering and 16 compilation. So up
to 1000 leaves they grow by a factor of 11 to 13 per factor of 10. Beyond it tracing and
lowering stay linear, and compilation does not: SGD takes 1.5, 3.5 and 8.6 s in all for
1000, 2000 and 4000. It takes as long with ``--xla_backend_optimization_level=0``, so
the growth is in XLA's own passes over the long entry computation, not in the code of
the loops. Fewer arrays are the only remedy: stacks.

Three cases make the same update of the same numbers. *tree*: `adam` on a list of
leaves. *stack_leaves*: the same list, the state in stacks; leaves are joined and taken
apart in every step. *stacks*: parameters and gradients are stacks too (`fngrad.stack`),
as for a model that scans over its layers. torch's Adam with ``foreach`` compiles
nothing; it is left out where torch is not installed. Gradients are given, so no
model's cost is in the times. Compilation, with tracing, is timed once in each case;
step times are medians of rounds in which the cases take turns.
"""

import dataclasses
import functools
import importlib
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad as fg
import fngrad.programs.text_tables as text_tables
from experiments.benchmarks.timing import (
    exponent,
    interleave,
    paired_ratio,
    seconds,
    table,
)
from fngrad.programs.optional_imports import import_extra
from fngrad.transforms.stacking import stack, stack_leaves

RULES = {
    "sgd": lambda: fg.sgd(1e-3),
    "momentum": lambda: fg.momentum(1e-3),
    "rmsprop": lambda: fg.rmsprop(1e-3),
    "adagrad": lambda: fg.adagrad(1e-3),
    "adam": lambda: fg.adam(1e-3),
}
CLAIM = 10.0  # times faster
CLAIMED_AT = 1000  # leaves


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    counts: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)  # leaves
    leaf_size: int = 16  # floats
    repeats: int = 7
    steps: int = 10  # in a round
    peers: bool = True


@dataclasses.dataclass(frozen=True)
class Case:
    """A compiled update, what it took to compile, and where it begins."""

    step: Callable[..., Any]
    compile_seconds: float
    params: Any
    opt_state: Any
    gradients: Any


def make_case(optimizer: fg.Transform, params: Any) -> Case:
    """Compile the update of these parameters, which donates what it replaces."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return fg.apply_updates(params, updates), opt_state

    gradients = jax.tree.map(lambda p: 2.0 * p, params)
    opt_state = fg.snapshot(jax.jit(optimizer.init)(params))
    start = time.perf_counter()
    compiled = step.lower(params, opt_state, gradients).compile()
    return Case(compiled, time.perf_counter() - start, params, opt_state, gradients)


@dataclasses.dataclass(frozen=True)
class BuildTimes:
    """CPU seconds until an update can run."""

    traced: float
    lowered: float
    compiled: float


def build_times(optimizer: fg.Transform, params: Any) -> BuildTimes:
    """Trace, lower and compile the update of parameters that may be abstract."""

    def step(params: Any, opt_state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return fg.apply_updates(params, updates), opt_state

    opt_state = jax.eval_shape(optimizer.init, params)
    jitted = jax.jit(step, donate_argnums=(0, 1))
    times = [time.process_time()]
    traced = jitted.trace(params, opt_state, params)
    times.append(time.process_time())
    lowered = traced.lower()
    times.append(time.process_time())
    lowered.compile()
    times.append(time.process_time())
    return BuildTimes(*(b - a for a, b in itertools.pairwise(times)))


def print_build_times(config: Config) -> dict[str, list[BuildTimes]]:
    """Print a table of the CPU seconds to build each rule's update; return them."""
    rows = [("", *(f"{count} leaves" for count in config.counts), "exponent")]
    found = {}
    for name, make in RULES.items():
        found[name] = [
            build_times(make(), abstract_leaves(count, config.leaf_size))
            for count in config.counts
        ]
        for part in ("traced", "lowered", "compiled"):
            seconds = [getattr(times, part) for times in found[name]]
            fits = len(config.counts) > 3  # enough for the larger half
            growth = f"{exponent(config.counts, seconds):.2f}" if fits else ""
            rows.append((f"{name} {part}", *(f"{s:.2f}" for s in seconds), growth))
    print("\nCPU seconds to trace, lower and compile an update, and their growth")
    print(text_tables.table(rows, left=1))
    return found


def abstract_leaves(count: int, leaf_size: int) -> list[jax.ShapeDtypeStruct]:
    """Return the shapes of so many leaves."""
    return [jax.ShapeDtypeStruct((leaf_size,), jnp.float32)] * count


def make_cases(count: int, leaf_size: int) -> dict[str, Case]:
    """Return the three cases for so many leaves."""
    leaves = [jnp.linspace(1.0, 2.0, leaf_size) + i for i in range(count)]
    stacks, _ = stack(leaves)
    return {
        "tree": make_case(fg.adam(1e-3), leaves),
        "stack_leaves": make_case(stack_leaves(fg.adam(1e-3)), leaves),
        "stacks": make_case(stack_leaves(fg.adam(1e-3)), stacks),
    }


def run(case: Case, steps: int) -> Any:
    """Return the parameters after so many steps."""
    params, opt_state = fg.snapshot((case.params, case.opt_state))
    for _ in range(steps):
        params, opt_state = case.step(params, opt_state, case.gradients)
    return params


def timed(case: Case, steps: int) -> Callable[[], float]:
    """Return a measurement: seconds per step."""

    def measure() -> float:
        state = jax.block_until_ready(fg.snapshot((case.params, case.opt_state)))

        def loop() -> Any:
            params, opt_state = state
            for _ in range(steps):
                params, opt_state = case.step(params, opt_state, case.gradients)
            return params

        return seconds(loop) / steps

    return measure


def torch_case(count: int, leaf_size: int, steps: int) -> Callable[[], float]:
    """Return a measurement of torch's Adam, all leaves in a few fused loops."""
    torch = importlib.import_module("torch")
    leaves = [torch.linspace(1.0, 2.0, leaf_size) + i for i in range(count)]
    params = [torch.nn.Parameter(leaf) for leaf in leaves]
    for param in params:
        param.grad = 2.0 * param.detach()
    optimizer = torch.optim.Adam(params, lr=1e-3, foreach=True)

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.step()
        return (time.perf_counter() - start) / steps

    return measure


def measure(config: Config, count: int) -> tuple[float, float]:
    """Print one table; return how much faster stacks compile and step than a tree."""
    cases = make_cases(count, config.leaf_size)
    measurements = {name: timed(case, config.steps) for name, case in cases.items()}
    if config.peers and importlib.util.find_spec("torch"):
        foreach = torch_case(count, config.leaf_size, config.steps)
        measurements["torch foreach"] = foreach
    times = interleave(measurements, config.repeats)
    print(f"\n{count} leaves of {config.leaf_size} floats, a step of Adam")
    print(table(times, against="tree", unit="ms"))
    compiling = {name: case.compile_seconds for name, case in cases.items()}
    print("compiled in", ", ".join(f"{k} {v:.2f} s" for k, v in compiling.items()))
    faster = (
        compiling["tree"] / compiling["stacks"],
        paired_ratio(times, "tree", "stacks"),
    )
    print(f"stacks over tree: compile {faster[0]:.1f}, step {faster[1]:.1f} times")
    return faster


def main(config: Config) -> int:
    """Measure every number of leaves; return 1 if the claim fails."""
    print(f"jax {jax.__version__} on {jax.default_backend()}, {os.cpu_count()} cores")
    print_build_times(config)
    faster = {count: measure(config, count) for count in config.counts}
    if CLAIMED_AT not in faster:
        return 0
    holds = min(faster[CLAIMED_AT]) >= CLAIM
    verdict = "holds" if holds else "FAILS"
    print(f"\n{CLAIMED_AT} leaves, {CLAIM:.0f} times faster: {verdict}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(import_extra("tyro", "cli").cli(Config, description=__doc__)))
