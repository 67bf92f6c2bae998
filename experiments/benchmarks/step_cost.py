"""What an optimizer's update costs alone: bytes moved, and time against a copy.

Claim: no update of these rules on CPU holds temporary arrays, and Adam with moments in
bfloat16 takes at most 1.1 times as long as in float32.

Command:  python -m experiments.benchmarks.step_cost
Minutes:  two on two cores, with torch.
Expected: of 16 leaves of a million, compiled words 3, 6, 7, 7, 10, and 7 for Adam with
          moments in bfloat16, which takes 1.07 times as long as Adam; the minimum is
          moved at 0.94 of a copy's rate by SGD, 0.70 by momentum, 0.67 by RMSProp, 0.59
          by Adagrad, 0.62 by Adam (one run on two busy cores). Adam by hand takes 1.9
          times as long with `reduce_window`, 4.5 mapped over blocks, 25 in a loop over
          them.

An update must read the parameters, the gradients and the state once, and write the
parameters and the state: 3 words of 4 bytes per parameter for SGD, 5 for momentum,
RMSProp and Adagrad, 7 for Adam, 5 for Adam with moments in bfloat16. *compiled* are the
words of the compiled program, as XLA counts them (`cost_analysis`), *held* those of its
temporary arrays (`memory_analysis`). *of copy* is the rate at which the minimum is
moved, as a fraction of the rate of a copy in the same turn: ``x + 1`` in place, over as
many leaves. torch's rules are the fused ones, RMSProp ``foreach``.

XLA on CPU makes one loop per output, so the compiled words exceed the minimum: a loop
that needs the new moments reads them again. The second table has other formulations of
a hand-written Adam. None makes one loop of several outputs and is faster. XLA
simplifies a stack that is cut again, a reduction over an axis of 1 and a barrier to
the plain program; a loop over blocks copies whole leaves in every iteration, since
`dynamic_update_slice` is not in place there, and runs on one core; `lax.map` needs its
results apart from its arguments. XLA has a pass that fuses several outputs, off by
default
(``XLA_FLAGS=--xla_backend_extra_options=xla_cpu_use_multi_output_fusion=true``): with
it momentum took 0.95 and Adam 1.7 times the CPU time.
"""

import dataclasses
import functools
import importlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad as fg
import fngrad.programs.text_tables as text_tables
from experiments.benchmarks.timing import interleave, paired_ratio, seconds, table
from fngrad.programs.optional_imports import import_extra

# The rules, and the fewest words per parameter that an update moves.
RULES = {
    "sgd": (lambda: fg.sgd(1e-3), 3),
    "momentum": (lambda: fg.momentum(1e-3), 5),
    "rmsprop": (lambda: fg.rmsprop(1e-3), 5),
    "adagrad": (lambda: fg.adagrad(1e-3), 5),
    "adam": (lambda: fg.adam(1e-3), 7),
    "adam, bfloat16": (lambda: fg.quantize_state(fg.adam(1e-3), bits=16), 5),
}
TORCH = {
    "sgd": ("SGD", {"fused": True}),
    "momentum": ("SGD", {"momentum": 0.9, "fused": True}),
    "rmsprop": ("RMSprop", {"alpha": 0.9, "foreach": True}),
    "adagrad": ("Adagrad", {"fused": True}),
    "adam": ("Adam", {"fused": True}),
}
COPY = 2  # words per entry of a copy
WORD = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    rules: tuple[str, ...] = tuple(RULES)
    leaves: int = 16
    size: int = 2**20  # entries of a leaf
    repeats: int = 15
    formulations: bool = True
    peers: bool = True


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one update moves and takes."""

    minimum: float  # words per parameter
    compiled: float
    held: float
    milliseconds: float
    of_copy: float  # the rate of the minimum, as a fraction of a copy's


def leaves(config: Config, offset: float) -> list[jax.Array]:
    """Return parameters or gradients."""
    return [
        jnp.linspace(offset, offset + 1, config.size) + i for i in range(config.leaves)
    ]


def in_place(step: Callable[..., Any], state: Any, *args: Any) -> tuple[Any, Any]:
    """Compile a step that replaces its state; return it and a case that measures it."""
    compiled = jax.jit(step, donate_argnums=0).lower(state, *args).compile()
    held = [fg.snapshot(state)]

    def case() -> float:
        def once() -> Any:
            held[0] = compiled(held[0], *args)
            return held[0]

        return seconds(once)

    return compiled, case


def update_of(optimizer: fg.Transform) -> Callable[..., Any]:
    """Return the update of parameters and state, with gradients given."""

    def update(state: Any, gradients: Any) -> Any:
        params, opt_state = state
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return fg.apply_updates(params, updates), opt_state

    return update


def torch_case(config: Config, name: str) -> Callable[[], float]:
    """Return a case: seconds of torch's update."""
    torch = importlib.import_module("torch")
    params = [
        torch.nn.Parameter(torch.tensor(np.array(x))) for x in leaves(config, 0.0)
    ]
    for param, gradient in zip(params, leaves(config, 0.5), strict=True):
        param.grad = torch.tensor(np.array(gradient))
    rule, arguments = TORCH[name]
    optimizer = getattr(torch.optim, rule)(params, lr=1e-3, **arguments)

    def case() -> float:
        start = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - start

    return case


def measure(config: Config) -> dict[str, Cost]:
    """Print the table of the rules; return its numbers."""
    params, gradients = leaves(config, 0.0), leaves(config, 0.5)
    _, copy = in_place(lambda x: [leaf + 1 for leaf in x], params)
    cases, compiled = {"copy": copy}, {}
    for name in config.rules:
        optimizer = RULES[name][0]()
        state = params, optimizer.init(params)
        compiled[name], cases[name] = in_place(update_of(optimizer), state, gradients)
    if config.peers and importlib.util.find_spec("torch"):
        for name in filter(TORCH.__contains__, config.rules):
            cases[f"torch {name}"] = torch_case(config, name)
    times = interleave(cases, config.repeats)
    size = WORD * config.leaves * config.size

    costs = {
        name: Cost(
            RULES[name][1],
            program.cost_analysis()["bytes accessed"] / size,
            program.memory_analysis().temp_size_in_bytes / size,
            1e3 * statistics.median(times[name]),
            of_copy(times, name, RULES[name][1]),
        )
        for name, program in compiled.items()
    }
    print_costs(config, costs, times)
    return costs


def print_costs(
    config: Config, costs: dict[str, Cost], times: dict[str, list[float]]
) -> None:
    """Print the table, with torch's times where it was measured."""
    size = WORD * config.leaves * config.size
    rate = COPY * size / statistics.median(times["copy"]) / 1e9
    print(f"{config.leaves} leaves of {config.size}: a copy moves {rate:.1f} GB/s")
    rows = [("", "minimum", "compiled", "held", "ms", "of copy", "torch ms", "of copy")]
    for name, cost in costs.items():
        torch, peer = f"torch {name}", ("", "")
        if torch in times:
            fraction = of_copy(times, torch, cost.minimum)
            peer = f"{1e3 * statistics.median(times[torch]):.1f}", f"{fraction:.2f}"
        words = f"{cost.minimum:.0f}", f"{cost.compiled:.1f}", f"{cost.held:.2f}"
        own = f"{cost.milliseconds:.1f}", f"{cost.of_copy:.2f}"
        rows.append((name, *words, *own, *peer))
    print(text_tables.table(rows, left=1))
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed")
    if {"adam", "adam, bfloat16"} <= set(times):
        ratio = paired_ratio(times, "adam, bfloat16", "adam")
        print(f"moments in bfloat16 over float32: {ratio:.2f} times the time")


def of_copy(times: dict[str, list[float]], case: str, words: float) -> float:
    """Return the rate at which a case moves words, as a fraction of a copy's."""
    return words / COPY * paired_ratio(times, "copy", case)


Moments = tuple[jax.Array, jax.Array, jax.Array]


def adam_by_hand(p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array) -> Moments:
    """Return parameters and moments after a step of Adam, without bias correction."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p - 1e-3 * m / (jnp.sqrt(v) + 1e-8), m, v


def stacked(*arrays: jax.Array) -> Moments:
    """Put the outputs into one array, and cut it again."""
    p, m, v = jnp.stack(adam_by_hand(*arrays))
    return p, m, v


def reduced(*arrays: jax.Array) -> Any:
    """Reduce the outputs together, over an axis of 1."""
    outputs = [x[:, None] for x in adam_by_hand(*arrays)]
    zeros = [np.float32(-0.0)] * len(outputs)  # x + -0.0 is x
    add = functools.partial(jax.tree.map, jnp.add)
    return lax.reduce(outputs, zeros, add, (1,))


def windowed(*arrays: jax.Array) -> Any:
    """Reduce the outputs together, over windows of 1."""
    zeros = (np.float32(-0.0),) * 3
    add = functools.partial(jax.tree.map, jnp.add)
    return lax.reduce_window(adam_by_hand(*arrays), zeros, add, (1,), (1,), "VALID")


def in_blocks(*arrays: jax.Array, size: int = 2**16) -> Moments:
    """Loop over blocks that fit into the cache, written in place."""
    size = min(size, arrays[0].size)

    def body(i: jax.Array, state: Moments) -> Any:
        cut = [lax.dynamic_slice_in_dim(x, i * size, size) for x in (*state, arrays[3])]
        new = adam_by_hand(*cut)
        put = functools.partial(lax.dynamic_update_slice_in_dim, axis=0)
        return tuple(put(x, y, i * size) for x, y in zip(state, new, strict=True))

    return lax.fori_loop(0, arrays[0].size // size, body, arrays[:3])


def mapped(*arrays: jax.Array, size: int = 2**16) -> Any:
    """Map over blocks."""
    size = min(size, arrays[0].size)
    rows = [x.reshape(-1, size) for x in arrays]
    return [x.ravel() for x in lax.map(lambda row: adam_by_hand(*row), rows)]


FORMULATIONS: dict[str, Callable[..., Any]] = {
    "plain": adam_by_hand,
    "stacked and cut": stacked,
    "barrier": lambda *arrays: lax.optimization_barrier(adam_by_hand(*arrays)),
    "reduce": reduced,
    "reduce_window": windowed,
    "blocks in a loop": in_blocks,
    "blocks mapped": mapped,
}


def compare_formulations(config: Config) -> dict[str, Any]:
    """Print the table of the formulations; return their times."""
    gradients = leaves(config, 0.5)
    state = [(p, p, p) for p in leaves(config, 0.0)]
    cases, rows = {}, [("", "compiled", "held")]
    for name, formulation in FORMULATIONS.items():

        def step(state: Any, gradients: Any, one: Any = formulation) -> Any:
            pairs = zip(state, gradients, strict=True)
            return [tuple(one(*arrays, g)) for arrays, g in pairs]

        compiled, cases[name] = in_place(step, state, gradients)
        size = WORD * config.leaves * config.size
        moved = compiled.cost_analysis()["bytes accessed"] / size
        held = compiled.memory_analysis().temp_size_in_bytes / size
        rows.append((name, f"{moved:.1f}", f"{held:.2f}"))
    times = interleave(cases, min(config.repeats, 5))
    print("\nAdam by hand: words per parameter, and time")
    print(text_tables.table(rows, left=1))
    print(table(times, against="plain", unit="ms"))
    return times


def main(config: Config) -> dict[str, Cost]:
    """Measure the rules, then the formulations; return the costs of the rules."""
    print(f"jax {jax.__version__} on {jax.default_backend()}, {os.cpu_count()} cores")
    costs = measure(config)
    if config.formulations:
        compare_formulations(dataclasses.replace(config, leaves=min(config.leaves, 4)))
    return costs


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))
