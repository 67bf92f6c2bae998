"""What a training step costs in `fit`, in hand-written loops, and in the peers.

Claim: `fit` costs at most 5 % over the best hand-written loop around the same step;
``loop="auto"`` is never more than 10 % slower than the better loop; on the smallest
network a step of `fit` is at least 5 times faster than one of torch eager or of
Keras' ``fit``.

Command:  python -m experiments.benchmarks.training_loop
Minutes:  four on two cores, with torch and Keras.
Expected: a step of `fit` takes 0.99 to 1.02 times that of the best hand-written loop:
          51 us for the MLP 64-16-16-10, 321 us for 64-128-128-10, 2.2 ms for
          64-512-512-10, 3.2 ms for the CNN. Against it torch eager takes 7.5, 2.3, 1.6
          and 1.9 times as long (the last in CPU seconds of one core), Keras' ``fit``
          5.7, 2.2, 1.3 and 1.4 times; the norms cost a factor of 1.2 for the
          smallest and nothing measurable for the others.

All cases train the same network on the same digits with SGD and momentum, batch 128.
They take turns, and a ratio is the median of the ratios within a turn, so the machine
is in the same state for both. The fixed cost of a call (tracing, copying the state) is
a row of its own, as is the price of the three norms that `make_step` reports by
default. torch and Keras are left out where they are not installed.
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
import numpy as np

import fngrad as fg
import fngrad.fitting.inputs as inputs
import fngrad.fitting.loops as loops
from experiments.benchmarks.timing import interleave, paired_ratio, seconds, table
from fngrad.programs.optional_imports import import_extra
from fngrad.training import Step

SIZES = {
    "mlp 64-16-16-10": (64, 16, 16, 10),
    "mlp 64-128-128-10": (64, 128, 128, 10),
    "mlp 64-512-512-10": (64, 512, 512, 10),
    "cnn 8x8": (),
}
BATCH = 128


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    models: tuple[str, ...] = tuple(SIZES)
    repeats: int = 7
    round_seconds: float = 1.5  # about how long a case runs in a round
    peers: bool = True


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, its data, and its step with and without norms."""

    step: Step
    bare_step: Step
    state: fg.TrainState
    data: fg.Dataset


def make_problem(name: str) -> Problem:
    """Return the problem of a name in ``SIZES``."""
    images = not SIZES[name]
    model = fg.models.cnn((8, 8, 1), 10) if images else fg.models.mlp(SIZES[name])

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = fg.layers.batched(model)(params, batch["x"])
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["y"], reduction="mean"
        )

    optimizer = fg.momentum(0.01)
    train = fg.data.digits(images=images).train
    return Problem(
        fg.make_step(loss_fn, optimizer),
        fg.make_step(loss_fn, optimizer, metrics="loss"),
        fg.init_state(model.init(jax.random.key(0)), optimizer, 0),
        fg.data.from_arrays(train, BATCH),
    )


def hand_written(problem: Problem, step: Step) -> dict[str, Any]:
    """Return the two loops that one would write by hand, as ``state, n -> state``."""

    @functools.partial(jax.jit, donate_argnums=0)
    def one(state: Any, data: Any) -> Any:
        return step(state, data.batch(state.step))

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=2)
    def many(state: Any, data: Any, length: int) -> Any:
        def body(state: Any, _: None) -> Any:
            return step(state, data.batch(state.step))

        return jax.lax.scan(body, state, None, length)

    def python_loop(state: Any, length: int) -> Any:
        for _ in range(length):
            state, _ = one(state, problem.data)
        return state

    return {
        "python": python_loop,
        "scan": lambda state, length: many(state, problem.data, length)[0],
    }


def timed_loop(loop: Any, problem: Problem, length: int) -> Callable[[], float]:
    """Return a case: seconds per step of a hand-written loop."""

    def case() -> float:
        state = fg.snapshot(problem.state)
        return seconds(lambda: loop(state, length)) / length

    return case


def timed_fit(problem: Problem, loop: Any, length: int) -> Callable[[], float]:
    """Return a case: seconds per step of `fit`, its fixed cost included."""

    def fit() -> Any:
        return fg.fit(
            problem.step,
            problem.state,
            problem.data,
            num_steps=length,
            loop=loop,
            progress=False,
        ).state

    return lambda: seconds(fit) / length


def torch_case(name: str, problem: Problem, length: int) -> Callable[[], float]:
    """Return a case: seconds per step of the same training in torch eager."""
    torch = importlib.import_module("torch")
    nn = torch.nn
    x, y = (torch.tensor(np.array(problem.data.arrays[k])) for k in ("x", "y"))
    y = y.long()
    if SIZES[name]:
        pairs = list(zip(SIZES[name], SIZES[name][1:], strict=False))
        layers = [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(*layers[:-1])
    else:
        x = x.permute(0, 3, 1, 2).contiguous()
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss_fn = nn.CrossEntropyLoss()
    per_epoch = len(x) // BATCH

    def case() -> float:
        start = time.perf_counter()
        for t in range(length):
            if t % per_epoch == 0:
                order = torch.randperm(len(x))
            batch = order[t % per_epoch * BATCH : (t % per_epoch + 1) * BATCH]
            optimizer.zero_grad()
            loss_fn(model(x[batch]), y[batch]).backward()
            optimizer.step()
        return (time.perf_counter() - start) / length

    return case


def keras_case(name: str, problem: Problem, length: int) -> Callable[[], float]:
    """Return a case: seconds per step of the same training in Keras' ``fit`` on JAX."""
    os.environ["KERAS_BACKEND"] = "jax"
    keras = importlib.import_module("keras")
    x, y = (np.array(problem.data.arrays[k]) for k in ("x", "y"))
    layers = keras.layers
    if SIZES[name]:
        *hidden, last = SIZES[name][1:]
        stack = [layers.Dense(size, activation="relu") for size in hidden]
        stack.append(layers.Dense(last))
    else:
        conv = functools.partial(layers.Conv2D, padding="same", activation="relu")
        stack = [
            *(conv(16, 3), layers.MaxPooling2D(), conv(32, 3), layers.MaxPooling2D()),
            *(layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)),
        ]
    model = keras.Sequential(stack)
    model.compile(
        optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    per_epoch = -(-len(x) // BATCH)
    epochs = max(1, length // per_epoch)

    def case() -> float:
        start = time.perf_counter()
        model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
        return (time.perf_counter() - start) / (epochs * per_epoch)

    return case


def peers(name: str, problem: Problem, length: int) -> dict[str, Callable[[], float]]:
    """Return the cases of the peers that are installed."""
    makers = {"torch eager": ("torch", torch_case), "Keras fit": ("keras", keras_case)}
    return {
        label: make(name, problem, max(length // 8, 50))
        for label, (module, make) in makers.items()
        if importlib.util.find_spec(module)
    }


def measure(config: Config, name: str) -> None:
    """Print the table of one model, and its claims."""
    problem = make_problem(name)
    hand = hand_written(problem, problem.step)
    bare = hand_written(problem, problem.bare_step)
    warm = hand["python"](fg.snapshot(problem.state), 200)
    length = max(50, int(config.round_seconds / seconds_a_step(hand["python"], warm)))
    cases = {
        "hand-written python": timed_loop(hand["python"], problem, length),
        "hand-written scan": timed_loop(hand["scan"], problem, length),
        "fit python": timed_fit(problem, "python", length),
        "fit scan": timed_fit(problem, "scan", length),
        "python, no norms": timed_loop(bare["python"], problem, length),
        "scan, no norms": timed_loop(bare["scan"], problem, length),
        "fit of one step": timed_fit(problem, "python", 1),
    }
    if config.peers:
        cases |= peers(name, problem, length)
    times = interleave(cases, config.repeats)
    medians = {case: statistics.median(values) for case, values in times.items()}
    best = min(("hand-written python", "hand-written scan"), key=medians.__getitem__)
    chosen = choice_of_auto(problem)
    fitted = f"fit {chosen.loop}"
    better = min(("fit python", "fit scan"), key=medians.__getitem__)
    ratio = functools.partial(paired_ratio, times)
    print(f"\n{name}, batch {BATCH}, {length} steps a round")
    print(table(times, against=best))
    print(f"auto chose {chosen.loop} ({chosen.reason})")
    print(f"fit over the best hand-written loop: {ratio(fitted, best):.3f}")
    print(f"auto over the better loop: {ratio(fitted, better):.3f}")
    for peer in ("torch eager", "Keras fit"):
        if peer in medians:
            print(f"{peer} over fit: {ratio(peer, fitted):.1f}")


def choice_of_auto(problem: Problem) -> loops.Choice:
    """Return which loop a long run takes, and why."""
    feed = inputs.Feed(problem.data)
    batch = problem.data.batch(0)
    _, metrics = jax.eval_shape(problem.step, problem.state, batch)
    carry = loops.begin(problem.state, metrics)
    return loops.choose(problem.step, feed, carry, remaining=10**6)


def seconds_a_step(loop: Any, state: Any, length: int = 50) -> float:
    """Return an estimate of the seconds per step."""
    return seconds(lambda: loop(state, length)) / length


def main(config: Config) -> None:
    """Measure all models."""
    print(f"jax {jax.__version__} on {jax.default_backend()}, {os.cpu_count()} cores")
    for name in config.models:
        measure(config, name)


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))
