r"""First values of parameters, by the names the field gives them.

An *initializer* is a function ``(key, shape, dtype) -> array``; every name here makes
one, and those of `jax.nn.initializers` are of this kind. The last two axes of a shape
are the inputs and the outputs of a layer, the axes before them are a convolution's
window: $\text{fan}_\text{in}$ is the number of inputs times the size of the window,
and $\text{fan}_\text{out}$ likewise.

The normal ones are cut off at two standard deviations and then widened, so that the
variance is the one given. ``scale`` multiplies the values; it may be a tracer, so
that a sweep can try many.

References:
    He et al. 2015, "Delving deep into rectifiers", https://arxiv.org/abs/1502.01852
    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward
    neural networks", https://proceedings.mlr.press/v9/glorot10a.html
    LeCun et al. 1998, "Efficient BackProp"
    Saxe et al. 2014, "Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks", https://arxiv.org/abs/1312.6120
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.types import Key, Params, Path, Scalar

__all__ = [
    "Initializer",
    "constant",
    "delta_orthogonal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "orthogonal",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "zeros",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # type checkers report names that are not there
    from fngrad.programs.missing_names import missing_from as _missing_from

    __getattr__ = _missing_from(__name__)


Initializer: TypeAlias = Callable[[Key, tuple[int, ...], Any], jax.Array]

Mode: TypeAlias = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]
Distribution: TypeAlias = Literal["truncated_normal", "normal", "uniform"]
Axes: TypeAlias = int | Sequence[int]

_STDDEV_WITHIN_TWO = 0.87962566103423978  # of a standard normal cut off at two


def he_normal(scale: Scalar = 1.0) -> Initializer:
    r"""Draw with variance $2/\text{fan}_\text{in}$: keeps a signal's size under relu.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.layers import initializers
        >>> w = initializers.he_normal()(jax.random.key(0), (200, 100), jnp.float32)
        >>> bool(jnp.abs(jnp.std(w) - 0.1) < 0.002)
        True
    """
    return _scaled(scale, _variance_scaling(2.0, "fan_in", "truncated_normal"))


def he_uniform(scale: Scalar = 1.0) -> Initializer:
    r"""Draw from $\pm\sqrt{6/\text{fan}_\text{in}}$, variance as `he_normal`."""
    return _scaled(scale, _variance_scaling(2.0, "fan_in", "uniform"))


def glorot_normal(scale: Scalar = 1.0) -> Initializer:
    r"""Draw with variance $2/(\text{fan}_\text{in} + \text{fan}_\text{out})$."""
    return _scaled(scale, _variance_scaling(1.0, "fan_avg", "truncated_normal"))


def glorot_uniform(scale: Scalar = 1.0) -> Initializer:
    r"""Draw from $\pm\sqrt{6/(\text{fan}_\text{in} + \text{fan}_\text{out})}$."""
    return _scaled(scale, _variance_scaling(1.0, "fan_avg", "uniform"))


def lecun_normal(scale: Scalar = 1.0) -> Initializer:
    r"""Draw with variance $1/\text{fan}_\text{in}$: keeps the size of a signal."""
    return _scaled(scale, _variance_scaling(1.0, "fan_in", "truncated_normal"))


def lecun_uniform(scale: Scalar = 1.0) -> Initializer:
    r"""Draw from $\pm\sqrt{3/\text{fan}_\text{in}}$, variance as `lecun_normal`."""
    return _scaled(scale, _variance_scaling(1.0, "fan_in", "uniform"))


def orthogonal(scale: Scalar = 1.0) -> Initializer:
    r"""Draw a uniformly distributed orthogonal matrix $Q$ times ``scale``.

    All axes but the last count as one. The columns are orthonormal, $Q^\top Q = I$,
    or the rows, where there are fewer.
    """
    base = jax.nn.initializers.orthogonal()

    def init(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return base(key, shape, tree.wide_dtype(dtype)).astype(dtype)

    return _scaled(scale, init)


def normal(stddev: Scalar = 0.02) -> Initializer:
    """Draw from a normal distribution with mean 0."""
    return _scaled(stddev, _flat(jax.random.normal))


def truncated_normal(
    stddev: Scalar = 0.02, *, lower: float = -2.0, upper: float = 2.0
) -> Initializer:
    """Draw from a normal distribution cut off at lower and upper times ``stddev``.

    ``stddev`` is the one before the cut, as elsewhere in the field; cut at two, the
    values have 0.88 of it.

    Raises:
        ValueError: if lower is not below upper.
    """
    if not lower < upper:
        raise ValueError(f"need lower < upper, got {lower=} {upper=}")

    return _scaled(stddev, _flat(_between(lower, upper)))


def uniform(bound: Scalar = 0.05) -> Initializer:
    """Draw uniformly from [-bound, bound)."""

    return _scaled(bound, _flat(_symmetric))


def zeros() -> Initializer:
    """Begin at 0."""
    return jax.nn.initializers.zeros


def ones() -> Initializer:
    """Begin at 1."""
    return jax.nn.initializers.ones


def constant(value: Scalar) -> Initializer:
    """Begin at one value."""
    return _scaled(value, jax.nn.initializers.ones)


def variance_scaling(
    scale: Scalar = 1.0,
    mode: Mode = "fan_in",
    distribution: Distribution = "truncated_normal",
    *,
    in_axis: Axes = -2,
    out_axis: Axes = -1,
    batch_axis: Axes = (),
) -> Initializer:
    r"""Draw with variance ``scale`` / fan: every fan and distribution by its name.

    ``variance_scaling(2.0)`` is `he_normal`, ``variance_scaling(1.0, "fan_avg",
    "uniform")`` is `glorot_uniform`, bit for bit.

    Args:
        scale: at least 0, of the variance, not of the values; may be a tracer.
        mode: the fan, ``"fan_in"``, ``"fan_out"``, their mean ``"fan_avg"``, or the
            root of their product, ``"fan_geo_avg"``.
        distribution: ``"truncated_normal"``, ``"normal"`` or ``"uniform"``.
        in_axis: the axis or axes of the inputs.
        out_axis: those of the outputs.
        batch_axis: axes of weights apart, such as the heads of attention or layers in a
            stack; all others are a convolution's window.

    Raises:
        ValueError: if the scale is below 0, or a name is unknown; for a shape that is
            empty or lacks an axis.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.layers import initializers
        >>> draw = initializers.variance_scaling(1.0, "fan_out", batch_axis=0)
        >>> w = draw(jax.random.key(0), (5, 200, 100), jnp.float32)
        >>> bool(jnp.abs(jnp.std(w) - 0.1) < 0.002)
        True
    """
    numerics.check_number("scale", scale, low=0.0)
    numerics.check_choice("mode", mode, get_args(Mode))
    numerics.check_choice("distribution", distribution, get_args(Distribution))
    axes = _Axes(*map(_axes, (in_axis, out_axis, batch_axis)))
    return _scaled(1.0, _variance_scaling(scale, mode, distribution, axes))


def delta_orthogonal(scale: Scalar = 1.0) -> Initializer:
    r"""Draw an orthogonal matrix for the middle of a window, and 0 around it.

    The kernel $W$ of shape ``(*window, inputs, outputs)``, over one to three axes, has
    $W_{\text{mid}} W_{\text{mid}}^\top = I$ times ``scale`` squared, so that a
    convolution with stride 1 keeps the norm of what it maps. The middle of an even
    window is the one before its centre.

    Raises:
        ValueError: for a shape without a window, or with fewer outputs than inputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.layers import initializers
        >>> draw = initializers.delta_orthogonal()
        >>> w = draw(jax.random.key(0), (3, 2, 4), jnp.float32)
        >>> print(jnp.sum(w * w, axis=(1, 2)).round(3))
        [0. 2. 0.]

    References:
        Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs",
        algorithm 2, https://arxiv.org/abs/1806.05393
    """

    def init(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        if len(shape) not in (3, 4, 5) or 0 in shape or shape[-1] < shape[-2]:
            raise ValueError(
                "need a shape (*window, inputs, outputs) with a window of 1 to 3 axes "
                f"and outputs >= inputs, got {shape}"
            )
        outputs = shape[-1]
        square = orthogonal()(key, (outputs, outputs), dtype)
        middle = tuple((size - 1) // 2 for size in shape[:-2])
        return jnp.zeros(shape, dtype).at[middle].set(square[: shape[-2]])

    return _scaled(scale, init)


class _Axes(NamedTuple):
    of_in: tuple[int, ...]
    of_out: tuple[int, ...]
    of_batch: tuple[int, ...]


_LAST = _Axes((-2,), (-1,), ())


def _axes(axes: Axes) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)


def _variance_scaling(
    numerator: Scalar, mode: Mode, distribution: Distribution, axes: _Axes = _LAST
) -> Initializer:
    """Return JAX's initializer of that name, which draws real numbers flat."""

    def init(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        fan = _FANS[mode](*_fans(shape, axes))
        if jnp.issubdtype(dtype, jnp.complexfloating):
            base = jax.nn.initializers.variance_scaling(
                numerator, mode, distribution, *axes
            )
            return base(key, shape, dtype)
        factor, standard = _factor(numerator, fan, distribution, dtype)
        return numerics.scaled(jnp.asarray(factor), _flat(standard)(key, shape, dtype))

    return init


def _factor(
    numerator: Scalar, fan: float, distribution: Distribution, dtype: Any
) -> tuple[Any, Initializer]:
    """Return the scale of the values, and the standard distribution that it scales."""
    is_number = isinstance(numerator, int | float)
    if is_number:
        variance = np.asarray(numerator / fan, dtype)
    else:
        variance = (numerics.hyper(numerator) / fan).astype(dtype)
    root = (np if is_number else jnp).sqrt
    if distribution == "uniform":
        return root(np.asarray(3, dtype) * variance), _symmetric
    if distribution == "normal":
        return root(variance), jax.random.normal
    return root(variance) / np.asarray(_STDDEV_WITHIN_TWO, dtype), _between(-2, 2)


_FANS: dict[Mode, Callable[[int, int], float]] = {
    "fan_in": lambda fan_in, fan_out: fan_in,
    "fan_out": lambda fan_in, fan_out: fan_out,
    "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
    "fan_geo_avg": lambda fan_in, fan_out: math.sqrt(fan_in * fan_out),
}


def _fans(shape: tuple[int, ...], axes: _Axes = _LAST) -> tuple[int, int]:
    named = [axis for several in axes for axis in several]
    is_there = all(-len(shape) <= axis < len(shape) for axis in named)
    places = {axis % len(shape) for axis in named} if is_there else set()
    if 0 in shape or len(places) < len(named):
        wanted = "" if axes == _LAST else f", with {axes}"
        raise ValueError(
            f"need a shape (..., inputs, outputs) without zeros{wanted}, got {shape}"
        )
    of_in, of_out, of_batch = (
        math.prod(shape[axis] for axis in several) for several in axes
    )
    window = math.prod(shape) // (of_in * of_out * of_batch)
    return window * of_in, window * of_out


def _between(lower: float, upper: float) -> Initializer:
    return lambda key, shape, dtype: jax.random.truncated_normal(
        key, lower, upper, shape, dtype
    )


def _symmetric(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, minval=-1.0)


def _flat(base: Initializer) -> Initializer:
    """Draw a vector and shape it: the same values, and XLA compiles it much faster."""

    def init(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return base(key, (math.prod(shape),), dtype).reshape(shape)

    return init


def _scaled(scale: Scalar, base: Initializer) -> Initializer:
    numerics.check_number("scale", scale)

    def init(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        # In one program XLA would merge this factor with those of the distribution.
        drawn = lax.optimization_barrier(base(key, shape, dtype))
        return numerics.scaled(numerics.hyper(scale), drawn)

    return init


# Defaults of layers and models, made once.
GLOROT = glorot_uniform()  # of weights before no activation
HE = he_normal()  # of weights before a relu
ZEROS = zeros()  # of biases


def draw(weight_init: Initializer, key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Return a new parameter, in the default float dtype."""
    return weight_init(numerics.key(key), shape, jnp.result_type(float))


def dense_shapes(
    shape: tuple[int, ...], bias: bool, name: Path = ""
) -> dict[Path, tuple[int, ...]]:
    """Return the shapes of `dense_params` by path, below a name if there is one."""
    front = f"{name}/" if name else ""
    weight = {f"{front}weight": shape}
    return weight | {f"{front}bias": shape[-1:]} if bias else weight


def dense_params(
    key: Key,
    shape: tuple[int, ...],
    weight_init: Initializer,
    bias_init: Initializer | None,
) -> Params:
    """Return ``weight`` of a shape that ends in the outputs, and their ``bias``."""
    k_weight, k_bias = jax.random.split(numerics.key(key))
    params = {"weight": draw(weight_init, k_weight, shape)}
    if bias_init is not None:
        params["bias"] = draw(bias_init, k_bias, shape[-1:])
    return params
