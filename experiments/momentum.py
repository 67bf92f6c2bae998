"""What momentum buys: speed in narrow valleys, and a way out of shallow ones.

Claim: where curvatures differ by a factor kappa, gradient descent needs a number of
steps that grows as kappa, heavy ball and Nesterov's method as its square root, each at
the rate of its closed form. And a ball with momentum rolls out of a local minimum in
which gradient descent at the same effective learning rate stays.

Command:  python -m experiments.momentum
Minutes:  less than one on two cores.
Expected: measured rates within 1 % of the closed forms; at kappa 1000 heavy ball needs
          32 times fewer steps than gradient descent. Gradient descent passes the
          local minimum only where a single step leaps over the barrier; elsewhere
          22 % of the heavy balls of the sweep get through, and 11 % of Nesterov's.

The rates are measured twice on a quadratic with curvatures from 1/kappa to 1, each
method at its best learning rate and momentum: by long descents in float64, between
the distances 1e-100 and 1e-200 from the minimum, and as the spectral radius of one
step (`curvature.local_rate`). The ball rolls on a curve with two minima. A momentum
b adds up 1 / (1 - b) gradients, so it is given (1 - b) times the learning rate of
gradient descent: the *effective* learning rate a / (1 - b) is the same.

The run folder (``runs/momentum/...``) holds config.json, manifest.json, rates.png and
ball.png.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from experiments.outputs import finish, new_figure, new_folder, run_cli, table
from fngrad.landscapes import CATALOG, descend, quadratic, two_minima
from fngrad.numerics import double_precision

FAR, NEAR = 1e-100, 1e-200  # distances between which a rate is measured
SHOWN = {"gradient descent": ("C0", "s"), "heavy ball": ("C1", "o")}  # balls drawn
SHOWN_STEPS = 120
(GLOBAL,), (LOCAL,) = CATALOG["two_minima"].minima
BARRIER = -(GLOBAL + LOCAL)  # the slope has no square term: its roots add up to zero


@dataclasses.dataclass(frozen=True)
class Config:
    """Curvatures, learning rates, starts, and where the results go."""

    # Largest over smallest curvature, where rates are measured; each above 1.
    kappas: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
    momentum: float = 0.9  # of the balls of heavy ball and Nesterov
    shown_rate: float = 0.2  # effective learning rate of the balls that are drawn
    shown_start: float = -1.6  # x where the balls that are drawn start
    rates: tuple[float, float] = (0.03, 0.8)  # ends of the sweep's effective rates
    starts: tuple[float, float] = (-1.8, -0.9)  # ends of the sweep's starts x
    grid: int = 61  # points along each side of the sweep
    steps: int = 3000  # that each ball makes
    runs: Path = Path("runs/momentum")  # where the run folder is made


class Method(NamedTuple):
    """An optimizer, and what is known of it where curvatures are in [1 / kappa, 1]."""

    make: Callable[[Any, Any], fg.Transform]  # learning rate, momentum -> optimizer
    best: Callable[[float], tuple[float, float]]  # kappa -> learning rate, momentum
    rate: Callable[[float], float]  # kappa -> the factor per step, with the best


class Rates(NamedTuple):
    """Factors of the distance to the minimum per step, one per kappa."""

    closed_form: np.ndarray
    descent: np.ndarray  # measured
    radius: np.ndarray  # the spectral radius of one step


def _ratio(kappa: float) -> float:
    return (math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)


METHODS = {
    "gradient descent": Method(
        lambda a, b: fg.sgd(a),
        lambda kappa: (2 / (1 + 1 / kappa), 0.0),
        lambda kappa: (kappa - 1) / (kappa + 1),
    ),
    "heavy ball": Method(
        lambda a, b: fg.momentum(a, b),
        lambda kappa: (4 / (1 + kappa**-0.5) ** 2, _ratio(kappa) ** 2),
        _ratio,
    ),
    "Nesterov": Method(
        lambda a, b: fg.momentum(a, b, nesterov=True),
        lambda kappa: (1.0, _ratio(kappa)),
        lambda kappa: 1 - kappa**-0.5,
    ),
}


def bowl(x: jax.Array, kappa: Any) -> jax.Array:
    """Return a quadratic whose curvatures are 1 / kappa, kappa**-0.5 and 1."""
    return quadratic(x, (1 / kappa, kappa**-0.5, 1.0))


def measure_rates(method: Method, kappas: tuple[float, ...]) -> Rates:
    """Measure the rate at every kappa, each with its best settings."""
    closed_form = np.array([method.rate(kappa) for kappa in kappas])
    best = np.array([method.best(kappa) for kappa in kappas])
    # A double eigenvalue multiplies the distance by the number of steps: some more.
    num_steps = int(1.2 * math.log(NEAR) / math.log(closed_form.max()))

    def distances(kappa: Any, a: Any, b: Any) -> jax.Array:
        start = (1.0, 1.0, 1.0)
        path = descend(lambda x: bowl(x, kappa), start, method.make(a, b), num_steps)
        # Around zero floats keep their digits at any distance. No norm: squares don't.
        return jnp.max(jnp.abs(path), axis=1)

    with double_precision():
        descents = jax.jit(jax.vmap(distances))(jnp.array(kappas), *best.T)
    radius = [
        fg.curvature.local_rate(method.make(a, b), bowl, jnp.zeros(3), kappa)
        for kappa, (a, b) in zip(kappas, best, strict=True)
    ]
    descents = np.array([rate_of(np.asarray(distance)) for distance in descents])
    return Rates(closed_form, descents, np.array(radius))


def rate_of(distance: np.ndarray) -> float:
    """Return the factor of the distance per step, between FAR and NEAR."""
    if not (distance < NEAR).any():
        return float("nan")
    far, near = np.argmax(distance < FAR), np.argmax(distance < NEAR)
    return float((distance[near] / distance[far]) ** (1 / (near - far)))


def steps_for_a_digit(rate: np.ndarray) -> np.ndarray:
    """Return the number of steps in which the distance shrinks to a tenth."""
    return -math.log(10) / np.log(rate)


def roll(method: Method, config: Config, rate: Any, start: Any) -> jax.Array:
    """Return the path of a ball, shape (steps + 1,), by its effective learning rate."""
    b = config.momentum
    a = rate if method is METHODS["gradient descent"] else rate * (1 - b)
    return descend(two_minima, start[None], method.make(a, b), config.steps)[:, 0]


def sweep(method: Method, config: Config) -> np.ndarray:
    """Return which balls end beyond the barrier, shape (rates, starts), bool."""
    over_starts = jax.vmap(lambda a, x: roll(method, config, a, x)[-1], (None, 0))
    ends = jax.jit(jax.vmap(over_starts, (0, None)))(*sides(config))
    return np.asarray(ends > BARRIER)


def sides(config: Config) -> tuple[jax.Array, jax.Array]:
    """Return the effective learning rates and the starts of the sweep."""
    rates = jnp.geomspace(*config.rates, config.grid)
    return rates, jnp.linspace(*config.starts, config.grid)


def leaps(config: Config) -> np.ndarray:
    """Return where one step of gradient descent from the start lands beyond."""
    rates, starts = sides(config)
    slopes = jax.jit(jax.vmap(jax.grad(two_minima)))(starts[:, None])[:, 0]
    rates, starts, slopes = jax.device_get((rates, starts, slopes))
    return starts[None] - rates[:, None] * slopes[None] > BARRIER


def draw_rates(found: dict[str, Rates], kappas: tuple[float, ...]) -> Any:
    """Draw the steps for a digit against kappa: closed form, descent, radius."""
    figure = new_figure(8, 5)
    axis = figure.add_subplot()
    forms = ("(κ-1)/(κ+1)", "(√κ-1)/(√κ+1)", "1 - 1/√κ")
    smooth = np.geomspace(min(kappas), max(kappas), 200)
    for (name, rates), form in zip(found.items(), forms, strict=True):
        line = [METHODS[name].rate(kappa) for kappa in smooth]
        label = f"{name}: rate {form}"
        (drawn,) = axis.plot(smooth, steps_for_a_digit(np.array(line)), label=label)
        color = drawn.get_color()
        axis.plot(kappas, steps_for_a_digit(rates.descent), "o", ms=9, color=color)
        axis.plot(kappas, steps_for_a_digit(rates.radius), "x", color="black", zorder=3)
    axis.plot([], [], "o", ms=9, color="0.5", label="measured: a long descent")
    axis.plot([], [], "x", color="black", label="measured: spectral radius of a step")
    axis.set(xscale="log", yscale="log", xlabel="κ = largest / smallest curvature")
    axis.set_ylabel("steps to a ten times smaller distance")
    axis.set_title("lines: closed forms; the best learning rate and momentum each")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def draw_paths(curve: Any, time: Any, config: Config) -> None:
    """Draw two balls on the curve, and where they are over the steps."""
    x = np.linspace(-1.9, 1.75, 300)
    heights = jax.jit(jax.vmap(two_minima))
    curve.plot(x, heights(np.asarray(x, np.float32)[:, None]), color="0.6", zorder=1)
    start = jnp.array(config.shown_start)
    for name, (color, marker) in SHOWN.items():
        ball = jax.jit(functools.partial(roll, METHODS[name], config))
        path = np.asarray(ball(config.shown_rate, start))
        height = np.asarray(heights(path[:, None]))
        curve.plot(path, height, marker, ms=5, color=color, alpha=0.5, label=name)
        curve.plot(path[-1], height[-1], marker, ms=13, color=color, mec="black")
        time.plot(path[:SHOWN_STEPS], color=color, marker=marker, ms=3, label=name)
    curve.set(xlabel="x", ylabel="f(x)", title="on the curve (large: where they end)")
    curve.set_ylim(-1.1, 1.4)
    curve.legend()
    places = {"global minimum": GLOBAL, "barrier": BARRIER, "local minimum": LOCAL}
    for name, place in places.items():
        time.axhline(place, color="0.5", lw=0.8, ls=":")
        beside = time.get_yaxis_transform()  # x in widths of the panel
        time.text(1.02, place, name, transform=beside, va="center", color="0.3")
    time.legend(loc="lower right")
    time.set(xlabel="step", ylabel="x", title="step by step")


def draw_sweep(axis: Any, name: str, beyond: np.ndarray, config: Config) -> None:
    """Draw which balls end in the global minimum."""
    rates, starts = (np.asarray(side) for side in sides(config))
    axis.pcolormesh(starts, rates, beyond, cmap="YlGn", vmin=0, vmax=1.5)
    if leaps(config).any():
        line = {"levels": [0.5], "colors": "C3", "linestyles": "--"}
        axis.contour(starts, rates, leaps(config), **line)
    if name in SHOWN:
        axis.plot(config.shown_start, config.shown_rate, "k*", ms=11)
    axis.set(yscale="log", xlabel="start x", ylabel="effective learning rate")
    axis.set_title(f"{name}: {100 * beyond.mean():.0f} % get through")


def draw_ball(ends: dict[str, np.ndarray], config: Config) -> Any:
    """Draw two balls, and below them the sweeps."""
    figure = new_figure(12, 8.5)
    above, below = figure.subfigures(2, 1)
    above.suptitle("two balls with the same start and effective learning rate")
    curve, time = above.subplots(1, 2)
    draw_paths(curve, time, config)
    below.suptitle(
        "dark: the ball ends in the global minimum, pale: in the local one; "
        "star: the ball drawn above;\n"
        "above the dashed line one plain gradient step leaps over the barrier"
    )
    axes = below.subplots(1, len(ends))
    for axis, (name, beyond) in zip(axes, ends.items(), strict=True):
        draw_sweep(axis, name, beyond, config)
    return figure


def report_rates(found: dict[str, Rates], kappas: tuple[float, ...]) -> dict[str, Any]:
    """Print the rates at every kappa, and return their distance from theory."""
    head = ["method", "kappa", "closed form", "descent", "radius", "steps a digit"]
    rows, results = [], {}
    for name, rates in found.items():
        theory, measured, radius = (steps_for_a_digit(rate) for rate in rates)
        numbers = zip(kappas, *rates, measured, strict=True)
        rows += [
            [name, f"{kappa:g}", *(f"{rate:.6f}" for rate in row), f"{steps:.1f}"]
            for kappa, *row, steps in numbers
        ]
        results[name] = {
            "steps_for_a_digit": measured.tolist(),
            "descent_error": float(np.max(np.abs(measured / theory - 1))),
            "radius_error": float(np.max(np.abs(radius / theory - 1))),
        }
    print(table(head, rows))
    worst = max(result["descent_error"] for result in results.values())
    print(f"steps a digit: descents within {100 * worst:.2f} % of the closed forms\n")
    return results


def report_balls(ends: dict[str, np.ndarray], config: Config) -> dict[str, Any]:
    """Print how many balls end in the global minimum, and return the shares."""
    slides = ~leaps(config)
    rows, results = [], {}
    for name, beyond in ends.items():
        row = {"all": beyond.mean(), "no_leap": beyond[slides].mean()}
        results[name] = {key: float(share) for key, share in row.items()}
        rows.append([name, *(f"{100 * share:.1f} %" for share in row.values())])
    print(f"balls that end beyond the barrier, of {slides.size}")
    print(table(["method", "all", "where no single step leaps"], rows))
    return results


def main(config: Config) -> dict[str, Any]:
    """Measure the rates, roll the balls, print both tables, draw both pictures."""
    if min(config.kappas) <= 1:
        raise SystemExit(f"need kappas above 1, got {config.kappas}")
    folder = new_folder(config)
    found = {name: measure_rates(m, config.kappas) for name, m in METHODS.items()}
    ends = {name: sweep(method, config) for name, method in METHODS.items()}
    results = {
        "kappas": config.kappas,
        "rates": report_rates(found, config.kappas),
        "beyond": report_balls(ends, config),
    }
    figures = {
        "rates": draw_rates(found, config.kappas),
        "ball": draw_ball(ends, config),
    }
    finish(folder, results, **figures)
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
