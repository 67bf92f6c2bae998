"""Critical points of a small network: the higher the loss, the more ways lead down.

Claim: where the gradient of a network's loss vanishes at a high loss there are many
directions of negative curvature, at a low loss few: index and loss are correlated above
0.9, and most critical points are saddles, not minima. Gradient descent leaves a saddle
by a constant factor per step, so its time grows as the logarithm of the inverse of its
first distance; momentum has a larger factor; the times of RMSProp and Adam hardly
depend on the distance.

Command:  python -m experiments.saddle_points
Minutes:  three on two cores.
Expected: correlation of index and loss 0.97 over some 35 distinct critical points, a
          quarter of them minima. From a start ten times nearer to a saddle SGD
          needs 65 more steps, momentum 16, as the spectral radius of their steps
          predicts; RMSProp and Adam need no more.

The network 4-4-10 (70 weights, tanh) sees 200 handwritten digits (scikit-learn's),
averaged to 2x2 pixels; its loss is the cross-entropy plus 0.0005 times the sum of
squared weights, without which minima would lie at infinity. From points along
training trajectories (the first are random weights of different scales) the squared
gradient norm is minimized by damped Newton steps in float64. Such a search may end in
a *gradient-flat* place, where the gradient does not vanish but lies in the kernel of
the Hessian: what is kept has a gradient below an absolute and a relative threshold,
and is not flat (`curvature.critical_point`). Points of equal loss count once: units
may be swapped.

The run folder (``runs/saddle_points/...``) holds config.json, manifest.json, index.png
and escape.png.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import fngrad as fg
from experiments.critical_points import (
    Found,
    Problem,
    Thresholds,
    correlation,
    distinct,
    find,
    is_minimum,
    passes,
    rank_correlation,
)
from experiments.outputs import finish, new_figure, new_folder, run_cli, table
from fngrad.numerics import double_precision


@dataclasses.dataclass(frozen=True)
class Rates:
    """Learning rates, each a common choice."""

    sgd: float = 0.1  # of gradient descent
    momentum: float = 0.1  # of the heavy ball, momentum 0.9
    nesterov: float = 0.1  # of Nesterov's method, momentum 0.9
    rmsprop: float = 1e-3  # of RMSProp
    adam: float = 1e-3  # of Adam


@dataclasses.dataclass(frozen=True)
class Config:
    """What is searched, what is critical, what escapes, and where results go."""

    hidden: int = 4  # units
    examples: int = 200  # that the network sees
    decay: float = 1e-3  # the loss has half of it times the squared weights
    trajectories: int = 48  # along which searches begin
    points: int = 8  # along each trajectory
    steps: int = 2000  # of a trajectory
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    rates: Rates = Rates()
    distances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)  # from the saddle
    drop: float = 0.05  # nats by which the loss must fall
    directions: int = 5  # random ones in which the escapes begin
    escape_steps: int = 1000  # of an escape, at most
    seed: int = 0  # of the trajectories and of the directions
    runs: Path = Path("runs/saddle_points")  # where the run folder is made


OPTIMIZERS: dict[str, Callable[[Any], fg.Transform]] = {
    "sgd": fg.sgd,
    "momentum": fg.momentum,
    "nesterov": functools.partial(fg.momentum, nesterov=True),
    "rmsprop": fg.rmsprop,
    "adam": fg.adam,
}
LINEAR = ("sgd", "momentum", "nesterov")  # near a saddle their step is a linear map


def make_problem(config: Config) -> Problem:
    """Return the loss of the network on averaged digits; call in double precision."""
    train = fg.data.digits(images=True).train
    images = train["x"][: config.examples].reshape(-1, 2, 4, 2, 4)
    x = images.mean(axis=(2, 4)).reshape(-1, 4)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    batch = {"x": jnp.asarray(x, jnp.float64), "y": train["y"][: config.examples]}
    model = fg.models.mlp((4, config.hidden, 10), activation=jnp.tanh)
    vector, restore = ravel_pytree(model.init(jax.random.key(0)))

    def loss(w: jax.Array, batch: Any) -> jax.Array:
        logits = fg.layers.batched(model)(restore(w), batch["x"])
        return (
            fg.losses.softmax_cross_entropy_with_integer_labels(
                logits, batch["y"], reduction="mean"
            )
            + config.decay * jnp.sum(w**2) / 2
        )

    return Problem(loss, batch, vector.size)


def starts(problem: Problem, config: Config) -> jax.Array:
    """Return points of trajectories, log-uniform in time: (searches, n)."""
    optimizer = fg.momentum(0.1)

    def visit(key: jax.Array) -> jax.Array:
        k_scale, k_weights, k_times = jax.random.split(key, 3)
        scale = jax.random.uniform(k_scale)
        w = scale * jax.random.normal(k_weights, (problem.size,))
        path = fg.landscapes.descend(
            lambda w: problem.loss(w, problem.batch), w, optimizer, config.steps
        )
        times = jax.random.uniform(k_times, (config.points,))
        return path[(config.steps**times - 1).astype(jnp.int32)]

    keys = jax.random.split(jax.random.key(config.seed), config.trajectories)
    return jax.jit(jax.vmap(visit))(keys).reshape(-1, problem.size)


class Escape(NamedTuple):
    """How an optimizer leaves a saddle."""

    losses: np.ndarray  # above the saddle's, (distances, directions, steps)
    steps: (
        np.ndarray
    )  # until the loss has dropped, median per distance; infinite: never
    per_decade: float  # more steps for a ten times smaller distance
    predicted: float  # the same from the step's spectral radius, or NaN


def highest_saddle(found: Found, places: np.ndarray) -> int:
    """Return the place of the saddle with the highest loss.

    By default no hidden unit does anything there: training from small random weights
    begins nearby.
    """
    return int(places[~is_minimum(found, places)][-1])


def leave(name: str, problem: Problem, w: np.ndarray, config: Config) -> Escape:
    """Start near a saddle in random directions, and count steps until the drop."""
    rate = getattr(config.rates, name)
    data = fg.data.from_arrays(problem.batch, "all")

    def run(w: jax.Array, data: Any) -> jax.Array:
        optimizer = OPTIMIZERS[name](rate)
        step = fg.make_step(problem.loss, optimizer, metrics="loss")
        state = fg.init_state(w, optimizer, config.seed)
        return fg.run(step, state, data, config.escape_steps)[1]["loss"]

    shape = (config.directions, problem.size)
    directions = jax.random.normal(jax.random.key(config.seed), shape)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    distances = jnp.array(config.distances)[:, None, None]
    begin = jnp.asarray(w)[None, None] + distances * directions[None]
    lanes = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (0, None)))
    base = jax.jit(problem.loss)(jnp.asarray(w), problem.batch)
    losses = np.asarray(lanes(begin, data)) - float(base)
    dropped = losses < -config.drop
    steps = np.where(dropped.any(axis=-1), dropped.argmax(axis=-1), np.inf)
    medians = np.median(steps, axis=1)
    per_decade = predicted = float("nan")
    if np.isfinite(medians).all():
        per_decade = -np.polyfit(np.log10(config.distances), medians, 1)[0]
    if name in LINEAR:
        loss, batch = problem.loss, problem.batch
        factor = fg.curvature.local_rate(OPTIMIZERS[name](rate), loss, w, batch)
        predicted = np.log(10) / np.log(factor)
    return Escape(losses, medians, float(per_decade), float(predicted))


def spectra(problem: Problem, found: Found, places: np.ndarray) -> np.ndarray:
    """Return the Hessian's eigenvalues, ascending, at some ends: (places, n)."""

    def eigenvalues(w: jax.Array) -> jax.Array:
        return jnp.linalg.eigvalsh(jax.hessian(problem.loss)(w, problem.batch))

    return np.asarray(jax.lax.map(eigenvalues, jnp.asarray(found.w[places])))


def draw_spectra(axis: Any, problem: Problem, found: Found, places: np.ndarray) -> None:
    """Draw the curvatures at the lowest, a middle and the highest critical point."""
    losses = found.point.value[places]
    middle = np.argmin(np.abs(losses - (losses[0] + losses[-1]) / 2))
    shown = places[[0, middle, -1]]
    for place, values in zip(shown, spectra(problem, found, shown), strict=True):
        count, loss = found.point.morse_index[place], found.point.value[place]
        label = f"loss {loss:.2f}: {count} of {problem.size} below zero"
        axis.plot(np.arange(1, problem.size + 1), values, ".-", lw=0.8, label=label)
    axis.axhline(0.0, color="0.3", lw=0.8)
    axis.set_yscale("symlog", linthresh=0.01)
    axis.set(xlabel="direction, by curvature", ylabel="curvature (nats per weight^2)")
    axis.set_title("all curvatures at three of the critical points")
    axis.legend()


def draw_index(
    problem: Problem, found: Found, kept: np.ndarray, places: np.ndarray
) -> Any:
    """Draw index against loss, and the curvatures of three critical points."""
    figure = new_figure(12, 5)
    scatter, curvatures = figure.subplots(1, 2)
    draw_spectra(curvatures, problem, found, places)
    point = found.point
    others = np.flatnonzero(~kept)
    options = {"s": 14, "color": "0.8", "label": f"{others.size} ends not critical"}
    scatter.scatter(point.value[others], point.morse_index[others], **options)
    lowest = is_minimum(found, places)
    groups = {"saddle": (~lowest, "C0", "o"), "minimum": (lowest, "C2", "*")}
    for kind, (chosen, color, marker) in groups.items():
        at = places[chosen]
        label = f"{at.size} critical points: {kind}"
        options = {"color": color, "marker": marker, "s": 45, "label": label}
        scatter.scatter(point.value[at], point.morse_index[at], alpha=0.7, **options)
    scatter.set(xlabel="loss (nats)", ylabel="index: how many directions curve down")
    scatter.set_title(
        f"correlation at critical points: {correlation(found, places):.3f}"
    )
    scatter.legend()
    return figure


def draw_escape(escapes: dict[str, Escape], config: Config) -> Any:
    """Draw the losses over the steps, and the steps against the distance."""
    figure = new_figure(12, 5)
    over_steps, over_distance = figure.subplots(1, 2)
    for (name, escape), marker in zip(escapes.items(), "osD^v", strict=True):
        middle = np.median(escape.losses[-1], axis=0)
        over_steps.plot(np.arange(1, middle.size + 1), middle, label=name)
        over_distance.plot(config.distances, escape.steps, marker, ls="-", label=name)
    over_steps.axhline(-config.drop, color="0.5", ls=":")
    over_steps.set(xscale="log", xlabel="step", ylabel="loss above the saddle's (nats)")
    over_steps.set_title(f"started {config.distances[-1]:g} from the saddle")
    over_steps.legend()
    over_distance.set(xscale="log", xlabel="distance from the saddle at the start")
    over_distance.set(ylabel=f"steps until the loss is {config.drop:g} nats lower")
    over_distance.invert_xaxis()
    over_distance.set_title("the nearer, the longer; not for RMSProp and Adam")
    over_distance.legend()
    return figure


def report_points(
    found: Found, limits: Thresholds
) -> tuple[np.ndarray, dict[str, Any]]:
    """Print what other thresholds would keep, and by index what ours keep."""
    print(f"{len(found.w)} searches; distinct ends by threshold")
    rows = []
    for absolute in (np.inf, 1e-2, 1e-4, limits.absolute):
        for flatness in (0.0, limits.flatness):
            kept = passes(found, absolute, np.inf, flatness)
            at = distinct(found, kept)
            share = 100 * is_minimum(found, at).mean() if len(at) else float("nan")
            numbers = [kept.sum(), len(at), f"{correlation(found, at):.3f}"]
            numbers = [f"{flatness:g}", *map(str, numbers), f"{share:.0f} %"]
            rows.append([f"{absolute:g}", *numbers])
    head = ["gradient norm <=", "flatness >=", "ends", "distinct", "correlation"]
    print(table([*head, "minima"], rows))
    kept = passes(found, limits.absolute, limits.relative, limits.flatness)
    places = distinct(found, kept)
    index, losses = found.point.morse_index[places], found.point.value[places]
    print(f"\nkept: also gradient norm <= {limits.relative:g} of the start's")
    rows = [
        [f"{i}", str(at.size), f"{at.min():.3f}", f"{np.median(at):.3f}"]
        for i, at in ((i, losses[index == i]) for i in np.unique(index))
    ]
    print(table(["index", "points", "lowest loss", "median (nats)"], rows))
    results = {
        "correlation": correlation(found, places),
        "rank_correlation": rank_correlation(found, places),
        "points": len(places),
        "minima": int(is_minimum(found, places).sum()),
        "index": index.tolist(),
        "loss": losses.tolist(),
        "flatness": found.point.flatness[places].tolist(),
        "gradient_norm": found.point.gradient_norm[places].tolist(),
    }
    print(
        f"correlation of index and loss {results['correlation']:.3f} (of ranks "
        f"{results['rank_correlation']:.3f}); {results['minima']} minima of "
        f"{len(places)}; least flatness {min(results['flatness'], default=0):.1e}"
    )
    return kept, results


def report_escapes(escapes: dict[str, Escape], config: Config) -> dict[str, Any]:
    """Print the steps to escape from every distance."""
    rows, results = [], {}
    for name, escape in escapes.items():
        rate = getattr(config.rates, name)
        predicted = f"{escape.predicted:.0f}" if name in LINEAR else "-"
        steps = [f"{steps:.0f}" for steps in escape.steps]
        rows.append([name, f"{rate:g}", *steps, f"{escape.per_decade:.0f}", predicted])
        steps = [float(n) if np.isfinite(n) else None for n in escape.steps]
        results[name] = {
            "steps": steps,
            "per_decade": escape.per_decade,
            "predicted": escape.predicted if name in LINEAR else None,
        }
    head = [f"from {distance:g}" for distance in config.distances]
    print(f"\nsteps until the loss is {config.drop:g} nats below the saddle's")
    head = ["optimizer", "learning rate", *head, "per decade", "spectral radius says"]
    print(table(head, rows))
    return results


def main(config: Config) -> dict[str, Any]:
    """Search, count, escape; print the tables and draw both pictures."""
    folder = new_folder(config)
    with double_precision():
        problem = make_problem(config)
        found = find(problem, starts(problem, config), config.thresholds)
        kept, results = report_points(found, config.thresholds)
        places = distinct(found, kept)
        if is_minimum(found, places).all():
            raise SystemExit(f"need a saddle among {len(places)} critical points")
        w = found.w[highest_saddle(found, places)]
        escapes = {name: leave(name, problem, w, config) for name in OPTIMIZERS}
        results |= {"escapes": report_escapes(escapes, config)}
        index = draw_index(problem, found, kept, places)
    finish(folder, results, index=index, escape=draw_escape(escapes, config))
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
