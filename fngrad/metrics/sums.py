r"""Sums that do not lose digits: pairs of floats, added with what rounding drops.

A *pair* is a float and a rest, at most half a unit in its last place; together they
hold twice the digits. Adding a million pairs is exact to the last digit of the result,
in any order, where float32 alone stops at $2^{24}$ ones.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.numerics as numerics
import fngrad.tree as tree

Pair: TypeAlias = tuple[jax.Array, jax.Array]  # a sum, and what it lacks


def add_pairs(a: Pair, b: Pair) -> Pair:
    """Return the sum of two pairs; where it is not finite the rest is 0.

    References:
        Dekker, A floating-point technique for extending the available precision,
        1971, https://doi.org/10.1007/BF01397083, section 4.
    """
    total, rest = numerics.two_sum(a[0], b[0])
    return numerics.two_sum(total, rest + (a[1] + b[1]))


def pair_of_sum(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> Pair:
    """Return the sum over axes, of all by default, as a pair.

    Its gradient is that of ``jnp.sum``.

    Args:
        x: floats.
        axis: what is summed over.
    """
    axes = tuple(range(x.ndim)) if axis is None else axis
    axes = axes if isinstance(axes, tuple) else (axes,)
    return _pair_of_sum(tuple(a % x.ndim for a in axes), x)


def pair_of(x: Any) -> Pair:
    """Return floats in at least float32, and integers to every digit, as a pair."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(tree.wide_dtype(x.dtype))
        return x, jnp.zeros_like(x)
    if x.dtype.itemsize < 4:
        x = x.astype(jnp.int32)
    fine = x & jnp.asarray(0xFFF, x.dtype)  # float32 holds these 12 bits, and the rest
    return numerics.two_sum((x - fine).astype(jnp.float32), fine.astype(jnp.float32))


def sums_by_index(
    values: jax.Array | None, index: jax.Array, counts: jax.Array, size: int
) -> Pair:
    """Return, for each number below ``size``, the sum of the values that carry it.

    A scatter of floats would add one after the other, and lose digits with each.

    Args:
        values: floats, shape ``(n,)``; None counts the examples.
        index: int32 in [0, size), shape ``(n,)``.
        counts: bool, shape ``(n,)``: the examples that are added.
        size: how many sums there are.

    Returns:
        A pair of arrays of shape ``(size,)``.
    """
    if values is None:
        zeros = jnp.zeros(size, jnp.int32)
        return pair_of(zeros.at[index].add(counts.astype(jnp.int32)))
    values = jnp.where(counts, values, 0)
    order = jnp.argsort(index)
    index, zeros = index[order], jnp.zeros(size, values.dtype)
    sums = _sums_of_runs(index, values[order])
    is_first = jnp.concatenate([jnp.ones(1, bool), index[1:] != index[:-1]])
    is_first = is_first[: index.size]
    total, rest = (zeros.at[index].add(jnp.where(is_first, x, 0)) for x in sums)
    return total, rest


def running_sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the sums of what comes before each place, and of that up to it.

    Each is rounded once, however many numbers it adds.
    """
    total, rest = _sums_of_runs(jnp.zeros(x.shape, jnp.int32), x[::-1])
    upto = (total + rest)[::-1]
    return jnp.concatenate([jnp.zeros_like(x[:1]), upto[:-1]]), upto


def ends_of_runs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return where each number's run of equal ones begins and ends.

    Args:
        x: sorted, shape ``(n,)``.

    Returns:
        Two arrays of int32, shape ``(n,)``.
    """
    place = jnp.arange(x.size, dtype=jnp.int32)
    differs = x[1:] != x[:-1]
    edge = jnp.ones(min(x.size, 1), bool)
    starts = jnp.where(jnp.concatenate([edge, differs]), place, 0)
    ends = jnp.where(jnp.concatenate([differs, edge]), place, max(x.size - 1, 0))
    return lax.cummax(starts), lax.cummin(ends, reverse=True)


def _sums_of_runs(index: jax.Array, values: jax.Array) -> Pair:
    """Return at each place the sum from there to the end of its run of equal numbers.

    After k rounds the sums reach over $2^k$ places.
    """
    n = index.size

    def double(k: jax.Array, sums: Pair) -> Pair:
        ahead = jnp.arange(n, dtype=jnp.int32) + jnp.left_shift(1, k)
        place = jnp.minimum(ahead, n - 1)
        is_same = (ahead < n) & (index[place] == index)
        total, rest = (jnp.where(is_same, x[place], 0) for x in sums)
        return add_pairs(sums, (total, rest))

    rounds = (n - 1).bit_length() if n else 0
    return lax.fori_loop(0, rounds, double, (values, jnp.zeros_like(values)))


def _reduced(axes: tuple[int, ...], x: jax.Array) -> Pair:
    zero = jnp.zeros((), x.dtype)
    # The barrier keeps XLA from fusing a product into one of the additions of a pair.
    x = lax.optimization_barrier(x)
    total, rest = lax.reduce((x, jnp.zeros_like(x)), (zero, zero), add_pairs, axes)
    return total, rest


_pair_of_sum = jax.custom_jvp(_reduced, nondiff_argnums=(0,))


@_pair_of_sum.defjvp
def _pair_of_sum_jvp(
    axes: tuple[int, ...], primals: tuple, tangents: tuple
) -> tuple[Pair, Pair]:
    total, rest = _reduced(axes, *primals)
    slope = jnp.sum(tangents[0], axis=axes)
    return (total, rest), (slope, jnp.zeros_like(rest))
