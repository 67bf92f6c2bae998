"""Equal layers with stacked parameters, applied in one loop of the program.

The program holds the layer once, so that it compiles in the same time at any depth.
"""

from collections.abc import Callable, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.layers.child_places import describe
from fngrad.layers.combinators import lift, without_state
from fngrad.layers.core import Layer, StatefulLayer, check_sizes
from fngrad.layers.layer_tree import Parts, made_of
from fngrad.layers.one_program import plain
from fngrad.layers.rematerialization import (
    CheckpointPolicy,
    check_layer,
    rematerialized,
)
from fngrad.types import Key, ModelState, Params, Path, Tree


@overload
def repeat(
    block: Layer, count: int, *, remat: bool | CheckpointPolicy = ...
) -> Layer: ...
@overload
def repeat(
    block: StatefulLayer, count: int, *, remat: bool | CheckpointPolicy = ...
) -> StatefulLayer: ...
def repeat(
    block: Layer | StatefulLayer, count: int, *, remat: bool | CheckpointPolicy = True
) -> Layer | StatefulLayer:
    r"""Apply a layer ``count`` times, each time with parameters of its own.

    $$h_{i+1} = f(\theta_i, h_i), \quad i = 0, \dots, \text{count} - 1$$

    It computes the function of ``serial(*[block] * count)`` in one loop, with the same
    parameters for the same key. The parameters are those of the block, at its
    paths, each with a leading axis of the size ``count``; a model state is stacked in
    the same way. `unstack_layers` and `stack_layers` convert both to those of `serial`
    and back. A checkpoint is restored in the layout that it was saved in, and then
    converted: ``stack_layers(restore(folder, unstack_layers(params, at)), at)`` reads
    one of `serial`.

    An optimizer sees a stack as one leaf. Rules that treat entries alone (SGD,
    momentum, RMSProp, Adam, Lion) take the same steps as with `serial`. Rules that
    treat matrices or whole leaves do not: Muon, Shampoo, SOAP, Adafactor, SM3, LAMB,
    LARS, NovoGrad: for Muon a stack of biases is a matrix, and one of weights is left
    to Adam, with a warning. ``fngrad.layerwise(fngrad.muon(0.02), "blocks/**")`` gives
    it each layer by itself.

    Args:
        block: keeps the shape and dtype of x. Its ``init`` is traced.
        count: number of layers.
        remat: whether the backward pass computes each layer again from $h_i$, which
            alone is then kept for it; or one of `jax.checkpoint_policies`, which says
            what is kept as well. A loop without it takes more memory than `serial`.

    Raises:
        TypeError: if the block is not a layer, or ``remat`` neither a bool nor a
            policy.
        ValueError: if ``count`` is below 1; at ``apply``, if the parameters are not
            those of ``count`` layers, or the block changes the shape or dtype of x.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> block = layers.residual(layers.serial(linear=layers.linear(4, 4)))
        >>> deep = layers.repeat(block, 24)
        >>> params = deep.init(jax.random.key(0))
        >>> params["linear"]["weight"].shape
        (24, 4, 4)
        >>> jax.jit(deep.apply)(params, jnp.ones(4)).shape
        (4,)
    """
    check_sizes(count=count)
    check_layer(block, "to repeat")

    inner = lift(rematerialized(block, remat, in_loop=True))

    # Under `vmap` the generators "rbg" and "unsafe_rbg" draw other numbers.
    places = np.arange(count, dtype=np.uint32)

    def init(key: Key) -> Any:
        key = numerics.key(key)
        draw = plain(block.init)
        return jax.lax.map(lambda i: draw(jax.random.fold_in(key, i)), places)

    def apply(
        params: Params, model_state: ModelState, x: Any, *, key: Key | None = None
    ) -> tuple[Any, ModelState]:
        _check_stacked("parameters", count, params)
        _check_stacked("model state", count, model_state)
        key = None if key is None else numerics.key(key)

        def one(x: Any, own: tuple[Params, ModelState, Any]) -> tuple[Any, Any]:
            params, state, i = own
            own_key = None if key is None else jax.random.fold_in(key, i)
            y, state = inner.apply(params, state, x, key=own_key)
            _check_kept(x, y)
            return y, state

        return jax.lax.scan(one, x, (params, model_state, places))

    made_of(
        apply,
        Parts(
            "repeat",
            inner=block,
            count=count,
            rebuilt=lambda change: repeat(change(block), count, remat=remat),
        ),
    )
    if isinstance(block, StatefulLayer):
        return StatefulLayer(init, apply)
    return without_state(init, apply, ())


def stack_layers(a: Tree, at: str | Sequence[str]) -> Tree:
    """Return a tree with the layers of `serial` stacked, as `repeat` has them.

    Of an optimizer's state, moments in the shapes of the parameters are converted. A
    state with others, such as factors or codes of 8 bits, is refused by the next
    update; begin it anew with `fngrad.init_state`.

    Args:
        a: parameters, a model state, or what holds trees like them, such as a
            TrainState with an optimizer's state.
        at: a glob over the paths of the nodes ``{"layers": [...]}`` to convert, such as
            ``"**/blocks"``, or a list of globs.

    Raises:
        ValueError: if the glob selects no node, or a node that does not hold layers of
            one structure, shape and dtype.

    Example:
        >>> import jax
        >>> import fngrad.layers as layers, fngrad.tree as tree
        >>> model = layers.serial(blocks=layers.serial(*[layers.linear(3, 3)] * 2))
        >>> params = model.init(jax.random.key(0))
        >>> stacked = layers.stack_layers(params, "**/blocks")
        >>> stacked["blocks"]["weight"].shape
        (2, 3, 3)
        >>> layers.unstack_layers(stacked, "**/blocks")["blocks"].keys()
        dict_keys(['layers'])
    """

    def stack(path: Path, node: Any) -> Any:
        is_serial = isinstance(node, dict) and list(node) == ["layers"]
        if not is_serial or not node["layers"]:
            raise ValueError(
                f"need {{'layers': [...]}} at {path!r} to stack, got {describe(node)}"
            )
        first, *others = node["layers"]
        for i, other in enumerate(others, 1):
            difference = tree.mismatch(first, other)
            if difference:
                raise ValueError(
                    f"need equal layers to stack at {path!r}, got another layer {i}: "
                    f"{difference}"
                )
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), first, *others)

    return _convert(stack, a, at)


def unstack_layers(a: Tree, at: str | Sequence[str]) -> Tree:
    """Return a tree with the stacked layers of `repeat` one by one, as `serial` has.

    The inverse of `stack_layers`.

    Args:
        a: as for `stack_layers`.
        at: a glob over the paths of the stacked nodes, or a list of globs.

    Raises:
        ValueError: if the glob selects no node, or a node whose leaves do not have
            leading axes of one size.
    """

    def unstack(path: Path, node: Any) -> Any:
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(node)}
        if len(sizes) != 1 or sizes == {()}:
            raise ValueError(
                f"need stacked layers at {path!r} to unstack, got leading axes "
                f"{sorted(sizes)}"
            )
        (((count,)),) = sizes
        return {
            "layers": [jax.tree.map(lambda x, i=i: x[i], node) for i in range(count)]
        }

    return _convert(unstack, a, at)


def _check_stacked(what: str, count: int, a: Any) -> None:
    for path, leaf in tree.leaf_paths(a).items():
        if jnp.shape(leaf)[:1] != (count,):
            raise ValueError(
                f"need {what} of {count} layers, stacked along the first axis, got "
                f"shape {jnp.shape(leaf)} at {path!r}; stack_layers converts those of "
                "layers one by one"
            )


def _check_kept(x: Any, y: Any) -> None:
    difference = tree.mismatch(x, y)
    if difference:
        raise ValueError(
            f"need a layer that keeps the shape and dtype of x to repeat: {difference}"
        )


def _convert(
    convert: Callable[[Path, Any], Any], a: Tree, at: str | Sequence[str]
) -> Tree:
    """Convert the nodes whose paths a glob selects."""
    is_selected = tree.selector_predicate(at)
    seen = []

    def walk(path: Path, node: Any) -> Any:
        if is_selected(path, node):
            seen.append(path)
            return convert(path, node)
        children, structure = jax.tree_util.tree_flatten_with_path(
            node, is_leaf=lambda x: x is not node
        )
        if jax.tree_util.treedef_is_leaf(structure):
            return node
        below = [
            walk(f"{path}/{tree.path_string(entry)}".removeprefix("/"), child)
            for entry, child in children
        ]
        return structure.unflatten(below)

    converted = walk("", a)
    if not seen:
        raise ValueError(
            f"need a glob that selects stacked layers or serial, got {at!r}"
        )
    return converted
