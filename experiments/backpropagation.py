"""Backpropagation layer by layer: where gradients vanish, and where they explode.

Claim: going backwards from the loss one layer at a time gives every weight's gradient,
with the bits of `jax.grad`; each layer multiplies the signal by about the same factor,
so in deep networks it vanishes or explodes exponentially, unless the weights are drawn
so that the factor is one.

Command:  python -m experiments.backpropagation
Minutes:  less than one on two cores.
Expected: "equal bits: yes"; a signal through 40 layers shrinks below 1e-10 with small
          weights and grows beyond 1e5 with large ones; with Glorot's (tanh) and He's
          (relu) it keeps its size within a factor of about ten.

Networks with 64 units per layer see 128 handwritten digits (scikit-learn's). The
weights of a layer are Gaussian with standard deviation gain / sqrt(64).

The run folder (``runs/backpropagation/...``) holds config.json, manifest.json and
signals.png.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from experiments.outputs import finish, new_figure, new_folder, run_cli, table

WIDTH, CLASSES = 64, 10
SETTINGS: dict[str, tuple[Callable[[jax.Array], jax.Array], float]] = {
    "tanh, gain 0.5 (vanishes)": (jnp.tanh, 0.5),
    "tanh, gain 1 (Glorot)": (jnp.tanh, 1.0),
    "tanh, gain 3 (explodes)": (jnp.tanh, 3.0),
    "sigmoid, gain 1 (vanishes)": (jax.nn.sigmoid, 1.0),
    "relu, gain 1 (vanishes)": (jax.nn.relu, 1.0),
    "relu, gain 1.41 (He)": (jax.nn.relu, 2**0.5),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Depth, seeds, what to show, and where the results go."""

    depth: int = 40  # layers
    shown: tuple[int, ...] = (5, 10, 20, 39)  # layers passed, in the table
    seeds: int = 5  # draws of the weights
    examples: int = 128  # that the networks see
    runs: Path = Path("runs/backpropagation")  # where the run folder is made


def make_layers(depth: int, activation: Any) -> list[Callable[[Any, Any], Any]]:
    """Return the layers as functions (weights, x) -> y, the last without activation."""

    def linear(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ w

    return [lambda w, x: activation(linear(w, x))] * (depth - 1) + [linear]


def draw_weights(key: jax.Array, depth: int, gain: Any) -> list[jax.Array]:
    """Return Gaussian weights, shape (64, 64), the last (64, 10)."""
    keys = jax.random.split(key, depth)
    draw = jax.vmap(lambda k: jax.random.normal(k, (WIDTH, WIDTH)))
    hidden = gain * draw(keys[:-1]) / WIDTH**0.5
    last = gain * jax.random.normal(keys[-1], (WIDTH, CLASSES)) / WIDTH**0.5
    return [*hidden, last]


def make_loss(labels: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Return the mean cross-entropy as a function of the logits."""
    return lambda logits: fg.losses.softmax_cross_entropy_with_integer_labels(
        logits, labels, reduction="mean"
    )


def have_equal_bits(batch: Any) -> bool:
    """Compare every gradient of a network with `jax.grad`'s, to the last bit."""
    layers = make_layers(5, jnp.tanh)
    weights = draw_weights(jax.random.key(0), 5, 1.0)
    loss_fn = make_loss(batch["y"])

    def whole(weights: list[jax.Array]) -> jax.Array:
        x = batch["x"]
        for layer, w in zip(layers, weights, strict=True):
            x = layer(w, x)
        return loss_fn(x)

    ours = fg.backprop(layers, weights, batch["x"], loss_fn).gradients
    theirs = jax.grad(whole)(weights)
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(ours, theirs, strict=True)
    )


def make_measure(
    batch: Any, config: Config, activation: Any
) -> Callable[[float], np.ndarray]:
    """Return gain -> the norms of the signals, one row per seed, the input's first."""
    layers = make_layers(config.depth, activation)
    loss_fn = make_loss(batch["y"])

    @jax.jit
    def signals(seed: jax.Array, gain: jax.Array) -> jax.Array:
        weights = draw_weights(jax.random.key(seed), config.depth, gain)
        return fg.gradient_norms(
            fg.backprop(layers, weights, batch["x"], loss_fn)
        ).signals

    def measure(gain: float) -> np.ndarray:
        rows = [signals(seed, jnp.float32(gain)) for seed in range(config.seeds)]
        return np.stack(rows)

    return measure


def passed(signals: np.ndarray) -> np.ndarray:
    """Return the factor of the signal, one column per number of layers passed."""
    backwards = signals[:, ::-1]
    return backwards[:, 1:] / backwards[:, 1:2]  # the loss is not a layer


def draw(factors: dict[str, np.ndarray]) -> Any:
    """Draw the size of the signal on its way backwards."""
    figure = new_figure(9, 5)
    axis = figure.add_subplot()
    for name, values in factors.items():
        low, middle, high = np.quantile(values, [0.0, 0.5, 1.0], axis=0)
        (line,) = axis.plot(middle, label=name)
        layers = np.arange(middle.size)
        axis.fill_between(layers, low, high, color=line.get_color(), alpha=0.2)
    axis.axhline(1.0, color="0.5", lw=0.8, ls=":")
    axis.set(yscale="log", xlabel="layers passed, from the loss backwards")
    axis.set_ylabel("size of the signal, over its size at the start")
    axis.set_title("median over seeds, band from least to largest")
    figure.legend(loc="outside right upper")
    return figure


def main(config: Config) -> dict[str, Any]:
    """Check the bits, measure every setting, print the table."""
    if max(config.shown) >= config.depth:
        raise SystemExit(f"need shown < depth, got {config.shown} and {config.depth}")
    train = fg.data.digits().train
    batch = jax.tree.map(lambda x: jnp.asarray(x[: config.examples]), train)
    folder = new_folder(config)
    equal = have_equal_bits(batch)
    print(f"equal bits: {'yes' if equal else 'no'}")
    measures = {
        activation: make_measure(batch, config, activation)
        for activation, _ in SETTINGS.values()
    }
    factors = {
        name: passed(measures[activation](gain))
        for name, (activation, gain) in SETTINGS.items()
    }
    print("factor by which the layers multiply the signal, median over seeds")
    medians = {
        name: [float(np.median(values[:, count])) for count in config.shown]
        for name, values in factors.items()
    }
    head = ["network", *(f"{count} layers" for count in config.shown)]
    print(table(head, [[n, *(f"{f:.1e}" for f in row)] for n, row in medians.items()]))
    results = {"equal_bits": equal, "layers": config.shown, "factors": medians}
    finish(folder, results, signals=draw(factors))
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
