"""The derivative is the best straight line: tangent line, tangent plane, and error.

Claim: close to a point every smooth function is its tangent. The error of the tangent
falls as the square of the distance, in one dimension, in two, and along a random
direction in all 2,410 weights of a network; the error of a constant only as the
distance.

Command:  python -m experiments.linear_approximation
Minutes:  less than one on two cores.
Expected: observed orders within 0.05 of 1 (constant) and of 2 (tangent).

The curve is the one with two minima, the surface is Himmelblau's function, the network
64-32-10 sees 128 handwritten digits (scikit-learn's).

The run folder (``runs/linear_approximation/...``) holds config.json, manifest.json and
tangent.png.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg
from experiments.outputs import finish, new_figure, new_folder, run_cli, table

POINT_1D, POINT_2D = (-1.3,), (-1.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """How much data the network sees, and where the results go."""

    examples: int = 128  # that the network sees
    seed: int = 0  # of the weights and of the directions
    runs: Path = Path("runs/linear_approximation")  # where the run folder is made


def network(config: Config) -> tuple[Callable[..., jax.Array], Any, Any]:
    """Return a network's loss, its weights and a batch."""
    model = fg.models.mlp((64, 32, 10), activation=jax.nn.tanh)
    train = fg.data.digits().train
    batch = jax.tree.map(lambda x: x[: config.examples], train)

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = fg.layers.batched(model)(params, batch["x"])
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["y"], reduction="mean"
        )

    return loss, model.init(jax.random.key(config.seed)), batch


def taylor(config: Config) -> dict[str, fg.gradcheck.TaylorReport]:
    """Measure the errors of the three functions over a sweep of distances."""
    loss, params, batch = network(config)
    flat, wells = fg.landscapes.himmelblau, fg.landscapes.two_minima
    test = fg.gradcheck.taylor_test
    return {
        "curve, 1 coordinate": test(wells, jnp.array(POINT_1D), key=config.seed),
        "surface, 2 coordinates": test(flat, jnp.array(POINT_2D), key=config.seed),
        "network, 2410 weights": test(loss, params, batch, key=config.seed),
    }


def draw_line(axis: Any) -> None:
    """Draw the curve and its tangent line."""
    f, point = fg.landscapes.two_minima, jnp.array(POINT_1D)
    value, slope = jax.jit(jax.value_and_grad(f))(point)
    x = np.linspace(-1.9, 1.7, 300)
    axis.plot(x, jax.jit(jax.vmap(f))(np.asarray(x, np.float32)[:, None]), label="f")
    near = np.linspace(-1.75, -0.75, 2)
    line = float(value) + float(slope[0]) * (near - POINT_1D[0])
    label = f"tangent: slope {float(slope[0]):.2f}"
    axis.plot(near, line, label=label)
    axis.plot(*POINT_1D, float(value), "o", color="black")
    axis.set(xlabel="x", ylabel="f(x)", title="tangent line", ylim=(-1.0, 2.0))
    axis.legend()


def draw_plane(axis: Any) -> None:
    """Draw the surface near a point and its tangent plane."""
    f, point = fg.landscapes.himmelblau, jnp.array(POINT_2D)
    value, slopes = jax.jit(jax.value_and_grad(f))(point)
    sides = [np.linspace(c - 1.0, c + 1.0, 30) for c in POINT_2D]
    x, y = np.meshgrid(*sides)
    grid = np.stack([x, y], axis=-1).astype(np.float32)
    surface = np.asarray(jax.jit(jax.vmap(jax.vmap(f)))(grid))
    plane = (
        float(value)
        + float(slopes[0]) * (x - POINT_2D[0])
        + float(slopes[1]) * (y - POINT_2D[1])
    )
    axis.plot_surface(x, y, surface, alpha=0.55, color="tab:blue")
    axis.plot_surface(x, y, plane, alpha=0.55, color="tab:orange")
    axis.scatter(*POINT_2D, float(value), color="black")
    axis.set(xlabel="x", ylabel="y", zlabel="f(x, y)")
    axis.set_title("tangent plane (orange)")


def draw_errors(axis: Any, reports: dict[str, fg.gradcheck.TaylorReport]) -> None:
    """Draw errors against the distance, with the two orders as guides."""
    for color, (name, report) in zip(("C0", "C1", "C2"), reports.items(), strict=True):
        axis.loglog(report.h, report.constant, "--", color=color)
        seen = report.tangent > 100 * report.noise
        axis.loglog(report.h[seen], report.tangent[seen], "o-", color=color, label=name)
    axis.set(xlabel="distance h (in lengths of the point)", ylabel="error")
    axis.set_title("tangent (solid), standing still (dashed)")
    axis.grid(alpha=0.3)
    axis.legend()


def draw(reports: dict[str, fg.gradcheck.TaylorReport]) -> Any:
    """Draw tangent line, tangent plane and errors side by side."""
    figure = new_figure(15, 4.5)
    draw_line(figure.add_subplot(1, 3, 1))
    draw_plane(figure.add_subplot(1, 3, 2, projection="3d"))
    draw_errors(figure.add_subplot(1, 3, 3), reports)
    return figure


def main(config: Config) -> dict[str, Any]:
    """Measure, print the table, draw."""
    folder = new_folder(config)
    reports = taylor(config)
    rows, results = [], {}
    for name, report in reports.items():
        orders = report.constant_order, report.tangent_order
        results[name] = {"constant": orders[0], "tangent": orders[1]}
        at = int(np.argmin(np.abs(report.h - 1e-2)))
        errors = f"{report.constant[at]:.1e}", f"{report.tangent[at]:.1e}"
        rows.append([name, *errors, *(f"{order:.3f}" for order in orders)])
    head = ["function", "error still", "error tangent", "order still", "order tangent"]
    print(table(head, rows))
    print("errors at distance 0.01; an order p means that the error falls as h**p")
    finish(folder, results, tangent=draw(reports))
    return results


if __name__ == "__main__":
    run_cli(main, Config, __doc__)
