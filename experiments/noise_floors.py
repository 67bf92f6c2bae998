"""Noise floors of linear regression: theory beside measurement.

With a constant learning rate, the noise of batches holds the loss above its minimum.
`curvature.noise_floor` is exact for noise that does not depend on the weights; the
curvature of a batch is random too, which `exact_floor` includes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from experiments.outputs import new_figure, table


@dataclasses.dataclass(frozen=True)
class Floors:
    """Where floors are measured, and how long."""

    batches: tuple[int, ...] = (1, 8, 64)  # batch sizes
    rates: tuple[float, ...] = (0.003, 0.01, 0.03)  # learning rates
    steps: int = 20000  # of a run; the first half is not measured
    seeds: int = 32  # runs at each batch size and learning rate


class Floor(NamedTuple):
    """The stationary excess loss at one batch size and learning rate."""

    batch: int
    rate: float
    additive: float  # theory, by `curvature.noise_floor`
    exact: float  # theory, with random curvature
    measured: float
    error: float  # standard error of the measured mean, over seeds
    epochs: float  # measured without replacement


def regression_loss(w: jax.Array, batch: Any) -> jax.Array:
    """Half the mean squared error of a linear map, in squared deviations of y."""
    return jnp.mean((batch["x"] @ w - batch["y"]) ** 2) / 2


def excess_fn(w: jax.Array, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss of a batch, and the excess of w's loss over the least."""
    away = w - batch["best"]
    excess = away @ batch["curvature"] @ away / 2
    return regression_loss(w, batch), {"excess": excess}


def measure_floor(data: Any, batch: int, in_epochs: bool, config: Floors) -> np.ndarray:
    """Return the mean excess loss of every run's second half: (rates, seeds)."""

    def run(rate: Any, seed: Any, data: Any) -> jax.Array:
        optimizer = fg.sgd(rate)
        constant = {name: data[name] for name in ("best", "curvature")}
        examples = {name: data[name] for name in ("x", "y")}
        key = jax.random.key(seed)

        def draw(step: jax.Array) -> Any:
            places = jax.random.randint(
                jax.random.fold_in(key, step), (batch,), 0, len(data["y"])
            )
            return jax.tree.map(lambda x: x[places], examples) | constant

        epochs = fg.data.from_arrays(examples, batch, seed=key)
        _, history = fg.run(
            fg.make_step(excess_fn, optimizer, metrics="loss"),
            fg.init_state(data["best"], optimizer, key),
            (lambda step: epochs.batch(step) | constant) if in_epochs else draw,
            config.steps,
        )
        return jnp.mean(history["excess"][config.steps // 2 :])

    lanes = jax.jit(jax.vmap(jax.vmap(run, (None, 0, None)), (0, None, None)))
    rates = jnp.array(config.rates)
    return np.asarray(lanes(rates, jnp.arange(config.seeds), data))


def exact_floor(x: np.ndarray, y: np.ndarray, rate: float, batch: int) -> float:
    r"""Return the stationary excess loss when curvature is random too.

    A batch of b examples drawn with replacement has curvature $H_b$ and gradient noise
    of covariance $C / b$, so the covariance of the weights is the solution of
    $S = E[(I - a H_b) S (I - a H_b)] + a^2 C / b$, a linear system in S.
    """
    n, d = x.shape
    H = x.T @ x / n
    best = np.linalg.solve(H, x.T @ y / n)
    noise = x * (x @ best - y)[:, None]
    squares = np.einsum("ni,nj,nk,nl->ikjl", x, x, x, x, optimize=True) / n
    both = np.kron(H, H)
    random = (squares.reshape(d * d, d * d) - both) / batch
    eye = np.eye(d)
    keep = np.kron(eye - rate * H, eye - rate * H) + rate**2 * random
    source = rate**2 * (noise.T @ noise / n / batch).ravel()
    S = np.linalg.solve(np.eye(d * d) - keep, source).reshape(d, d)
    return float(np.sum(H * S) / 2)


def measure(config: Floors) -> list[Floor]:
    """Compare theory and measurement at every batch size and learning rate."""
    train = fg.data.diabetes().train
    x, y = (train[name].astype(np.float64) for name in ("x", "y"))
    fit = jax.jit(fg.closed_form.linear_regression, static_argnames="intercept")
    best = fit(train["x"], train["y"], intercept=False).weights
    n = len(y)
    # Drawn from these n examples, whose covariance divides by n.
    covariance = jax.jit(fg.curvature.gradient_covariance, static_argnums=0)
    spread = covariance(regression_loss, best, train)
    spread = np.asarray(spread, np.float64) * (n - 1) / n
    curvature = jnp.asarray(x.T @ x / n, best.dtype)
    data = jax.tree.map(jnp.asarray, train) | {"best": best, "curvature": curvature}
    rows = []
    for batch in config.batches:
        drawn, epochs = (measure_floor(data, batch, e, config) for e in (False, True))
        means, errors = drawn.mean(axis=1), drawn.std(axis=1, ddof=1)
        for i, rate in enumerate(config.rates):
            theory = fg.curvature.noise_floor(
                fg.sgd(rate), regression_loss, best, train, noise=spread / batch
            )
            row = means[i], errors[i] / config.seeds**0.5, epochs[i].mean()
            exact = exact_floor(x, y, rate, batch)
            rows.append(Floor(batch, rate, theory.loss, exact, *map(float, row)))
    return rows


def draw_floors(rows: list[Floor]) -> Any:
    """Draw the noise floors against the learning rate, one color per batch size."""
    figure = new_figure(8.5, 5)
    axis = figure.add_subplot()
    for i, batch in enumerate(sorted({row.batch for row in rows})):
        mine, color = [row for row in rows if row.batch == batch], f"C{i}"
        rates = [row.rate for row in mine]
        axis.plot(rates, [row.additive for row in mine], "--", color=color)
        axis.plot(rates, [row.exact for row in mine], "-", color=color)
        axis.errorbar(
            rates,
            [row.measured for row in mine],
            [3 * row.error for row in mine],
            fmt="o",
            color=color,
            label=f"batches of {batch}, drawn with replacement",
        )
        axis.plot(rates, [row.epochs for row in mine], "x", color=color)
    for style, label in {
        "--": "theory: noise of constant covariance",
        "-": "theory: random curvature too",
        "x": "measured: in epochs, without replacement",
    }.items():
        axis.plot([], [], style, color="0.4", label=label)
    axis.set(xscale="log", yscale="log", xlabel="learning rate")
    axis.set_ylabel("stationary loss above the minimum (squared deviations of y)")
    axis.set_title("linear regression, points: measured, with three standard errors")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def report_floors(rows: list[Floor]) -> None:
    """Print theory beside measurement."""
    print("stationary loss above the minimum, times a million")
    cells = []
    for row in rows:
        values = (row.additive, row.exact, row.measured, row.error, row.epochs)
        shown = (f"{1e6 * value:.4g}" for value in values)
        cells.append([f"{row.batch}", f"{row.rate:g}", *shown])
    theories = ["constant noise", "random curvature"]
    measured = ["measured", "std. error", "in epochs"]
    print(table(["batch", "learning rate", *theories, *measured], cells))
