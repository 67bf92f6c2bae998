"""Where a model is evaluated: at its parameters, or at a point an optimizer keeps.

Some rules take gradients at one point and provide another for evaluation: an average of
the parameters, or schedule-free's x. The class of such a rule's state has a method
``eval_params(self, params) -> params``. Likewise the class of a model state that is
evaluated at another one has a method ``eval_model_state(self) -> model_state``, and in
its field ``current`` what the loss returned.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.types import ModelState, OptState, Params, Path


def eval_params(state: Any) -> Params:
    """Return the parameters that evaluation uses: averaged, schedule-free or plain.

    Args:
        state: a `fngrad.TrainState`, or anything with ``params``, and ``opt_state``
            if there is an optimizer.

    Returns:
        The optimizer's evaluation point (see `evaluation_point`), in the dtypes of
        ``state.params``; these themselves where the optimizer has none.

    Raises:
        TypeError: if the state has no ``params``.
        ValueError: if a leaf has two evaluation points, or one that does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.schedule_free_sgd(0.5, b1=0.0)
        >>> step = fg.make_step(lambda w, batch: jnp.sum(w**2) / 2, optimizer)
        >>> state = fg.init_state(jnp.array([4.0]), optimizer, key=0)
        >>> for _ in range(2):
        ...     state, _ = step(state, ())
        >>> print(state.params, fg.eval_params(state))
        [1.] [1.5]
    """
    if not hasattr(state, "params"):
        raise TypeError(
            f"need a TrainState or a state with params, got {type(state).__name__}"
        )
    return evaluation_point(getattr(state, "opt_state", ()), state.params)


def eval_model_state(state: Any) -> ModelState:
    """Return the model state that evaluation uses: averaged or plain.

    Args:
        state: a `fngrad.TrainState`, or anything with a ``model_state``.

    Returns:
        What the model state keeps for evaluation, as `fngrad.steps.average_model_state`
        does; the model state itself where it keeps nothing.

    Raises:
        TypeError: if the state has no ``model_state``.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> state = fg.init_state(jnp.zeros(1), fg.sgd(0.1), 0, model_state=jnp.ones(1))
        >>> print(fg.eval_model_state(state))
        [1.]
    """
    if not hasattr(state, "model_state"):
        raise TypeError(
            f"need a TrainState or a state with model_state, got {type(state).__name__}"
        )
    model_state = state.model_state
    if keeps_evaluation_state(model_state):
        return model_state.eval_model_state()
    return model_state


def keeps_evaluation_state(model_state: ModelState) -> bool:
    """Return whether a model state holds another one, for evaluation."""
    return callable(getattr(type(model_state), "eval_model_state", None))


def evaluation_point(opt_state: OptState, params: Params) -> Params:
    """Return the point at which an optimizer's model is evaluated.

    Every state with a method ``eval_params`` is called with its part of the parameters:
    if one of the state's fields is shaped like the parameters with holes (``None``), as
    inside of a partition, the parameters with these holes, else all of them. The leaves
    that it returns replace those parameters.

    Of nested states only the outermost is called. A wrapper that needs the point of an
    inner state, or keeps it in another form (stacked, for instance), calls this
    function in its own ``eval_params``.

    Args:
        opt_state: an optimizer's state, or any tree of states.
        params: the optimizer's parameters.

    Returns:
        A tree like ``params``, in its dtypes.

    Raises:
        ValueError: if a leaf has two evaluation points, or one that does not fit.
    """
    found: dict[str, jax.Array] = {}
    for owner in queries.find(opt_state, _has_point):
        point = owner.eval_params(_part_of(params, owner))
        for path, leaf in tree.leaf_paths(point).items():
            if path in found:
                raise ValueError(
                    f"need one evaluation point, got a second for leaf {path!r} from "
                    f"{type(owner).__name__}; wrap one of the two transforms in the "
                    "other, or keep one"
                )
            found[path] = leaf
    if not found:
        return params
    _check_fits(found, params)
    return tree.map_with_path(
        lambda path, p: jnp.asarray(found[path], p.dtype) if path in found else p,
        params,
    )


def _has_point(node: Any) -> bool:
    return callable(getattr(type(node), "eval_params", None))


def _part_of(params: Params, owner: Any) -> Params:
    """Return the parameters with the holes that a field of the state has."""
    shapes = {path: leaf.shape for path, leaf in tree.leaf_paths(params).items()}
    for field in owner if isinstance(owner, tuple) else ():
        own = {path: jnp.shape(leaf) for path, leaf in tree.leaf_paths(field).items()}
        if own and own.items() <= shapes.items():
            return _only(own.keys(), params)
    return params


def _only(paths: Collection[Path], params: Params) -> Params:
    return tree.map_with_path(lambda path, p: p if path in paths else None, params)


def _check_fits(found: dict[str, jax.Array], params: Params) -> None:
    paths = tree.leaf_paths(params)
    for path, leaf in found.items():
        if path not in paths:
            raise ValueError(
                f"need an evaluation point like the parameters, got a leaf {path!r}, "
                f"which is not among {list(paths)}"
            )
        if jnp.shape(leaf) != paths[path].shape:
            raise ValueError(
                f"need an evaluation point of shape {paths[path].shape} at {path!r}, "
                f"got {jnp.shape(leaf)}"
            )
