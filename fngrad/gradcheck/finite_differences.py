r"""Derivatives without autodiff: finite differences, and the complex step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.gradcheck.directional_derivatives import scalar_of
from fngrad.types import Params, Tree


def finite_difference_gradient(
    f: Callable[..., Any],
    params: Params,
    *args: Any,
    step: float = 1e-5,
    coordinates: Any = None,
) -> Any:
    r"""Return the gradient by central differences, one coordinate at a time.

    $$\frac{\partial f}{\partial w_i} \approx
      \frac{f(w + h e_i) - f(w - h e_i)}{2 h}$$

    Each coordinate takes two evaluations, one coordinate after another; the error is
    about $h^2$.

    Args:
        f: ``f(params, *args) -> loss`` or a tuple that begins with the loss.
        params: a tree of real float arrays.
        args: passed to f; floats become float64.
        step: $h$, in units of the parameters.
        coordinates: which coordinates of the raveled tree to perturb, integers of
            shape (k,); ``None`` means all.

    Returns:
        The gradient with the structure of params, as NumPy float64 arrays; with
        ``coordinates`` an array of shape (k,) in their order.

    Raises:
        TypeError: if a leaf is not a real float array, f does not return a real scalar,
            or coordinates are not integers.
        ValueError: if the step is not positive, or a coordinate is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.gradcheck import finite_difference_gradient
        >>> slopes = finite_difference_gradient(
        ...     lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0])
        ... )
        >>> print(slopes.round(6))
        [ 3. 12.]
    """
    numerics.check_positive("step", step)
    tree.check_floats(params)
    with numerics.double_precision():
        vector, restore = ravel_pytree(numerics.as_double(params))
        value = scalar_of(f)
        constants = numerics.as_double(args)
        chosen = jnp.arange(vector.size)
        if coordinates is not None:
            chosen = numerics.integers("coordinates", np.asarray(coordinates))
            _check_coordinates(np.asarray(chosen), vector.size)

        @jax.jit
        def slopes(vector: jax.Array, chosen: jax.Array, constants: Any) -> jax.Array:
            def at(i: jax.Array, h: float) -> jax.Array:
                return value(restore(vector.at[i].add(h)), *constants)

            return jax.lax.map(
                lambda i: (at(i, step) - at(i, -step)) / (2 * step), chosen
            )

        result = slopes(vector, chosen, constants)
        gradient = restore(result) if coordinates is None else result
        return jax.tree.map(np.asarray, gradient)


def complex_step(
    f: Callable[..., Any], params: Tree, direction: Tree, *args: Any, h: float = 1e-30
) -> float:
    r"""Return the slope along a direction from one evaluation at a complex point.

    $$\nabla f(w) \cdot v = \mathrm{Im}\, f(w + i h v) / h + O(h^2)$$

    There is no difference, so no cancellation: the slope is exact to rounding. f must
    be composed of analytic functions of the parameters: no abs, max, conj, comparisons.

    Args:
        f: ``f(params, *args) -> loss`` or a tuple that begins with the loss.
        params: a tree of real float arrays.
        direction: $v$, shaped like params.
        args: passed to f; floats become float64.
        h: the imaginary step; it may be far below rounding.

    Raises:
        TypeError: if a leaf is not a real float array, f does not return a scalar, or
            it returns a real one for complex parameters because it drops imaginary
            parts.
        ValueError: if the direction has another shape, or the step is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.gradcheck import complex_step
        >>> w = jnp.array([0.0, 1.0])
        >>> slope = complex_step(lambda w: jnp.sum(jnp.exp(w)), w, jnp.ones(2))
        >>> print(f"{slope:.14f}")  # 1 + e
        3.71828182845905

    References:
        Squire and Trapp, Using complex variables to estimate derivatives of real
        functions, 1998, https://doi.org/10.1137/S003614459631241X.
    """
    numerics.check_positive("h", h)
    tree.check_floats(params)
    _check_direction(params, direction)
    # f combines real data with complex parameters.
    with numerics.double_precision(), jax.numpy_dtype_promotion("standard"):
        w, v = numerics.as_double((params, direction))
        moved = jax.tree.map(lambda x, d: x + 1j * h * d, w, v)
        out = f(moved, *numerics.as_double(args))
        value = out[0] if isinstance(out, tuple) else out
        if jnp.shape(value) != ():
            raise TypeError(f"need f to return a scalar, got shape {jnp.shape(value)}")
        if not jnp.iscomplexobj(value):
            raise TypeError(
                "need f to be analytic in its parameters, got a real value for "
                "complex ones: it drops imaginary parts somewhere"
            )
        return float(jnp.imag(value)) / h


def _check_direction(params: Params, direction: Params) -> None:
    difference = tree.mismatch(params, direction, dtypes=False)
    if difference:
        raise ValueError(f"need a direction shaped like params: {difference}")


def _check_coordinates(coordinates: np.ndarray, size: int) -> None:
    inside = (coordinates >= 0) & (coordinates < size)
    if coordinates.ndim != 1 or not np.all(inside):
        raise ValueError(
            f"need coordinates of shape (k,) in [0, {size}), got {coordinates}"
        )
