"""Solve gradient = 0 at once, or descend?

Claim: on a small linear problem both give the same answer, the closed form at once.
But its cost grows as the cube of the number of parameters, its memory as the square,
and its condition number until float32 has no digits left, while the cost of a step of
descent grows linearly. Beyond linear models there is no closed form.

Command:  python -m experiments.closed_form_or_descent
Minutes:  under two on two cores.
Expected: descent ends within 1e-6 of the closed form's loss; a fitted exponent of 2.3
          to 3 for solving and about 1 for a step; at a million parameters the normal
          equations need 4 TB and weeks.

Linear regression on scikit-learn's diabetes data (442 patients, 10 features), by the
normal equations and by gradient descent with and without momentum; then on d random
features tanh(W x) of the same patients (conditioning) and on random data with 4,096
examples (cost).

The run folder (``runs/closed_form_or_descent/...``) holds config.json, manifest.json
and closed_form.png.
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from experiments.benchmarks.timing import exponent, interleave, seconds
from experiments.outputs import finish, new_figure, new_folder, run_cli, table
from fngrad.numerics import double_precision


@dataclasses.dataclass(frozen=True)
class Config:
    """Steps, sizes, and where the results go."""

    steps: int = 3000  # of each descent
    sizes: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)  # parameters, timed
    features: tuple[int, ...] = (10, 20, 50, 100, 200, 400)  # parameters, conditioned
    examples: int = 4096  # of the random data that are timed
    repeats: int = 3  # of the timing
    runs: Path = Path("runs/closed_form_or_descent")  # where the run folder is made


class Descent(NamedTuple):
    """Excess losses over the closed form's, before each step and after the last."""

    name: str
    excess: np.ndarray


class Cost(NamedTuple):
    """Seconds, each the median of some repeats."""

    parameters: int
    solve: float  # the normal equations, built and solved
    step: float  # one step of gradient descent


class Conditioning(NamedTuple):
    """What rounding does to the normal equations in float32."""

    parameters: int
    condition: float  # of X; that of X'X is its square
    error: float  # of the float32 weights' predictions, relative to float64's


def standardized() -> tuple[np.ndarray, np.ndarray]:
    """Return diabetes' features and targets, each of mean 0 and variance 1, float64."""
    splits = fg.data.diabetes()
    parts = (splits.train, splits.validation, splits.test)
    x = np.concatenate([np.asarray(part["x"], np.float64) for part in parts])
    y = np.concatenate([np.asarray(part["y"], np.float64) for part in parts])
    y = y.reshape(len(y))
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def mean_square(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Half the mean squared error of a linear model."""
    return jnp.mean((x @ w - y) ** 2) / 2


def descend(x: np.ndarray, y: np.ndarray, steps: int) -> tuple[list[Descent], float]:
    """Descend with the best constants for this curvature; return kappa too."""
    with double_precision():
        data, targets = jnp.asarray(x), jnp.asarray(y)
        fit = fg.closed_form.linear_regression(data, targets, method="normal")
        best = mean_square(fit.weights, data, targets)
        curvatures = np.linalg.eigvalsh(x.T @ x / len(x))
        low, high = float(curvatures[0]), float(curvatures[-1])
        root = (high / low) ** 0.5
        rules = {
            "gradient descent": fg.sgd(2 / (low + high)),
            "heavy ball": fg.momentum(
                (2 / (low**0.5 + high**0.5)) ** 2, ((root - 1) / (root + 1)) ** 2
            ),
        }
        found = []
        for name, rule in rules.items():
            path = fg.landscapes.descend(
                lambda w: mean_square(w, data, targets),
                np.zeros(x.shape[1]),
                rule,
                steps,
            )
            losses = jax.vmap(lambda w: mean_square(w, data, targets))(path)
            found.append(Descent(name, np.asarray(losses - best)))
    return found, high / low


def time_size(parameters: int, config: Config) -> Cost:
    """Time the closed form and one step of descent on random data, taking turns."""
    k_x, k_y = jax.random.split(jax.random.key(0))
    x = jax.random.normal(k_x, (config.examples, parameters))
    y = jax.random.normal(k_y, (config.examples,))

    def normal_equations(x: jax.Array, y: jax.Array) -> jax.Array:
        factor = jax.scipy.linalg.cho_factor(x.T @ x)
        return jax.scipy.linalg.cho_solve(factor, x.T @ y)

    solve, step = jax.jit(normal_equations), jax.jit(jax.grad(mean_square))
    w = jnp.zeros(parameters)
    times = interleave(
        {
            "solve": lambda: seconds(lambda: solve(x, y)),
            "step": lambda: seconds(lambda: step(w, x, y)),
        },
        config.repeats,
    )
    medians = {name: statistics.median(values) for name, values in times.items()}
    return Cost(parameters, medians["solve"], medians["step"])


def condition(x: np.ndarray, y: np.ndarray, features: int) -> Conditioning:
    """Solve on random features in float32, and compare with float64."""
    weights = np.random.default_rng(0).normal(size=(x.shape[1], features))
    hidden = np.tanh(x @ weights / x.shape[1] ** 0.5)
    with double_precision():
        exact = fg.closed_form.linear_regression(jnp.asarray(hidden), jnp.asarray(y))
        want = hidden @ np.asarray(exact.weights)
        size = float(exact.condition)
    rough = fg.closed_form.linear_regression(
        jnp.asarray(hidden, jnp.float32), jnp.asarray(y, jnp.float32), method="normal"
    )
    got = hidden @ np.asarray(rough.weights, np.float64)
    gap = np.linalg.norm(got - want) / np.linalg.norm(want)
    return Conditioning(features, size, float(gap))


def draw(
    descents: list[Descent], costs: list[Cost], conditions: list[Conditioning]
) -> Any:
    """Draw descent, cost and conditioning side by side."""
    figure = new_figure(15, 4.5)
    losses, time, rounding = figure.subplots(1, 3)
    for descent in descents:
        losses.semilogy(np.maximum(descent.excess, 1e-16), label=descent.name)
    losses.set(xlabel="step", ylabel="loss over the closed form's")
    losses.set_title("diabetes: the closed form is at 0 at once")
    sizes = [cost.parameters for cost in costs]
    solve, step = [c.solve for c in costs], [c.step for c in costs]
    for name, values in {"closed form": solve, "one step of descent": step}.items():
        label = f"{name}: grows as d^{exponent(sizes, values):.1f}"
        time.loglog(sizes, values, "o-", label=label)
    time.set(xlabel="parameters d", ylabel="seconds", title="cost")
    d = [c.parameters for c in conditions]
    rounding.loglog(d, [c.condition**2 for c in conditions], "o-", label="of X'X")
    rounding.loglog(d, [c.condition for c in conditions], "o-", label="of X")
    rounding.loglog(d, [c.error for c in conditions], "s--", label="error in float32")
    limit = 1 / np.finfo(np.float32).eps
    rounding.axhline(limit, color="0.5", ls=":", label="float32 has no digit left")
    rounding.set(xlabel="features d", ylabel="condition number; relative error")
    rounding.set_title("conditioning of the normal equations")
    for axis in (losses, time, rounding):
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def show_descents(descents: list[Descent], kappa: float) -> None:
    """Print how far each rule is from the closed form, at a few steps."""
    last = len(descents[0].excess) - 1
    marks = [step for step in (10, 100, 1000) if step < last] + [last]
    print(f"diabetes, condition number of the loss {kappa:.0f}: loss over the best")
    rows = [[d.name, *(f"{d.excess[step]:.1e}" for step in marks)] for d in descents]
    print(table(["", *(f"step {step}" for step in marks)], rows), "\n")


def show_costs(costs: list[Cost]) -> dict[str, float]:
    """Print what each size costs; return the exponents and the days for a million."""
    head = ["parameters", "closed form", "a step", "ratio"]
    rows = [
        [
            f"{c.parameters}",
            f"{1e3 * c.solve:.2f} ms",
            f"{1e3 * c.step:.3f} ms",
            f"{c.solve / c.step:.0f}",
        ]
        for c in costs
    ]
    sizes = [c.parameters for c in costs]
    solve = exponent(sizes, [c.solve for c in costs])
    step = exponent(sizes, [c.step for c in costs])
    # Extrapolated as d**3, which the solution costs for large d.
    days = costs[-1].solve * (1e6 / sizes[-1]) ** 3 / 86400
    print(table(head, rows))
    print(
        f"closed form as d^{solve:.2f}, a step as d^{step:.2f}; a million parameters: "
        f"X'X of 4 TB, and {days:.0f} days here\n"
    )
    return {"solve": solve, "step": step, "days_for_a_million": days}


def show_conditions(conditions: list[Conditioning]) -> None:
    """Print the error of the closed form in float32."""
    head = ["features", "condition of X", "of X'X", "error in float32"]
    rows = [
        [
            f"{c.parameters}",
            f"{c.condition:.1e}",
            f"{c.condition**2:.1e}",
            f"{c.error:.1e}",
        ]
        for c in conditions
    ]
    print(table(head, rows))


def main(config: Config) -> dict[str, Any]:
    """Run all three comparisons, print their tables, draw."""
    folder = new_folder(config)
    x, y = standardized()
    descents, kappa = descend(x, y, config.steps)
    show_descents(descents, kappa)
    costs = [time_size(size, config) for size in config.sizes]
    exponents = show_costs(costs)
    conditions = [condition(x, y, features) for features in config.features]
    show_conditions(conditions)
    results = {
        "kappa": kappa,
        "excess": {d.name: float(d.excess[-1]) for d in descents},
        "exponents": exponents,
        "conditions": [c._asdict() for c in conditions],
    }
    finish(folder, results, closed_form=draw(descents, costs, conditions))
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
