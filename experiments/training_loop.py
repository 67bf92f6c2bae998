"""The training loop in four steps: by hand in plain JAX, then with fngrad.

Claim: a step of fngrad does these four things and nothing else: after each of 400 steps
the parameters have the same bits.

Command:  python -m experiments.training_loop
Minutes:  less than one on two cores.
Expected: "equal bits: 400 of 400 steps"; both test accuracies the same, about 96 %.

The four steps are: draw a batch; run the network forwards to a loss; go backwards to
the gradient; move every weight a little against it. The network 64-32-10 learns
handwritten digits (scikit-learn's, 8x8 pixels) by mini-batch SGD. The picture shows
the two losses, one drawn over the other, and how far apart the parameters are.

The run folder (``runs/training_loop/...``) holds config.json, manifest.json and
loop.png.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from experiments.outputs import finish, new_figure, new_folder, run_cli, table


@dataclasses.dataclass(frozen=True)
class Config:
    """How long and how fast to train, and where the results go."""

    steps: int = 400  # of each loop
    batch_size: int = 64  # examples in a batch
    learning_rate: float = 0.1  # how far a weight moves for a slope of one
    seed: int = 0  # of the weights and of the order of the examples
    runs: Path = Path("runs/training_loop")  # where the run folder is made


class Trace(NamedTuple):
    """Losses and parameters of a loop."""

    losses: list[float]  # nats, before each step
    visited: list[Any]  # parameters after each step


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Return the weights of a dense network 64-32-10, as a plain dict."""
    k_hidden, k_out = jax.random.split(key)
    return {
        "hidden": jax.random.normal(k_hidden, (64, 32)) * (2 / 64) ** 0.5,
        "hidden_bias": jnp.zeros(32),
        "out": jax.random.normal(k_out, (32, 10)) * (1 / 32) ** 0.5,
        "out_bias": jnp.zeros(10),
    }


def predict(params: dict[str, jax.Array], x: Any) -> jax.Array:
    """Return logits, shape (batch, 10), of pixels, shape (batch, 64)."""
    hidden = jax.nn.relu(x @ params["hidden"] + params["hidden_bias"][None])
    return hidden @ params["out"] + params["out_bias"][None]


def loss_fn(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
    """Mean cross-entropy in nats, of the true digit's predicted probability."""
    log_probabilities = jax.nn.log_softmax(predict(params, batch["x"]))
    truth = jax.nn.one_hot(batch["y"], 10)
    return -jnp.mean(jnp.sum(truth * log_probabilities, axis=-1))


def descend(params: Any, gradient: Any, learning_rate: float) -> Any:
    """Return the weights, each moved a little against its slope."""
    return jax.tree.map(lambda w, g: w - learning_rate * g, params, gradient)


def by_hand(config: Config, train: dict[str, np.ndarray]) -> Trace:
    """Train in plain JAX: four steps, repeated."""
    draw = fg.data.from_arrays(train, config.batch_size, seed=config.seed).batch
    forwards_and_backwards = jax.jit(jax.value_and_grad(loss_fn))
    move = jax.jit(descend)
    params = init(jax.random.key(config.seed))
    trace = Trace([], [])
    for step in range(config.steps):
        # 1. Draw a batch of examples and their targets.
        batch = draw(step)
        # 2. Run the network on it, and measure how wrong it is;
        # 3. go backwards from the loss: the slope of the loss along every weight.
        loss, gradient = forwards_and_backwards(params, batch)
        # 4. Move every weight a little against its slope.
        params = move(params, gradient, config.learning_rate)
        trace.losses.append(float(loss))
        trace.visited.append(params)
    return trace


def with_fngrad(config: Config, train: dict[str, np.ndarray]) -> Trace:
    """Train with one pure step, folded by `fit`."""
    data = fg.data.from_arrays(train, config.batch_size, seed=config.seed)
    optimizer = fg.sgd(config.learning_rate)
    step = fg.make_step(loss_fn, optimizer)
    state = fg.init_state(init(jax.random.key(config.seed)), optimizer, config.seed)
    trace = Trace([], [])

    def record(step: int, state: fg.TrainState, values: dict[str, Any]) -> None:
        trace.losses.append(values["loss"])
        trace.visited.append(fg.snapshot(state.params))

    fg.fit(
        step,
        state,
        data,
        num_steps=config.steps,
        log_every=1,
        callbacks=[record],
        progress=False,
    )
    return trace


def distance(a: Any, b: Any) -> float:
    """Return the largest difference between two trees' entries."""
    a, b = jax.device_get((a, b))
    gaps = jax.tree.map(lambda x, y: float(np.max(np.abs(x - y))), a, b)
    return max(jax.tree.leaves(gaps))


def have_equal_bits(a: Any, b: Any) -> bool:
    """Compare two trees to the last bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def draw(ours: Trace, theirs: Trace, gaps: list[float]) -> Any:
    """Draw the losses over each other, and the distance of the parameters."""
    figure = new_figure(10, 4)
    losses, apart = figure.subplots(1, 2)
    losses.plot(theirs.losses, lw=4, alpha=0.4, label="by hand")
    losses.plot(ours.losses, lw=1, color="black", label="fngrad")
    losses.set(xlabel="step", ylabel="training loss (nats)", yscale="log")
    losses.legend()
    apart.plot(gaps)
    apart.set(xlabel="step", ylabel="largest difference of a weight")
    apart.set_title(f"largest over the run: {max(gaps):g}")
    return figure


def main(config: Config) -> dict[str, Any]:
    """Run both loops, compare them after every step, and print the result."""
    splits = fg.data.digits()
    folder = new_folder(config)
    theirs, ours = by_hand(config, splits.train), with_fngrad(config, splits.train)
    pairs = list(zip(theirs.visited, ours.visited, strict=True))
    equal = sum(have_equal_bits(a, b) for a, b in pairs)
    gaps = [distance(a, b) for a, b in pairs]
    accuracy, rows = {}, []
    for name, trace in {"by hand": theirs, "fngrad": ours}.items():
        logits = np.asarray(jax.jit(predict)(trace.visited[-1], splits.test["x"]))
        accuracy[name] = float(np.mean(np.argmax(logits, -1) == splits.test["y"]))
        rows.append([name, f"{trace.losses[-1]:.6f}", f"{100 * accuracy[name]:.2f}"])
    print(table(["loop", "last loss (nats)", "test accuracy (%)"], rows))
    print(f"equal bits: {equal} of {len(pairs)} steps; largest difference {max(gaps)}")
    results = {"equal": equal, "largest_gap": max(gaps), "accuracy": accuracy}
    finish(folder, results, loop=draw(ours, theirs, gaps))
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
