"""Perturb one weight at a time, or take the gradient?

Claim: both give the same slopes, but perturbing costs two forward passes for each of
n weights, so its work grows as n**2. Backpropagation costs about three forward passes
for any n, so its work grows as n.

Command:  python -m experiments.naive_or_gradient
Minutes:  less than one on two cores.
Expected: fitted exponents near 2 and near 1; at 99,985 weights the naive gradient
          takes more than 10,000 times as long (437 s against 14 ms).

A dense network 64-h-10 sees 512 handwritten digits (scikit-learn's). Its loss is
differentiated both ways for growing h. Where n is large only a sample of the weights
is perturbed and the time is scaled to all of them (the table says how many were).

The run folder (``runs/naive_or_gradient/...``) holds config.json, manifest.json and
cost.png.
"""

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import fngrad as fg
from experiments.benchmarks.timing import exponent, interleave, seconds
from experiments.outputs import finish, new_figure, new_folder, run_cli, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, repeats, and where the results go."""

    hidden: tuple[int, ...] = (1, 4, 13, 42, 133, 421, 1333)  # h: 85 to 99,985 weights
    sample: int = 100  # how many weights are perturbed at most
    examples: int = 512  # that the network sees
    repeats: int = 5  # of the timing
    runs: Path = Path("runs/naive_or_gradient")  # where the run folder is made


class Cost(NamedTuple):
    """Seconds, each the median of some repeats."""

    weights: int
    perturbed: int  # how many of them were, to measure `naive`
    forward: float  # one forward pass
    gradient: float  # all slopes at once
    naive: float  # all slopes, one weight at a time
    difference: float  # the largest between the slopes, relative to the largest slope


def make_loss(hidden: int, batch: Any) -> tuple[Callable[..., Any], jax.Array]:
    """Return the loss of a network as a function of all its weights in one vector."""
    model = fg.models.mlp((64, hidden, 10))
    vector, restore = ravel_pytree(model.init(jax.random.key(0)))

    def loss(vector: jax.Array, batch: Any) -> jax.Array:
        logits = fg.layers.batched(model)(restore(vector), batch["x"])
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["y"], reduction="mean"
        )

    return loss, vector


def naive_slopes(loss: Callable[..., jax.Array], h: float) -> Callable[..., jax.Array]:
    """Return (vector, which, batch) -> slopes: two forward passes for each weight."""

    def slopes(vector: jax.Array, which: jax.Array, batch: Any) -> jax.Array:
        def slope(i: jax.Array) -> jax.Array:
            up = loss(vector.at[i].add(h), batch)
            down = loss(vector.at[i].add(-h), batch)
            return (up - down) / (2 * h)

        return jax.lax.map(slope, which)

    return slopes


def measure(hidden: int, batch: Any, config: Config) -> Cost:
    """Time one size of network both ways, taking turns."""
    loss, vector = make_loss(hidden, batch)
    rng = np.random.default_rng(0)
    count = min(config.sample, vector.size)
    which = jnp.asarray(rng.choice(vector.size, count, replace=False))
    forward, gradient = jax.jit(loss), jax.jit(jax.grad(loss))
    naive = jax.jit(naive_slopes(loss, h=1e-2))  # float32: a larger h, less rounding
    times = interleave(
        {
            "forward": lambda: seconds(lambda: forward(vector, batch)),
            "gradient": lambda: seconds(lambda: gradient(vector, batch)),
            "naive": lambda: seconds(lambda: naive(vector, which, batch)),
        },
        config.repeats,
    )
    median = {name: statistics.median(values) for name, values in times.items()}
    exact = fg.gradcheck.finite_difference_gradient(
        loss, vector, batch, coordinates=np.asarray(which)
    )
    slopes = np.asarray(gradient(vector, batch))[np.asarray(which)]
    return Cost(
        vector.size,
        count,
        median["forward"],
        median["gradient"],
        median["naive"] * vector.size / count,
        float(np.max(np.abs(slopes - exact)) / np.max(np.abs(slopes))),
    )


def draw(costs: list[Cost], exponents: dict[str, float]) -> Any:
    """Draw time against the number of weights, and the ratio."""
    figure = new_figure(11, 4.5)
    times, ratio = figure.subplots(1, 2)
    n = np.array([cost.weights for cost in costs])
    labels = {"naive": "one weight at a time", "gradient": "backpropagation"}
    for name, label in labels.items():
        seen = [getattr(cost, name) for cost in costs]
        label = f"{label}: grows as n^{exponents[name]:.2f}"
        times.loglog(n, seen, "o-", label=label)
    forward = [cost.forward for cost in costs]
    times.loglog(n, forward, ":", color="0.5", label="one forward pass")
    times.set(xlabel="weights n", ylabel="seconds for all slopes")
    times.legend()
    ratio.loglog(n, [c.naive / c.gradient for c in costs], "o-", label="measured")
    ratio.loglog(n, 2 * n / 3, "--", color="0.5", label="2 n / 3 forward passes")
    ratio.set(xlabel="weights n", ylabel="naive time over backpropagation's")
    ratio.legend()
    for axis in (times, ratio):
        axis.grid(alpha=0.3)
    return figure


def main(config: Config) -> dict[str, Any]:
    """Measure every size, fit the exponents, print the table."""
    train = fg.data.digits().train
    batch = jax.tree.map(lambda x: jnp.asarray(x[: config.examples]), train)
    folder = new_folder(config)
    costs = [measure(hidden, batch, config) for hidden in config.hidden]
    weights = [cost.weights for cost in costs]
    exponents = {
        name: exponent(weights, [getattr(c, name) for c in costs])
        for name in ("naive", "gradient")
    }
    head = ["weights", "perturbed", "forward", "gradient", "one at a time", "ratio"]
    rows = [
        [
            f"{c.weights}",
            f"{c.perturbed}",
            f"{1e3 * c.forward:.3f} ms",
            f"{1e3 * c.gradient:.3f} ms",
            f"{c.naive:.3f} s",
            f"{c.naive / c.gradient:.0f}",
        ]
        for c in costs
    ]
    print(table(head, rows))
    print(
        f"work grows as n^{exponents['naive']:.2f} one weight at a time, as "
        f"n^{exponents['gradient']:.2f} by backpropagation; slopes agree to "
        f"{max(c.difference for c in costs):.0e}"
    )
    results = {"exponents": exponents, "costs": [c._asdict() for c in costs]}
    finish(folder, results, cost=draw(costs, exponents))
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
