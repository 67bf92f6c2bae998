r"""Products with the Hessian, without building the Hessian.

All functions of this package derive the curvature of $f$ from products
$H v = \nabla^2 f\,v$, each of which costs about two gradients and no extra memory.

They take a function ``f(params, *args)`` with a scalar value. Other matrices are the
Hessians of other functions: `over` ``(f)`` is the mean over many batches, and the
Hessian of `gauss_newton` ``(model_fn, loss_fn)`` is the Gauss-Newton matrix.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

import fngrad.tree as tree
from fngrad.losses.weighted_sums import WeightedSum
from fngrad.metrics.sums import add_pairs, pair_of
from fngrad.programs.signatures import check_function, kind_of, name_of
from fngrad.types import Batch, Params, Scalar

ScalarFn = Callable[..., jax.Array]  # (params, *args) -> shape ()


class FlatHessian(NamedTuple):
    """The Hessian as a map between raveled parameters."""

    apply: Callable[[jax.Array], jax.Array]  # (n,) -> (n,)
    size: int  # n, the number of parameters
    dtype: Any
    unravel: Callable[[jax.Array], Params]  # from (n,) to a tree like the parameters


def hvp(f: ScalarFn, params: Params, *args: Any) -> Callable[[Params], Params]:
    r"""Return the map $v \mapsto \nabla^2 f(w)\,v$.

    It is the derivative of the gradient in the direction $v$: forward mode over
    reverse mode.

    Args:
        f: ``(params, *args)`` to a scalar.
        params: $w$, real arrays.
        args: the rest of the arguments of ``f``, such as the batch. The vector is the
            argument of the function that is returned.

    Returns:
        A function between trees with the structure, shapes and dtypes of ``params``.

    Raises:
        TypeError: if ``f`` does not take these arguments, or its value is not one
            float.
        ValueError: in a call, if the vector is not like ``params``.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import curvature
        >>> product = curvature.hvp(lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0]))
        >>> print(product(jnp.array([1.0, 1.0])))
        [ 6. 12.]

    References:
        Pearlmutter, Fast exact multiplication by the Hessian, 1994,
        https://doi.org/10.1162/neco.1994.6.1.147.
    """
    _check_arguments(f, params, args)
    _check_scalar(jax.eval_shape(lambda w: f(w, *args), params))

    def gradient(w: Params) -> Params:
        return jax.grad(f)(w, *args)

    def product(v: Params) -> Params:
        difference = tree.mismatch(params, v)
        if difference:
            raise ValueError(f"need a vector like the parameters: {difference}")
        return jax.jvp(gradient, (params,), (v,))[1]

    return product


def gauss_newton(model_fn: Callable[..., Any], loss_fn: ScalarFn) -> ScalarFn:
    r"""Return the loss of the linearized model, whose Hessian is Gauss-Newton's.

    At parameters $w$ with outputs $y(w)$ and loss $\ell(y)$ it has the value and the
    gradient of $\ell(y(w))$, and the Hessian

    $$G = J^\top\,\nabla^2\ell\,J, \qquad J = \partial y / \partial w$$

    which is positive semi-definite wherever $\ell$ is convex. It lacks the term
    $\sum_i \partial_i\ell\,\nabla^2 y_i$ of the Hessian.

    Args:
        model_fn: ``(params, *args)`` to outputs, any tree of float arrays.
        loss_fn: ``(outputs, *args)`` to a scalar.

    Returns:
        ``(params, *args)`` to the scalar loss, usable in any function of this package.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import curvature
        >>> f = curvature.gauss_newton(jnp.square, lambda y: jnp.sum(y**2))
        >>> print(curvature.hvp(f, jnp.array(3.0))(jnp.array(1.0)))  # (2w)^2 * 2
        72.0

    References:
        Schraudolph, Fast curvature matrix-vector products for second-order gradient
        descent, 2002, https://doi.org/10.1162/08997660260028683.
    """

    def linearized_loss(params: Params, *args: Any) -> jax.Array:
        here = lax.stop_gradient(params)
        outputs, change = jax.jvp(
            lambda w: model_fn(w, *args), (here,), (tree.sub(params, here),)
        )
        return loss_fn(tree.add(outputs, change), *args)

    return linearized_loss


def ggn_vp(
    model_fn: Callable[..., Any], params: Params, *args: Any, loss_fn: ScalarFn
) -> Callable[[Params], Params]:
    r"""Return the map $v \mapsto G\,v$ of the generalized Gauss-Newton matrix.

    Args:
        model_fn: ``(params, *args)`` to outputs.
        params: real arrays.
        loss_fn: ``(outputs, *args)`` to a scalar.

    Returns:
        A function between trees like ``params``; see `gauss_newton`.

    Raises:
        TypeError: if the loss is not one float.
    """
    return hvp(gauss_newton(model_fn, loss_fn), params, *args)


def over(f: ScalarFn, weight_fn: Callable[[Batch], Scalar] | None = None) -> ScalarFn:
    r"""Return the weighted mean of ``f`` over several batches.

    $$F(w, (b_1, \dots, b_k)) = \frac{\sum_i n_i\,f(w, b_i)}{\sum_i n_i}$$

    If ``f`` is a mean over the examples of a batch, this is exactly the mean over all
    examples, even if batches differ in size. Batches are processed one after another
    and recomputed in the backward pass, so the memory is that of one batch.

    Args:
        f: ``(params, batch, *args)`` to a scalar.
        weight_fn: $n_i$, from a batch to a number, such as its unmasked tokens; by
            default the number of examples, the first axis of its leaves.

    Returns:
        ``(params, batches, *args)`` to a scalar, for a sequence of batches. Batches of
        equal shapes are compiled once.

    Raises:
        ValueError: if there are no batches.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad import curvature
        >>> mean = curvature.over(lambda w, x: w * jnp.mean(x))
        >>> batches = [jnp.array([1.0, 2.0]), jnp.array([6.0])]
        >>> print(mean(jnp.array(1.0), batches))
        3.0
    """

    def mean(params: Params, batches: Sequence[Batch], *args: Any) -> jax.Array:
        if len(batches) == 0:
            raise ValueError("need at least one batch, got none")

        # The scan sums values and gradients over the batches, so these must be wide.
        params = jax.tree.map(jnp.asarray, params)
        wide = tree.widen(params)

        def value_of(batch: Batch) -> jax.Array:
            return tree.widen(f(tree.cast_like(wide, params), batch, *args))

        def add(sums: Any, batch: Batch) -> tuple[Any, None]:
            value = jax.checkpoint(value_of)(batch)
            weight = jnp.asarray((weight_fn or _count_examples)(batch), zero.dtype)
            value = value.astype(zero.dtype)
            terms = pair_of(weight * value), pair_of(weight)
            return tuple(map(add_pairs, sums, terms)), None

        narrow = jax.eval_shape(value_of, batches[0]).dtype
        zero = jnp.zeros((), tree.wide_dtype(narrow))
        sums = ((zero, zero), (zero, zero))
        for stack in _stacks(batches):
            sums, _ = lax.scan(add, sums, stack)
        total, weight = (total + rest for total, rest in sums)
        return total / weight

    return mean


def flat_hessian(f: ScalarFn, params: Params, *args: Any) -> FlatHessian:
    """Return the Hessian as a map between vectors, in float32 or wider.

    Raises:
        TypeError: if the value of ``f`` is not one float.
    """
    wide = tree.widen(params)
    flat, unravel = ravel_pytree(wide)
    product = hvp(f, wide, *args)

    def apply(v: jax.Array) -> jax.Array:
        return ravel_pytree(product(unravel(v)))[0]

    return FlatHessian(apply, flat.size, flat.dtype, unravel)


def hessian(f: ScalarFn, params: Params, *args: Any) -> jax.Array:
    r"""Return the Hessian as a matrix, with one product per column.

    Args:
        f: ``(params, *args)`` to a scalar.
        params: real arrays with n entries in all, a few thousand at most.

    Returns:
        Shape (n, n), exactly symmetric, in float32 or wider, for the raveled
        ``params``.

    Raises:
        TypeError: if the value of ``f`` is not one float.
    """
    H = flat_hessian(f, params, *args)
    columns = lax.map(H.apply, jnp.eye(H.size, dtype=H.dtype))
    return (columns + columns.T) / 2


def _check_arguments(f: Any, params: Params, args: Sequence[Any]) -> None:
    check_function(f)
    try:
        inspect.signature(f).bind(params, *args)
    except ValueError:  # a builtin has no signature
        return
    except TypeError as error:
        raise TypeError(
            f"need the arguments of {name_of(f)} after it, the parameters first, got "
            f"{1 + len(args)}: {error}; the vector comes last and apart: "
            "hvp(f, params, *args)(v)"
        ) from error


def _check_scalar(value: Any) -> None:
    if isinstance(value, WeightedSum):
        raise TypeError(
            "need a function whose value is one float, got a WeightedSum: "
            ".mean() gives the float"
        )
    if isinstance(value, tuple):
        raise TypeError(
            f"need a function whose value is one float, got {kind_of(value)}: leave "
            "out the metrics, lambda *args: f(*args)[0]"
        )
    is_float = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
    if not is_float or value.shape != ():
        raise TypeError(f"need a function whose value is one float, got {value}")


def _count_examples(batch: Batch) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def _stacks(batches: Sequence[Batch]) -> list[Batch]:
    """Stack batches of equal structure and shapes along a new first axis."""
    groups: dict[Any, list[Batch]] = {}
    for batch in batches:
        leaves, structure = jax.tree.flatten(batch)
        form = structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
        groups.setdefault(form, []).append(batch)
    return [
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *group)
        for group in groups.values()
    ]
