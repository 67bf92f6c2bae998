"""What a convolution costs on CPU: outside and inside a loop, its memory, and torch.

Claim: with both gradients, `fngrad.layers.conv` takes at most 1.1 times as long inside
a loop of the program as outside, where XLA's own convolution takes many times as long.
It is not slower than XLA's own outside, and needs no more memory.

Command:  python -m experiments.benchmarks.convolutions
Minutes:  ten on two cores, with torch.
Expected: in CPU seconds of one core, both ways: inside over outside 0.85 to 1.04,
          XLA's own 2 (one channel), 18 to 45 (dense), 76 (depthwise). Outside, XLA's
          own over the default: 0.95 to 1.01 for dense layers, 1.6 for a kernel of 1,
          3 depthwise, 16 with four groups; torch eager: 0.8 to 1.4 for dense layers,
          0.4 with groups, 0.2 depthwise. Temporaries of both are equal: 3 times the
          images with one layer, 22 with ten; 0.8 and 5.7 in four blocks of examples
          (XLA's own 0.5 and 3.2).

A case is one layer over a batch of square images, and takes turns with the others: the
layer as it is by default, and ``implementation="native"``. *Forwards* is the value
alone, *both ways* also the gradients by input and kernel. torch is left out where it
is not installed. Memory is what the compiler planned (`memory_analysis`) for the
gradient by all kernels of one layer, and of ten in a row: temporaries, in units of the
activations. *Remat* is ``jax.checkpoint`` around every layer, *blocks* are examples
whose gradients are taken one block after another, as of ``micro_batches``.
"""

import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
import fngrad.programs.text_tables as text_tables
from experiments.benchmarks.timing import interleave, paired_ratio, seconds, table
from fngrad.programs.optional_imports import import_extra

BLOCKS = 4  # of examples, in the table of temporaries


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer over a batch of images."""

    size: int  # pixels of a side
    channels: tuple[int, int]  # in and out
    kernel_size: int
    batch: int
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        into, out = self.channels
        words = f"{self.size}x{self.size}, {into} to {out}, kernel {self.kernel_size}"
        extra = {"stride": self.stride, "groups": self.groups}
        words += "".join(f", {name} {n}" for name, n in extra.items() if n > 1)
        return f"{words}, batch {self.batch}"


CASES = (
    Case(8, (1, 16), 3, 128),
    Case(8, (16, 32), 3, 128),
    Case(28, (32, 64), 1, 16),
    Case(28, (32, 64), 3, 16),
    Case(28, (32, 64), 5, 8),
    Case(28, (3, 32), 7, 8),
    Case(28, (32, 64), 3, 16, stride=2),
    Case(28, (32, 64), 3, 8, groups=4),
    Case(56, (64, 64), 3, 2, groups=64),
    Case(14, (256, 256), 3, 4),
    Case(112, (64, 64), 3, 1),
    Case(224, (3, 64), 7, 1, stride=2),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    cases: tuple[int, ...] = tuple(range(len(CASES)))  # indices into CASES
    repeats: int = 5
    round_seconds: float = 0.2  # about how long a case runs in a round
    depth: int = 10
    peers: bool = True


def layer_of(case: Case, implementation: Any) -> fg.Layer:
    """Return the layer of a case."""
    return fg.layers.conv(
        *case.channels,
        case.kernel_size,
        stride=case.stride,
        groups=case.groups,
        bias=False,
        implementation=implementation,
    )


def images(case: Case) -> jax.Array:
    """Return a batch of noise."""
    shape = case.batch, case.size, case.size, case.channels[0]
    return jax.random.normal(jax.random.key(1), shape)


def forwards(layer: fg.Layer, params: Any, x: jax.Array) -> Any:
    """Return values that depend on y alone, to be added to params and x."""
    y = fg.layers.batched(layer)(params, x)
    return jax.tree.map(lambda a: jnp.broadcast_to(jnp.mean(y), a.shape), (params, x))


def both_ways(layer: fg.Layer, params: Any, x: jax.Array) -> Any:
    """Return the gradients by params and x."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(fg.layers.batched(layer)(params, x)))

    return jax.grad(loss, (0, 1))(params, x)


def timed(
    work: Callable[..., Any], layer: fg.Layer, case: Case, round_seconds: float
) -> dict[str, Callable[[], float]]:
    """Return two cases: seconds of the work outside and inside a loop."""
    start = jax.jit(layer.init)(0), images(case)

    def one(values: Any) -> Any:
        changes = work(layer, *values)
        return jax.tree.map(lambda a, change: a - 1e-3 * change, values, changes)

    outside = jax.jit(one)
    inside = jax.jit(
        lambda values, n: jax.lax.fori_loop(0, n, lambda _, v: one(v), values)
    )

    def from_python(values: Any, n: int) -> Any:
        for _ in range(n):
            values = outside(values)
        return values

    def case_of(loop: Callable[[Any, int], Any]) -> Callable[[], float]:
        loop(start, 1)  # compiles
        n = max(1, int(round_seconds / seconds(lambda: loop(start, 1))))
        return lambda: seconds(lambda: loop(start, n)) / n

    return {"outside": case_of(from_python), "inside": case_of(inside)}


def torch_case(case: Case, is_backward: bool) -> Callable[[], float]:
    """Return a case: seconds of the same layer in torch eager."""
    torch = importlib.import_module("torch")
    into, out = case.channels
    layer = torch.nn.Conv2d(
        into,
        out,
        case.kernel_size,
        stride=case.stride,
        padding=(case.kernel_size - 1) // 2,
        groups=case.groups,
        bias=False,
    )
    x = torch.tensor(np.array(images(case))).permute(0, 3, 1, 2).contiguous()
    x.requires_grad_(is_backward)

    def one() -> None:
        if not is_backward:
            with torch.no_grad():
                layer(x)
            return
        layer.zero_grad()
        x.grad = None
        layer(x).tanh().mean().backward()

    def times(n: int) -> float:
        return seconds(lambda: [one() for _ in range(n)] and None) / n

    return lambda: times(max(1, int(0.1 / times(1))))


def measure(config: Config, case: Case) -> None:
    """Print the table of one case."""
    for name, work in (("forwards", forwards), ("both ways", both_ways)):
        cases = {
            f"{label} {where}": run
            for label, implementation in (("default", None), ("native", "native"))
            for where, run in timed(
                work, layer_of(case, implementation), case, config.round_seconds
            ).items()
        }
        if config.peers and importlib.util.find_spec("torch"):
            cases["torch"] = torch_case(case, work is both_ways)
        times = interleave(cases, config.repeats)
        print(f"\n{case}, {name}")
        print(table(times, against="default outside", unit="ms"))
        looped = paired_ratio(times, "default inside", "default outside")
        print(f"inside over outside: {looped:.2f}")


def temporaries(implementation: Any, depth: int, remat: bool, blocks: int) -> float:
    """Return the temporaries of a gradient by all kernels, in units of the images."""
    case = Case(28, (32, 32), 3, 16)
    layer = layer_of(case, implementation)
    block = fg.layers.serial(layer, jnp.tanh)
    apply = jax.checkpoint(block.apply) if remat else block.apply

    def loss(params: Any, x: jax.Array) -> jax.Array:
        def one(x: jax.Array) -> jax.Array:
            for own in params:
                x = apply(own, x)
            return x

        return jnp.mean(jax.vmap(one)(x))

    def gradient(params: Any, x: jax.Array) -> Any:
        def add(total: Any, own: jax.Array) -> tuple[Any, None]:
            return fg.tree.add(total, jax.grad(loss)(params, own)), None

        if blocks == 1:
            return jax.grad(loss)(params, x)
        in_blocks = x.reshape(blocks, -1, *x.shape[1:])
        total, _ = jax.lax.scan(add, fg.tree.zeros_like(params), in_blocks)
        return fg.tree.scale(1 / blocks, total)

    x = images(case)
    params = [block.init(i) for i in range(depth)]
    planned = jax.jit(gradient).lower(params, x).compile().memory_analysis()
    assert planned is not None
    return planned.temp_size_in_bytes / x.nbytes


def print_memory(config: Config) -> None:
    """Print the table of temporaries."""
    depths = 1, config.depth
    rows = [["temporaries", *(f"{depth} layers" for depth in depths)]]
    for label, implementation in (("default", None), ("native", "native")):
        ways = {
            "": (False, 1),
            ", remat": (True, 1),
            f", {BLOCKS} blocks": (False, BLOCKS),
        }
        for name, (remat, blocks) in ways.items():
            sizes = (temporaries(implementation, n, remat, blocks) for n in depths)
            rows.append([label + name, *(f"{size:.1f}" for size in sizes)])
    print(f"\n{text_tables.table(rows, left=1)}")


def main(config: Config) -> None:
    """Measure all cases."""
    print(f"jax {jax.__version__} on {jax.default_backend()}, {os.cpu_count()} cores")
    for index in config.cases:
        measure(config, CASES[index])
    print_memory(config)


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))
