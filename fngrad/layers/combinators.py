"""Layers made of layers.

The children of a combinator are given by position, and their parameters are then
``{"layers": [...]}`` with paths such as ``layers/0/weight``; or by name, and their
parameters are then ``{name: ...}`` with paths such as ``head/weight``.

Only children that learn or carry state have a place there: functions and layers
without parameters, such as dropout, take no index and no name. So adding an
activation or a dropout to a model moves no leaf. Nor have those that are `tied` to
another child.

Child i gets ``fold_in(key, i)``, counted over all children in ``apply`` and over those
with a place in ``init``. No child's key depends on the children after it.

A combinator of layers is a layer. It is stateful if one of them is, and its model
state has the same places as its parameters.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.layers.child_places import (
    PlacedChild,
    check_shares,
    pack,
    unpack,
)
from fngrad.layers.core import (
    Layer,
    LayerLike,
    StatefulLayer,
    at,
    no_params,
)
from fngrad.layers.layer_tree import (
    IDENTITY,
    Child,
    Parts,
    lifted_from,
    made_of,
    original,
    parts_of,
    same_parts,
)
from fngrad.layers.one_program import plain
from fngrad.layers.tied import Tied, tied
from fngrad.types import Key, ModelState, Params, Path


@overload
def serial(
    *entries: Layer | Tied | Callable[[Any], Any],
    **named: Layer | Tied | Callable[[Any], Any],
) -> Layer: ...
@overload
def serial(*entries: LayerLike | Tied, **named: LayerLike | Tied) -> StatefulLayer: ...
def serial(
    *entries: LayerLike | Tied, **named: LayerLike | Tied
) -> Layer | StatefulLayer:
    """Apply layers one after the other; without any, return x.

    Each gets x, and a key of its own if there is one. Further arguments, such as the
    ``length`` of `gru` or the ``mask`` of `multi_head_attention`, are not passed on: a
    model that takes them has an ``apply`` of its own, as `fngrad.models.rnn` has.

    Args:
        entries: layers and functions, or
        named: the same with names; the order counts.

    Raises:
        TypeError: if an entry is neither a layer nor a function.
        ValueError: if entries are given both by position and by name; at ``apply``, if
            the parameters are those of another model. A ValueError of a child is raised
            with its path in front: ``layers/2: need x with last axis 64, got shape
            (63,)``; a child without parameters is called ``entry 1``, by its position.

    Example:
        >>> import jax
        >>> import fngrad.layers as layers
        >>> import fngrad.tree as tree
        >>> model = layers.serial(
        ...     layers.linear(4, 3), jax.nn.relu, layers.linear(3, 1)
        ... )
        >>> list(tree.leaf_paths(model.init(jax.random.key(0))))
        ['layers/0/bias', 'layers/0/weight', 'layers/1/bias', 'layers/1/weight']
    """
    children = _children(entries, named)
    check_shares(children)

    def apply(
        params: Params, model_state: ModelState, x: Any, *, key: Key | None = None
    ) -> tuple[Any, ModelState]:
        new_states = []
        for child, *rest in _each(children, params, model_state, key):
            x, new_state = _apply(child, x, *rest)
            new_states.append(new_state)
        return x, pack(children, new_states)

    name = "serial" if children else IDENTITY
    parts = Parts(name, _shown(children), rebuilt=_rebuilt(serial, entries, named))
    made_of(apply, parts)
    return _layer(
        children, StatefulLayer(_init(children), apply), [*entries, *named.values()]
    )


@overload
def parallel(
    *entries: Layer | Tied | Callable[[Any], Any],
    combine: Callable[[Any], Any] = ...,
    **named: Layer | Tied | Callable[[Any], Any],
) -> Layer: ...
@overload
def parallel(
    *entries: LayerLike | Tied,
    combine: Callable[[Any], Any] = ...,
    **named: LayerLike | Tied,
) -> StatefulLayer: ...
def parallel(
    *entries: LayerLike | Tied,
    combine: Callable[[Any], Any] = tuple,
    **named: LayerLike | Tied,
) -> Layer | StatefulLayer:
    """Apply every layer to the same x and combine the outputs.

    Args:
        entries: layers and functions, or
        named: the same with names.
        combine: takes the tuple of outputs; ``sum`` and ``jnp.concatenate`` will do.

    Raises:
        TypeError: if an entry is neither a layer nor a function.
        ValueError: if there are no entries, or entries are given both by position and
            by name; at ``apply``, as in `serial`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> both_ways = layers.parallel(
        ...     layers.linear(4, 3), layers.linear(4, 2), combine=jnp.concatenate
        ... )
        >>> params = both_ways.init(jax.random.key(0))
        >>> jax.jit(both_ways.apply)(params, jnp.ones(4)).shape
        (5,)
    """
    children = _children(entries, named)
    if not children:
        raise ValueError("need at least one layer in parallel, got none")
    check_shares(children)

    def apply(
        params: Params, model_state: ModelState, x: Any, *, key: Key | None = None
    ) -> tuple[Any, ModelState]:
        results = [
            _apply(child, x, *rest)
            for child, *rest in _each(children, params, model_state, key)
        ]
        outputs, new_states = zip(*results, strict=True)
        return combine(outputs), pack(children, new_states)

    joined = functools.partial(parallel, combine=combine)
    rebuilt = _rebuilt(joined, entries, named)
    made_of(apply, Parts("parallel", _shown(children), in_turn=False, rebuilt=rebuilt))
    return _layer(
        children, StatefulLayer(_init(children), apply), [*entries, *named.values()]
    )


@overload
def residual(inner: Layer | Callable[[Any], Any]) -> Layer: ...
@overload
def residual(inner: StatefulLayer) -> StatefulLayer: ...
def residual(inner: LayerLike) -> Layer | StatefulLayer:
    r"""Add a layer's output to its input: $y = x + f(x)$, in the dtype of x.

    Parameters and state are those of the inner layer, at the same paths.

    Args:
        inner: keeps the shape of x; where $f$ changes it,
            ``parallel(f, projection, combine=sum)``.

    Raises:
        TypeError: if it is neither a layer nor a function.
        ValueError: at ``apply``, if the layer changes the shape.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> print(layers.residual(jnp.square).apply((), jnp.array([1.0, 3.0])))
        [ 2. 12.]

    References:
        He et al. 2016, "Deep residual learning for image recognition",
        https://arxiv.org/abs/1512.03385
    """
    lifted = lift(inner)

    def apply(
        params: Params, model_state: ModelState, x: Any, *, key: Key | None = None
    ) -> tuple[Any, ModelState]:
        y, new_state = lifted.apply(params, model_state, x, key=key)
        if jnp.shape(y) != jnp.shape(x):
            raise ValueError(
                "need a layer that keeps the shape in residual, "
                f"got {jnp.shape(y)} from {jnp.shape(x)}"
            )
        y = tree.cast_real(y, x.dtype) if tree.is_real(x) else y
        return x + y, new_state

    rebuilt = _rebuilt(residual, (inner,), {})
    made_of(apply, Parts("residual", inner=inner, rebuilt=rebuilt))
    if isinstance(inner, StatefulLayer):
        return StatefulLayer(inner.init, apply)
    init = inner.init if isinstance(inner, Layer) else no_params
    return without_state(init, apply, ())


def _rebuilt(
    make: Callable[..., Any],
    entries: Sequence[LayerLike | Tied],
    named: Mapping[str, LayerLike | Tied],
) -> Callable[[Callable[[Any], Any]], Any]:
    """Return a function of layers -> a combinator of what it makes of the entries."""

    def changed(change: Callable[[Any], Any], entry: Any) -> Any:
        if not isinstance(entry, Tied):
            return change(entry)
        layer = change(entry.layer)
        if isinstance(layer, StatefulLayer):
            raise TypeError(
                "need attention with parameters of its own, for a cache or for its "
                f"weights, got it in an entry that is tied to {entry.to!r}"
            )
        return tied(entry.to, layer)

    def rebuilt(change: Callable[[Any], Any]) -> Any:
        inner = {name: changed(change, entry) for name, entry in named.items()}
        return make(*[changed(change, entry) for entry in entries], **inner)

    return rebuilt


def _children(
    entries: Sequence[LayerLike | Tied], named: Mapping[str, LayerLike | Tied]
) -> tuple[PlacedChild, ...]:
    if entries and named:
        raise ValueError(
            f"need layers by position or by name, got {len(entries)} by position and "
            f"{list(named)} by name"
        )
    if named:
        return tuple(
            _child(entry, name if _has_place(entry) else None, name)
            for name, entry in named.items()
        )
    children, index = [], 0
    for position, entry in enumerate(entries):
        if _has_place(entry):
            children.append(_child(entry, index, f"layers/{index}"))
            index += 1
        else:
            children.append(_child(entry, None, f"entry {position}"))
    return tuple(children)


def _child(entry: LayerLike | Tied, place: int | str | None, path: Path) -> PlacedChild:
    if isinstance(entry, Tied):
        return PlacedChild(lift(entry.layer), None, path, entry.to)
    return PlacedChild(lift(entry), place, path)


def _shown(children: tuple[PlacedChild, ...]) -> tuple[Child, ...]:
    """Return the children to show; an identity, such as no dropout, is left out."""
    entries = [Child(c.path, c.place, original(c.layer), c.shares) for c in children]
    return tuple(c for c in entries if parts_of(c.layer).name != IDENTITY)


def _has_place(entry: LayerLike | Tied) -> bool:
    is_layer = isinstance(entry, Layer | StatefulLayer)
    return is_layer and entry.init is not no_params


def lift(entry: LayerLike) -> StatefulLayer:
    """Return any layer or function as a stateful layer, at first with state ().

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(entry, StatefulLayer):
        return entry
    if isinstance(entry, Layer):
        apply = lifted_from(
            lambda params, state, x, *, key=None: (
                entry.apply(params, x, key=key),
                state,
            ),
            entry,
        )
        return StatefulLayer(lambda key: (plain(entry.init)(key), ()), apply)
    if callable(entry):
        apply = lifted_from(
            lambda params, state, x, *, key=None: (entry(x), state), entry
        )
        return StatefulLayer(lambda key: ((), ()), apply)
    raise TypeError(
        f"need a layer or a function of x, got {type(entry).__name__}: {entry!r}"
    )


def _layer(
    children: tuple[PlacedChild, ...],
    layer: StatefulLayer,
    entries: Sequence[LayerLike | Tied],
) -> Layer | StatefulLayer:
    """Return a combinator, stateful only if a child is."""
    if any(isinstance(entry, StatefulLayer) for entry in entries):
        return layer
    if all(child.place is None for child in children):
        return without_state(no_params, layer.apply, ())
    return without_state(
        lambda key: plain(layer.init)(key)[0],
        layer.apply,
        pack(children, [()] * len(children)),
    )


def without_state(
    init: Callable[[Key], Params], apply: Callable[..., Any], empty: ModelState
) -> Layer:
    """Return the layer of a stateful ``apply`` whose state is always ``empty``."""

    def stateless(params: Params, x: Any, *, key: Key | None = None) -> Any:
        return apply(params, empty, x, key=key)[0]

    return Layer(init, same_parts(stateless, apply))


def _init(
    children: tuple[PlacedChild, ...],
) -> Callable[[Key], tuple[Params, ModelState]]:
    def init(key: Key) -> tuple[Params, ModelState]:
        key = numerics.key(key)
        made, drawn = [], 0
        for child in children:
            init = plain(child.layer.init)
            made.append(init(jax.random.fold_in(key, drawn)))
            drawn += child.place is not None
        params, states = zip(*made, strict=True)
        return pack(children, params), pack(children, states)

    return init


def _each(
    children: tuple[PlacedChild, ...],
    params: Params,
    state: ModelState,
    key: Key | None,
) -> Sequence[tuple[PlacedChild, Params, ModelState, Key | None]]:
    """Return every child with its parameters, its state and its key."""
    count = len(children)
    keys = [None] * count
    if key is not None:
        keys = [jax.random.fold_in(numerics.key(key), i) for i in range(count)]
    all_params = unpack("parameters", children, params)
    all_states = unpack("model state", children, state)
    return list(zip(children, all_params, all_states, keys, strict=True))


def _apply(
    child: PlacedChild, x: Any, params: Params, state: ModelState, key: Key | None
) -> tuple[Any, ModelState]:
    with at(child.path, x=x, parameters=params), jax.named_scope(child.path):
        return child.layer.apply(params, state, x, key=key)
