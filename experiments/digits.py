"""Train a classifier of handwritten digits with four optimizers.

Claim: SGD, momentum, RMSProp and Adagrad each pass 97 % test accuracy on
scikit-learn's 8x8 digits with a small dense network, once each has its own learning
rate, chosen on the validation split.

Command:  python -m experiments.digits
          python -m experiments.digits --tune    (how the learning rates were chosen)
Minutes:  under one on two cores; five with --tune.
Expected: mean test accuracy between 97.5 % and 99 % for each, over five seeds.

The run folder (``runs/digits/...``) holds config.json, manifest.json (with
the results), metrics.jsonl
(every line labelled with optimizer and seed) and curves.png.
"""

import dataclasses
import datetime
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from experiments.outputs import run_cli

MODEL = fg.models.mlp((64, 128, 128, 10))
OPTIMIZERS = {
    "sgd": fg.sgd,
    "momentum": fg.momentum,
    "rmsprop": fg.rmsprop,
    "adagrad": fg.adagrad,
}
GRIDS = {
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "momentum": (0.003, 0.01, 0.03, 0.1),
    "rmsprop": (3e-4, 1e-3, 3e-3, 1e-2),
    "adagrad": (0.01, 0.03, 0.1, 0.3),
}


@dataclasses.dataclass(frozen=True)
class Rates:
    """Peak learning rates; each decays to zero along a cosine."""

    sgd: float = 0.3
    momentum: float = 0.03
    rmsprop: float = 3e-3
    adagrad: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, and where the results go."""

    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    rates: Rates = Rates()
    seeds: int = 5
    epochs: int = 60
    batch_size: int = 64
    noise: float = 0.5  # added to the pixels in training, in standard deviations
    log_every: int = 100
    runs: Path = Path("runs/digits")
    tune: bool = False  # choose the learning rates instead of training with them


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Mean cross-entropy in nats."""
    logits = fg.layers.batched(MODEL)(params, batch["x"])
    return fg.losses.softmax_cross_entropy_with_integer_labels(
        logits, batch["y"], reduction="mean"
    )


def metric_fn(params: Any, batch: Any) -> dict[str, Any]:
    """Return loss and accuracy, folded exactly over the whole split."""
    logits = fg.layers.batched(MODEL)(params, batch["x"])
    return {
        "loss": fg.metrics.log_loss(logits, batch["y"]),
        "accuracy": fg.metrics.accuracy(logits, batch["y"]),
    }


def add_noise(batch: Any, key: jax.Array, scale: float) -> Any:
    """Add Gaussian noise to standardized pixels, which is worth a point of accuracy."""
    return batch | {"x": batch["x"] + scale * jax.random.normal(key, batch["x"].shape)}


def make_data(config: Config, splits: fg.data.Splits) -> fg.Dataset:
    """Return the training split in shuffled, noisy batches."""
    noisy = functools.partial(add_noise, scale=config.noise)
    return fg.data.from_arrays(splits.train, config.batch_size).map(noisy)


def train(
    config: Config,
    name: str,
    splits: fg.data.Splits,
    folder: fg.logging.RunFolder,
    bar: fg.logging.ProgressBar,
) -> list[fg.FitResult]:
    """Train with one optimizer, once a seed; the seed draws weights and batches."""
    data = make_data(config, splits)
    peak = getattr(config.rates, name)
    optimizer = OPTIMIZERS[name](fg.schedules.cosine(peak, data.steps(config.epochs)))
    step = fg.make_step(loss_fn, optimizer)

    def run(seed: int, loop: Any) -> fg.FitResult:
        shown = [0]

        def show(now: int, state: fg.TrainState, values: dict[str, Any]) -> None:
            bar.advance(now - shown[-1])
            bar.show({f"{name} loss": values["loss"]})
            shown.append(now)

        params = MODEL.init(jax.random.key(seed))
        labels = {"optimizer": name, "seed": seed}
        return fg.fit(
            step,
            fg.init_state(params, optimizer, seed),
            data.reseed(seed),
            num_epochs=config.epochs,
            metric_fn=metric_fn,
            eval_data=splits.validation,
            log_every=config.log_every,
            loggers=[fg.logging.jsonl(folder.metrics, labels)],
            callbacks=[show],
            loop=loop,
            progress=False,
        )

    results: list[fg.FitResult] = []
    for seed in range(config.seeds):
        loop = results[0].history.notes["loop"] if results else "auto"
        results.append(run(seed, loop))
        if results[-1].stopped == "interrupted":
            break
    return results


def summarize(
    config: Config, results: dict[str, list[fg.FitResult]], test: Any
) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over seeds of the test metrics."""
    summary = {}
    for name, runs in results.items():
        scores = [fg.evaluate(metric_fn, run.state, test) for run in runs]
        row = {"learning_rate": getattr(config.rates, name)}
        for metric in ("accuracy", "loss"):
            values = [float(score[metric]) for score in scores]
            row[f"{metric}_mean"] = float(np.mean(values))
            row[f"{metric}_sd"] = float(np.std(values, ddof=1)) if values[1:] else 0.0
        summary[name] = row
    return summary


def table(summary: dict[str, dict[str, float]], seeds: int) -> str:
    """Write the summary for a reader."""
    lines = [
        f"test split (270 examples), mean +- standard deviation over {seeds} seeds",
        f"{'optimizer':10} {'learning rate':>13} "
        f"{'accuracy (%)':>16} {'loss (nats)':>18}",
    ]
    for name, row in summary.items():
        accuracy = f"{100 * row['accuracy_mean']:.2f} +- {100 * row['accuracy_sd']:.2f}"
        loss = f"{row['loss_mean']:.4f} +- {row['loss_sd']:.4f}"
        lines.append(f"{name:10} {row['learning_rate']:13g} {accuracy:>16} {loss:>18}")
    return "\n".join(lines)


def draw(results: dict[str, list[fg.FitResult]], path: Path) -> None:
    """Draw what was seen while training."""
    quantities = {
        "loss": "training loss of an epoch (nats)",
        "val/loss": "validation loss (nats)",
        "val/accuracy": "validation accuracy (%)",
    }
    panels = {
        label: {
            name: [epoch_means(run.history, metric) for run in runs]
            for name, runs in results.items()
        }
        for metric, label in quantities.items()
    }
    losses = [label for metric, label in quantities.items() if "loss" in metric]
    title = "Handwritten digits: median over seeds, band from least to largest"
    fg.logging.plots.curves(panels, path, log_scale=losses, title=title)


def epoch_means(history: fg.History, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Average a metric between one evaluation and the next."""
    ends = history.steps("val/loss")
    steps, values = history.steps(name), history[name]
    parts = np.split(values, np.searchsorted(steps, ends, side="right")[:-1])
    unit = 100 if name == "val/accuracy" else 1  # percent
    return ends, unit * np.array([part.mean() for part in parts])


def tune(config: Config, splits: fg.data.Splits) -> None:
    """Print the validation loss of every rate in the grids; an optimizer a program."""
    data = make_data(config, splits)
    num_steps = data.steps(config.epochs)
    for name in config.optimizers:

        def train_one(
            peak: jax.Array, seed: jax.Array, data: Any, held_out: Any
        ) -> Any:
            optimizer = OPTIMIZERS[name](fg.schedules.cosine(peak, num_steps))  # noqa: B023
            step = fg.make_step(loss_fn, optimizer, metrics="loss")
            state = fg.init_state(MODEL.init(jax.random.key(seed)), optimizer, seed)
            options = {"metric_fn": metric_fn, "eval_data": held_out}
            _, history = fg.run(step, state, data.reseed(seed), num_steps, **options)
            return history["val/loss"][-1], history["val/accuracy"][-1]

        over_rates = jax.vmap(train_one, (0, None, None, None))
        over_seeds = jax.jit(jax.vmap(over_rates, (None, 0, None, None)))
        rates, seeds = jnp.array(GRIDS[name]), jnp.arange(config.seeds)
        losses, accuracies = over_seeds(rates, seeds, data, splits.validation)
        medians = np.median(losses, axis=0)
        for rate, loss, accuracy in zip(
            GRIDS[name], medians, np.mean(accuracies, axis=0), strict=True
        ):
            chosen = " <- chosen" if loss == np.nanmin(medians) else ""
            print(
                f"{name:10} {rate:8g}  validation loss {loss:.4f} nats, "
                f"accuracy {100 * accuracy:.2f} %{chosen}"
            )


def main(config: Config) -> dict[str, dict[str, float]]:
    """Train everything; print the table and return its numbers."""
    unknown = sorted(set(config.optimizers) - OPTIMIZERS.keys())
    if unknown or config.seeds < 1:
        raise SystemExit(
            f"need optimizers among {list(OPTIMIZERS)} and seeds >= 1, "
            f"got {unknown or config.seeds}"
        )
    splits = fg.data.digits()
    if config.tune:
        tune(config, splits)
        return {}
    data = make_data(config, splits)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    seeds = {"seed": list(range(config.seeds))}
    folder = fg.logging.RunFolder(
        config.runs / now, config=config, data=data.fingerprint(), extra=seeds
    )
    total = len(config.optimizers) * config.seeds * data.steps(config.epochs)
    results: dict[str, list[fg.FitResult]] = {}
    with fg.logging.ProgressBar(total, description="training") as bar:
        for name in config.optimizers:
            runs = train(config, name, splits, folder, bar)
            if runs[-1].stopped == "interrupted":
                break
            results[name] = runs
    if not results:
        print("interrupted before an optimizer had finished")
        return {}
    summary = summarize(config, results, splits.test)
    loops = {name: runs[0].history.notes["loop"] for name, runs in results.items()}
    folder.update_manifest(loops=loops, results=summary)
    draw(results, folder.curves)
    print(table(summary, config.seeds))
    print(f"run folder: {folder.path}")
    return summary


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
