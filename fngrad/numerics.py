"""Scalars that enter the arithmetic, and the arithmetic that must not go wrong.

Hyperparameters are data. A value written in the program text and the same value
passed as an argument give the same bits, because both pass `hyper`, whose barrier
keeps XLA from folding the constant into its neighbours.
"""

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


def check_count(name: str, value: Any, low: int = 0) -> None:
    """Raise unless a static number, of steps or of entries, is an int >= low.

    Raises:
        ValueError: it is not; a bool is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"need an int {name} >= {low}, got {name}={value!r}")


def integers(name: str, x: Any) -> jax.Array:
    """Return integers of any dtype as int32; those beyond it are -1, never wrapped.

    Raises:
        TypeError: another dtype.
    """
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
    where x is 0, and 1 where x is not finite. XLA may divide by multiplying with the
    reciprocal: that of 2**127 is subnormal, and flushed to 0, so a divisor is made
    from half of what may be that large.

    Args:
        x: float32 or float64, >= 0, any shape.
    """
    x = lax.stop_gradient(x)
    limits = jnp.finfo(x.dtype)
    words = jnp.uint64 if limits.bits == 64 else jnp.uint32
    exponent = np.array(np.inf, x.dtype).view(words)  # the exponent's bits, all set
    bits = lax.bitcast_convert_type(x, words) & exponent
    power = lax.bitcast_convert_type(bits, x.dtype)
    return jnp.where(jnp.isfinite(x), jnp.maximum(power, limits.tiny), 1)


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
    """Return a typed PRNG key from an int (also traced) or from a typed key.

    Raises:
        TypeError: anything else, such as the raw uint32 words of an old-style key.
    """
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    is_int = jnp.shape(seed) == () and jnp.issubdtype(
        jnp.result_type(seed), jnp.integer
    )
    if not is_int:
        raise TypeError(
            f"need an int or a typed key (jax.random.key(seed)), got {seed!r}"
        )
    return jax.random.key(seed)


def scaled(factor: Scalar, x: jax.Array) -> jax.Array:
    """Return factor * x in the dtype of x."""
    return jnp.asarray(factor, x.dtype) * x
