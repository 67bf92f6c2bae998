r"""Normalization: $y = \gamma (x - m) / \sqrt{v + \epsilon} + \beta$.

The layers differ in what the mean $m$ and the variance $v$ are taken over. Both, and
the arithmetic up to y, are in at least float32 whatever x is. The parameters are
``scale`` $\gamma$, which begins at 1, and ``bias`` $\beta$, which begins at 0: weight
decay on ``**/weight`` leaves them alone. A constant x gives $y = \beta$ with a finite
gradient, also where $\epsilon = 0$. The squares neither overflow nor vanish: y is right
for every x whose entries are finite.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

import fngrad.layers.initializers as initializers
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.layers.core import (
    REMEDY,
    Layer,
    StatefulLayer,
    along_last,
    check_params,
    check_shapes,
    check_sizes,
    float_array_of,
    no_params,
    with_narrow_residuals,
)
from fngrad.layers.initializers import draw
from fngrad.layers.layer_tree import by_position
from fngrad.layers.standardization import Over, standardize, standardize_example
from fngrad.programs.keywords_elsewhere import OF_LAYERS, explains_keywords
from fngrad.types import Key, ModelState, Params, Path, Scalar


@explains_keywords(OF_LAYERS)
def layer_norm(
    size: int, *, eps: float = 1e-5, scale: bool = True, bias: bool = True
) -> Layer:
    r"""Normalize over the last axis.

    Args:
        size: of the last axis; leading axes are kept apart.
        eps: $\epsilon$, in squared units of x.
        scale: whether there is a $\gamma$, shape ``(size,)``.
        bias: whether there is a $\beta$, shape ``(size,)``.

    Raises:
        TypeError: if eps is traced.
        ValueError: if size is below 1 or eps below 0; at ``apply``, if x has another
            last axis or is not floating, or the parameters have other shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.layer_norm(2)
        >>> params = layer.init(jax.random.key(0))
        >>> print(jax.jit(layer.apply)(params, jnp.array([3.0, 5.0])).round(3))
        [-1.  1.]

    References:
        Ba, Kiros and Hinton 2016, "Layer normalization",
        https://arxiv.org/abs/1607.06450
    """
    check_sizes(size=size)
    eps = _checked_eps(eps)
    shapes = _shapes(size, scale, bias)

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, shapes)
        return with_narrow_residuals(normalize, params, float_array_of(x, size))

    def normalize(params: Params, x: jax.Array) -> jax.Array:
        y = standardize_example(eps, Over(axes=(-1,)), _widen(x)).y
        return _rescale(params, y, x)

    return Layer(_init(shapes), by_position(apply))


@explains_keywords(OF_LAYERS)
def rms_norm(size: int, *, eps: float = 1e-6, scale: bool = True) -> Layer:
    r"""Divide by the root of the mean square over the last axis; subtract nothing.

    Args:
        size: of the last axis; leading axes are kept apart.
        eps: $\epsilon$, in squared units of x.
        scale: whether there is a $\gamma$, shape ``(size,)``.

    Raises:
        TypeError: if eps is traced.
        ValueError: if size is below 1 or eps below 0; at ``apply``, if x has another
            last axis or is not floating, or the parameters have other shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.rms_norm(2)
        >>> params = layer.init(jax.random.key(0))
        >>> print(jax.jit(layer.apply)(params, jnp.array([0.0, 2.0])).round(2))
        [0.   1.41]

    References:
        Zhang and Sennrich 2019, "Root mean square layer normalization",
        https://arxiv.org/abs/1910.07467
    """
    check_sizes(size=size)
    eps = _checked_eps(eps)
    shapes = _shapes(size, scale, bias=False)

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, shapes)
        return with_narrow_residuals(normalize, params, float_array_of(x, size))

    def normalize(params: Params, x: jax.Array) -> jax.Array:
        over = Over(axes=(-1,))
        y = standardize_example(eps, over, _widen(x), is_centered=False).y
        return _rescale(params, y, x)

    return Layer(_init(shapes), by_position(apply))


@explains_keywords(OF_LAYERS)
def group_norm(
    channels: int,
    groups: int,
    *,
    eps: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
) -> Layer:
    r"""Normalize over all positions and the channels of a group.

    Args:
        channels: the last axis of x.
        groups: the channels are split in so many; 1 normalizes over the whole
            example, ``channels`` each channel by itself (instance norm).
        eps: $\epsilon$, in squared units of x.
        scale: whether there is a $\gamma$, shape ``(channels,)``.
        bias: whether there is a $\beta$, shape ``(channels,)``.

    Raises:
        TypeError: if eps is traced.
        ValueError: if a size is below 1, eps is below 0, or groups does not divide the
            channels; at ``apply``, if x has another last axis or is not floating, or
            the parameters have other shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.group_norm(4, groups=2)
        >>> params = layer.init(jax.random.key(0))
        >>> x = jnp.array([1.0, 3.0, 10.0, 30.0])
        >>> print(jax.jit(layer.apply)(params, x).round(3))
        [-1.  1. -1.  1.]

    References:
        Wu and He 2018, "Group normalization", https://arxiv.org/abs/1803.08494
    """
    check_sizes(channels=channels, groups=groups)
    eps = _checked_eps(eps)
    if channels % groups:
        raise ValueError(f"need groups that divide channels, got {groups=} {channels=}")
    shapes = _shapes(channels, scale, bias)

    def apply(params: Params, x: jax.Array, *, key: Key | None = None) -> jax.Array:
        check_params(params, shapes)
        return with_narrow_residuals(normalize, params, float_array_of(x, channels))

    def normalize(params: Params, x: jax.Array) -> jax.Array:
        grouped = _widen(x).reshape(*x.shape[:-1], groups, channels // groups)
        over = Over(axes=(*range(x.ndim - 1), -1))
        y = standardize_example(eps, over, grouped).y
        return _rescale(params, y.reshape(x.shape), x)

    return Layer(_init(shapes), apply)


@explains_keywords(OF_LAYERS)
def batch_norm(
    channels: int,
    *,
    momentum: Scalar = 0.9,
    eps: float = 1e-5,
    scale: bool = True,
    bias: bool = True,
    axis_name: str | Sequence[str] | None = "batch",
) -> StatefulLayer:
    r"""Normalize each channel over all positions of all examples of the batch.

    With a key the statistics are those of the batch, and the model state, ``mean`` and
    ``var``, moves toward them: $r \leftarrow \rho\, r + (1 - \rho)\, s$. Without one
    they are the running ones, and the state stays. The state has the default float
    dtype; $v$ is the biased variance, also in the running one. A running statistic that
    overflows becomes the largest float, and recovers.

    Args:
        channels: the last axis of x.
        momentum: $\rho$ in [0, 1], a number, a scalar array or a tracer; torch calls
            $1 - \rho$ momentum, and keeps the unbiased variance running.
        eps: $\epsilon$, in squared units of x.
        scale: whether there is a $\gamma$, shape ``(channels,)``.
        bias: whether there is a $\beta$, shape ``(channels,)``.
        axis_name: of the vmap (or device) axes that make the batch; that of
            `fngrad.layers.batched` by default. None takes the positions of the one
            example only.

    Raises:
        TypeError: if eps is traced.
        ValueError: if size is below 1, momentum outside [0, 1], or eps below 0; at
            ``apply``, if x has another last axis or is not floating, the parameters or
            the model state have other shapes, or there is a key and no axis has the
            name.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.batch_norm(1)
        >>> params, state = layer.init(jax.random.key(0))
        >>> x = jnp.array([[1.0], [3.0]])
        >>> forward = jax.jit(layers.batched(layer))
        >>> y, state = forward(params, state, x, key=jax.random.key(1))
        >>> print(y[:, 0].round(3), state["mean"].round(3))
        [-1.  1.] [0.2]

    References:
        Ioffe and Szegedy 2015, "Batch normalization", algorithms 1 and 2,
        https://arxiv.org/abs/1502.03167. Differs from it in: a running average of the
        biased variance instead of the mean of unbiased ones.
    """
    check_sizes(channels=channels)
    numerics.check_number("momentum", momentum, low=0.0, high=1.0)
    eps = _checked_eps(eps)
    shapes = _shapes(channels, scale, bias)
    init_params = _init(shapes)
    running = {"mean": (channels,), "var": (channels,)}

    def init(key: Key) -> tuple[Params, ModelState]:
        dtype = jnp.result_type(float)
        state = {"mean": jnp.zeros(channels, dtype), "var": jnp.ones(channels, dtype)}
        return init_params(key), state

    def apply(
        params: Params,
        model_state: ModelState,
        x: jax.Array,
        *,
        key: Key | None = None,
    ) -> tuple[jax.Array, ModelState]:
        check_params(params, shapes, REMEDY)
        check_shapes("model state", model_state, running, REMEDY)
        x = float_array_of(x, channels)
        if key is None:
            used = jax.tree.map(lambda s: s.astype(_widen(x).dtype), model_state)
            return with_narrow_residuals(evaluated, (params, used), x), model_state
        y, seen = with_narrow_residuals(trained, params, x)
        before, seen = (_finite(s, model_state) for s in (model_state, seen))
        moved = tree.average(numerics.hyper(momentum), before, seen)
        return y, _finite(moved, model_state)

    def evaluated(arrays: tuple[Params, ModelState], x: jax.Array) -> jax.Array:
        params, used = arrays
        mean, root = used["mean"], numerics.inverse_root(used["var"] + eps)
        y = (_widen(x) - along_last(mean, x.shape)) * along_last(root, x.shape)
        return _rescale(params, y, x)

    def trained(params: Params, x: jax.Array) -> tuple[jax.Array, ModelState]:
        over = Over(tuple(range(x.ndim - 1)), axis_name)
        y, _, scale, mean, var = standardize(eps, over, _widen(x))
        seen = {"mean": scale * mean, "var": scale * (scale * var)}
        return _rescale(params, y, x), seen

    return StatefulLayer(init, apply)


def _finite(statistics: ModelState, like: ModelState) -> ModelState:
    """Return statistics in the dtypes of ``like``; what overflows is the largest float.

    An average that has become infinite would stay so.
    """

    def saturate(x: jax.Array, like: jax.Array) -> jax.Array:
        most = jnp.finfo(like.dtype).max
        return jnp.clip(lax.stop_gradient(x).astype(like.dtype), -most, most)

    return jax.tree.map(saturate, statistics, like)


def _shapes(size: int, scale: bool, bias: bool) -> dict[Path, tuple[int, ...]]:
    wanted = {"scale": scale, "bias": bias}
    return {name: (size,) for name, is_wanted in wanted.items() if is_wanted}


def _init(shapes: dict[Path, tuple[int, ...]]) -> Callable[[Key], Params]:
    if not shapes:
        return no_params
    begin = {"scale": initializers.ones(), "bias": initializers.zeros()}

    def init(key: Key) -> Params:
        return {name: draw(begin[name], key, shape) for name, shape in shapes.items()}

    return init


def _checked_eps(eps: float) -> float:
    if isinstance(eps, Tracer):
        raise TypeError(f"need eps as a number, got a traced {eps.dtype}")
    numerics.check_number("eps", eps, low=0.0)
    return float(eps)


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(tree.wide_dtype(x.dtype))


def _rescale(params: Params, y: jax.Array, x: jax.Array) -> jax.Array:
    """Return scale * y + bias, computed as wide as y and params, in the dtype of x."""
    wide = functools.reduce(
        np.promote_types, (p.dtype for p in jax.tree.leaves(params)), y.dtype
    )
    y = y.astype(wide)
    if "scale" in params:
        y = y * along_last(params["scale"].astype(wide), y.shape)
    if "bias" in params:
        y = y + along_last(params["bias"].astype(wide), y.shape)
    return y.astype(x.dtype)
