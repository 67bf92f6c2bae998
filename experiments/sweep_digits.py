"""Which optimizer learns digits best, each with its best rate? 512 trainings at once.

Claim: one call trains 4 optimizers x 16 learning rates x 8 seeds; those that diverge
are frozen and counted. The rates are chosen by validation, and the test split is
evaluated at the four chosen points only. The four optimizers differ by less than their
learning rates do.

Command:  python -m experiments.sweep_digits
          python -m experiments.sweep_digits --resume runs/sweep_digits/...
Minutes:  one on two cores.
Expected: the best rates are about 0.5 for SGD, 0.1 for momentum, 0.005 for RMSProp and
          0.01 for Adam; with them the mean test accuracies lie between 96 % and 97.5 %
          and no difference is more than chance. About 130 trainings diverge, most of
          them of RMSProp and Adam.

A dense network learns handwritten digits (scikit-learn's). A seed draws the weights and
the order of the examples, the same for every point, so all comparisons are paired. A
killed sweep continues with ``--resume``, its folder and the same options.

The run folder (``runs/sweep_digits/...``) holds config.json, manifest.json, table.csv,
the sweep's chunks, and sensitivity.png, curves.png and heat_map.png.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fngrad as fg
import fngrad.sweeps as sweeps
import fngrad.sweeps.results.pictures as pictures
from experiments.digits import best_points, networks
from experiments.outputs import finish, new_folder, run_cli, table
from fngrad.sweeps.results.statistics import holm

OPTIMIZERS = {
    "sgd": fg.sgd,
    "momentum": fg.momentum,
    "rmsprop": fg.rmsprop,
    "adam": fg.adam,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is swept, how long, and where the results go."""

    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)  # by their names
    low: float = 1e-4  # the least learning rate
    high: float = 10.0  # the largest
    rates: int = 16  # how many, evenly spaced in their logarithm
    seeds: int = 8  # trainings at each point
    epochs: int = 20  # of each training
    batch_size: int = 64  # examples
    width: int = 32  # of the hidden layer
    bound: float = 20.0  # nats; a training with a larger loss diverged, and is frozen
    top: int = 8  # rows of the table that is printed
    runs: Path = Path("runs/sweep_digits")  # where the run folder is made
    resume: Path | None = None  # the run folder of a sweep that was stopped


def make_train_fn(config: Config, steps: int) -> Callable[..., Any]:
    """Return one training as a function of its point, its key and the data."""
    model = fg.models.mlp((64, config.width, 10))
    metric_fn = make_metric_fn(config)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = fg.layers.batched(model)(params, batch["x"])
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["y"], reduction="mean"
        )

    def train_fn(point: Any, key: Any, data: Any, held_out: Any, *, optimizer: str):
        k_params, k_data, k_run = jax.random.split(key, 3)
        rule = OPTIMIZERS[optimizer](point["learning_rate"])
        step = fg.make_step(loss_fn, rule, metrics="loss")
        state, history = fg.run(
            fg.steps.freeze_diverged(step, config.bound),
            fg.init_state(model.init(k_params), rule, k_run),
            data.reseed(k_data),
            steps,
            metric_fn=metric_fn,
            eval_data=held_out,
            eval_every=max(steps // config.epochs, 1),
        )
        return state.params, history

    return train_fn


def make_metric_fn(config: Config) -> Callable[[Any, Any], dict[str, Any]]:
    """Return loss, in nats, and accuracy, folded exactly over a whole split."""
    model = fg.models.mlp((64, config.width, 10))

    def metric_fn(params: Any, batch: Any) -> dict[str, Any]:
        logits = fg.layers.batched(model)(params, batch["x"])
        return {
            "loss": fg.metrics.log_loss(logits, batch["y"]),
            "accuracy": fg.metrics.accuracy(logits, batch["y"]),
        }

    return metric_fn


def open_folder(config: Config) -> fg.logging.RunFolder:
    """Make a run folder, or open the one of a sweep that was stopped."""
    if config.resume is None:
        return new_folder(config)
    original = dataclasses.replace(config, resume=None)
    return fg.logging.RunFolder(config.resume, config=original)


def test_accuracies(
    config: Config, result: sweeps.SweepResult, points: dict[str, int], test: Any
) -> dict[str, np.ndarray]:
    """Evaluate the chosen points on the test split: name -> (seeds,)."""
    metric_fn = make_metric_fn(config)
    return {
        name: np.array(
            [fg.evaluate(metric_fn, x, test)["accuracy"] for x in networks(result, n)]
        )
        for name, n in points.items()
    }


def report(
    result: sweeps.SweepResult, points: dict[str, int], accuracies: dict[str, Any]
) -> dict[str, Any]:
    """Print each optimizer's best point and its difference from the first."""
    ranks = sweeps.summary(result)
    first = min(points, key=lambda name: list(ranks.order).index(points[name]))
    others = [name for name in points if name != first]
    against = {n: sweeps.compare(result, points[n], points[first]) for n in others}
    p = holm({name: found.p_value for name, found in against.items()})
    rows, summary = [], {}
    for name, number in points.items():
        rate = float(result.points["learning_rate"][number])
        accuracy, loss = 100 * accuracies[name], float(ranks.median[number])
        lost = int(np.sum(result.diverged_at[result.points["optimizer"] == name] >= 0))
        rows.append(
            [
                name,
                f"{rate:.3g}",
                f"{loss:.4f}",
                "-" if name == first else f"{against[name].difference:+.4f}",
                "-" if name == first else f"{p[name]:.2g}",
                f"{accuracy.mean():.2f} +- {accuracy.std(ddof=1):.2f}",
                str(lost),
            ]
        )
        summary[name] = {
            "learning_rate": rate,
            "validation_loss": loss,
            "test_accuracy": float(accuracies[name].mean()),
            "diverged": lost,
        }
    head = ["optimizer", "rate", "val loss (nats)", f"minus {first}", "p (Holm)"]
    print(table([*head, "test accuracy %", "diverged"], rows))
    return summary


def draw(result: sweeps.SweepResult) -> dict[str, Any]:
    """Return the pictures by name."""
    label = "validation loss (nats)"
    return {
        "sensitivity": pictures.sensitivity(
            result, "learning_rate", by="optimizer", label=label
        ),
        "curves": pictures.loss_curves(
            result,
            ["val/loss", "val/accuracy"],
            by="optimizer",
            labels={"val/loss": label, "val/accuracy": "validation accuracy"},
        ),
        "heat_map": pictures.heat_map(
            result, "learning_rate", "optimizer", label=label
        ),
    }


def main(config: Config) -> dict[str, Any]:
    """Sweep, choose by validation, evaluate the test split once; print and draw."""
    if config.seeds < 2 or not set(config.optimizers) <= OPTIMIZERS.keys():
        raise SystemExit(
            f"need optimizers among {list(OPTIMIZERS)} and at least two seeds, "
            f"got {config.optimizers} and {config.seeds}"
        )
    folder = open_folder(config)
    splits = fg.data.digits()
    data = fg.data.from_arrays(splits.train, config.batch_size)
    result = sweeps.sweep(
        make_train_fn(config, data.steps(config.epochs)),
        sweeps.grid(learning_rate=np.geomspace(config.low, config.high, config.rates)),
        config.seeds,
        args=(data, splits.validation),
        static={"optimizer": list(config.optimizers)},
        folder=folder.path / "sweep",
    )
    found = sweeps.table(result, also=["val/accuracy"])
    print(found._replace(rows=found.rows[: config.top]))
    (folder.path / "table.csv").write_text(found.to_csv())
    points = best_points(result)
    accuracies = test_accuracies(config, result, points, splits.test)
    print("\nthe best rate of each optimizer, chosen by validation")
    results = report(result, points, accuracies)
    lanes, took = result.diverged_at.size, result.notes["seconds"]
    print(f"{lanes} trainings in {took:.1f} seconds, compiling included")
    finish(folder, results, **draw(result))
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
