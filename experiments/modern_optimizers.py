"""Twenty rules under one tuning budget: how much faster than AdamW is any of them?

Claim: tuned alike, rules for matrices need half to two thirds of AdamW's steps on a
tiny language model, more than the 1.1 to 1.4 times of the paper below at 0.1 to 1.2
billion parameters; on digits no rule is faster than AdamW.

Command:  python -m experiments.modern_optimizers
          python -m experiments.modern_optimizers --rules adamw muon soap
Minutes:  54 on two cores that were shared with much other work.
Expected: English, speedups over AdamW (2.698 nats after 300 steps): Muon (2.433) more
          than 2, Dion 1.94, NorMuon 1.90, SOAP 1.85, Kron 1.65, AdaMuon 1.61, Scion
          1.53, schedule-free AdamW and MuonH 1.44, Adam-mini 1.21, ADOPT 1.16;
          AdEMAMix, LaProp and StableAdamW within the intervals of 1; CAME 0.80,
          Prodigy 0.71, MARS 0.63, Lion 0.52, Adan below 0.5. Digits: AdamW 0.074 nats,
          MuonH 0.071, a difference within its interval; all others at 0.5 to 0.8 of its
          speed, or below.

A transformer of characters (one block of width 32, 20,000 parameters) learns the
English of `pydoc_data.topics` in batches of 8 windows of 32 characters; a dense network
64-32-10 learns scikit-learn's digits in batches of 64. Every rule has the same budget:
as many learning rates, drawn log-uniformly from the same range by one Sobol sequence,
with as many seeds and steps. Its rate is the one with the smallest median validation
loss at the end; that rate is trained again on fresh seeds, whose losses are reported.
All rates rise for a tenth of the steps and fall along a cosine to zero; schedule-free
AdamW's stay at the top. What is not the learning rate is as the factory has it, or as
in ``SETTINGS``. Rules for matrices take those of the hidden layers, AdamW the rest at
the same rate.

AdamW is tuned and trained for shorter and longer budgets too. A rule's *speedup* is the
number of steps after which AdamW, tuned for that budget, has the rule's loss, over the
rule's steps: by seed, between budgets by interpolation in the logarithm of the steps.
A bound (<, >) stands where AdamW's shortest run is better, or its longest worse. Steps
are counted, not seconds: a step of SOAP costs more than one of AdamW.

Wen, Hall, Ma and Liang, Fantastic pretraining optimizers and where to find them, 2025,
https://arxiv.org/abs/2509.02046, find that rules for matrices are the fastest, by 1.4
at 0.1 billion parameters and 1.1 at 1.2 billion, where all hyperparameters of all rules
are tuned alike; most published speedups are larger, over an AdamW that was not.

The run folder (``runs/modern_optimizers/...``) holds config.json, manifest.json with
the results, and speedups.png.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import experiments.char_transformer as text
import fngrad as fg
import fngrad.sweeps as sweeps
import fngrad.sweeps.results.statistics as statistics
from experiments.outputs import finish, new_figure, new_folder, run_cli, table
from fngrad.types import Schedule

BASELINE = "adamw"
LENGTH = 32  # characters in a window
DECAY = 0.95  # of AdamW's second moment; 0.999 averages over too many steps
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"b2": DECAY},
    "muon": {"consistent_rms": 0.2, "adam_b2": DECAY},  # at AdamW's scale
    "scion": {"constrained": False},
}
MATRICES = {"muon", "normuon", "adamuon", "dion", "muonh"}  # take a selector
RULES = (
    *("adamw", "lion", "adan", "adopt", "ademamix", "laprop", "mars", "stable_adamw"),
    *("adam_mini", "came", "schedule_free_adamw", "prodigy"),
    *("soap", "kron", "muon", "normuon", "adamuon", "scion", "dion", "muonh"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The rules, their budget, and where the results go."""

    rules: tuple[str, ...] = RULES  # by their names in fngrad.REGISTRY
    low: float = 1e-3  # the least learning rate
    high: float = 1.0  # the largest
    rates: int = 8  # how many, for each rule
    tuning_seeds: int = 2  # trainings at each
    seeds: int = 6  # trainings at the chosen rate, on fresh seeds
    steps: int = 300  # of a training
    budgets: tuple[float, ...] = (0.5, 0.7, 1.4, 2.0)  # of AdamW, in those steps
    problems: tuple[str, ...] = ("english", "digits")  # which of the two
    runs: Path = Path("runs/modern_optimizers")  # where the run folder is made


class Problem(NamedTuple):
    """What is learned, and which of its leaves the rules for matrices take."""

    model: fg.Layer
    train: fg.Dataset
    held_out: Any
    hidden: str  # a glob
    last: str  # likewise, of the layer that gives the logits


class Found(NamedTuple):
    """One rule's chosen rate, and its losses with it on fresh seeds."""

    rate: float
    losses: np.ndarray  # nats, (seeds,)
    diverged: int  # of the tuning's trainings
    is_at_edge: bool  # of the rates tried


def english() -> Problem:
    """Return the prediction of the next character of Python's help."""
    corpus = text.split(text.topics())
    size = text.Size(32, 1, 2, LENGTH, 8, 0.0, 0)
    model = text.make_model(size, corpus.vocab_size, remat=False)
    data = text.windows(corpus.train, size, 0)
    held_out = fg.data.windows(corpus.held_out, LENGTH, 256, shuffle=False).batch(0)
    return Problem(model, data, held_out, "blocks/**/weight", "head/weight")


def digits() -> Problem:
    """Return the classification of handwritten digits."""
    splits = fg.data.digits()
    data = fg.data.from_arrays(splits.train, 64)
    model = fg.models.mlp((64, 32, 10))
    return Problem(model, data, splits.validation, "layers/0/weight", "layers/1/weight")


PROBLEMS = {"english": english, "digits": digits}


def make_rule(name: str, rate: Schedule, problem: Problem) -> fg.Transform:
    """Return a rule of the registry with its settings."""
    options = dict(SETTINGS.get(name, {}))
    if name in MATRICES:
        options["matrices"] = problem.hidden
    if name in MATRICES - {"muon"}:
        options["rest"] = fg.adamw(rate, b2=DECAY)
    if name == "scion":  # with the paper's ratio of its language model
        options["balls"] = [(problem.last, "sign", 60.0), ("**", "auto", 1.0)]
    return fg.REGISTRY[name](rate, **options)


def schedule(name: str, peak: Any, steps: int) -> Schedule:
    """Return the learning rate: a rise, and a cosine, or the top for schedule-free."""
    rise = max(steps // 10, 1)
    if name.startswith("schedule_free"):
        return fg.schedules.linear(0.0, peak, rise)
    return fg.schedules.warmup_cosine(0.0, peak, rise, steps)


def make_train_fn(problem: Problem, name: str, steps: int) -> Callable[..., Any]:
    """Return one training as a function of its point, its key and the data."""
    batched = fg.layers.batched(problem.model)

    def losses(params: Any, batch: Any) -> jax.Array:
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            batched(params, batch["x"]), batch["y"]
        )

    def metric_fn(params: Any, batch: Any) -> dict[str, Any]:
        found = losses(params, batch)
        return {"loss": found.reshape(len(found), -1).mean(-1)}

    def train_fn(point: Any, key: Any, data: Any, held_out: Any) -> Any:
        k_params, k_data, k_run = jax.random.split(key, 3)
        rate = schedule(name, point["learning_rate"], steps)
        rule = make_rule(name, rate, problem)
        step = fg.make_step(lambda p, b: losses(p, b).mean(), rule, metrics="loss")
        _, history = fg.run(
            fg.steps.freeze_diverged(step, 20.0),
            fg.init_state(problem.model.init(k_params), rule, k_run),
            data.reseed(k_data),
            steps,
            metric_fn=metric_fn,
            eval_data=held_out,
            eval_every=steps,
        )
        return (), history

    return train_fn


def measure(problem: Problem, name: str, steps: int, config: Config) -> Found:
    """Choose the learning rate on some seeds and train with it on others."""
    train_fn = make_train_fn(problem, name, steps)

    def train(points: Any, seed: int, count: int) -> sweeps.SweepResult:
        # One lane at a time: a rule's costly branch runs only when it is due.
        return sweeps.sweep(
            train_fn,
            points,
            jax.random.split(jax.random.key(seed), count),
            args=(problem.train, problem.held_out),
            mode="map",
            progress=False,
        )

    rates = sweeps.log_uniform(config.low, config.high)
    tried = sweeps.sobol(config.rates, learning_rate=rates)
    tuning = train(tried, 0, config.tuning_seeds)
    rate = sweeps.best_point(tuning)["learning_rate"]
    final = train({"learning_rate": np.array([rate], np.float32)}, 1, config.seeds)
    column = tuning.points["learning_rate"]
    return Found(
        rate,
        np.where(final.diverged_at < 0, final.notes["values"], np.inf)[0],
        int(np.sum(tuning.diverged_at >= 0)),
        rate in (column.min(), column.max()),
    )


def speedups(losses: np.ndarray, budgets: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Return by seed in how much of a rule's steps AdamW has the rule's loss.

    Args:
        losses: of the rule, (seeds,).
        budgets: of AdamW, relative to the rule's steps, ascending.
        curve: AdamW's losses with each, (budgets, seeds).
    """
    curve = np.minimum.accumulate(curve)  # what fewer steps reach, more steps have
    found = []
    for loss, own in zip(losses, curve.T, strict=True):
        gains, first = np.unique(-own, return_index=True)
        found.append(np.exp(np.interp(-loss, gains, np.log(budgets)[first])))
    return np.array(found)


def with_interval(values: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
    """Return the median difference of paired values, and its 95 % interval."""
    found = statistics.compare_scores(values, base, ("val/loss", "min"))
    return found.difference, found.low, found.high


def compare(
    found: dict[str, Found], longer: dict[float, Found]
) -> dict[str, dict[str, Any]]:
    """Return each rule's loss, its difference from AdamW's and its speedup."""
    runs = {**longer, 1.0: found[BASELINE]}
    budgets = np.array(sorted(runs))
    curve = np.stack([runs[b].losses for b in budgets])
    rows = {}
    for name, own in found.items():
        ratios = speedups(own.losses, budgets, curve)
        faster = with_interval(np.log(ratios), np.zeros(len(ratios)))
        rows[name] = {
            "learning_rate": own.rate,
            "is_at_edge": own.is_at_edge,
            "diverged": own.diverged,
            "loss": float(np.median(own.losses)),
            "difference": with_interval(own.losses, runs[1.0].losses),
            "speedup": tuple(float(np.exp(x)) for x in faster),
            "limits": (float(budgets[0]), float(budgets[-1])),
        }
    return dict(sorted(rows.items(), key=lambda row: row[1]["loss"]))


def report(problem: str, rows: dict[str, dict[str, Any]], config: Config) -> str:
    """Write a problem's rows for a reader, the smallest loss first."""
    lines = []
    for name, row in rows.items():
        rate = f"{row['learning_rate']:.2g}{'*' if row['is_at_edge'] else ' '}"
        median, low, high = row["difference"]
        less = "-" if name == BASELINE else f"{median:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append([name, rate, f"{row['loss']:.3f}", less, _speedup(row)])
    head = ["rule", "rate", "loss", f"minus {BASELINE}'s (95 %)", "speedup (95 %)"]
    return (
        f"{problem}: validation loss in nats after {config.steps} steps, medians of "
        f"{config.seeds} seeds; * at the edge of the rates\n{table(head, lines)}"
    )


def _speedup(row: dict[str, Any]) -> str:
    least, most = row["limits"]
    median, low, high = row["speedup"]
    if median <= least:
        return f"< {least:g}"
    if median >= most:
        return f"> {most:g}"
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def draw(results: dict[str, dict[str, Any]]) -> Any:
    """Draw the speedups with their intervals, one panel per problem."""
    figure = new_figure(
        1 + 5 * len(results), 1.5 + 0.25 * len(next(iter(results.values())))
    )
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for axis, (problem, rows) in zip(axes, results.items(), strict=True):
        names = list(rows)[::-1]
        values = np.array([rows[name]["speedup"] for name in names])
        places = np.arange(len(names))
        axis.hlines(
            places, values[:, 1], values[:, 2], color="tab:blue", alpha=0.5, lw=4
        )
        axis.plot(values[:, 0], places, "o", color="tab:blue")
        axis.axvspan(1.1, 1.4, color="tab:orange", alpha=0.2, label="published")
        axis.axvline(1.0, color="black", lw=0.8)
        axis.set_yticks(places, names)
        axis.set_xscale("log")
        axis.set_xlabel(f"steps of {BASELINE} to the same loss, relative")
        axis.set_title(problem)
        axis.legend(loc="lower right")
    return figure


def check(config: Config) -> None:
    """Exit with a message if the settings are invalid."""
    unknown = set(config.rules) - set(RULES)
    if unknown or BASELINE not in config.rules:
        raise SystemExit(
            f"need rules among {list(RULES)}, {BASELINE} with them, got {config.rules}"
        )
    if not set(config.problems) <= PROBLEMS.keys() or not config.problems:
        raise SystemExit(f"need problems among {list(PROBLEMS)}, got {config.problems}")
    if config.seeds < 2 or config.rates < 2:
        raise SystemExit(
            "need at least two seeds and two rates, got "
            f"{config.seeds} and {config.rates}"
        )


def main(config: Config) -> dict[str, dict[str, Any]]:
    """Tune and train every rule on every problem; print tables, return the rows."""
    check(config)
    folder = new_folder(config)
    results = {}
    count = len(config.problems) * (len(config.rules) + len(config.budgets))
    with fg.logging.ProgressBar(count, description="rules") as bar:
        for name in config.problems:
            problem = PROBLEMS[name]()
            found, longer = {}, {}
            for rule in config.rules:
                found[rule] = measure(problem, rule, config.steps, config)
                bar.advance(1)
            for budget in config.budgets:
                steps = max(round(budget * config.steps), 1)
                longer[budget] = measure(problem, BASELINE, steps, config)
                bar.advance(1)
            results[name] = compare(found, longer)
    for name, rows in results.items():
        print(f"{report(name, rows, config)}\n")
    finish(folder, results, speedups=draw(results))
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
