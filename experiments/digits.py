"""Train a classifier of handwritten digits with four optimizers.

Claim: with its own learning rate, chosen on validation data, each of SGD, momentum,
RMSProp and Adagrad classifies more than 97 % of the digits of the test split. The
learning rate matters far more than the optimizer.

Command:  python -m experiments.digits
          python -m experiments.digits --optimizers adam muon
Minutes:  less than one on two cores.
Expected: mean test accuracies between 97.5 % and 98.5 % and mean test losses between
          0.06 and 0.09 nats, at the learning rates 1 (SGD), 0.1 (momentum),
          0.01 (RMSProp) and 0.3 (Adagrad).

One call of `fngrad.sweep` trains 140 networks: each optimizer with each learning rate
from five seeds. The network, 64-128-10, learns from 1,258 images of 8x8 pixels
(scikit-learn's digits) in batches of 64, with Gaussian noise on the pixels, while the
learning rate falls to zero along a cosine. The 269 images of the validation split
choose the learning rates. The 270 of the test split are evaluated once, with the chosen
networks.

The run folder (``runs/digits/...``) holds config.json, manifest.json with the results,
table.csv (a row for each optimizer and learning rate), metrics.jsonl (the curves of the
chosen trainings), curves.png, sensitivity.png, and ``best/``, the weights of the best
network; the last lines that are printed load it.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fngrad as fg
import fngrad.sweeps as sweeps
from experiments.outputs import finish, new_folder, run_cli, table
from fngrad.sweeps.results import pictures, tables

MODEL = fg.models.mlp((64, 128, 10))
LABELS = {
    "loss": "training loss (nats)",
    "val/loss": "validation loss (nats)",
    "val/accuracy": "validation accuracy",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, how long, and where the results go."""

    # Names of optimizers; `fngrad.REGISTRY` lists all.
    optimizers: tuple[str, ...] = ("sgd", "momentum", "rmsprop", "adagrad")
    # Tried with each optimizer.
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    seeds: int = 5  # each draws weights, batches and noise; all points share them
    epochs: int = 25  # of each training
    batch_size: int = 64  # examples
    noise: float = 0.5  # on the training pixels, in standard deviations
    runs: Path = Path("runs/digits")  # where the run folder is made


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Return the mean cross-entropy in nats."""
    logits = fg.layers.batched(MODEL)(params, batch["x"])
    return fg.losses.softmax_cross_entropy_with_integer_labels(
        logits, batch["y"], reduction="mean"
    )


def metric_fn(params: Any, batch: Any) -> dict[str, Any]:
    """Return loss and accuracy, folded exactly over a whole split."""
    logits = fg.layers.batched(MODEL)(params, batch["x"])
    return {
        "loss": fg.metrics.log_loss(logits, batch["y"]),
        "accuracy": fg.metrics.accuracy(logits, batch["y"]),
    }


def add_noise(batch: Any, key: jax.Array, scale: float) -> Any:
    """Add Gaussian noise to standardized pixels: a point of accuracy more."""
    return batch | {"x": batch["x"] + scale * jax.random.normal(key, batch["x"].shape)}


def make_data(config: Config, splits: fg.data.Splits) -> fg.Dataset:
    """Return the training split in shuffled, noisy batches."""
    noisy = functools.partial(add_noise, scale=config.noise)
    return fg.data.from_arrays(splits.train, config.batch_size).map(noisy)


def train(
    epochs: int, point: Any, key: Any, data: Any, validation: Any, *, optimizer: str
) -> Any:
    """Train once, at one learning rate, from one key; return weights and history."""
    k_params, k_data, k_run = jax.random.split(key, 3)
    num_steps = data.steps(epochs)
    rate = fg.schedules.cosine(point["learning_rate"], num_steps)
    rule = fg.REGISTRY[optimizer](rate)
    step = fg.make_step(loss_fn, rule, metrics="loss")
    state, history = fg.run(
        fg.steps.freeze_diverged(step),
        fg.init_state(MODEL.init(k_params), rule, k_run),
        data.reseed(k_data),
        num_steps,
        metric_fn=metric_fn,
        eval_data=validation,
        eval_every=data.steps_per_epoch,
    )
    return fg.eval_params(state), history


def best_points(result: sweeps.SweepResult) -> dict[str, int]:
    """Return the number of each optimizer's best point, by validation."""
    best: dict[str, int] = {}
    for number in sweeps.summary(result).order:
        best.setdefault(str(result.points["optimizer"][number]), int(number))
    return best


def networks(result: sweeps.SweepResult, number: int) -> list[Any]:
    """Return the weights that a point ended with, one tree per seed."""
    points, seeds = result.diverged_at.shape
    combination, row = divmod(number, points // len(result.state))
    trained = result.state[combination]
    return [jax.tree.map(lambda x, i=i: x[row, i], trained) for i in range(seeds)]


def test_scores(
    result: sweeps.SweepResult, best: dict[str, int], test: Any
) -> dict[str, dict[str, np.ndarray]]:
    """Evaluate the chosen networks on the test split: name -> metric -> (seeds,)."""
    scores = {}
    for name, number in best.items():
        found = [fg.evaluate(metric_fn, x, test) for x in networks(result, number)]
        scores[name] = {key: np.array([x[key] for x in found]) for key in found[0]}
    return scores


def report(
    result: sweeps.SweepResult, best: dict[str, int], scores: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Print the test split's table; return its numbers by optimizer."""
    rows, summary = [], {}
    for name, number in best.items():
        rate = float(result.points["learning_rate"][number])
        percent, loss = 100 * scores[name]["accuracy"], scores[name]["loss"]
        rows.append(
            [
                name,
                f"{rate:g}",
                f"{loss.mean():.4f} +- {loss.std(ddof=1):.4f}",
                f"{percent.mean():.2f} +- {percent.std(ddof=1):.2f}",
            ]
        )
        summary[name] = {
            "learning_rate": rate,
            "loss": float(loss.mean()),
            "accuracy": float(percent.mean() / 100),
        }
    print("\ntest split, each optimizer with its best learning rate, mean +- sd")
    print(table(["optimizer", "learning rate", "loss (nats)", "accuracy (%)"], rows))
    return summary


def log_curves(result: sweeps.SweepResult, best: dict[str, int], path: Path) -> None:
    """Write what the chosen trainings measured at the end of each epoch."""
    num_steps, epochs = (result.history[k].shape[2] for k in ("loss", "val/loss"))
    ends = np.minimum(-(-num_steps // epochs) * np.arange(1, epochs + 1), num_steps)
    for name, number in best.items():
        for seed in range(result.diverged_at.shape[1]):
            curves = {key: x[number, seed] for key, x in result.history.items()}
            curves["loss"] = curves["loss"][ends - 1]
            with fg.logging.jsonl(path, {"optimizer": name, "seed": seed}) as log:
                for i, step in enumerate(ends):
                    log(int(step), {key: float(curves[key][i]) for key in LABELS})


def save_best(result: sweeps.SweepResult, number: int, step: int, path: Path) -> str:
    """Save the first seed's network of a point, with notes; return how to load it."""
    point = {name: column[number].item() for name, column in result.points.items()}
    loss = float(result.history["val/loss"][number, 0, -1])
    fg.checkpoint.save(
        path,
        networks(result, number)[0],
        step=step,
        metrics={"val/loss": loss},
        notes={**point, "seed": 0},
    )
    return (
        f"the best network ({tables.describe_point(result, number)}, seed 0):\n"
        "    import jax, fngrad as fg, experiments.digits as digits\n"
        "    like = digits.MODEL.init(jax.random.key(0))\n"
        f"    params = fg.checkpoint.restore({str(path)!r}, like)"
    )


def draw(result: sweeps.SweepResult, steps_per_epoch: int) -> dict[str, Any]:
    """Return the pictures by name."""
    loss = LABELS["val/loss"]
    return {
        "curves": pictures.loss_curves(
            result,
            list(LABELS),
            by="optimizer",
            labels=LABELS,
            means={"loss": steps_per_epoch},
        ),
        "sensitivity": pictures.sensitivity(
            result, "learning_rate", by="optimizer", label=loss
        ),
    }


def main(config: Config) -> dict[str, dict[str, float]]:
    """Train all, choose by validation, evaluate the test split once; print and save."""
    if config.seeds < 2 or not set(config.optimizers) <= fg.REGISTRY.keys():
        raise SystemExit(
            f"need optimizers among {list(fg.REGISTRY)} and at least two seeds, "
            f"got {config.optimizers} and {config.seeds}"
        )
    splits = fg.data.digits()
    data = make_data(config, splits)
    folder = new_folder(config, data)
    result = sweeps.sweep(
        functools.partial(train, config.epochs),
        sweeps.grid(learning_rate=config.learning_rates),
        config.seeds,
        args=(data, splits.validation),
        static={"optimizer": list(config.optimizers)},
        metric="val/loss",
    )
    ranking = sweeps.table(result, also=["val/accuracy"])
    (folder.path / "table.csv").write_text(ranking.to_csv())
    print(ranking._replace(rows=ranking.rows[:8]))
    print("all points: table.csv")
    best = best_points(result)
    results = report(result, best, test_scores(result, best, splits.test))
    log_curves(result, best, folder.metrics)
    steps = data.steps(config.epochs)
    how = save_best(result, ranking.summary.best, steps, folder.path / "best")
    finish(folder, results, **draw(result, data.steps_per_epoch))
    print(how)
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
