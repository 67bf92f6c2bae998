"""Low-rank adapters (LoRA): fine-tuning by small matrices beside frozen ones.

They are functions of parameters, ``params -> params``, so that any model, loss, step
and optimizer takes them; here, since `fngrad.layers` multiplies by a matrix and its
adapter apart from each other.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.types import Key, Params, Path, Scalar, Selector

_PARTS = {"base", "adapters"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix ``base + a @ b`` that is not summed: ``x @ it`` has two terms.

    It stands for the array in every expression ``x @ weight``, and among the parameters
    of layers; ``scan`` and ``vmap`` cut it along leading axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.layers.low_rank_adapters import LowRank
        >>> weight = LowRank(jnp.eye(2), jnp.ones((2, 1)), jnp.ones((1, 2)))
        >>> print(jnp.array([1.0, 2.0]) @ weight)
        [4. 5.]
    """

    base: jax.Array  # shape (..., n, m)
    a: jax.Array  # shape (..., n, r)
    b: jax.Array  # shape (..., r, m)

    __array_ufunc__ = None  # NumPy's arrays leave the product to `__rmatmul__`

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the sum."""
        return self.base.shape

    @property
    def ndim(self) -> int:
        """The number of axes of the sum."""
        return self.base.ndim

    @property
    def dtype(self) -> Any:
        """The dtype of the base, in which the products are."""
        return self.base.dtype

    @property
    def T(self) -> "LowRank":  # noqa: N802
        """The transpose, as in a head that is tied to an embedding."""
        return LowRank(self.base.T, self.b.T, self.a.T)

    def __rmatmul__(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        a, b = self.a.astype(self.dtype), self.b.astype(self.dtype)
        return x @ self.base + (x @ a) @ b

    def rows(self, indices: jax.Array) -> jax.Array:
        """Return the rows of the sum at indices in [0, n), as an embedding does."""
        a, b = self.a.astype(self.dtype), self.b.astype(self.dtype)
        return numerics.rows(self.base, indices) + numerics.rows(a, indices) @ b


class LoRA(NamedTuple):
    """Adapters as functions of parameters; see `lora`."""

    # (params, key) -> {"base": params, "adapters": ...}, which is what is trained.
    init: Callable[[Params, int | Key], Params]
    # Of what init returned: the model's parameters, each matrix W + s A B in one array.
    merged: Callable[[Params], Params]
    # The same with a LowRank in place of each sum, for layers that multiply by it.
    unmerged: Callable[[Params], Params]


@explains_keywords()
def lora(
    matrices: Selector,
    *,
    rank: int = 8,
    alpha: Scalar | None = None,
    rank_stabilized: bool = False,
) -> LoRA:
    r"""Train a low-rank change of matrices that stay as they are.

    $$W' = W + s\, A B, \qquad s = \alpha / r \quad (\alpha / \sqrt r
    \text{ if stabilized by rank})$$

    with $W$ of shape (n, m) frozen, $A$ of shape (n, r), $B$ of shape (r, m). At first
    $A$ is uniform in $\pm 1 / \sqrt n$ and $B$ is zero, so the model computes what it
    did. ``merged`` gives $W'$, for any function of the parameters, and for use after
    the training; ``unmerged`` gives $x W' = x W + s (x A) B$ in layers that multiply
    ``x @ weight``: no array and no gradient of the shape of $W$ is made.

    The parameters to train are ``{"base": params, "adapters": ...}``, with leaves
    ``adapters/layers/0/weight/a`` and ``.../b``. ``fngrad.masked(rule,
    "adapters/**")`` freezes all others: no gradient, no state of the optimizer.
    `fngrad.describe` shows what is trained. A bias or a norm is trained too by a wider
    selector, ``["adapters/**", "base/**/bias"]``. LoRA+ is a higher rate for $B$ by
    `fngrad.partition`, as below.

    Args:
        matrices: which leaves of the parameters get adapters, see
            `fngrad.tree.select`: arrays of floats with at least two axes. The last two
            are those of the matrix; axes before them count matrices, as those of
            `layers.repeat` do. So a kernel of `layers.conv` has a pair for each of its
            positions; a convolution needs ``merged``.
        rank: $r$, at least 1, at most n and m.
        alpha: $\alpha$, a number, a scalar array or a tracer; None means the rank.
        rank_stabilized: rsLoRA's scale, which keeps the size of the change for high
            ranks.

    Returns:
        The functions ``init``, ``merged`` and ``unmerged``. Adapters have at least
        float32, also beside a base in 16 bits, whose dtype the results keep.

    Raises:
        ValueError: if the rank is not an int >= 1, or alpha is NaN; at ``init``, if a
            glob selects no leaf, a selected leaf has fewer than two axes or an axis
            shorter than the rank; at ``merged`` and ``unmerged``, if the parameters are
            not those of ``init``.
        TypeError: if ``matrices`` is not a selector; at ``init``, if a selected leaf
            does not hold floats.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> model = fg.models.mlp((4, 8, 1))
        >>> adapters = fg.lora("layers/*/weight", rank=1, alpha=2.0)
        >>> params = adapters.init(model.init(jax.random.key(0)), key=1)
        >>> def loss_fn(params, batch):
        ...     predict = fg.layers.batched(model)
        ...     y = predict(adapters.unmerged(params), batch["x"])
        ...     return jnp.mean((y - batch["y"]) ** 2)
        >>> optimizer = fg.partition([  # LoRA+
        ...     ("adapters/**/b", fg.adamw(16 * 1e-3)),
        ...     ("adapters/**", fg.adamw(1e-3)),
        ...     ("**", fg.freeze()),
        ... ])
        >>> step = fg.make_step(loss_fn, optimizer)
        >>> state = fg.init_state(params, optimizer, key=0)
        >>> print(fg.describe(optimizer, params).splitlines()[-1])
        total                       70 parameters, 21 trainable, 192 bytes of state
        >>> alone = adapters.merged(state.params)  # the model's own parameters

    References:
        Hu et al. 2021, "LoRA: low-rank adaptation of large language models",
        equation 3, https://arxiv.org/abs/2106.09685; Kalajdzievski 2023, "A rank
        stabilization scaling factor for fine-tuning with LoRA",
        https://arxiv.org/abs/2312.03732; Hayou et al. 2024, "LoRA+: efficient low rank
        adaptation of large models", https://arxiv.org/abs/2402.12354. Differs from them
        in: the first $A$ is uniform, as in the authors' code, not Gaussian; there is no
        dropout of the adapters' input; matrices multiply from the right, so $A$ here is
        the transpose of the paper's $A$. PEFT's ``lora_alpha`` is 8, for a rank of 8.
    """
    rank = numerics.check_count("rank", rank, 1)
    numerics.check_number("alpha", alpha, optional=True)
    tree.selector_predicate(matrices)

    def init(params: Params, key: int | Key) -> Params:
        tree.check_mask(matrices, params)
        chosen = tree.select(matrices, params)
        at = [path for path, is_one in tree.leaf_paths(chosen).items() if is_one]
        keys = dict(zip(at, jax.random.split(numerics.key(key), len(at)), strict=True))

        def pair(path: Path, w: jax.Array, is_one: bool) -> Any:
            return _pair(path, w, rank, keys[path]) if is_one else None

        return {
            "base": params,
            "adapters": tree.map_with_path(pair, params, chosen),
        }

    def unmerged(params: Params) -> Params:
        size = numerics.hyper(rank if alpha is None else alpha)
        factor = size / math.sqrt(rank) if rank_stabilized else size / rank

        def joined(w: jax.Array, pair: Any) -> Any:
            if pair is None:
                return w
            return LowRank(w, numerics.scaled(factor, pair["a"]), pair["b"])

        _check_parts(params)
        return jax.tree.map(joined, params["base"], params["adapters"])

    def merged(params: Params) -> Params:
        return jax.tree.map(_sum, unmerged(params), is_leaf=_is_low_rank)

    return LoRA(init, merged, unmerged)


def whole(params: Params) -> Params:
    """Return parameters with a ShapeDtypeStruct for each `LowRank`."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if _is_low_rank(x) else x,
        params,
        is_leaf=_is_low_rank,
    )


def rows(table: jax.Array | LowRank, indices: jax.Array) -> jax.Array:
    """Return ``table[indices]`` of an array or of a `LowRank`."""
    if isinstance(table, LowRank):
        return table.rows(indices)
    return numerics.rows(table, indices)


def _is_low_rank(x: Any) -> bool:
    return isinstance(x, LowRank)


def _sum(x: Any) -> Any:
    if not _is_low_rank(x):
        return x
    return (x.base.astype(x.a.dtype) + x.a @ x.b).astype(x.dtype)


def _pair(path: Path, w: jax.Array, rank: int, key: Key) -> dict[str, jax.Array]:
    """Return the first A and B beside a matrix.

    Raises:
        TypeError: if it does not hold floats.
        ValueError: if it is not a matrix, or has an axis shorter than the rank.
    """
    if not tree.is_float(w):
        raise TypeError(f"need matrices of floats, got {w.dtype} at {path!r}")
    if w.ndim < 2 or min(w.shape[-2:]) < rank:
        raise ValueError(
            "need matrices, of at least two axes of which the last two are at least "
            f"rank={rank}, got shape {w.shape} at {path!r}"
        )
    *stack, n, m = w.shape
    dtype = tree.wide_dtype(w.dtype)
    bound, shape = 1 / math.sqrt(n), (*stack, n, rank)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        part = jnp.finfo(dtype).dtype
        parts = jax.random.uniform(key, (2, *shape), part, -bound, bound)
        a = jax.lax.complex(*(parts / math.sqrt(2)))
    else:
        a = jax.random.uniform(key, shape, dtype, -bound, bound)
    return {"a": a, "b": jnp.zeros((*stack, rank, m), dtype)}


def _check_parts(params: Any) -> None:
    if not isinstance(params, dict) or set(params) != _PARTS:
        got = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(
            'need the parameters that init returned, {"base": ..., "adapters": ...}, '
            f"got {got}"
        )
