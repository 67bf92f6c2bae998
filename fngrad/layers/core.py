r"""The layer, and what every layer is built from.

A *layer* is a pair of pure functions: ``init(key) -> params`` and
``apply(params, x, *, key=None) -> y``. It works on ONE example; `jax.vmap` makes the
batch, and `batched` does so with a key for each example. A key means training, none
means evaluation: dropout drops, and batch statistics are taken, only with a key.

A *stateful layer* also carries a model state, which is not learned by gradients.
Wherever a layer is taken, a plain function of x is taken too.

Parameters are created in ``jnp.result_type(float)``. A product is computed in the dtype
of its weight, and its output has this dtype. Every other parameter (a bias, a scale, a
position) leaves the dtype of what it is added to or multiplied with unchanged, and a
residual branch that of its input. So single leaves can be wider than the others, and
the products that follow stay narrow. Means, variances and softmaxes are taken in at
least float32.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

import fngrad.layers.layer_tree as layer_tree
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.layers.low_rank_adapters import whole
from fngrad.layers.one_program import as_one_program
from fngrad.numerics.precision import is_narrow
from fngrad.programs.printed import preformatted, shown
from fngrad.programs.undrawn_randomness import note
from fngrad.types import Key, ModelState, Params, Path, Scalar


class _Layer(NamedTuple):
    init: Callable[..., Params]  # (key) -> params; an int will do as the key
    apply: Callable[..., Any]  # (params, x, *, key=None) -> y


class Layer(_Layer):
    """A pair of pure functions that learns from parameters; x is one example."""

    __slots__ = ()

    # Said again for the API pages, which leave out the fields of a private class.
    init: Callable[..., Params]
    apply: Callable[..., Any]

    def __new__(cls, init: Callable[..., Params], apply: Callable[..., Any]) -> "Layer":
        """Make a layer whose ``init`` explains a missing key and is one program."""
        return super().__new__(cls, _whole(init), apply)

    def __repr__(self) -> str:
        return shown(self, layer_tree.text)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


class _StatefulLayer(NamedTuple):
    init: Callable[..., tuple[Params, ModelState]]  # (key) -> (params, model_state)
    apply: Callable[..., tuple[Any, ModelState]]
    # (params, model_state, x, *, key=None) -> (y, model_state)


class StatefulLayer(_StatefulLayer):
    """A layer that carries a state from call to call, such as running statistics."""

    __slots__ = ()

    init: Callable[..., tuple[Params, ModelState]]
    apply: Callable[..., tuple[Any, ModelState]]

    def __new__(
        cls,
        init: Callable[..., tuple[Params, ModelState]],
        apply: Callable[..., tuple[Any, ModelState]],
    ) -> "StatefulLayer":
        """Make a layer whose ``init`` explains a missing key and is one program."""
        return super().__new__(cls, _whole(init), apply)

    def __repr__(self) -> str:
        return shown(self, layer_tree.text)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


# For a model state that is missing, or in the place of the parameters.
REMEDY = (
    "; a stateful layer's init gives both: `params, model_state = model.init(key)`, "
    "then `init_state(..., model_state=model_state)`"
)

_MOST_SHOWN = 8  # leaves of a layer in the message of its error

LayerLike: TypeAlias = Layer | StatefulLayer | Callable[[Any], Any]


def _whole(init: Callable[..., Any]) -> Callable[..., Any]:
    """Return the ``init`` of a layer: one program that asks for a key."""
    return init if hasattr(init, _KEYED) else _asks_for_key(as_one_program(init))


def _asks_for_key(init: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``init``, which without a key raises a TypeError that explains it."""

    @functools.wraps(init)
    def keyed(*args: Any, **named: Any) -> Any:
        if not args and not named:
            raise TypeError(
                "need a key, or an int as the seed of one, got none: "
                "model.init(jax.random.key(0))"
            )
        return init(*args, **named)

    setattr(keyed, _KEYED, True)
    return keyed


_KEYED = "_asks_for_key"


@_asks_for_key
def no_params(key: Key) -> Params:
    """Return ``()``: the ``init`` of every layer that learns nothing.

    Combinators recognize such layers by it and give them no place in the parameters.
    """
    return ()


def batched(
    layer: Layer | StatefulLayer, *, axis_name: str = "batch"
) -> Callable[..., Any]:
    """Return the layer's ``apply`` over a leading batch axis.

    Args:
        layer: of one example.
        axis_name: names the batch axis for layers that take statistics over it.

    Returns:
        For a layer, ``apply(params, x, *, key=None, **arguments) -> y``; for a
        stateful one ``apply(params, model_state, x, *, key=None, **arguments) ->
        (y, model_state)``. x, y and further arguments have a leading axis; example i
        gets ``fold_in(key, i)``; the new model state must be the same for every
        example, as that of `batch_norm` is.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> model = layers.serial(layers.linear(3, 2), layers.dropout(0.5))
        >>> params = model.init(jax.random.key(0))
        >>> x = jnp.ones((5, 3))
        >>> jax.jit(layers.batched(model))(params, x, key=jax.random.key(1)).shape
        (5, 2)
    """

    def map_examples(fn: Callable, out_axes: Any, x: Any, key: Any, rest: Any) -> Any:
        mapped = jax.vmap(fn, out_axes=out_axes, axis_name=axis_name)
        return mapped(x, _key_per_example(key, x), rest)

    def apply(params: Params, x: Any, *, key: Key | None = None, **arguments) -> Any:
        def one(x: Any, key: Key | None, arguments: dict) -> Any:
            return layer.apply(params, x, key=key, **arguments)

        return map_examples(one, 0, x, key, arguments)

    def apply_stateful(
        params: Params,
        model_state: ModelState,
        x: Any,
        *,
        key: Key | None = None,
        **arguments,
    ) -> tuple[Any, ModelState]:
        def one(x: Any, key: Key | None, arguments: dict) -> tuple[Any, ModelState]:
            return layer.apply(params, model_state, x, key=key, **arguments)

        return map_examples(one, (0, None), x, key, arguments)

    return apply_stateful if isinstance(layer, StatefulLayer) else apply


def _key_per_example(key: Key | None, x: Any) -> Key | None:
    if key is None:
        return None
    indices = jnp.arange(jnp.shape(jax.tree.leaves(x)[0])[0], dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(numerics.key(key), indices)


def dense(params: Params, x: jax.Array) -> jax.Array:
    """Return x @ weight + bias, over the last axis of x, in the dtype of the weight."""
    return add_bias(x.astype(params["weight"].dtype) @ params["weight"], params)


def add_bias(y: jax.Array, params: Params) -> jax.Array:
    """Return y + bias, over the last axis, in the dtype of y; y if there is no bias."""
    return add_shared(y, along_last(params["bias"], y.shape)) if "bias" in params else y


def add_shared(y: jax.Array, shared: jax.Array) -> jax.Array:
    """Return y + shared, in the dtype of y.

    The gradient of what examples or positions share is a sum over these; it is taken
    in at least float32.
    """
    wide = np.promote_types(tree.wide_dtype(y.dtype), tree.wide_dtype(shared.dtype))
    return (y.astype(wide) + shared.astype(wide)).astype(y.dtype)


def with_narrow_residuals(fn: Callable[..., Any], params: Params, x: jax.Array) -> Any:
    """Return ``fn(params, x)``, which computes in float32 inside.

    Where x is narrow, the gradient computes the float32 values from x again, instead of
    keeping them, which would take twice the bytes of x each.
    """
    return (jax.checkpoint(fn) if is_narrow(x.dtype) else fn)(params, x)


def along_last(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return a vector along the last axis of a shape, or a number everywhere in it."""
    return lax.broadcast_in_dim(vector, shape, (len(shape) - 1,) * vector.ndim)


def drop(
    kind: str,
    rate: Scalar,
    x: jax.Array,
    key: Key | None,
    shape: tuple[int, ...] | None = None,
) -> jax.Array:
    r"""Return x with each entry zero with probability ``rate``, else $x/(1-rate)$.

    Without a key it is x. Entries share their fate along the axes in which ``shape``
    has 1.

    Args:
        kind: of the layer, for the warning that it has no key in training.
        rate: in [0, 1].
        x: floats.
        key: of the layer.
        shape: broadcasts to that of x.
    """
    if isinstance(rate, Tracer) or np.asarray(rate) > 0:
        note(kind, key)
    if key is None:
        return x
    keep = 1 - numerics.hyper(rate)
    drawn = x.shape if shape is None else shape
    is_kept = jax.random.bernoulli(numerics.key(key), keep, drawn)
    factor = numerics.divide(jnp.ones_like(keep), keep)

    def kept(factor: jax.Array, x: jax.Array) -> jax.Array:
        # Selected before the product: what is dropped has no part in the rate's
        # gradient.
        selected = jnp.where(is_kept, tree.widen(x), 0)
        return numerics.scaled(factor, selected).astype(x.dtype)

    return with_narrow_residuals(kept, factor, x)


def check_sizes(**sizes: int) -> None:
    """Raise unless every size is an int >= 1.

    Raises:
        ValueError: if a size is not; the message names it.
    """
    for name, size in sizes.items():
        numerics.check_count(name, size, 1)


def check_shapes(
    what: str, values: Any, shapes: dict[Path, tuple[int, ...]], remedy: str = ""
) -> None:
    """Raise unless a tree has exactly the leaves of these paths and shapes.

    Raises:
        ValueError: if the paths or shapes differ; the message has both, by path.
    """
    leaves = tree.leaf_paths(whole(values))
    got = {path: np.shape(leaf) for path, leaf in leaves.items()}
    if got != shapes:
        raise ValueError(f"need {what} of the shapes {shapes}, got {got}{remedy}")


def check_params(
    params: Params, shapes: dict[Path, tuple[int, ...]], remedy: str = ""
) -> None:
    """Raise unless the parameters are those of a layer with these shapes.

    Raises:
        ValueError: as in `check_shapes`.
    """
    check_shapes("parameters", params, shapes, remedy)


def float_array(x: Any) -> jax.Array:
    """Return x as an array of floats.

    Raises:
        ValueError: if x does not hold real floats.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"need x with a float dtype, got {x.dtype} of shape {x.shape}; "
            "cast and scale it first"
        )
    return x


def float_array_of(x: Any, last: int) -> jax.Array:
    """Return x as an array of floats whose last axis has the size ``last``.

    Raises:
        ValueError: if x does not hold real floats, or its last axis has another size.
    """
    x = float_array(x)
    if x.shape[-1:] != (last,):
        raise ValueError(f"need x with last axis {last}, got shape {x.shape}")
    return x


class LayerError(ValueError):
    """A ValueError of a layer, with the layer's path in the model."""

    def __init__(self, path: Path, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class LayerTypeError(LayerError, TypeError):
    """A LayerError that was a TypeError, as JAX raises for shapes that do not fit."""


@contextlib.contextmanager
def at(path: Path, **arguments: Any) -> Iterator[None]:
    """Put a layer's path in front of the message of its ValueError or TypeError.

    Errors of other types, and of subclasses, pass as they are, with a note.

    Args:
        path: the layer's.
        arguments: trees by name, whose shapes and dtypes the message ends with.

    Raises:
        LayerError: in place of a ValueError or a TypeError.
    """
    try:
        yield
    except LayerError as error:
        longer = type(error)(f"{path}/{error.path}", error.reason)
        raise longer from error.__cause__
    except Exception as error:
        kind = {ValueError: LayerError, TypeError: LayerTypeError}.get(type(error))
        shapes = "; ".join(f"{k}: {_shapes(v)}" for k, v in arguments.items())
        if kind is None:
            error.add_note(f"in the layer {path}; {shapes}".removesuffix("; "))
            raise
        raise kind(path, f"{error}\n{shapes}".rstrip()) from error


def _shapes(a: Any) -> str:
    """Write the leaves of a tree as ``weight float32[3, 2], bias float32[2]``."""
    leaves = tree.leaf_paths(a)
    shown = [f"{path} {_kind(leaf)}".lstrip() for path, leaf in leaves.items()]
    more = len(shown) - _MOST_SHOWN
    words = ", ".join(shown[:_MOST_SHOWN]) or "none"
    return f"{words} and {more} more" if more > 0 else words


def _kind(leaf: Any) -> str:
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return type(leaf).__name__
