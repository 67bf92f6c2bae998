"""What all losses share: inputs, masks, labels, and the reduction over examples."""

import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.types import Scalar

Axis: TypeAlias = int | Sequence[int] | None
Array: TypeAlias = Any  # a jax or NumPy array, or nested lists of numbers
Reduction: TypeAlias = Literal["none", "mean", "sum"]


class Masks(NamedTuple):
    """What ``where`` and weights other than 0 keep; None is everything."""

    entry: jax.Array | None  # bool, the shape of the predictions
    example: jax.Array | None  # bool, the shape of the loss


def floats(name: str, x: Array) -> jax.Array:
    """Return an array of floats in at least float32.

    Raises:
        TypeError: if the array is not floating.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"need floating {name}, got dtype {x.dtype}")
    return tree.widen(x)


def float_pair(names: tuple[str, str], x: Array, y: Array) -> list[jax.Array]:
    """Return predictions and targets of one shape in one dtype, at least float32.

    Targets may be integers or bools.

    Raises:
        TypeError: if the predictions are not floating, or the targets are complex.
        ValueError: if the shapes differ.
    """
    x, y = floats(names[0], x), jnp.asarray(y)
    if x.shape != y.shape:
        raise ValueError(
            f"need {names[1]} shaped like {names[0]}, "
            f"got {names[0]} {x.shape} and {names[1]} {y.shape}"
        )
    if not jnp.issubdtype(y.dtype, jnp.floating):
        is_number = y.dtype == jnp.bool_ or jnp.issubdtype(y.dtype, jnp.integer)
        if not is_number:
            raise TypeError(f"need real {names[1]}, got dtype {y.dtype}")
        y = y.astype(x.dtype)
    dtype = np.promote_types(x.dtype, tree.wide_dtype(y.dtype))
    return [x.astype(dtype), y.astype(dtype)]


def complex_pair(names: tuple[str, str], x: Array, y: Array) -> list[jax.Array]:
    """Return complex predictions and targets of any number type, of one shape.

    Raises:
        ValueError: if the shapes differ.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    parts = [float_pair(names, part(x), part(y)) for part in (jnp.real, jnp.imag)]
    (x_real, y_real), (x_imag, y_imag) = parts
    return [lax.complex(x_real, x_imag), lax.complex(y_real, y_imag)]


def resolve_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return the axes of one example as distinct numbers in [0, ndim).

    Raises:
        ValueError: if an axis is out of range or given twice.
    """
    if axis is None:
        return ()
    given = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    axes = tuple(operator.index(a) for a in given)
    fits = all(-ndim <= a < ndim for a in axes)
    axes = tuple(a % max(ndim, 1) for a in axes)
    if not fits or len(set(axes)) < len(axes):
        raise ValueError(
            f"need different axes in [{-ndim}, {ndim}) of predictions with {ndim} "
            f"axes, got {axis=}"
        )
    return axes


def class_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return the axes of the classes; there is one at least.

    Raises:
        ValueError: if there is no axis, or one does not fit.
    """
    axes = resolve_axes(axis, ndim)
    if not axes:
        raise ValueError(f"need an axis of classes or coordinates, got {axis=}")
    return axes


def make_masks(
    where: Array | None,
    weights: Array | None,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
) -> Masks:
    """Return what counts, per entry and per example.

    Raises:
        TypeError: if ``where`` is not bool.
        ValueError: if its shape fits neither the predictions nor the loss, or that of
            the weights does not fit the loss.
    """
    outer = tuple(n for i, n in enumerate(shape) if i not in axes)
    masks = _where_masks(where, shape, outer, axes)
    if weights is None:
        return masks
    has_weight = _weights_like(weights, outer) != 0
    entry = jnp.broadcast_to(jnp.expand_dims(has_weight, axes), shape)
    if masks.entry is None or masks.example is None:
        return Masks(entry, has_weight)
    return Masks(masks.entry & entry, masks.example & has_weight)


def keep(mask: jax.Array | None, x: jax.Array, fill: float = 0.0) -> jax.Array:
    """Return x where the mask holds, else ``fill``, which has no gradient."""
    return x if mask is None else jnp.where(mask, x, fill)


def keep_classes(masks: Masks, axes: tuple[int, ...], x: jax.Array) -> jax.Array:
    """Make classes that are left out impossible; an example without any is zeros."""
    if masks.entry is None or masks.example is None:
        return x
    kept = jnp.where(masks.entry, x, -jnp.inf)
    return jnp.where(jnp.expand_dims(masks.example, axes), kept, 0)


def times(weight: jax.Array, value: jax.Array) -> jax.Array:
    """Return weight * value with 0 * inf = 0, also in the gradients."""
    is_void = (weight == 0) & jnp.isinf(value)
    return weight * jnp.where(is_void, 0, value)


def slopes_of(
    plain: Callable[..., jax.Array],
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Give a function that keeps more digits the derivatives of the plain formula."""

    def decorate(value: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        exact = jax.custom_jvp(value)

        def rule(primals: tuple, tangents: tuple) -> tuple[jax.Array, Any]:
            moving = [i for i, t in enumerate(tangents) if is_moving(t)]

            def of_moving(*args: jax.Array) -> jax.Array:
                all_args = dict(enumerate(primals)) | dict(zip(moving, args))  # noqa: B905
                return plain(*all_args.values())

            starts = [primals[i] for i in moving]
            directions = [tangents[i] for i in moving]
            return exact(*primals), jax.jvp(of_moving, starts, directions)[1]

        exact.defjvp(rule, symbolic_zeros=True)
        return exact

    return decorate


def is_moving(tangent: Any) -> bool:
    """Return whether a tangent is more than the zero of an input held constant."""
    return not isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def excess_over_log(r: jax.Array) -> jax.Array:
    r"""Return $r - \log(1 + r)$ for |r| <= 1/2, to every digit.

    With $s = r / (2 + r)$ it is $r s - 2 (s^3/3 + s^5/5 + \dots)$.
    """
    s = r / (2 + r)
    square = s * s
    series = jnp.zeros_like(r)
    for n in range(35, 1, -2):  # 3**-35 is below the digits of float64
        series = square * (series + 1 / n)
    return s * (r - 2 * series)


def reduce(
    loss: jax.Array,
    example: jax.Array | None,
    weights: Array | None,
    reduction: Reduction,
) -> jax.Array:
    """Weigh the losses of the examples, and sum or average them if asked.

    Args:
        loss: one number per example, 0 where ``example`` is False.
        example: the mask of the examples, or None.
        weights: see `fngrad.losses`.
        reduction: see `fngrad.losses`.

    Raises:
        ValueError: if the reduction is unknown, or the weights do not fit the loss.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'need reduction "none", "mean" or "sum", got {reduction=}')
    kept = _weights_like(1 if weights is None else weights, loss.shape)
    kept = keep(example, kept.astype(loss.dtype))
    loss = loss if weights is None else kept * loss
    if reduction == "none":
        return loss
    return jnp.sum(loss) if reduction == "sum" else _mean(loss, kept)


def _mean(loss: jax.Array, kept: jax.Array) -> jax.Array:
    """Return the mean of weighted losses, also where their sum would overflow."""
    small = 2.0 ** -loss.size.bit_length()
    # `numerics.largest` is not needed: a NaN reaches the mean through the sum.
    largest = jnp.max(jnp.abs(lax.stop_gradient(loss)), initial=0)
    limit = float(jnp.finfo(loss.dtype).max) * small
    is_too_large = (largest > limit) & (largest < jnp.inf)
    unit = jnp.where(is_too_large, small, 1).astype(loss.dtype)
    return numerics.divide(jnp.sum(loss * unit), jnp.sum(kept * unit))


def reduce_entries(
    entry_loss: Callable[[jax.Array, jax.Array], jax.Array],
    pair: Sequence[jax.Array],
    axis: Axis,
    where: Array | None,
    weights: Array | None,
    reduction: Reduction,
) -> jax.Array:
    """Sum a loss of single entries over each example, then reduce."""
    x, y = pair
    axes = resolve_axes(axis, x.ndim)
    masks = make_masks(where, weights, x.shape, axes)
    terms = entry_loss(keep(masks.entry, x), keep(masks.entry, y))
    loss = jnp.sum(keep(masks.entry, terms), axis=axes)
    return reduce(loss, masks.example, weights, reduction)


def check_smoothing(label_smoothing: Scalar) -> None:
    """Raise unless a number lies in [0, 1).

    Raises:
        ValueError: if it is out of range.
    """
    if isinstance(label_smoothing, Real) and not 0 <= float(label_smoothing) < 1:
        raise ValueError(
            f"need 0 <= label_smoothing < 1, got label_smoothing={label_smoothing}"
        )


def check_labels(
    labels: Array, shape: tuple[int, ...], classes: int, kept: Array | None
) -> jax.Array:
    """Return labels as int32; raise if a concrete one is out of range.

    Args:
        labels: integers of the given shape.
        shape: that of the loss.
        classes: how many there are.
        kept: bool, the labels that count; None for all.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if the labels have another shape, or a concrete one is outside
            [0, classes).
    """
    index = numerics.integers("labels", labels)
    if index.shape != shape:
        raise ValueError(f"need labels of shape {shape}, got shape {index.shape}")
    if numerics.is_known(labels) and (kept is None or numerics.is_known(kept)):
        values = np.asarray(labels)
        signed = values.astype(np.int64)  # of the unsigned, only 2**63 and up wrap
        is_wrong = (signed < 0) | (signed >= classes)
        wrong = values[is_wrong if kept is None else is_wrong & np.asarray(kept)]
        if wrong.size:
            raise ValueError(
                f"need labels in [0, {classes}), got {wrong[0]} "
                f"({wrong.size} of {values.size} labels are out of range)"
            )
    return index


def _where_masks(
    where: Array | None,
    shape: tuple[int, ...],
    outer: tuple[int, ...],
    axes: tuple[int, ...],
) -> Masks:
    if where is None:
        return Masks(None, None)
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"need a mask of bools as where, got dtype {where.dtype}")
    if where.ndim == len(outer) and _broadcasts(where.shape, outer):
        example = jnp.broadcast_to(where, outer)
        entry = jnp.broadcast_to(jnp.expand_dims(example, axes), shape)
        return Masks(entry, example)
    if where.ndim == len(shape) and _broadcasts(where.shape, shape):
        entry = jnp.broadcast_to(where, shape)
        return Masks(entry, jnp.any(entry, axis=axes))
    raise ValueError(
        f"need where with the shape of the predictions {shape} or of the loss "
        f"{outer}, got {where.shape}"
    )


def absolute(x: jax.Array) -> jax.Array:
    """Return |x| of real numbers, whose slope at 0 is 0; that of `jnp.abs` is 1."""
    return jnp.sign(x) * x


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return all(n in (1, m) for n, m in zip(shape, to, strict=True))


def _weights_like(weights: Array, shape: tuple[int, ...]) -> jax.Array:
    weights = jnp.asarray(weights)
    if jnp.iscomplexobj(weights):
        raise TypeError(f"need real weights, got dtype {weights.dtype}")
    fits = weights.ndim == len(shape) and _broadcasts(weights.shape, shape)
    if weights.ndim and not fits:
        raise ValueError(
            f"need weights with the shape of the loss {shape}, "
            f"got shape {weights.shape}"
        )
    return jnp.broadcast_to(weights, shape)
