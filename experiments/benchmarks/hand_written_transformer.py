"""A transformer's training step and its compilation, against plain JAX by hand.

Claim: on CPU a training step of `fngrad` takes 0.7 to 0.95 of the time of the same step
written by hand in plain JAX, and tracing and compiling it 0.9 to 1.2 times the CPU
seconds.

Command:  python -m experiments.benchmarks.hand_written_transformer --compilations 7
Minutes:  eight on two cores.
Expected: medians of four runs. For the small model a step takes 0.81 times as long as
          by hand (with norms 0.78), tracing and compiling 1.17 times (1.20); for the
          medium one a step 0.79 times (0.83), tracing and compiling 0.93 times (1.01).
          Compilation of the small model varied from 1.14 to 1.20 (1.17 to 1.23).

The models are those of `experiments.char_transformer`, unrolled, with AdamW on a
warm-up and a cosine. Model, loss, AdamW and schedule are written out in this file, as
one writes them, over the same tree of parameters: the losses of the first steps agree
to rounding, which is checked. By hand there is no protection against overflow or
against what is not finite; `fngrad` has it everywhere. *with norms* are the metrics
that `make_step` reports by default: the global norms of gradient, update and
parameters, by hand a sum of squares each. Cases take turns; before each compilation
JAX's caches are cleared and garbage is collected.
"""

import dataclasses
import gc
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from experiments.benchmarks.timing import interleave, paired_ratio, seconds, table
from experiments.char_transformer import SIZES, Size, loss_of, make_model
from fngrad.programs.optional_imports import import_extra
from fngrad.types import Schedule

VOCAB = 103
PEAK, WARMUP, STEPS, DECAY = 3e-3, 100, 1000, 0.1  # of the learning rate; weight decay
B1, B2, EPS = 0.9, 0.999, 1e-8  # Adam's
HAND, OURS, NORMS = "by hand", "fngrad", ", with norms"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    sizes: tuple[str, ...] = ("small", "medium")  # of `char_transformer.SIZES`
    repeats: int = 11
    compilations: int = 3
    round_seconds: float = 0.5  # about how long a case runs in a round
    checked: int = 5  # steps whose losses are compared


class Case(NamedTuple):
    """A training step that is measured."""

    make: Callable[[], Any]  # returns the step anew, so that it is traced anew
    state: Any  # the first

    def compiled(self, batch: Any) -> Any:
        """Trace and compile the step; its state is donated."""
        return jax.jit(self.make(), donate_argnums=0).lower(self.state, batch).compile()


def norm(params: Any, h: jax.Array) -> jax.Array:
    """Normalize over the last axis."""
    mean = jnp.mean(h, -1, keepdims=True)
    var = jnp.mean((h - mean) ** 2, -1, keepdims=True)
    return (h - mean) * jax.lax.rsqrt(var + 1e-5) * params["scale"] + params["bias"]


def dense(params: Any, h: jax.Array) -> jax.Array:
    """Map affinely."""
    return h @ params["weight"] + params["bias"]


def attend(params: Any, h: jax.Array, heads: int) -> jax.Array:
    """Attend from each position to itself and those before it."""
    batch, length, features = h.shape
    q, k, v = (
        dense(params[name], h).reshape(batch, length, heads, -1)
        for name in ("query", "key", "value")
    )
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / (features / heads) ** 0.5
    is_past = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(is_past, logits, -jnp.inf))
    mixed = jnp.einsum("bhts,bshd->bthd", weights, v)
    return dense(params["output"], mixed.reshape(batch, length, features))


def forward(params: Any, x: jax.Array, heads: int) -> jax.Array:
    """Return the logits of the next tokens."""
    h = params["tokens"]["weight"][x] + params["positions"]["weight"][: x.shape[1]]
    for block in params["blocks"]["layers"]:
        branch = block["attention"]
        h = h + attend(branch["attend"], norm(branch["norm"], h), heads)
        branch = block["mlp"]
        up = jax.nn.gelu(dense(branch["expand"], norm(branch["norm"], h)))
        h = h + dense(branch["shrink"], up)
    return norm(params["norm"], h) @ params["head"]["weight"]


def learning_rate(step: jax.Array) -> jax.Array:
    """Return the rate after a warm-up, along a cosine."""
    done = jnp.minimum((step - WARMUP) / (STEPS - WARMUP), 1)
    cosine = PEAK * (1 + jnp.cos(jnp.pi * done)) / 2
    return jnp.where(step < WARMUP, PEAK * step / WARMUP, cosine)


def global_norm(tree: Any) -> jax.Array:
    """Return the norm over all leaves."""
    return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))


def hand_step(heads: int, norms: bool) -> Any:
    """Return the training step, by hand."""

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        scores = jax.nn.log_softmax(forward(params, batch["x"], heads))
        return -jnp.mean(jnp.take_along_axis(scores, batch["y"][..., None], -1))

    def step(state: Any, batch: Any) -> Any:
        t, params, mu, nu = state
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        rate = learning_rate(t)
        t = t + 1
        mu = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, mu, grads)
        nu = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g**2, nu, grads)

        def move(path: Any, p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            decay = DECAY if path[-1].key == "weight" else 0.0
            u = m / (1 - B1**t) / (jnp.sqrt(v / (1 - B2**t)) + EPS)
            return -rate * (u + decay * p)

        updates = jax.tree_util.tree_map_with_path(move, params, mu, nu)
        metrics = {"loss": loss}
        if norms:
            trees = {"grad": grads, "update": updates, "param": params}
            metrics |= {name: global_norm(tree) for name, tree in trees.items()}
        params = jax.tree.map(jnp.add, params, updates)
        return (t, params, mu, nu), metrics

    return step


def hand_state(params: Any) -> Any:
    """Return step, parameters and Adam's two averages."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return jnp.float32(0), params, zeros, jax.tree.map(jnp.copy, zeros)


def optimizer() -> fg.Transform:
    """Return the same AdamW, of fngrad."""
    return fg.adamw(schedule(), B1, B2, EPS, weight_decay=DECAY, mask="**/weight")


def schedule() -> Schedule:
    """Return the same learning rate, of fngrad."""
    return fg.schedules.warmup_cosine(0.0, PEAK, WARMUP, STEPS)


def make_cases(size: Size) -> dict[str, Case]:
    """Return the steps by hand and of fngrad, without norms and with them."""
    model = make_model(size, VOCAB, remat=False)
    params = model.init(jax.random.key(0))
    ours, theirs = fg.init_state(params, optimizer(), 0), hand_state(params)
    loss_fn = loss_of(model)
    return {
        HAND: Case(lambda: hand_step(size.heads, norms=False), theirs),
        OURS: Case(lambda: fg.make_step(loss_fn, optimizer(), metrics="loss"), ours),
        HAND + NORMS: Case(lambda: hand_step(size.heads, norms=True), theirs),
        OURS + NORMS: Case(lambda: fg.make_step(loss_fn, optimizer()), ours),
    }


def first_losses(case: Case, step: Any, batch: Any, count: int) -> list[float]:
    """Return the losses of the first steps on one batch, by a case's compiled step."""
    state, losses = fg.snapshot(case.state), []
    for _ in range(count):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


def timed_step(
    case: Case, step: Any, batch: Any, round_seconds: float
) -> Callable[[], float]:
    """Return a measurement: seconds per compiled step."""
    held = [fg.snapshot(case.state)]

    def run(count: int) -> float:
        def steps() -> Any:
            for _ in range(count):
                held[0], _ = step(held[0], batch)
            return held[0]

        return seconds(steps) / count

    run(1)
    count = max(1, round(round_seconds / run(2)))
    return lambda: run(count)


def timed_compilation(case: Case, batch: Any) -> Callable[[], float]:
    """Return a measurement: CPU seconds to trace and compile."""

    def measure() -> float:
        jax.clear_caches()
        gc.collect()  # what the case before has left is not counted
        start = time.process_time()
        case.compiled(batch)
        return time.process_time() - start

    return measure


def measure(config: Config, name: str) -> dict[str, float]:
    """Print the tables of one size; return the ratios of fngrad to by hand.

    Raises:
        AssertionError: if the losses of the first steps do not agree.
    """
    size = SIZES[name]._replace(dropout=None)
    rng = np.random.default_rng(0)
    shape = size.batch_size, size.length + 1
    tokens = jnp.asarray(rng.integers(0, VOCAB, shape), jnp.int32)
    batch = {"x": tokens[:, :-1], "y": tokens[:, 1:]}
    cases = make_cases(size)
    made = {label: case.compiled(batch) for label, case in cases.items()}
    losses = [
        first_losses(case, made[label], batch, config.checked)
        for label, case in cases.items()
    ]
    np.testing.assert_allclose(losses[1:], [losses[0]] * 3, rtol=1e-5)
    stepping = {
        label: timed_step(case, made[label], batch, config.round_seconds)
        for label, case in cases.items()
    }
    steps = interleave(stepping, config.repeats)
    print(f"\n{name}: a step, {config.checked} losses agree")
    print(table(steps, against=HAND, unit="ms"))
    compiling = {label: timed_compilation(case, batch) for label, case in cases.items()}
    compilations = interleave(compiling, config.compilations)
    print(f"{name}: CPU seconds to trace and compile")
    print(table(compilations, against=HAND, unit="s"))
    ratios = {
        f"{what}{norms}": paired_ratio(times, OURS + norms, HAND + norms)
        for what, times in {"step": steps, "compilation": compilations}.items()
        for norms in ("", NORMS)
    }
    shown = ", ".join(f"{what} {ratio:.3f}" for what, ratio in ratios.items())
    print(f"{name}: fngrad over by hand: {shown}")
    return ratios


def main(config: Config) -> dict[str, dict[str, float]]:
    """Measure all sizes; return the ratios."""
    print(f"jax {jax.__version__} on {jax.default_backend()}, {os.cpu_count()} cores")
    return {name: measure(config, name) for name in config.sizes}


if __name__ == "__main__":
    main(import_extra("tyro", "cli").cli(Config, description=__doc__))
