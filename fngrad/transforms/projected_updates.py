"""Updates that keep parameters in a set."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
import fngrad.transforms.projections as projections
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.types import Params, Path, Selector, Updates

# A function of an array that returns the nearest point of a set.
Projection: TypeAlias = Callable[..., jax.Array]

# Of these an entry's bounds do not depend on the other entries.
_BY_ENTRY = (projections.non_negative, projections.box, projections.linf_ball)


class ProjectState(NamedTuple):
    """State of `project`."""

    step: jax.Array  # int32, shape ()
    chain_order = queries.LAST_CHANGE  # type: int


def project(
    projection: Projection, mask: Selector | None = None, **arguments: Any
) -> Transform:
    r"""Keep parameters in a set: the last part of a projected gradient method.

    $$u \leftarrow P_C(w + u) - w$$

    so that `apply_updates` gives the point of $C$ nearest to $w + u$, leaf by leaf. It
    comes last in a chain, after the learning rate, decay and `stochastic_round`; only
    what looks at the parameters after the step, such as `ema_params`, follows. The
    first point after the start is in $C$; the start itself is yours to choose:
    ``projection(params)``.

    The sum $w + u$ is rounded. With `projections.non_negative`, `projections.box` and
    `projections.linf_ball` of real leaves the update is chosen by a unit in its last
    place so that the sum is within the bounds exactly, in every dtype, as long as a
    number of the leaf's dtype of the size of w and u fits between them. Other sets hold
    up to the rounding of the entries.

    An optimizer that keeps iterates of its own, such as `schedule_free`, projects the
    parameters, not those.

    Args:
        projection: a function of an array that returns the nearest point of a set,
            such as those of `fngrad.projections`, called with each selected leaf in at
            least float32.
        mask: which leaves are projected, see `fngrad.tree.select`; ``None`` means all.
            The other leaves' updates pass unchanged.
        arguments: further arguments of the projection, by name, such as ``radius=3.0``
            and ``axis=0``; one that is a function is a schedule ``step -> value``.

    Raises:
        TypeError: if ``projection`` is not a function; at ``init``, if it refuses the
            dtype of a selected leaf.
        ValueError: at ``init``, if it returns another shape or refuses the leaf, a glob
            selects no leaf, or a part that changes the updates follows in the chain.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> simplex = fg.project(fg.projections.simplex)
        >>> optimizer = fg.chain(fg.sgd(0.5), simplex)
        >>> params = jnp.array([0.5, 0.5])
        >>> state = optimizer.init(params)
        >>> updates, _ = optimizer.update(jnp.array([1.0, 0.5]), state, params)
        >>> print(fg.apply_updates(params, updates))
        [0.375 0.625]

        The norm of every unit's weights at most 3, known as max-norm:

        >>> max_norm = fg.project(
        ...     fg.projections.l2_ball, "**/weight", radius=3.0, axis=0
        ... )

    References:
        Bertsekas 1976, "On the Goldstein-Levitin-Polyak gradient projection method",
        https://doi.org/10.1109/TAC.1976.1101194. Differs from optax's
        ``keep_params_nonnegative`` in: any set, and no rounding below 0.
    """
    if not callable(projection):
        raise TypeError(f"need a function of an array, got {projection!r}")

    def at(step: jax.Array) -> Projection:
        now = {k: v(step) if callable(v) else v for k, v in arguments.items()}
        return functools.partial(projection, **now)

    def init(params: Params) -> ProjectState:
        tree.check_mask(mask, params)
        step = numerics.first_step()
        chosen = tree.keep(tree.selected(mask, params), params)
        tree.map_selected(functools.partial(_check_leaf, at(step)), chosen)
        return ProjectState(step)

    def update(
        updates: Updates, state: ProjectState, params: Params
    ) -> tuple[Updates, ProjectState]:
        nearest, is_by_entry = at(state.step), projection in _BY_ENTRY

        def move(u: jax.Array, w: jax.Array) -> jax.Array:
            if not tree.is_float(w):
                return u
            if is_by_entry and not jnp.iscomplexobj(w):
                return _exact(nearest, u, w)
            start = w.astype(u.dtype)
            return _rounded(nearest(start + u), w.dtype) - start

        chosen = tree.selected(mask, params)
        parts = (tree.keep(chosen, x) for x in (updates, params))
        moved = tree.merge(tree.map_leaves(move, *parts), updates)
        return moved, ProjectState(numerics.next_step(state.step))

    return chain(Transform(init, update, "project"))


def _check_leaf(nearest: Projection, path: Path, leaf: Any) -> None:
    if not tree.is_float(leaf):
        return
    wide = jax.ShapeDtypeStruct(leaf.shape, tree.wide_dtype(leaf.dtype))
    try:
        made = jax.eval_shape(nearest, wide)
    except (TypeError, ValueError) as error:
        error.add_note(f"project: at the parameter {path!r}")
        raise
    if getattr(made, "shape", None) != wide.shape or made.dtype != wide.dtype:
        raise ValueError(
            "need a projection that returns an array like its argument, "
            f"{wide.dtype}{list(wide.shape)}, got {made} at {path!r}"
        )


def _exact(nearest: Projection, u: jax.Array, w: jax.Array) -> jax.Array:
    """Return an update with which the sum in the dtype of w is in a box.

    Rounding is monotonic: if u >= t - w for a t of the box, then so is the rounded sum
    of w and u >= t.
    """
    start = w.astype(u.dtype)

    def inward(x: jax.Array, landed: jax.Array) -> jax.Array:
        """Return x, or its neighbor in the direction of the box."""
        held, landed = lax.stop_gradient((x, landed))
        inside, narrow = nearest(landed), held.astype(w.dtype)
        limit = jnp.asarray(jnp.inf, w.dtype)
        neighbor = jnp.nextafter(narrow, jnp.where(inside > landed, limit, -limit))
        return x + jnp.where(inside == landed, 0, neighbor.astype(x.dtype) - held)

    target = _rounded(nearest(start + u), w.dtype)
    target = inward(target, target)
    step = _rounded(target - start, w.dtype)
    return inward(step, _rounded(start + step, w.dtype))


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """Return x rounded to a dtype, in its own; a compiler may drop a pair of casts."""
    if jnp.iscomplexobj(x) or x.dtype == dtype:
        return x
    limits = jnp.finfo(dtype)
    return lax.reduce_precision(x, limits.nexp, limits.nmant)
