"""Pytrees as vectors, and the paths and selections of their leaves.

A tree of arrays is a vector: it can be added, scaled, averaged and measured.
``None`` is a tree without leaves, so a tree with holes is a vector with fewer
coordinates. A scalar coefficient is cast to each leaf's dtype; norms and inner
products are computed in at least float32.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.signatures as signatures
from fngrad.types import Path, Scalar, Selector, Tree


class Stacked(NamedTuple):
    """Leaves of one shape and dtype, or what a rule keeps for each of them."""

    leaves: Any  # arrays whose first axis counts leaves


def add(a: Tree, b: Tree) -> Tree:
    """Return a + b."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """Return a - b."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(factor: Scalar, a: Tree) -> Tree:
    """Return factor * a, in the dtypes of a."""
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, a)


def lerp(a: Tree, b: Tree, weight: Scalar) -> Tree:
    """Return (1 - weight) a + weight b, in the dtypes of a.

    ``1 - weight`` is taken in the dtype of ``weight``, before any cast: in bfloat16
    a weight of 0.001 would leave 1 - weight = 1.
    """
    weight = jnp.asarray(weight)
    return average(1 - weight, a, b)


def average(decay: Scalar, a: Tree, b: Tree) -> Tree:
    """Return decay a + (1 - decay) b, in the dtypes of a: one step of an EMA."""
    decay = jnp.asarray(decay)
    rest = 1 - decay
    return jax.tree.map(
        lambda x, y: decay.astype(x.dtype) * x + rest.astype(x.dtype) * y, a, b
    )


def vdot(a: Any, b: Any) -> jax.Array:
    """Return the real part of <a, b> = sum conj(a_i) b_i, in at least float32."""
    products = jax.tree.map(
        lambda x, y: jnp.sum(jnp.real(jnp.conj(x) * y)), widen(a), widen(b)
    )
    terms = jax.tree.leaves(products)
    dtype = functools.reduce(np.promote_types, (t.dtype for t in terms), np.float32)
    return sum((term.astype(dtype) for term in terms), jnp.zeros((), dtype))


@jax.jit  # or a step outside of jit would compile the branches each time
def norm(a: Any) -> jax.Array:
    """Return the Euclidean norm over all leaves, in at least float32.

    It is exact wherever the norm itself fits, at 1e30 and 1e-30 too. Its gradient at
    zero is zero, not NaN.
    """
    dtype = jax.eval_shape(vdot, a, a).dtype
    wide = jax.tree.map(lambda x: _with_precision(x, dtype), a)

    def square_of_scaled(scale: jax.Array) -> jax.Array:
        shrunk = jax.tree.map(lambda x: numerics.divided(x, scale), wide)
        return vdot(shrunk, shrunk)

    return numerics.root_of_squares(vdot(wide, wide), square_of_scaled)


def _with_precision(x: jax.Array, dtype: Any) -> jax.Array:
    return x.astype(np.promote_types(dtype, "c8") if jnp.iscomplexobj(x) else dtype)


def where(condition: jax.Array, a: Tree, b: Tree) -> Tree:
    """Return a where a scalar condition holds and b elsewhere, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def stays_finite(a: Any, b: Any) -> jax.Array:
    """Return whether b is finite wherever a is: a bool of shape ()."""
    answers = jax.tree.map(_stays_finite, a, b)
    return jax.tree.reduce(jnp.logical_and, answers, jnp.ones((), bool))


def _stays_finite(old: jax.Array, new: jax.Array) -> jax.Array:
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        return jnp.ones((), bool)
    return jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))


def zeros_like(a: Any, dtype: Any = None) -> Any:
    """Return zeros in the shapes of a; abstract leaves (ShapeDtypeStruct) do too."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), a)


def wide_dtype(dtype: Any) -> Any:
    """Return the dtype that moments and arithmetic use: at least float32.

    Integers stay as they are.
    """
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return jnp.dtype(jnp.float32)
    return jax.dtypes.canonicalize_dtype(dtype)


def widen(a: Tree) -> Tree:
    """Cast float leaves that are narrower than float32 to float32."""
    return jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), a)


def wide_zeros_like(a: Tree) -> Tree:
    """Return the zeros that a moment of these parameters begins with."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, dtype=wide_dtype(x.dtype)), a)


def cast_like(a: Tree, like: Tree) -> Tree:
    """Cast each leaf of a to the dtype of its partner in ``like``."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), a, like)


def strong(a: Tree) -> Tree:
    """Return arrays without weak types: with one a state would be traced anew."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), a)


def abs_square(x: jax.Array) -> jax.Array:
    """Return |x|**2, real for complex x too."""
    return jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else x * x


def path_string(path: Any) -> Path:
    """Write a key path as ``layers/0/weight``; the root is the empty string."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_paths(a: Any) -> dict[Path, Any]:
    """Return the leaves by path, in the tree's order.

    Raises:
        ValueError: two leaves have one path, as in ``{"a/b": x, "a": {"b": y}}``.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(a)
    by_path = {path_string(path): leaf for path, leaf in leaves}
    if len(by_path) < len(leaves):
        raise ValueError(f"need one path a leaf, got the names {list(by_path)} twice")
    return by_path


def from_leaf_paths(like: Tree, by_path: dict[Path, Any]) -> Tree:
    """Return a tree shaped like ``like`` with the leaves of `leaf_paths`, by path.

    Saved leaves come home wherever they stood in the order, in containers of the same
    names.

    Raises:
        ValueError: a path is missing or not expected, or a shape or dtype differs.

    Example:
        >>> import fngrad.tree as tree
        >>> tree.from_leaf_paths({"a": 0.0, "b": [0.0]}, {"b/0": 2.0, "a": 1.0})
        {'a': 1.0, 'b': [2.0]}
    """
    expected = leaf_paths(like)
    difference = mismatch(expected, by_path)
    if difference:
        raise ValueError(f"need the leaves of the tree: {difference}")
    structure = jax.tree.structure(like)
    return structure.unflatten([by_path[path] for path in expected])


def map_with_path(fn: Callable[..., Any], a: Tree, *rest: Any) -> Tree:
    """Map ``fn(path, leaf, *leaves)`` over trees of one structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: fn(path_string(path), *leaves), a, *rest
    )


def map_selected(fn: Callable[[Path, Any], Any], a: Any) -> Any:
    """Map ``fn(path, leaf)``; a `Stacked` is asked once, as the shape of its leaves."""

    def ask(path: Any, node: Any) -> Any:
        if not isinstance(node, Stacked):
            return fn(path_string(path), node)
        if node.leaves is None:
            return node
        one = jax.ShapeDtypeStruct(node.leaves.shape[1:], node.leaves.dtype)
        return Stacked(fn(path_string(path), one))

    return jax.tree_util.tree_map_with_path(
        ask, a, is_leaf=lambda x: isinstance(x, Stacked)
    )


def mismatch(expected: Any, got: Any, *, dtypes: bool = True) -> str | None:
    """Say where two trees first differ in structure, shape or dtype, else None.

    Leaves may be arrays, numbers or ShapeDtypeStructs.
    """
    want, have = leaf_paths(expected), leaf_paths(got)
    for path in have:
        if path not in want:
            return f"{_show(path)} is not expected"
    for path, leaf in want.items():
        if path not in have:
            return f"{_show(path)} is missing"
        other = have[path]
        if jnp.shape(leaf) != jnp.shape(other):
            return (
                f"{_show(path)} needs shape {jnp.shape(leaf)}, got {jnp.shape(other)}"
            )
        if dtypes and _dtype(leaf) != _dtype(other):
            return f"{_show(path)} needs dtype {_dtype(leaf)}, got {_dtype(other)}"
    if jax.tree.structure(expected) != jax.tree.structure(got):
        return (
            f"the containers differ: need {jax.tree.structure(expected)}, "
            f"got {jax.tree.structure(got)}"
        )
    return None


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _show(path: Path) -> str:
    return f"leaf {path!r}" if path else "the root"


def select(selector: Selector, a: Tree) -> Tree:
    """Return the tree of bools that says which leaves of ``a`` are selected.

    Args:
        selector: a glob over paths (``*`` stays within a segment, ``**`` spans
            segments), a predicate ``(path, leaf) -> bool``, or a tree of bools with
            the structure of ``a`` or a prefix of it. A pytree is never taken for a
            predicate, callable or not.
        a: the tree; abstract leaves will do.

    Raises:
        ValueError: a tree of bools that does not fit ``a``.
        TypeError: another kind of selector, a predicate of other arguments, or one
            that gives no bool.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.tree as tree
        >>> params = {"embed": {"weight": jnp.ones(2)}, "head": jnp.ones(3)}
        >>> tree.select("embed/**", params)
        {'embed': {'weight': True}, 'head': False}
    """
    predicate = selector_predicate(selector)
    if _is_bool_tree(selector):
        _check_bool_tree(selector, a)
    return map_selected(lambda path, leaf: bool(predicate(path, leaf)), a)


def selector_predicate(selector: Selector) -> Callable[[Path, Any], bool]:
    """Return the predicate ``(path, leaf) -> bool`` of any selector."""
    if isinstance(selector, str):
        pattern = re.compile(_glob_to_regex(selector))
        return lambda path, leaf: pattern.fullmatch(path) is not None
    if _is_bool_tree(selector):
        return _bool_tree_predicate(selector)
    if callable(selector) and jax.tree_util.all_leaves([selector]):
        return _checked_predicate(selector)
    raise TypeError(
        "need a selector: a glob over paths, a tree of bools, or a function "
        f"(path, leaf) -> bool, got {selector!r}"
    )


def split(model: Tree) -> tuple[Any, Callable[[Any], Tree]]:
    """Separate a model's float arrays, which are learned, from everything else.

    Args:
        model: any pytree; functions, strings and integer arrays may be leaves, as in
            an Equinox module.

    Returns:
        ``(params, rebuild)``: the model with ``None`` for every leaf that is no float
        or complex array, and the function that puts those leaves back.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> params, rebuild = fg.split({"w": jnp.ones(2), "activation": jax.nn.relu})
        >>> params["activation"] is None
        True
        >>> rebuild(params)["activation"] is jax.nn.relu
        True
    """
    is_learned = jax.tree.map(_is_float_array, model)
    rest = jax.tree.map(lambda learned, x: None if learned else x, is_learned, model)
    return keep(is_learned, model), lambda params: merge(params, rest)


def _is_float_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def keep(mask: Any, a: Tree) -> Tree:
    """Return ``a`` with ``None`` where the mask (a tree of bools) is false."""
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
