r"""Test functions with known minima and saddles.

Each takes a point, an array of shape (dimension,), and returns a scalar in its dtype.
`CATALOG` lists known minima and saddles of each, and a region that shows them.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Point: TypeAlias = tuple[float, ...]


class Landscape(NamedTuple):
    """A function, known minima and saddles, and a region to draw."""

    f: Callable[[jax.Array], jax.Array]
    minima: tuple[Point, ...]  # global ones first
    saddles: tuple[Point, ...]
    start: Point  # of a typical descent
    lower: Point  # of the region worth drawing
    upper: Point


def quadratic(x: jax.Array, curvatures: tuple[float, ...] = (1.0, 10.0)) -> jax.Array:
    r"""$f(x) = \frac12 \sum_i \lambda_i x_i^2$: a bowl or a saddle.

    It is a bowl if all $\lambda_i$ > 0, a saddle if their signs differ.

    Args:
        x: shape (dimension,).
        curvatures: $\lambda$, as many as x has entries.
    """
    return jnp.sum(jnp.asarray(curvatures, x.dtype) * x**2) / 2


def rosenbrock(x: jax.Array) -> jax.Array:
    r"""$\sum_i (100\,(x_{i+1} - x_i^2)^2 + (1 - x_i)^2)$: a curved, flat valley.

    Minimum 0 at (1, ..., 1), in any dimension >= 2; in two dimensions it is the only
    critical point.

    References:
        Rosenbrock, An automatic method for finding the greatest or least value of a
        function, 1960, https://doi.org/10.1093/comjnl/3.3.175.
    """
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def beale(x: jax.Array) -> jax.Array:
    r"""$(1.5 - x + xy)^2 + (2.25 - x + xy^2)^2 + (2.625 - x + xy^3)^2$.

    Minimum 0 at (3, 0.5), saddles at (0, 1) and (0.101, -2.645), plateaus between steep
    walls.

    References:
        Beale, On an iterative method for finding a local minimum of a function of
        more than one variable, 1958.
    """
    a, b = x[0], x[1]
    return (
        (1.5 - a + a * b) ** 2
        + (2.25 - a + a * b**2) ** 2
        + (2.625 - a + a * b**3) ** 2
    )


def himmelblau(x: jax.Array) -> jax.Array:
    """$(x^2 + y - 11)^2 + (x + y^2 - 7)^2$: four minima of value 0, four saddles.

    References:
        Himmelblau, Applied nonlinear programming, 1972.
    """
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def rastrigin(x: jax.Array) -> jax.Array:
    r"""$\sum_i (10 + x_i^2 - 10 \cos 2 \pi x_i)$: a bowl full of local minima.

    Minimum 0 at the origin, and a local minimum near every integer point with
    $|x_i| \le 31$.

    References:
        Rastrigin, Systems of extremal control, 1974.
    """
    return jnp.sum(10 + x**2 - 10 * jnp.cos(2 * jnp.pi * x))


def monkey_saddle(x: jax.Array) -> jax.Array:
    """$x^3 - 3 x y^2$: three valleys leave the origin, where the Hessian is zero."""
    return x[0] ** 3 - 3 * x[0] * x[1] ** 2


def two_minima(x: jax.Array) -> jax.Array:
    r"""$\sum_i (x_i^4 / 4 - x_i^2 / 2 - x_i / 4)$: a local minimum before a global one.

    Along each axis: a local minimum at -0.8376, a maximum between, the global minimum
    at 1.1072. In one dimension momentum can carry a descent past the local minimum in
    which gradient descent stops.
    """
    return jnp.sum(x**4 / 4 - x**2 / 2 - x / 4)


_HIMMELBLAU_MINIMA = (
    (3.0, 2.0),
    (-2.8051180869527448, 3.1313125182505730),
    (-3.7793102533777469, -3.2831859912861694),
    (3.5844283403304917, -1.8481265269644034),
)
_HIMMELBLAU_SADDLES = (
    (3.3851542, 0.0738519),
    (0.0866775, 2.8842547),
    (-3.0730258, -0.0813530),
    (-0.1279613, -1.9537150),
)
CATALOG: dict[str, Landscape] = {
    "quadratic": Landscape(
        quadratic,
        minima=((0.0, 0.0),),
        saddles=(),
        start=(-9.0, 1.5),
        lower=(-10.0, -3.0),
        upper=(10.0, 3.0),
    ),
    "rosenbrock": Landscape(
        rosenbrock,
        minima=((1.0, 1.0),),
        saddles=(),
        start=(-1.2, 1.0),
        lower=(-1.7, -0.7),
        upper=(1.7, 2.2),
    ),
    "beale": Landscape(
        beale,
        minima=((3.0, 0.5),),
        saddles=((0.0, 1.0),),
        start=(1.0, 1.5),
        lower=(-1.0, -1.0),
        upper=(4.0, 2.0),
    ),
    "himmelblau": Landscape(
        himmelblau,
        minima=_HIMMELBLAU_MINIMA,
        saddles=_HIMMELBLAU_SADDLES,
        start=(0.0, 0.0),
        lower=(-5.0, -5.0),
        upper=(5.0, 5.0),
    ),
    "rastrigin": Landscape(
        rastrigin,
        minima=((0.0, 0.0),),
        saddles=(),
        start=(2.3, 1.7),
        lower=(-3.0, -3.0),
        upper=(3.0, 3.0),
    ),
    "monkey_saddle": Landscape(
        monkey_saddle,
        minima=(),
        saddles=((0.0, 0.0),),
        start=(1.0, 0.01),
        lower=(-1.5, -1.5),
        upper=(1.5, 1.5),
    ),
    "two_minima": Landscape(
        two_minima,
        minima=((1.1071598716887805,), (-0.8375654352833221,)),
        saddles=(),
        start=(-1.6,),
        lower=(-1.8,),
        upper=(1.8,),
    ),
}
