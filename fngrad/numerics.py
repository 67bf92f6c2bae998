"""Scalars that enter the arithmetic, and the arithmetic that must not go wrong.

Hyperparameters are data. A value written in the program text and the same value
passed as an argument give the same bits, because both pass `hyper`, whose barrier
keeps XLA from folding the constant into its neighbours.
"""

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax import lax

from fngrad.types import Hyper, Scalar

MAX_STEP = np.iinfo(np.int32).max
_FOLDED_SEED = 2**31  # beyond every step: what is folded in for a seed is no step


def hyper(value: Hyper, step: jax.Array | None = None) -> jax.Array:
    """Bring a hyperparameter into the arithmetic; the only way in.

    Args:
        value: a number, a scalar array or tracer, or a schedule ``step -> value``.
        step: int32, shape (); what a schedule is asked for.

    Returns:
        A strong array of shape () and dtype ``jnp.result_type(float)``: float32, or
        float64 under x64, whatever the parameters are. Scalar arithmetic such as
        ``1 - b2`` belongs in this dtype; cast to a leaf's dtype once, afterwards.

    Raises:
        TypeError: a schedule where none can be asked.
        ValueError: the value is not a scalar.
    """
    if callable(value):
        if step is None:
            raise TypeError(
                f"need a number or a scalar array, got {value!r}: this "
                "hyperparameter counts no steps and takes no schedule"
            )
        value = value(step)
    if jnp.shape(value) != ():
        raise ValueError(f"need a scalar hyperparameter, got shape {jnp.shape(value)}")
    if isinstance(value, numbers.Real):
        value = float(value)  # an int may not fit in int32
    strong = jnp.asarray(value).astype(jnp.result_type(float))
    return lax.optimization_barrier(strong)


def check_number(
    name: str, value: Hyper | None, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raise unless a Python number lies in [low, high].

    Arrays, tracers, schedules and None pass unread.

    Raises:
        TypeError: none of these.
        ValueError: out of range, or NaN.
    """
    is_number = isinstance(value, numbers.Real)
    if not (is_number or value is None or callable(value) or hasattr(value, "dtype")):
        raise TypeError(
            f"need {name} to be a number, a scalar array or a schedule, got {value!r}"
        )
    if isinstance(value, numbers.Real) and not low <= float(value) <= high:
        raise ValueError(f"need {low} <= {name} <= {high}, got {name}={value}")


def check_positive(name: str, value: Hyper) -> None:
    """Raise unless a Python number is above 0; other kinds pass unread.

    Raises:
        ValueError: it is not, or NaN.
    """
    if isinstance(value, numbers.Real) and not float(value) > 0:
        raise ValueError(f"need {name} > 0, got {name}={value}")


def check_count(name: str, value: Any, low: int = 0, high: int | None = None) -> int:
    """Return a static number, of steps or of entries, as an int in [low, high].

    Args:
        name: what it is called in the error.
        value: an int, or an integer scalar of NumPy.
        low, high: its bounds; ``high=None`` is none.

    Raises:
        ValueError: it is something else; a bool is no number.

    Example:
        >>> import numpy as np
        >>> from fngrad.numerics import check_count
        >>> check_count("save_every", np.int64(2), 1)
        2
    """
    number = as_int(value)
    if number is None or number < low or (high is not None and number > high):
        limit = "" if high is None else f" and <= {high}"
        raise ValueError(f"need an int {name} >= {low}{limit}, got {name}={value!r}")
    return number


def as_int(value: Any) -> int | None:
    """Return an int, or an integer scalar of NumPy, as an int; None of all else."""
    is_bool = isinstance(value, bool | np.bool_)
    is_int = isinstance(value, numbers.Integral) and not is_bool
    return int(value) if is_int else None


def check_unmasked(what: str, x: Any) -> None:
    """Raise where an array of `numpy.ma` would lose its mask.

    Raises:
        ValueError: it is one.
    """
    if isinstance(x, np.ma.MaskedArray):
        masked = np.ma.count_masked(x)
        raise ValueError(
            f"need {what} without a mask, got a masked array with {masked} of "
            f"{x.size} entries masked: .filled(value) puts a value in their place; "
            "where= or weights= of losses and metrics leave them out"
        )


def integers(name: str, x: Any) -> jax.Array:
    """Return integers of any dtype as int32; those beyond it are -1, never wrapped.

    Raises:
        TypeError: another dtype.
        ValueError: a masked array.
    """
    check_unmasked(name, x)
    # A NumPy array is narrowed here: as a JAX array it would wrap without x64.
    xp = np if isinstance(x, np.ndarray | np.generic) else jnp
    x = xp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"need integer {name}, got dtype {x.dtype}")
    narrow, bounds = x.astype(np.int32), jnp.iinfo(x.dtype)
    if bounds.max > MAX_STEP:
        low = max(int(bounds.min), -MAX_STEP)
        narrow = xp.where((low <= x) & (x <= MAX_STEP), narrow, np.int32(-1))
    return jnp.asarray(narrow)


def power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """Return base ** exponent, 0 with zero gradient where the base is 0."""
    is_zero = base == 0
    return jnp.where(is_zero, 0, jnp.where(is_zero, 1, base) ** exponent)


def double_precision() -> Any:
    """Return a context in which float64 is on, whatever the global flag says.

    Arrays made inside are float64 outside too; arrays of before stay what they were
    (see `as_double`).
    """
    module: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return module.enable_x64(True)


def as_double(a: Any) -> Any:
    """Return a tree's arrays in double precision; integers and keys stay.

    Call it in `double_precision`.
    """

    def widest(x: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
            return x
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            return x.astype(jnp.complex128)
        return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(widest, a)


def norm(
    x: jax.Array, axis: int | Sequence[int] | None = None, keepdims: bool = False
) -> jax.Array:
    """Return the Euclidean norm along axes; its squares neither overflow nor vanish.

    Its gradient at zero is zero, not NaN.

    Args:
        x: at least float32, or complex.
        axis: what is summed over; ``None`` takes all axes.
        keepdims: whether these axes stay, with length one.
    """

    def square(x: jax.Array) -> jax.Array:
        products = jnp.real(jnp.conj(x) * x)
        return jnp.sum(products, axis=axis, keepdims=keepdims)

    def rescaled() -> jax.Array:
        scale = power_of_two_below(jnp.max(magnitudes(x), initial=0) / 2)
        return scale * square_root(square(divided(x, scale)))

    return root_of_squares(square(x), rescaled)


def root_of_squares(square: jax.Array, rescaled: Callable[[], jax.Array]) -> jax.Array:
    """Return the root of a sum of squares, or ``rescaled()`` where that is inexact.

    The squares of what is beyond 1e19 or below 1e-19 do not fit in float32. The usual
    case costs no second pass over the entries and keeps the bits of the plain root.

    Args:
        square: float, any shape.
        rescaled: gives the root from entries divided by a common scale; called where
            any of the squares has left the range in which its sum is exact.
    """
    limits = jnp.finfo(square.dtype)
    # Below it, squares lost to underflow could be seen in a sum of 2**32 of them.
    least = float(limits.tiny) / float(limits.eps) * 2.0**32
    fits = jnp.all((square >= least) & jnp.isfinite(square))
    return lax.cond(fits, lambda: square_root(square), rescaled)


def largest_square(dtype: Any) -> float:
    """Return where squares saturate: the largest float, less room for rounding."""
    return float(jnp.finfo(dtype).max) * (1 - 2.0**-20)


def saturated(x: jax.Array, source: jax.Array) -> jax.Array:
    """Return x >= 0, at most `largest_square`; inf and NaN of its source show in it."""
    bounded = jnp.minimum(x, largest_square(x.dtype))
    return jnp.where(jnp.isfinite(source), bounded, x)


def square_root(x: jax.Array) -> jax.Array:
    """Return the root, 0 with zero gradient where x is 0."""
    is_zero = x == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, x)))


def magnitudes(x: jax.Array) -> jax.Array:
    """Return |x|, and max(|Re x|, |Im x|) where x is complex; it cannot overflow."""
    if jnp.iscomplexobj(x):
        return jnp.maximum(jnp.abs(jnp.real(x)), jnp.abs(jnp.imag(x)))
    return jnp.abs(x)


def modulus(x: jax.Array) -> jax.Array:
    """Return |x| of complex numbers; its squares fit, and its gradient at 0 is 0."""
    scale = power_of_two_below(magnitudes(x) / 2)
    x = divided(x, scale)
    return scale * square_root(jnp.real(x) ** 2 + jnp.imag(x) ** 2)


def divided(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Return x / factor for a real factor; complex division would square it."""
    if jnp.iscomplexobj(x):
        return lax.complex(jnp.real(x) / factor, jnp.imag(x) / factor)
    return x / factor


def power_of_two_below(x: jax.Array) -> jax.Array:
    """Return the largest power of two <= x, without a gradient.

    Dividing by it rounds nothing. It is at least the smallest normal number, also
    where x is 0, and at most the inverse of that, which compilers multiply by; 1 where
    x is not finite.

    Args:
        x: float32 or float64, >= 0, any shape.
    """
    x = lax.stop_gradient(x)
    limits = jnp.finfo(x.dtype)
    words = jnp.uint64 if limits.bits == 64 else jnp.uint32
    exponent = np.array(np.inf, x.dtype).view(words)  # the exponent's bits, all set
    bits = lax.bitcast_convert_type(x, words) & exponent
    power = lax.bitcast_convert_type(bits, x.dtype)
    least = float(limits.tiny)
    return jnp.where(jnp.isfinite(x), jnp.clip(power, least, 1 / least), 1)


def rows(table: jax.Array, indices: jax.Array) -> jax.Array:
    """Return ``table[indices]``; the gradient is summed in at least float32.

    The transpose of a gather adds up what indices that are equal give. In the dtype of
    a 16-bit table this sum would stop at 256 equal terms in bfloat16.

    Args:
        table: shape ``(n, ...)``.
        indices: int, in [0, n), any shape.
    """
    dtype = table.dtype
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return _narrow_rows(table, indices)
    return _rows(table, indices)


def _rows(table: jax.Array, indices: jax.Array) -> jax.Array:
    return table.at[indices].get(mode="promise_in_bounds")


# A rule for tangents, not for cotangents: forward mode works too, and what is cast
# is the tangent of the table, which reverse mode only transposes.
_narrow_rows = jax.custom_jvp(_rows)


@_narrow_rows.defjvp
def _narrow_rows_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    table, indices = primals
    moved = _rows(tangents[0].astype(jnp.float32), indices).astype(table.dtype)
    return _narrow_rows(table, indices), moved


def surprise(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    r"""Return $-\log \mathrm{softmax}(x)$, to every digit where a class is certain.

    With $m = \max_k x_k$ and s the sum of $e^{x_k - m}$ over all classes but the
    largest, it is $(m - x_k) + \log(1 + s)$.
    """
    below = x - lax.stop_gradient(jnp.max(x, axis=axes, keepdims=True))
    return jnp.log1p(exponentials(below, axes)[1]) - below


def exponentials(
    below: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return exp of numbers whose largest is 0, and by how much their sum is above 1.

    The largest adds nothing to the second, but keeps its slope.
    """
    e, is_top = jnp.exp(below), below == 0
    rest = jnp.sum(jnp.where(is_top, 0, e), axis=axes, keepdims=True)
    tops = jnp.sum(jnp.where(is_top, e, 0), axis=axes, keepdims=True)
    return e, rest + (tops - 1)


def first_step() -> jax.Array:
    """Return step 0: int32, shape ()."""
    return jnp.zeros((), jnp.int32)


def next_step(step: jax.Array) -> jax.Array:
    """Return step + 1; at the largest int32 it stays there."""
    return jnp.where(step < MAX_STEP, step + 1, step)


def bias_correction(decay: jax.Array, step: jax.Array) -> jax.Array:
    r"""Return $1 - d^t$ with t = step + 1: the weight an EMA from zero has seen.

    As ``-expm1(t log d)`` it is exact to 2e-7 in float32, where ``1 - d**t`` puts
    Adam 3e-5 away from its float64 trajectory.
    """
    t = step.astype(decay.dtype) + 1  # step + 1 may not fit in int32
    return -jnp.expm1(t * jnp.log(decay))


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Return numerator / denominator, and 0 with zero gradient where that is 0."""
    is_zero = denominator == 0
    # Select before the division: a selected result is rounded with what follows it
    # in one way if the hyperparameters are constants, in another if they are data.
    numerator = jnp.where(is_zero, jnp.zeros_like(numerator), numerator)
    return numerator / jnp.where(is_zero, jnp.ones_like(denominator), denominator)


def key(seed: int | jax.Array) -> jax.Array:
    r"""Return a typed PRNG key from an int (also traced) or from a typed key.

    Every bit of an int counts, its sign too. With the 32-bit words
    $w_0 + 2^{32} w_1 + \dots$ of $s \ge 0$, or of $-1 - s$ where s is negative,

    $$k = \mathrm{key}(w_0) \text{ if } 0 \le s < 2^{32}, \text{ else }
      \mathrm{fold}(\dots \mathrm{fold}(\mathrm{fold}(\mathrm{key}(w_0), h), w_1)
      \dots, w_m), \quad h = 2^{31} + 2 m + [s < 0] .$$

    No step of a run has the number h, so the randomness of a run with the seed $w_0$
    is another. An array or a traced int gives the key of the Python int of its value.

    Args:
        seed: an int of any size, an integer scalar, or a typed key.

    Raises:
        TypeError: anything else, such as a bool or the raw uint32 words of an
            old-style key.

    Example:
        >>> import jax
        >>> import fngrad.numerics as numerics
        >>> numerics.key(5) == jax.random.key(5), numerics.key(5) == numerics.key(-5)
        (Array(True, dtype=bool), Array(False, dtype=bool))
    """
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    if isinstance(seed, jax.Array) and _is_integer_scalar(seed):
        return _key_of_array(seed)
    if isinstance(seed, np.ndarray) and _is_integer_scalar(seed):
        seed = int(seed)
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool):
        raise TypeError(
            f"need an int or a typed key (jax.random.key(seed)), got {seed!r}"
        )
    return _key_of_int(int(seed))


def check_seed(seed: Any) -> None:
    """Raise unless a seed of NumPy's generators is an int >= 0.

    Raises:
        ValueError: it is not.
    """
    is_int = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_int or seed < 0:
        raise ValueError(f"need an int seed >= 0, got {seed=}")


def _is_integer_scalar(x: Any) -> bool:
    return x.shape == () and jnp.issubdtype(x.dtype, jnp.integer)


def _key_of_int(seed: int) -> jax.Array:
    rest = seed if seed >= 0 else -1 - seed
    low, rest = rest % 2**32, rest >> 32
    higher = []
    while rest:
        higher.append(np.uint32(rest % 2**32))
        rest >>= 32
    first = jax.random.key(np.uint32(low))
    if seed >= 0 and not higher:
        return first
    head = np.uint32(_FOLDED_SEED + 2 * len(higher) + (seed < 0))
    return functools.reduce(jax.random.fold_in, [head, *higher], first)


def _key_of_array(seed: jax.Array) -> jax.Array:
    """Return what `_key_of_int` gives for an integer scalar of at most 64 bits."""
    is_negative = seed < 0
    words = jnp.where(is_negative, ~seed, seed)
    is_long = seed.dtype.itemsize == 8
    high = (words >> 32 if is_long else jnp.zeros_like(words)).astype(jnp.uint32)
    first = jax.random.key(words.astype(jnp.uint32))
    if jnp.issubdtype(seed.dtype, jnp.unsignedinteger) and not is_long:
        return first
    count = (high > 0).astype(jnp.uint32)
    head = np.uint32(_FOLDED_SEED) + 2 * count + is_negative.astype(jnp.uint32)
    folded = jax.random.fold_in(first, head)
    if is_long:
        folded = jnp.where(high > 0, jax.random.fold_in(folded, high), folded)
    return jnp.where(is_negative | (high > 0), folded, first)


def scaled(factor: Scalar, x: jax.Array) -> jax.Array:
    """Return factor * x in the dtype of x."""
    return jnp.asarray(factor, x.dtype) * x
