"""All examples, some, or one: what a step costs, and what its noise costs.

Claim: on the same data, to the same training loss, the full batch needs the fewest
steps, the single example the fewest examples, and the mini-batch the fewest seconds.
With a constant learning rate, noise holds the loss above its minimum, at the height
that theory predicts: about in proportion to the learning rate over the batch size, and
far lower if batches are drawn in epochs.

Command:  python -m experiments.batch_sizes
Minutes:  two on two cores.
Expected: to 0.1 nats the full batch needs 32 steps, the mini-batch 75, the single
          example 1,650, on 40,000, 4,800 and 1,650 examples; the mini-batch needs two
          to five times fewer seconds than the others. The measured noise floors lie
          within three standard errors of the theory with random curvature. They are
          within 5 % of `curvature.noise_floor` where learning rate over batch size is
          at most 0.004.

A dense network 64-32-10 learns handwritten digits (scikit-learn's), each batch size
with the learning rate of a grid that needs the fewest steps. The seconds are those of
a compiled scan without evaluation, measured in turns. The gradient noise scale says
which batch is large: that whose gradient noise is as long as the gradient.

The noise floors are those of linear regression on diabetes (scikit-learn's), where
`curvature.noise_floor` is exact for noise that does not depend on the weights. The
curvature of a batch is random too, which matters at large learning rates and small
batches: the second theory includes that. Both are for batches drawn with replacement;
epochs show each example once, so that the noise of their batches nearly cancels.

The run folder (``runs/batch_sizes/...``) holds config.json, manifest.json, curves.png
and floor.png.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import experiments.noise_floors as noise_floors
import fngrad as fg
from experiments.benchmarks.timing import interleave, seconds
from experiments.noise_floors import Floors
from experiments.outputs import finish, new_figure, new_folder, run_cli, table

MODEL = fg.models.mlp((64, 32, 10))


@dataclasses.dataclass(frozen=True)
class Config:
    """Batch sizes, learning rates, steps, and where the results go."""

    target: float = 0.1  # nats, of the loss on all training examples
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # learning rates
    full_steps: int = 200  # with the full batch
    mini_steps: int = 1000  # with mini-batches
    single_steps: int = 6000  # with single examples
    mini_batch: int = 64  # examples in a mini-batch
    looks: int = 200  # at the loss on all examples, over a run
    seeds: int = 3  # runs at each batch size and learning rate
    repeats: int = 5  # of the timing
    noise_every: int = 100  # steps between two looks at the gradient noise scale
    noise_looks: int = 5  # at the gradient noise scale, after the first
    floors: Floors = dataclasses.field(default_factory=Floors)
    runs: Path = Path("runs/batch_sizes")  # where the run folder is made


class Size(NamedTuple):
    """A batch size, and how long it is trained with."""

    name: str
    batch: int | Literal["all"]
    steps: int
    every: int  # steps between two looks at the loss on all examples


class Curve(NamedTuple):
    """How the loss on all examples fell, with the best learning rate."""

    rate: float
    losses: np.ndarray  # nats, (seeds, looks)
    steps: np.ndarray  # at each look
    to_target: float  # steps, median over seeds; infinite where not reached
    examples: int  # in a step
    seconds: float  # of a step

    def needs(self) -> dict[str, float]:
        """The cost of the target, infinite where it was not reached."""
        return {
            "steps": self.to_target,
            "examples": self.to_target * self.examples,
            "seconds": self.to_target * self.seconds,
        }


def sizes(config: Config) -> list[Size]:
    """Return the batch sizes, from all to one."""
    mini = f"mini-batch of {config.mini_batch}"
    batches: dict[str, tuple[int | Literal["all"], int]] = {
        "full batch": ("all", config.full_steps),
        mini: (config.mini_batch, config.mini_steps),
        "single example": (1, config.single_steps),
    }
    return [
        Size(name, batch, steps, max(steps // config.looks, 1))
        for name, (batch, steps) in batches.items()
    ]


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Mean cross-entropy in nats."""
    logits = fg.layers.batched(MODEL)(params, batch["x"])
    return fg.losses.softmax_cross_entropy_with_integer_labels(
        logits, batch["y"], reduction="mean"
    )


def metric_fn(params: Any, batch: Any) -> dict[str, Any]:
    """Return the loss, folded exactly over all examples."""
    logits = fg.layers.batched(MODEL)(params, batch["x"])
    return {"loss": fg.metrics.log_loss(logits, batch["y"])}


def begin(rate: Any, seed: Any) -> tuple[Any, fg.TrainState]:
    """Return a step of SGD and its first state."""
    optimizer = fg.sgd(rate)
    params = MODEL.init(jax.random.key(seed))
    step = fg.make_step(loss_fn, optimizer, metrics="loss")
    return step, fg.init_state(params, optimizer, seed)


def learn(size: Size, train: Any, config: Config) -> Curve:
    """Train with every learning rate and seed, and keep the best learning rate."""

    def run(rate: Any, seed: Any, data: Any) -> jax.Array:
        options = {"metric_fn": metric_fn, "eval_data": data.arrays}
        step, state = begin(rate, seed)
        data, every = data.reseed(seed), size.every
        _, history = fg.run(step, state, data, size.steps, eval_every=every, **options)
        return history["val/loss"]

    data = fg.data.from_arrays(train, size.batch)
    over_seeds = jax.vmap(run, (None, 0, None))
    lanes = jax.jit(jax.vmap(over_seeds, (0, None, None)))
    losses = np.asarray(lanes(jnp.array(config.rates), jnp.arange(config.seeds), data))
    looks = np.minimum(size.every * np.arange(1, losses.shape[-1] + 1), size.steps)
    reached = losses <= config.target
    steps = np.where(reached.any(axis=-1), looks[reached.argmax(axis=-1)], np.inf)
    medians, finals = np.median(steps, axis=1), np.median(losses[..., -1], axis=1)
    best = int(np.lexsort((np.nan_to_num(finals, nan=np.inf), medians))[0])
    return Curve(
        config.rates[best],
        losses[best],
        looks,
        float(medians[best]),
        data.size if size.batch == "all" else size.batch,
        float("nan"),
    )


def time_steps(train: Any, config: Config) -> dict[str, float]:
    """Return the seconds of a step in a compiled scan, the median of some turns."""
    cases: dict[str, Callable[[], float]] = {}
    for size in sizes(config):
        data = fg.data.from_arrays(train, size.batch)
        step, state = begin(config.rates[0], 0)
        count = max(size.steps // 10, 1)
        program = jax.jit(functools.partial(fg.run, step, num_steps=count))

        def case(program: Any = program, args: Any = (state, data), n: int = count):
            return seconds(lambda: program(*args)) / n

        cases[size.name] = case
    times = interleave(cases, config.repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def noise_scales(rate: float, train: Any, config: Config) -> list[dict[str, float]]:
    """Return the gradient noise scale along a run with mini-batches."""
    data = fg.data.from_arrays(train, config.mini_batch)
    step, state = begin(rate, 0)
    advance = jax.jit(functools.partial(fg.run, step, num_steps=config.noise_every))
    measure = jax.jit(functools.partial(fg.curvature.gradient_noise_scale, loss_fn))
    loss_of = jax.jit(loss_fn)
    rows = []
    for look in range(config.noise_looks + 1):
        if look:
            state, _ = advance(state, data)
        scale = float(measure(state.params, train).scale)
        loss = float(loss_of(state.params, train))
        rows.append({"step": look * config.noise_every, "loss": loss, "scale": scale})
    return rows


def draw_curves(curves: dict[str, Curve], target: float) -> Any:
    """Draw the losses against steps, against examples and against seconds."""
    figure = new_figure(14, 4.5)
    axes = figure.subplots(1, 3, sharey=True)
    for name, curve in curves.items():
        scales = (1, curve.examples, curve.seconds)
        low, middle, high = np.quantile(curve.losses, [0.0, 0.5, 1.0], axis=0)
        label = f"{name}, learning rate {curve.rate:g}"
        for axis, scale in zip(axes, scales, strict=True):
            (line,) = axis.plot(scale * curve.steps, middle, label=label)
            color = line.get_color()
            axis.fill_between(
                scale * curve.steps, low, high, color=color, alpha=0.2, lw=0
            )
    words = ("steps", "examples seen", "seconds (compiled scan)")
    for axis, word in zip(axes, words, strict=True):
        cost = word.split()[0]
        needs = {name: curve.needs()[cost] for name, curve in curves.items()}
        least = min(needs, key=lambda name: needs[name])
        axis.axhline(target, color="0.5", lw=0.8, ls=":")
        axis.set(xscale="log", yscale="log", xlabel=word)
        axis.set_title(f"fewest {cost} to the dotted line: {least}", fontsize="medium")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("loss on all training examples (nats)")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(curves))
    return figure


def report_curves(curves: dict[str, Curve], target: float) -> dict[str, Any]:
    """Print what each batch size needs for the target, and return it."""
    rows, results = [], {}
    for name, curve in curves.items():
        reached = np.isfinite(curve.to_target)
        needs = curve.needs()
        found = {"learning_rate": curve.rate, "seconds_a_step": curve.seconds}
        results[name] = found | {
            key: float(value) if reached else None for key, value in needs.items()
        }
        shown = (f"{value:.4g}" if reached else "never" for value in needs.values())
        rows.append([name, f"{curve.rate:g}", f"{1e6 * curve.seconds:.0f}", *shown])
    print(f"to a loss of {target:g} nats on all training examples, median over seeds")
    head = ["batch", "learning rate", "us per step", "steps", "examples", "seconds"]
    print(table(head, rows))
    return results


def report_noise(rows: list[dict[str, float]]) -> None:
    """Print the gradient noise scale along a run."""
    print("\ngradient noise scale along the mini-batch run")
    cells = [
        [f"{row['step']}", f"{row['loss']:.4f}", f"{row['scale']:.0f}"] for row in rows
    ]
    print(table(["step", "loss (nats)", "noise scale (examples)"], cells))


def main(config: Config) -> dict[str, Any]:
    """Train, time, measure the noise; print the tables and draw both pictures."""
    folder = new_folder(config)
    train = fg.data.digits().train
    times = time_steps(train, config)
    curves = {
        size.name: learn(size, train, config)._replace(seconds=times[size.name])
        for size in sizes(config)
    }
    results: dict[str, Any] = {"to_target": report_curves(curves, config.target)}
    mini = curves[sizes(config)[1].name]
    results["noise_scale"] = noise_scales(mini.rate, train, config)
    report_noise(results["noise_scale"])
    rows = noise_floors.measure(config.floors)
    print()
    noise_floors.report_floors(rows)
    results["floors"] = [row._asdict() for row in rows]
    pictures = {
        "curves": draw_curves(curves, config.target),
        "floor": noise_floors.draw_floors(rows),
    }
    finish(folder, results, **pictures)
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
