"""Which leaves are selected: globs over paths, predicates, trees of bools.

A *mask* is a selector, or ``None``, which selects all leaves.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import fngrad.programs.signatures as signatures
from fngrad.tree.dtypes import is_float
from fngrad.tree.paths import leaf_paths, path_string
from fngrad.tree.stacks import map_selected
from fngrad.types import Params, Path, Selector, Tree


def select(selector: Selector, a: Tree) -> Tree:
    """Return the tree of bools that is true for the selected leaves of ``a``.

    Args:
        selector: a glob over paths (``*`` stays within a segment, ``**`` spans
            segments), a list or tuple of globs, of which any selects, a predicate
            ``(path, leaf) -> bool``, or a tree of bools with the structure of ``a`` or
            a prefix of it. A callable pytree is not taken for a predicate.
        a: the tree; its leaves may be abstract.

    Raises:
        ValueError: if a tree of bools does not fit ``a``.
        TypeError: if the selector has another type, or a predicate takes other
            arguments or does not return a bool.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.tree as tree
        >>> params = {"embed": {"weight": jnp.ones(2)}, "head": jnp.ones(3)}
        >>> tree.select("embed/**", params)
        {'embed': {'weight': True}, 'head': False}
        >>> tree.select(["**/weight", "head"], params)
        {'embed': {'weight': True}, 'head': True}
    """
    predicate = selector_predicate(selector)
    if _is_bool_tree(selector):
        _check_bool_tree(selector, a)
    return map_selected(lambda path, leaf: bool(predicate(path, leaf)), a)


def selected(mask: Selector | None, params: Params) -> Any:
    """Return the tree of bools that is true for the leaves that a mask selects."""
    return select("**" if mask is None else mask, params)


def check_mask(mask: Selector | None, params: Params) -> None:
    """Raise unless a mask fits the parameters, and each of its globs selects a leaf.

    ``"**"`` fits any parameters, also none.

    Raises:
        TypeError: if the mask is not a selector.
        ValueError: if a glob selects no leaf, or a tree of bools does not fit.
    """
    selected(mask, params)
    for glob in globs_of(mask):
        if glob != "**" and not any(jax.tree.leaves(select(glob, params))):
            paths = list(leaf_paths(params))
            raise ValueError(
                f"need a glob that selects a leaf, got {glob!r} for the leaves {paths}"
                f"{at_any_depth(glob, paths)}"
            )


def globs_of(selector: Selector | None) -> tuple[str, ...]:
    """Return the globs of a selector, none if it is something else.

    Example:
        >>> from fngrad.tree.selection import globs_of
        >>> globs_of("**"), globs_of(["head", "**/weight"]), globs_of([True])
        (('**',), ('head', '**/weight'), ())
    """
    if isinstance(selector, str):
        return (selector,)
    is_list = isinstance(selector, list | tuple)
    if not is_list or not all(isinstance(glob, str) for glob in selector):
        return ()
    return tuple(selector)


def by_layer(globs: Sequence[str], a: Any) -> dict[Path, list[Any]]:
    """Return the leaves of each layer that a glob selects, by the layer's path.

    A layer is a leaf, or a tree inside of ``a``. Of layers inside each other a glob
    selects the innermost, so that ``"**"`` means every leaf; it fits any tree, also an
    array, which has no layer.

    Args:
        globs: over the paths of layers, such as ``"blocks/*"`` and ``"**/weight"``.
        a: the tree.

    Raises:
        ValueError: if a glob selects no layer.

    Example:
        >>> import fngrad.tree as tree
        >>> params = {"blocks": [{"w": 1.0, "b": 2.0}, {"w": 3.0, "b": 4.0}]}
        >>> tree.by_layer(["blocks/*", "**/w"], params)["blocks/0"]
        [2.0, 1.0]
    """
    inside: dict[Path, list[Any]] = {}
    for entries, leaf in jax.tree_util.tree_flatten_with_path(a)[0]:
        for end in range(1, len(entries) + 1):
            inside.setdefault(path_string(entries[:end]), []).append(leaf)
    chosen: set[Path] = set()
    for glob in globs:
        takes = selector_predicate(glob)
        found = [path for path in inside if takes(path, None)]
        outer = {prefix for path in found for prefix in _prefixes(path)[1:]}
        if not found and glob != "**":
            raise ValueError(
                f"need globs that select a layer, got {glob!r} for {list(inside)}"
                f"{at_any_depth(glob, list(inside))}"
            )
        chosen.update(path for path in found if path not in outer)
    return {path: leaves for path, leaves in inside.items() if path in chosen}


def at_any_depth(glob: str, paths: list[Path]) -> str:
    """Return the end of a message about a glob that selects nothing, where one helps.

    Example:
        >>> from fngrad.tree.selection import at_any_depth
        >>> at_any_depth("weight", ["layers/0/weight"]), at_any_depth("w", ["v"])
        ("; '**/weight' selects leaves at any depth", '')
    """
    deep = f"**/{glob}"
    selects = selector_predicate(deep)
    is_any = any(selects(path, None) for path in paths)
    return f"; {deep!r} selects leaves at any depth" if is_any else ""


def selector_predicate(selector: Selector) -> Callable[[Path, Any], bool]:
    """Return the predicate ``(path, leaf) -> bool`` of any selector."""
    globs = globs_of(selector)
    if globs:
        pattern = re.compile("|".join(map(_glob_to_regex, globs)))
        return lambda path, leaf: pattern.fullmatch(path) is not None
    if _is_bool_tree(selector):
        return _bool_tree_predicate(selector)
    if callable(selector) and jax.tree_util.all_leaves([selector]):
        return _checked_predicate(selector)
    raise TypeError(
        "need a selector: a glob over paths, a list of globs, a tree of bools, or a "
        f"function (path, leaf) -> bool, got {selector!r}"
    )


def split(model: Tree) -> tuple[Any, Callable[[Any], Tree]]:
    """Separate a model's parameters, its float arrays, from everything else.

    Args:
        model: any pytree; functions, strings and integer arrays may be leaves, as in
            an Equinox module.

    Returns:
        ``(params, rebuild)``: the model with ``None`` for every leaf that is not a
        float or complex array, and the function that restores those leaves.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> params, rebuild = fg.split({"w": jnp.ones(2), "activation": jax.nn.relu})
        >>> params["activation"] is None
        True
        >>> rebuild(params)["activation"] is jax.nn.relu
        True
    """
    rest = jax.tree.map(lambda x: None if is_float(x) else x, model)
    return floats(model), lambda params: merge(params, rest)


def floats(a: Tree) -> Tree:
    """Return ``a`` with ``None`` for leaves that are not float or complex arrays."""
    return jax.tree.map(lambda x: x if is_float(x) else None, a)


def keep(mask: Any, a: Tree) -> Tree:
    """Return ``a`` with ``None`` where the mask, a tree of bools, is false."""
    return jax.tree.map(lambda m, x: x if m else None, mask, a)


def merge(a: Tree, b: Tree) -> Tree:
    """Fill the holes (``None``) of ``a`` with the leaves of ``b``."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None
    )


def _is_bool_tree(selector: Any) -> bool:
    leaves = jax.tree.leaves(selector)
    return all(isinstance(leaf, bool) or _is_bool_array(leaf) for leaf in leaves)


def _is_bool_array(leaf: Any) -> bool:
    return getattr(leaf, "dtype", None) == jnp.bool_ and jnp.ndim(leaf) == 0


def _bool_tree_predicate(mask: Any) -> Callable[[Path, Any], bool]:
    answers = leaf_paths(mask)

    def predicate(path: Path, leaf: Any) -> bool:
        for prefix in _prefixes(path):
            if prefix in answers:
                return bool(answers[prefix])
        raise ValueError(f"need a mask that covers every leaf, got none for {path!r}")

    return predicate


def _check_bool_tree(mask: Any, a: Any) -> None:
    covering = {prefix for path in leaf_paths(a) for prefix in _prefixes(path)}
    for path in leaf_paths(mask):
        if path not in covering:
            raise ValueError(
                "need a mask with the structure of the tree or a prefix of it, "
                f"got an entry {path!r} where the tree has no leaf"
            )


def _prefixes(path: Path) -> list[Path]:
    segments = path.split("/")
    return ["/".join(segments[:end]) for end in range(len(segments), -1, -1)]


def _checked_predicate(fn: Callable[..., Any]) -> Callable[[Path, Any], bool]:
    signatures.check_predicate(fn)

    def predicate(path: Path, leaf: Any) -> bool:
        answer = fn(path, leaf)
        if not isinstance(answer, bool) and not _is_bool_array(answer):
            raise TypeError(
                "need a function (path, leaf) -> bool, "
                f"got {type(answer).__name__} for leaf {path!r}"
            )
        return bool(answer)

    return predicate


def _glob_to_regex(glob: str) -> str:
    """Translate ``**/`` (any segments), ``**``, ``*`` and ``?`` to a regex."""
    tokens = re.split(r"(\*\*/|/\*\*$|\*\*|\*|\?)", glob)
    meaning = {
        "**/": "(?:.*/)?",
        "/**": "(?:/.*)?",
        "**": ".*",
        "*": "[^/]*",
        "?": "[^/]",
    }
    return "".join(meaning.get(token, re.escape(token)) for token in tokens)
