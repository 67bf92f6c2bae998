"""What an optimizer's state costs in 32, 16, 8 and 4 bits: memory and time.

Claim: Adam's moments in 16 bits take half of float32's bytes, in 8 bits at most 0.27,
in 4 bits at most 0.14, and a training step that clips by the global norm holds less in
all. Only the temporaries do not fall: most are gradients, before and after the clip. On
CPU an optimizer's step with 16 bits takes at most 1.1 times as long as with 32; with
codes it takes two to three times as long, since it is limited by arithmetic, float32's
by memory: a moment is decoded for the largest entry of each block, for the update, and
for the new codes.

Command:  python -m experiments.benchmarks.state_memory
Minutes:  one on two cores.
Expected: 16 square matrices of a million entries, in 32, 16, 8 and 4 bits: state 8.00,
          4.00, 2.03 and 1.03 bytes per parameter, temporaries 8.25, peak of a step
          20.3, 16.3, 14.3 and 13.3; an optimizer step takes 1.0, 2.1 and 2.4 times as
          long as in 32 bits (one run on two busy cores).

Sizes are what the compiler planned (`memory_analysis`), of a step that computes
gradients of a deep network, clips them and updates, with parameters and state donated.
*Peak* is arguments, results that are not in the arguments' place, and temporaries.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fngrad as fg
from experiments.benchmarks.timing import interleave, seconds, table
from fngrad.programs.optional_imports import import_extra
from fngrad.transforms.quantize import quantize_state


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    width: int = 1024
    depth: int = 16
    batch_size: int = 128
    block_size: int = 256
    repeats: int = 7


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What one step holds, in bytes."""

    state: int
    temporaries: int
    peak: int


def optimizers(config: Config) -> dict[str, fg.Transform]:
    """Return Adam with its moments in 32, 16, 8 and 4 bits, gradients clipped."""
    rules = {
        "float32": fg.adam(1e-3),
        "16 bits": quantize_state(fg.adam(1e-3), 16),
        "8 bits": quantize_state(fg.adam(1e-3), 8, config.block_size),
        "4 bits": quantize_state(fg.adam(1e-3), 4, config.block_size),
    }
    clip = fg.clip_by_global_norm(1.0)
    return {name: fg.chain(clip, rule) for name, rule in rules.items()}


def loss_fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Mean square of the last layer of a deep tanh network."""
    for weight in params.values():
        x = jnp.tanh(x @ weight)
    return jnp.mean(x**2)


def training_step(optimizer: fg.Transform) -> Callable[..., Any]:
    """Return one step, which gives new parameters and state."""

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        gradients = jax.grad(loss_fn)(params, x)
        updates, state = optimizer.update(gradients, state, params)
        return fg.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def bytes_of(tree: Any) -> int:
    """Return the bytes of a tree of arrays or ShapeDtypeStructs."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def measure(config: Config, optimizer: fg.Transform) -> Sizes:
    """Return what a training step holds, as it was compiled."""
    params = shapes(config)
    state = jax.eval_shape(optimizer.init, params)
    x = jax.ShapeDtypeStruct((config.batch_size, config.width), jnp.float32)
    compiled = training_step(optimizer).lower(params, state, x).compile()
    used: Any = compiled.memory_analysis()
    apart = used.output_size_in_bytes - used.alias_size_in_bytes
    peak = used.argument_size_in_bytes + apart + used.temp_size_in_bytes
    return Sizes(bytes_of(state), used.temp_size_in_bytes, peak)


def shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the parameters' shapes."""
    square = jax.ShapeDtypeStruct((config.width, config.width), jnp.float32)
    return {f"layer {i:02d}": square for i in range(config.depth)}


def timed_update(config: Config, optimizer: fg.Transform) -> Callable[[], float]:
    """Return a case: seconds of an update and of adding it, gradients given."""

    def update(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return fg.apply_updates(params, updates), state

    jitted = jax.jit(update, donate_argnums=(0, 1))
    key = jax.random.key(0)
    gradients = {
        name: jax.random.normal(jax.random.fold_in(key, i), x.shape)
        for i, (name, x) in enumerate(shapes(config).items())
    }
    held = [(fg.snapshot(gradients), optimizer.init(gradients))]

    def case() -> float:
        def once() -> Any:
            held[0] = jitted(*held[0], gradients)
            return held[0]

        return seconds(once)

    return case


def main(config: Config) -> dict[str, Sizes]:
    """Print both tables; return the sizes."""
    chosen = optimizers(config)
    sizes = {name: measure(config, rule) for name, rule in chosen.items()}
    count = config.depth * config.width**2
    first = sizes["float32"]
    print(f"{count} parameters; bytes per parameter, and the ratio to float32")
    print(f"{'':8}  {'state':>14}  {'temporaries':>14}  {'peak':>14}")
    for name, row in sizes.items():
        cells = [
            f"{value / count:7.2f} {value / base:6.2f}"
            for value, base in zip(
                dataclasses.astuple(row), dataclasses.astuple(first), strict=True
            )
        ]
        print(f"{name:8}  {'  '.join(cells)}")
    cases = {name: timed_update(config, rule) for name, rule in chosen.items()}
    print(f"\nthe optimizer's step, on {jax.default_backend()}")
    print(table(interleave(cases, config.repeats), against="float32", unit="ms"))
    return sizes


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))
