"""Residuals linearized at the parameters: values, Jacobian, damped solutions.

Parameters and residuals are flat vectors here, in at least float32.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.numerics.matrix_products import matmul
from fngrad.programs.signatures import OF_A_LOSS, bind, parameters
from fngrad.sharding.meshes import check_not_split_explicitly
from fngrad.training.loss_forms import Value, read_value
from fngrad.tree import check_real
from fngrad.types import Batch, Key, ModelState, Params, Updates

FORMS = """\
need a function of the residuals with two required arguments, in this order, for the
parameters and the batch, and optional arguments named key and model_state:
  residual_fn(params, batch) -> residuals  or  (residuals, metrics)
  residual_fn(params, model_state, batch[, key])
      -> (residuals, (metrics, model_state))\
"""
Solver: TypeAlias = Literal["dense", "cg"]
Jacobian: TypeAlias = Literal["forward", "reverse"]


class Linearized(NamedTuple):
    """Residuals r and their Jacobian J at some parameters."""

    value: Value  # the loss is half the sum of squares
    gradient: jax.Array  # J'r, shape (n,)
    push: Callable[[jax.Array], jax.Array]  # v, shape (n,) -> J v, shape (m,)
    solve: Callable[[jax.Array], jax.Array]  # damping -> (J'J + damping I)^-1 J'r


class Residuals(NamedTuple):
    """A residual function in any form."""

    call: Callable[..., Any]
    has_model_state: bool

    def at(
        self, params: Params, batch: Batch, key: Key, model_state: ModelState
    ) -> tuple[jax.Array, Value]:
        """Return the residuals as one vector, and half the sum of their squares.

        Raises:
            TypeError: if residuals are complex, or a function with a model state does
                not return a pair.
        """
        out = self.call(params, batch, key=key, model_state=model_state)
        is_pair = isinstance(out, tuple) and len(out) == 2
        if self.has_model_state and not is_pair:
            raise TypeError(f"{FORMS}, got {type(out).__name__}")
        has_more = self.has_model_state or (is_pair and isinstance(out[1], dict))
        residuals, more = out if has_more else (out, {})
        vector = flatten(residuals)
        read = 0.5 * tree.vdot(vector, vector), more
        return vector, read_value(read, model_state, self.has_model_state)


def residuals_of(residual_fn: Callable[..., Any]) -> Residuals:
    """Read the signature of a residual function.

    Raises:
        TypeError: if the signature is none of those in FORMS.
    """
    call = bind(residual_fn, OF_A_LOSS, FORMS)
    return Residuals(call, "model_state" in parameters(residual_fn))


def linearize(
    residuals: Residuals,
    params: Params,
    trainable: Any,
    batch: Batch,
    key: Key,
    model_state: ModelState,
    *,
    solver: Solver,
    jacobian: Jacobian | None,
    cg_tolerance: float,
) -> Linearized:
    """Return the linear model of the residuals at the parameters.

    Raises:
        TypeError: if parameters or residuals are complex.
        ValueError: if no leaf is trainable, or the dense solver is given arrays that
            are split along Explicit axes.
    """
    held = tree.keep(trainable, params)
    check_real("least squares", held)
    if not jax.tree.leaves(held):
        raise ValueError("need at least one leaf that is not frozen, got none")
    start = flatten(held)

    def at(x: jax.Array) -> tuple[jax.Array, Value]:
        moved = tree.merge(tree.cast_like(unflatten(x, held), held), params)
        return residuals.at(moved, batch, key, model_state)

    if solver == "dense":
        check_not_split_explicitly('solver="dense"', params, batch)
        return _dense(at, start, jacobian)
    return _matrix_free(at, start, cg_tolerance)


def flatten(a: Any) -> jax.Array:
    """Return all leaves as one vector.

    Raises:
        TypeError: if a leaf is complex.
    """
    check_real("least squares", a)
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(tree.widen(a))]
    dtype = np.result_type(np.float32, *(leaf.dtype for leaf in leaves))
    return jnp.concatenate([leaf.astype(dtype) for leaf in leaves])


def unflatten(x: jax.Array, like: Updates) -> Updates:
    """Return the tree that `flatten` maps to ``x``, in the dtype of ``x``."""
    leaves, structure = jax.tree.flatten(like)
    pieces = jnp.split(x, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return structure.unflatten(
        [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
    )


def _dense(
    at: Callable[..., tuple[jax.Array, Value]],
    start: jax.Array,
    jacobian: Jacobian | None,
) -> Linearized:
    r, value = at(start)
    is_forward = jacobian == "forward" or (jacobian is None and len(start) <= len(r))
    matrix, _ = (jax.jacfwd if is_forward else jax.jacrev)(at, has_aux=True)(start)
    matrix = matrix.astype(r.dtype)

    def push(v: jax.Array) -> jax.Array:
        return matmul(matrix, v.astype(r.dtype))

    def solve(damping: jax.Array) -> jax.Array:
        ridge = numerics.square_root(damping).astype(r.dtype) * jnp.eye(
            len(start), dtype=r.dtype
        )
        system = jnp.concatenate([matrix, ridge])
        target = jnp.concatenate([r, jnp.zeros(len(start), r.dtype)])
        return _shortest_solution(system, target).astype(start.dtype)

    gradient = matmul(r, matrix).astype(start.dtype)
    return Linearized(value, gradient, push, solve)


@jax.custom_jvp
def _shortest_solution(A: jax.Array, b: jax.Array) -> jax.Array:
    """Return the x of least norm among those that minimize ||A x - b||."""
    return jnp.linalg.lstsq(A, b)[0]


@_shortest_solution.defjvp
def _shortest_solution_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Differentiate the pseudoinverse, not its singular values.

    Singular values have no derivative where two are equal, as for an orthogonal A:
    Golub and Pereyra 1973, section 4.
    """
    (A, b), (dA, db) = primals, tangents
    x = _shortest_solution(A, b)
    rest = b - matmul(A, x)
    within = _shortest_solution(A, db - matmul(dA, x))
    across = _shortest_solution(A, _shortest_solution(A.T, matmul(dA.T, rest)))
    turned = matmul(dA.T, _shortest_solution(A.T, x))
    outside = turned - _shortest_solution(A, matmul(A, turned))
    return x, within + across + outside


def _matrix_free(
    at: Callable[..., tuple[jax.Array, Value]], start: jax.Array, tolerance: float
) -> Linearized:
    r, push, value = jax.linearize(at, start, has_aux=True)
    transposed = jax.linear_transpose(push, start)
    (gradient,) = transposed(r)

    def solve(damping: jax.Array) -> jax.Array:
        def normal(v: jax.Array) -> jax.Array:
            return transposed(push(v))[0] + damping.astype(v.dtype) * v

        return jax.scipy.sparse.linalg.cg(normal, gradient, tol=tolerance)[0]

    return Linearized(value, gradient, push, solve)
