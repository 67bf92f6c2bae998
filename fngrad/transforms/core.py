"""The transform, and the composition of transforms.

A *transform* is a pair of pure functions: ``init(params) -> state`` and
``update(updates, state, params) -> (updates, state)``. A *chain* applies its *parts*
in order; chains are flat, so chaining is associative and `identity` is its unit. An
*optimizer* is a chain whose updates are added to the parameters, and so ends in a
negative scale.

A chain also converts dtypes. Inside it every update is at least float32, in the dtype
of the state, whatever dtype the gradients have; at the end the update is cast, once,
to the parameter's dtype. Parts are written without casts.

State is a dict keyed by part name, without stateless parts. So putting a clip in front,
nesting a chain or replacing a float by a schedule does not change a leaf's path.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
import fngrad.transforms.chain_inputs as chain_inputs
import fngrad.tree as tree
from fngrad.programs.printed import preformatted, shown
from fngrad.programs.signatures import name_of
from fngrad.transforms.structure import name_of_part, text_of_parts
from fngrad.types import Metrics, OptState, Params, Path, Reported, Tree, Updates


class Transform(NamedTuple):
    """A pair of pure functions that turns gradients into updates.

    Users write the first two fields; `chain` and the wrappers fill in the rest. A part
    that reports metrics is made from its *report*, the update that also returns scalars
    by name; its update is the report without them.
    """

    init: Callable[[Params], OptState]
    update: Callable[[Updates, OptState, Params], tuple[Updates, OptState]]
    name: str = ""  # keys the state and the report in a chain
    parts: tuple[Self, ...] = ()  # of a chain, which are taken over by others
    report: Callable[..., Reported] | None = None  # the update with metrics
    trainable: Callable[[Path, Any], bool] | None = None  # None: every leaf

    def __repr__(self) -> str:
        return shown(self, text_of_parts)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


UpdateFn: TypeAlias = Callable[[Transform, Updates, OptState, Params], Reported]


class TransformLike(Protocol):
    """The field's protocol: any object with these two functions can be chained."""

    @property
    def init(self) -> Callable[..., Any]: ...

    @property
    def update(self) -> Callable[..., tuple[Any, Any]]: ...


def chain(*transforms: TransformLike) -> Transform:
    """Apply transforms in order; the result is a transform again.

    Args:
        transforms: chains (whose parts become parts of this one), single transforms,
            or foreign objects with ``init`` and ``update``.

    Returns:
        A transform whose state is a dict keyed by part name. ``init`` works on
        abstract parameters and never aliases them. ``update`` takes gradients of any
        float dtype and returns updates in the parameters' dtypes; ``report`` also
        returns the metrics of the parts.

    Raises:
        TypeError: if an argument has no ``init`` and ``update``; at ``init``, if a
            trainable leaf is not a float or complex array; at ``update``, if a
            gradient is not one, or the parameters are missing.
        ValueError: at ``init``, if two stateful parts have one name, a part that
            belongs last, such as `ema_params`, is followed by one that changes the
            updates, or there are no parameters; at ``update``, if the trees do not
            fit; at ``report``, if two metrics have one name.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.clip_by_global_norm(1.0), fg.sgd(0.1))
        >>> params = jnp.array([1.0, 2.0])
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update(jnp.array([3.0, 4.0]), state, params)
        >>> print(updates)
        [-0.06       -0.08000001]
    """
    parts = tuple(part for item in transforms for part in _parts_of(item))
    inner = compose(parts)

    def init(params: Params) -> OptState:
        chain_inputs.check_params(params, inner.trainable)
        state = inner.init(params)
        chain_inputs.check_state(state)
        return state

    @functools.lru_cache(maxsize=8)
    def expected_state(structure: Any, avals: Any, default_float: Any) -> Any:
        params = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in avals]
        return jax.eval_shape(inner.init, jax.tree.unflatten(structure, params))

    def check(updates: Updates, state: OptState, params: Params) -> None:
        chain_inputs.check_updates(updates, params)
        leaves, structure = jax.tree.flatten(params)
        avals = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        expected = expected_state(structure, avals, jnp.result_type(float))
        difference = tree.mismatch(expected, state)
        if difference:
            raise ValueError(
                "need the state that this optimizer made for these parameters: "
                f"{difference}"
            )

    def advance(
        update_fn: UpdateFn, updates: Updates, state: OptState, params: Params = None
    ) -> Reported:
        check(updates, state, params)
        wide = chain_inputs.widen_gradients(updates, params)
        updates, state, metrics = update_fn(inner, wide, state, params)
        return tree.cast_like(updates, params), state, metrics

    made = wrapper(init, advance, trainable=inner.trainable)
    return made._replace(parts=parts or (_IDENTITY,))


def identity() -> Transform:
    """Pass updates through unchanged: the unit of `chain`."""
    return chain(_IDENTITY)


def named(name: str, transform: TransformLike) -> Transform:
    """Give a transform a name, which its state and its metrics have as their key.

    Two stateful parts of one kind need names:
    ``chain(named("fast", trace(0.9)), named("slow", trace(0.99)))``.

    Args:
        name: not empty, without ``/``.
        transform: a single part gets the name; a longer chain becomes one part, whose
            own parts keep their names below it.

    Raises:
        ValueError: if the name is empty or contains ``/``.
    """
    if not name or "/" in name:
        raise ValueError(f"need a name that is not empty and has no '/', got {name=}")
    parts = _parts_of(transform)
    part = parts[0] if len(parts) == 1 else compose(parts)
    return chain(part._replace(name=name))


def report(
    transform: TransformLike, updates: Updates, state: OptState, params: Params
) -> Metrics:
    """Return the metrics that a transform reports of an update.

    ``optimizer.report(updates, state, params)`` returns the update too, in one pass.

    Args:
        transform: any transform; one without a report gives an empty dict.
        updates: the arguments of ``update``, with ``state`` and ``params``.

    Returns:
        Scalars by name, such as ``scale_by_learning_rate/learning_rate``.

    Raises:
        ValueError: if two parts report one name, or the trees do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer, params = fg.sgd(0.5), jnp.ones(2)
        >>> print(fg.report(optimizer, params, optimizer.init(params), params))
        {'scale_by_learning_rate/learning_rate': Array(0.5, dtype=float32)}
    """
    return update_and_report(chain(transform), updates, state, params)[2]


def from_report(
    init: Callable[[Params], OptState], report: Callable[..., Reported], name: str
) -> Transform:
    """Make a part from its report; its update is the report without the metrics.

    Args:
        init: as for any transform.
        report: ``(updates, state, params) -> (updates, state, metrics)``, the metrics
            scalars by name.
        name: the key of its state and its metrics.
    """

    def update(
        updates: Updates, state: OptState, params: Params
    ) -> tuple[Updates, OptState]:
        updates, state, _ = report(updates, state, params)
        return updates, state

    return Transform(init, update, name, report=report)


def wrapper(
    init: Callable[[Params], OptState],
    advance: Callable[..., Reported],
    name: str = "",
    trainable: Callable[[Path, Any], bool] | None = None,
) -> Transform:
    """Make a transform that wraps others; its report includes their metrics.

    Args:
        init: as for any transform.
        advance: ``(update_fn, updates, state, params) -> (updates, state, metrics)``.
            It updates a wrapped part by ``update_fn(part, updates, state, params)``,
            which is `update_only` in an update and `update_and_report` in a report.
        name: the key of its state and its metrics.
        trainable: which leaves are differentiated; ``None`` means all.
    """

    def update(
        updates: Updates, state: OptState, params: Params = None
    ) -> tuple[Updates, OptState]:
        updates, state, _ = advance(update_only, updates, state, params)
        return updates, state

    with_metrics = functools.partial(advance, update_and_report)
    return Transform(init, update, name, report=with_metrics, trainable=trainable)


def update_only(
    part: Transform, updates: Updates, state: OptState, params: Params
) -> Reported:
    """Update a part, without metrics."""
    made = part.update(updates, state, params)
    return (*chain_inputs.updated(part.name, made, updates, state), {})


def update_and_report(
    part: Transform, updates: Updates, state: OptState, params: Params
) -> Reported:
    """Update a part, with the metrics of its report if it has one.

    Raises:
        TypeError: if its update or report returns another form.
    """
    if part.report is None:
        return update_only(part, updates, state, params)
    made = part.report(updates, state, params)
    return chain_inputs.reported(part.name, made)


def compose(parts: tuple[Transform, ...]) -> Transform:
    """Apply parts in order, without the checks and casts of `chain`."""

    def init(params: Params) -> OptState:
        states = [(part.name, part.init(params)) for part in parts]
        chain_inputs.check_parts(
            [s for p, s in zip(parts, states, strict=True) if not _is_identity(p)]
        )
        return {n: state for n, state in states if not chain_inputs.is_stateless(state)}

    def advance(
        update_fn: UpdateFn, updates: Updates, state: OptState, params: Params
    ) -> Reported:
        new_state, reports = {}, {}
        for part in parts:
            old = state.get(part.name, ())
            updates, new, metrics = update_fn(part, updates, old, params)
            if part.name in state:
                new_state[part.name] = new
            merge_report(reports, part.name, metrics)
        return updates, new_state, reports

    return wrapper(init, advance, trainable=_all_trainable(parts))


def merge_report(reports: Metrics, name: str, more: Metrics) -> None:
    """Add the metrics ``more`` to ``reports``, with every key below ``name``.

    Raises:
        ValueError: if a key is taken.
    """
    for key, value in more.items():
        full = f"{name}/{key}"
        if full in reports:
            raise ValueError(
                f"two parts report {full!r}; name them: "
                f'chain(named("first", {name}(...)), ...)'
            )
        reports[full] = value


def unwrap(transform: TransformLike) -> Transform:
    """Return a transform without the checks and casts of `chain`, for wrappers."""
    return compose(_parts_of(transform))


def trainable_leaves(transform: Transform, params: Params) -> Any:
    """Return the tree of bools that is true for the leaves that a transform trains."""
    rule = transform.trainable or (lambda path, leaf: True)
    return tree.map_selected(rule, params)


def apply_updates(params: Tree, updates: Updates) -> Tree:
    """Return params + updates, added in the wider dtype, in the dtype of params.

    Raises:
        ValueError: if the trees differ in structure or in a shape, or contain a masked
            array.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> print(fg.apply_updates(jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])))
        [1.5 1. ]
    """
    difference = tree.mismatch(params, updates, dtypes=False)
    if difference:
        if type(updates) is tuple and len(updates) == 2:
            difference += "; take apart: updates, state = optimizer.update(...)"
        raise ValueError(f"need updates shaped like the parameters: {difference}")
    for path, leaf in tree.leaf_paths((params, updates)).items():
        numerics.check_unmasked(f"(params, updates) at {path!r}", leaf)
    return jax.tree.map(_add_in_wider_dtype, params, updates)


def _parts_of(transform: TransformLike) -> tuple[Transform, ...]:
    if isinstance(transform, Transform) and transform.parts:
        return transform.parts
    if not (hasattr(transform, "init") and hasattr(transform, "update")):
        got = type(transform).__name__
        if callable(transform):
            got += f" {name_of(transform)}: call what makes a transform, as in "
            got += "fngrad.sgd(0.1); a loss comes before the optimizer"
        raise TypeError(f"need a transform, an object with init and update, got {got}")
    chain_inputs.check_signatures(name_of_part(transform), transform)
    if isinstance(transform, Transform):
        return (transform._replace(name=transform.name or name_of_part(transform)),)
    return (_adopt(transform),)


def _adopt(foreign: TransformLike) -> Transform:
    """Give foreign code gradients in the parameters' dtypes, and keep its state's."""

    def update(
        updates: Updates, state: OptState, params: Params
    ) -> tuple[Updates, OptState]:
        made = foreign.update(tree.cast_like(updates, params), state, params)
        updates, new = chain_inputs.updated(name, made, updates, state)
        return tree.widen(updates), jax.tree.map(_as_dtype_of, new, state)

    name = name_of_part(foreign)
    return Transform(foreign.init, update, name)


def _as_dtype_of(x: Any, like: Any) -> Any:
    return x if x.dtype == like.dtype else x.astype(like.dtype)


_IDENTITY = Transform(
    lambda params: (), lambda updates, state, params: (updates, state), name="identity"
)


def _is_identity(part: Transform) -> bool:
    return part.update is _IDENTITY.update


def _all_trainable(
    parts: tuple[Transform, ...],
) -> Callable[[Path, Any], bool] | None:
    predicates = [part.trainable for part in parts if part.trainable]
    if not predicates:
        return None
    return lambda path, leaf: all(predicate(path, leaf) for predicate in predicates)


def _add_in_wider_dtype(param: Any, update: Any) -> Any:
    if param.dtype == update.dtype:
        return lax.add(param, update)
    wide = tree.wide_dtype(param.dtype)
    return (param.astype(wide) + update.astype(wide)).astype(param.dtype)
