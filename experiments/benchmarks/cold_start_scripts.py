"""The scripts that `cold_start` runs, each in a process of its own.

A script trains one model in one framework, as one would write it by hand, and prints
the seconds of its stages as a line of JSON. Nothing is imported before it begins.
"""

import functools
import importlib
import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from experiments.benchmarks.cold_start_networks import (
    DEPTH,
    HEADS,
    LENGTH,
    SIZES,
    VOCAB,
    WIDTH,
    hand_adam,
    hand_cnn,
    hand_mlp,
    hand_transformer,
)

BATCH, EPOCHS = 128, 20
LANES = 64  # learning rates of the sweep
TOKENS, WINDOWS = 20_000, 32  # length of the text, windows per batch
STEPS = {"mlp": 197, "cnn": 197, "transformer": 100, "sweep": 197}  # 20 epochs


class Stages:
    """The CPU and wall seconds of each stage, and what JAX compiled in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.programs: list[list[Any]] = []  # stage, name, seconds
        self._wall, self._cpu = time.perf_counter(), 0.0  # the interpreter's start too
        self._made: list[tuple[str, float]] = []

    def watch(self) -> None:
        """Count the programs that JAX compiles from here on."""
        import jax.monitoring

        def heard(event: str, duration_secs: float, **details: Any) -> None:
            if event.endswith("backend_compile_duration"):
                self._made.append((str(details.get("fun_name", "?")), duration_secs))

        jax.monitoring.register_event_duration_secs_listener(heard)

    def end(self, stage: str) -> None:
        """End a stage."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.seconds[stage] = [cpu - self._cpu, wall - self._wall]
        self.programs += [[stage, name, seconds] for name, seconds in self._made]
        self._wall, self._cpu, self._made = wall, cpu, []


def main(framework: str, model: str, loop: str) -> None:
    """Run one script and print its stages."""
    stages = Stages()
    scripts = {"fngrad": fngrad, "jax": by_hand, "equinox": equinox}
    scripts |= {"torch": torch, "keras": keras}
    loss = scripts[framework](stages, model, *([loop] if framework == "fngrad" else []))
    print(json.dumps({"stages": stages.seconds, "programs": stages.programs} | loss))


def fngrad(stages: Stages, model: str, loop: Any) -> dict[str, float]:
    """Train with fngrad."""
    import jax

    import fngrad as fg

    stages.watch()
    stages.end("import")
    if model == "transformer":
        net = fg.models.transformer(
            VOCAB, LENGTH, features=WIDTH, num_layers=DEPTH, num_heads=HEADS
        )
        data = fg.data.windows(text(), LENGTH, WINDOWS)
    else:
        is_cnn = model == "cnn"
        net = fg.models.cnn((8, 8, 1), 10) if is_cnn else fg.models.mlp(SIZES[model])
        data = fg.data.from_arrays(fg.data.digits(images=is_cnn).train, BATCH)
    stages.end("data")

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = fg.layers.batched(net)(params, batch["x"])
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["y"], reduction="mean"
        )

    if model == "sweep":
        return {"loss": fngrad_sweep(stages, net, loss_fn, data)}
    optimizer = fg.adam(1e-3)
    state = fg.init_state(net.init(0), optimizer, key=0)
    stages.end("init")
    step = fg.make_step(loss_fn, optimizer)
    quiet = functools.partial(fg.fit, step, loop=loop, progress=False)
    if loop != "auto":  # it decides by the length of a call
        state = quiet(state, data, num_steps=1).state
        stages.end("first step")
    loss = quiet(state, data, num_steps=STEPS[model]).history.last("loss")
    stages.end("train")
    return {"loss": loss}


def fngrad_sweep(stages: Stages, net: Any, loss_fn: Any, data: Any) -> float:
    """Train with fngrad at many learning rates; return the last loss of the first."""
    import fngrad as fg

    def train(point: Any, key: Any, data: Any) -> Any:
        optimizer = fg.adam(point["rate"])
        state = fg.init_state(net.init(key), optimizer, key)
        return fg.run(fg.make_step(loss_fn, optimizer), state, data, STEPS["sweep"])

    stages.end("init")
    points = fg.sweeps.grid(rate=[1e-4 * 1.1**i for i in range(LANES)])
    found = fg.sweep(
        train, points, keys=1, args=(data,), metric=("loss", "min"), progress=False
    )
    stages.end("train")
    return float(found.history["loss"].reshape(LANES, -1)[0, -1])


def by_hand(stages: Stages, model: str) -> dict[str, float]:
    """Train with JAX alone: layers, loss, Adam and batches by hand."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    stages.watch()
    stages.end("import")
    x, y = examples(model)
    stages.end("data")
    init, forward = {"mlp": hand_mlp, "sweep": hand_mlp, "cnn": hand_cnn}.get(
        model, hand_transformer
    )(model)

    def loss_fn(params: Any, x: Any, y: Any) -> jax.Array:
        log_p = jax.nn.log_softmax(forward(params, x))
        return -jnp.mean(jnp.take_along_axis(log_p, y[..., None], -1))

    start, adam = hand_adam(loss_fn)
    if model == "sweep":
        stages.end("init")
        keys = jnp.stack([jax.random.key(0)] * LANES)
        rates = jnp.array([1e-4 * 1.1**i for i in range(LANES)])
        order = np.stack(list(batches(len(x), BATCH, STEPS[model])))

        def train(rate: Any, key: Any) -> jax.Array:
            def body(state: Any, index: Any) -> Any:
                return adam(state, x[index], y[index], rate)

            return jax.lax.scan(body, start(init(key)), order)[1][-1]

        x, y = jnp.asarray(x), jnp.asarray(y)
        loss = float(jax.jit(jax.vmap(train))(rates, keys)[0])
    else:
        state = jax.block_until_ready(start(init(jax.random.key(0))))
        stages.end("init")
        step = jax.jit(adam, donate_argnums=0)
        size = WINDOWS if model == "transformer" else BATCH
        order = batches(len(x), size, STEPS[model])
        loss = loop_by_hand(stages, step, state, (x, y), order)
    stages.end("train")
    return {"loss": loss}


def loop_by_hand(
    stages: Stages, step: Any, state: Any, data: tuple[Any, Any], order: Iterable[Any]
) -> float:
    """Train by a jitted step, batch by batch; return the last loss."""
    x, y = data
    loss: Any = None
    for index in order:
        is_first = loss is None
        state, loss = step(state, x[index], y[index], 1e-3)
        if is_first:
            loss.block_until_ready()
            stages.end("first step")
    return float(loss)


def equinox(stages: Stages, model: str) -> dict[str, float]:
    """Train with Equinox's layers, and Adam by hand."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    stages.watch()
    stages.end("import")
    x, y = examples(model)
    x = x.transpose(0, 3, 1, 2) if model == "cnn" else x
    stages.end("data")
    k1, k2, k3, k4 = jax.random.split(jax.random.key(0), 4)
    if model == "mlp":
        net = eqx.nn.MLP(64, 10, 128, 2, key=k1)
    else:
        pool = eqx.nn.MaxPool2d(2, 2)
        relu = eqx.nn.Lambda(jax.nn.relu)
        net = eqx.nn.Sequential(
            [
                *(eqx.nn.Conv2d(1, 16, 3, padding=1, key=k1), relu, pool),
                *(eqx.nn.Conv2d(16, 32, 3, padding=1, key=k2), relu, pool),
                *(eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(128, 64, key=k3), relu),
                eqx.nn.Linear(64, 10, key=k4),
            ]
        )
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def loss_fn(params: Any, x: Any, y: Any) -> jax.Array:
        log_p = jax.nn.log_softmax(jax.vmap(eqx.combine(params, static))(x))
        return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], -1))

    start, adam = hand_adam(loss_fn)
    state = start(params)
    stages.end("init")
    step = eqx.filter_jit(adam)
    order = batches(len(x), BATCH, STEPS[model])
    loss = loop_by_hand(stages, step, state, (x, y), order)
    stages.end("train")
    return {"loss": loss}


def torch(stages: Stages, model: str) -> dict[str, float]:
    """Train with torch, eagerly."""
    torch = importlib.import_module("torch")
    nn = torch.nn

    stages.end("import")
    x, y = map(torch.tensor, examples(model))
    x, y = (x.permute(0, 3, 1, 2).contiguous() if model == "cnn" else x), y.long()
    stages.end("data")
    if model == "mlp":
        hidden = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        net = nn.Sequential(*hidden, nn.Linear(128, 10))
    else:
        net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    stages.end("init")
    for t, index in enumerate(batches(len(x), BATCH, STEPS[model])):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[index]), y[index])
        loss.backward()
        optimizer.step()
        if t == 0:
            stages.end("first step")
    stages.end("train")
    return {"loss": float(loss)}


def keras(stages: Stages, model: str) -> dict[str, float]:
    """Train with Keras' ``fit`` on JAX."""
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    keras = importlib.import_module("keras")
    layers = keras.layers

    stages.watch()
    stages.end("import")
    x, y = examples(model)
    stages.end("data")
    if model == "mlp":
        stack = [layers.Dense(128, activation="relu") for _ in range(2)]
        net = keras.Sequential([keras.Input((64,)), *stack, layers.Dense(10)])
    else:
        stack = [
            layer
            for channels in (16, 32)
            for layer in (
                layers.Conv2D(channels, 3, padding="same", activation="relu"),
                layers.MaxPooling2D(),
            )
        ]
        head = (layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10))
        net = keras.Sequential([keras.Input((8, 8, 1)), *stack, *head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    stages.end("init")
    net.fit(x[:BATCH], y[:BATCH], batch_size=BATCH, epochs=1, verbose=0)
    stages.end("first step")
    done = net.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    stages.end("train")
    return {"loss": done.history["loss"][-1]}


def examples(model: str) -> tuple[Any, Any]:
    """Return inputs and labels: digits from scikit-learn, or windows of a text."""
    import numpy as np

    if model == "transformer":
        tokens = text()
        place = np.arange(0, TOKENS - LENGTH - 1, LENGTH)[:, None] + np.arange(LENGTH)
        return tokens[place], tokens[place + 1]
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(x))[:1258]
    x = ((x[rows] - x[rows].mean()) / x[rows].std()).astype(np.float32)
    y = y[rows].astype(np.int32)
    return (x.reshape(-1, 8, 8, 1) if model == "cnn" else x), y


def text() -> Any:
    """Return tokens of which each depends on the one before."""
    import numpy as np

    steps = np.random.default_rng(0).integers(0, 4, TOKENS)
    return (np.cumsum(steps) % VOCAB).astype(np.int32)


def batches(n: int, size: int, steps: int) -> Any:
    """Yield the indices of batches; each epoch has a new order."""
    import numpy as np

    rng = np.random.default_rng(0)
    made = 0
    while made < steps:
        order = rng.permutation(n)
        for i in range(0, n - size + 1, size):
            if made < steps:
                yield order[i : i + size]
                made += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
