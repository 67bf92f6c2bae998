"""Critical points of a loss: damped Newton searches, thresholds, counts.

A search minimizes the squared norm of the gradient. It may end in a *gradient-flat*
place, where the gradient does not vanish but lies in the kernel of the Hessian: what is
kept has a gradient below an absolute and a relative threshold, and is not flat.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad as fg


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """How long a search lasts, and what counts as critical."""

    iterations: int = 120  # of a search, at most
    absolute: float = 1e-8  # largest gradient norm of a critical point
    relative: float = 1e-6  # the same, over the gradient norm where the search began
    flatness: float = 1e-4  # least ||Hg|| / (||H|| ||g||)


class Problem(NamedTuple):
    """A loss on vectors of weights."""

    loss: Callable[[jax.Array, Any], jax.Array]  # (vector, batch) -> nats
    batch: Any
    size: int  # how many weights


class Search(NamedTuple):
    """Where a search for a critical point stands."""

    iteration: jax.Array  # int32
    w: jax.Array  # (n,)
    gradient: jax.Array  # (n,)
    eigenvalues: jax.Array  # of the Hessian, (n,)
    vectors: jax.Array  # (n, n)
    damping: jax.Array


class Found(NamedTuple):
    """The ends of all searches, as NumPy arrays whose first axis counts them."""

    w: np.ndarray  # (searches, n)
    start: np.ndarray  # gradient norm where the search began
    point: Any  # a CriticalPoint of arrays


def search(
    loss: Callable[[jax.Array], jax.Array], w: jax.Array, limits: Thresholds
) -> jax.Array:
    r"""Minimize $\|g\|^2$ from w by $d = -(H^2 + \mu I)^{-1} H g$, and return the end.

    A step that does not shorten the gradient is not made, and raises the damping. The
    search ends at a thousandth of the threshold, or where it is flat.
    """
    gradient_fn, hessian = jax.grad(loss), jax.hessian(loss)

    def goes_on(s: Search) -> jax.Array:
        length = jnp.linalg.norm(s.gradient)
        image = jnp.linalg.norm(s.eigenvalues * (s.gradient @ s.vectors))
        flatness = image / (jnp.max(jnp.abs(s.eigenvalues)) * length)
        is_open = (length > 1e-3 * limits.absolute) & (flatness > limits.flatness)
        return is_open & (s.iteration < limits.iterations)

    def spectrum(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        eigenvalues, vectors = jnp.linalg.eigh(hessian(w))
        return eigenvalues, vectors

    def advance(s: Search) -> Search:
        along = s.eigenvalues / (s.eigenvalues**2 + s.damping)
        w = s.w - s.vectors @ (along * (s.gradient @ s.vectors))
        g = gradient_fn(w)
        is_shorter = jnp.linalg.norm(g) < jnp.linalg.norm(s.gradient)
        return jax.lax.cond(
            is_shorter,
            lambda: Search(s.iteration + 1, w, g, *spectrum(w), s.damping / 3),
            lambda: s._replace(iteration=s.iteration + 1, damping=4 * s.damping),
        )

    eigenvalues, vectors = spectrum(w)
    damping = 1e-2 * jnp.max(eigenvalues**2)
    first = Search(jnp.int32(0), w, gradient_fn(w), eigenvalues, vectors, damping)
    return jax.lax.while_loop(goes_on, advance, first).w


def find(problem: Problem, starts: jax.Array, limits: Thresholds) -> Found:
    """Search from every start, and measure what is there."""

    def measure(w: jax.Array) -> tuple[Any, ...]:
        loss = lambda w: problem.loss(w, problem.batch)  # noqa: E731
        end = search(loss, w, limits)
        point = fg.curvature.critical_point(loss, end, tolerance=1e-9)
        return end, jnp.linalg.norm(jax.grad(loss)(w)), point

    ends = jax.jit(functools.partial(jax.lax.map, measure))(starts)
    return Found(*jax.tree.map(np.asarray, ends))


def passes(found: Found, absolute: float, relative: float, flatness: float) -> Any:
    """Return which ends are critical points by these thresholds, bool."""
    norm = found.point.gradient_norm
    is_small = (norm <= absolute) & (norm <= relative * found.start)
    return is_small & (found.point.flatness >= flatness)


def distinct(found: Found, kept: np.ndarray) -> np.ndarray:
    """Return the places of kept ends, each loss once, from the lowest."""
    places = np.flatnonzero(kept)
    losses = found.point.value[places]
    _, first = np.unique(np.round(losses, 7), return_index=True)
    return places[first]


def correlation(found: Found, places: np.ndarray) -> float:
    """Return Pearson's correlation of index and loss."""
    pair = found.point.morse_index[places], found.point.value[places]
    return float(np.corrcoef(*pair)[0, 1]) if len(places) > 2 else float("nan")


def rank_correlation(found: Found, places: np.ndarray) -> float:
    """Return Spearman's, for places in the order of their losses."""
    index = found.point.morse_index[places]
    below = (index[:, None] > index).sum(axis=1)
    ranks = below + (index[:, None] == index).sum(axis=1) / 2  # ties share the mean
    return float(
        np.corrcoef(ranks, found.point.value[places].argsort().argsort())[0, 1]
    )


def is_minimum(found: Found, places: np.ndarray) -> np.ndarray:
    """Return where all curvatures are positive."""
    point = found.point
    return (point.morse_index[places] == 0) & (point.nullity[places] == 0)
