"""What depth costs: seconds to compile, and memory of a gradient.

Claim: a transformer whose blocks run in one loop compiles in the same time at any
depth, and with rematerialization its gradient needs the least memory. A loop without it
takes more memory than blocks one by one.

Command:  python -m experiments.benchmarks.depth
Minutes:  two on two cores.
Expected: from 4 to 16 layers, compiling takes 1.7 times as long one by one, and as long
          as before in a loop; temporaries at 16 layers are 374 MB one by one, 1.14
          times as many in a loop, and 0.10 times in a loop with remat.

Sizes are what the compiler planned (`memory_analysis`), on this platform: XLA on CPU
keeps what is rematerialized outside of loops. FLOPs are `fngrad.costs`, in which what
is computed again counts again.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

import fngrad as fg
import fngrad.programs.text_tables as text_tables
from fngrad.programs.optional_imports import import_extra

LAYOUTS = {  # scan, remat
    "one by one": (False, False),
    "one by one, remat": (False, True),
    "loop": (True, False),
    "loop, remat": (True, True),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The model, and the depths."""

    depths: tuple[int, ...] = (4, 8, 16)
    features: int = 128
    length: int = 128
    batch_size: int = 8


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the gradient of one model costs."""

    seconds: float  # of CPU, to trace and compile
    temporaries: int  # bytes
    products: int  # FLOPs


def measure(config: Config, depth: int, *, scan: bool, remat: bool) -> Cost:
    """Return what the gradient of a model of some depth costs."""
    model = fg.models.transformer(
        128,
        config.length,
        features=config.features,
        num_layers=depth,
        scan=scan,
        remat=remat,
    )

    def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
        logits = fg.layers.batched(model)(params, tokens)
        losses = fg.losses.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return jnp.mean(losses)

    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((config.batch_size, config.length), jnp.int32)
    gradient = jax.grad(loss_fn)
    start = time.process_time()
    compiled = jax.jit(gradient).lower(params, tokens).compile()
    seconds = time.process_time() - start
    used: Any = compiled.memory_analysis()
    products = fg.costs(gradient, params, tokens).products
    return Cost(seconds, used.temp_size_in_bytes, products)


def main(config: Config) -> dict[tuple[str, int], Cost]:
    """Print the table; return the costs by layout and depth."""
    first = "one by one"
    measure(config, 1, scan=False, remat=False)  # starts the compiler's threads
    costs = {
        (name, depth): measure(config, depth, scan=scan, remat=remat)
        for depth in config.depths
        for name, (scan, remat) in LAYOUTS.items()
    }
    rows = [["", "layers", "CPU s", "ratio", "MB", "ratio", "GFLOP"]]
    for (name, depth), cost in costs.items():
        base = costs[first, depth]
        rows.append(
            [
                name,
                str(depth),
                f"{cost.seconds:.1f}",
                f"{cost.seconds / base.seconds:.2f}",
                f"{cost.temporaries / 1e6:.1f}",
                f"{cost.temporaries / base.temporaries:.2f}",
                f"{cost.products / 1e9:.1f}",
            ]
        )
    print(f"a transformer's gradient, compiled for {jax.default_backend()}")
    print(text_tables.table(rows, left=1))
    return costs


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))
