"""Moments kept in 8 or 4 bits."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.numerics.low_bit_codes as low_bit_codes
import fngrad.tree as tree
from fngrad.transforms.core import (
    Run,
    Transform,
    TransformLike,
    chain,
    unwrap,
    wrapping,
)
from fngrad.transforms.quantized_update import decode, is_coded, update_coded
from fngrad.types import Metrics, OptState, Params, Path, Updates

KINDS = ("signed", "non_negative")  # how a state class declares its moments


class QuantizeState(NamedTuple):
    """State of `quantize_state`."""

    step: jax.Array  # int32, shape (); moves the rounding on
    inner: OptState  # with a low_bit_codes.Coded for every large moment


def quantize_state(
    inner: TransformLike,
    bits: int = 8,
    block_size: int = 256,
    signed: str | Sequence[str] = (),
    non_negative: str | Sequence[str] = (),
    *,
    min_size: int = 4096,
) -> Transform:
    r"""Keep a transform's moments in codes of 8 or 4 bits.

    A block of ``block_size`` entries of a moment shares a float32 scale $s$, its
    largest modulus; each entry $x$ is kept as the code of $x / s$, see
    `fngrad.numerics.low_bit_codes`.
    At every update the moments are decoded, ``inner`` makes its update in float32, and
    its new moments are encoded, rounded up or down at random so that on average
    nothing is lost:

    $$\mathbb E\,[\,\mathrm{decode}(\mathrm{encode}(m_t))\,] = m_t$$

    (an entry of a second moment below $10^{-10}$ of its block's largest is lifted to
    that: never to zero, since one divides by it). The rounding is a function of the
    step and the entry's place, so a run repeats exactly. On CPU the optimizer's step
    takes two to three times as long, and parameters take turns, so that the decoded
    moments of one at a time are in memory; see
    ``experiments/benchmarks/state_memory.py``.

    What is a moment is declared by the state classes of fngrad's rules; all other
    state (counters, iterates, averages of parameters, bases, factors) stays as it is,
    as do complex moments and those with fewer than ``min_size`` entries.
    `describe_quantization` prints what becomes of each leaf.

    Codes are integers: a run with them is not to be differentiated.

    Args:
        inner: the transform, usually a whole optimizer.
        bits: 8 or 4. With 4, codes are up to a factor of 2 apart, and training is no
            longer the same as in float32: try it beside 8.
        block_size: entries a scale, even; a scale costs 4 bytes.
        signed: for rules that declare nothing: globs over the paths of the inner
            state, such as ``"**/mu/**"``, of moments of either sign.
        non_negative: likewise, of moments that are never negative.
        min_size: the fewest entries of a leaf that is encoded.

    Raises:
        ValueError: other bits, an odd or non-positive ``block_size``; at ``init``, a
            glob that selects no leaf, or two kinds for one leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.quantize_state(fg.adamw(3e-4))
        >>> params = {"w": jnp.ones((64, 64)), "b": jnp.ones(64)}
        >>> print(fg.describe_quantization(optimizer, params))
        leaf                dtype    stored as  bytes before  bytes after
        scale_by_adam/mu/b  float32  float32             256          256
        scale_by_adam/mu/w  float32  8 bits            16384         4160
        scale_by_adam/nu/b  float32  float32             256          256
        scale_by_adam/nu/w  float32  8 bits            16384         4160
        total                                          33280         8832

    References:
        Dettmers et al., 8-bit optimizers via block-wise quantization, 2022,
        https://arxiv.org/abs/2110.02861. Li et al., Memory efficient optimizers with
        4-bit states, 2023, https://arxiv.org/abs/2309.01507. Differs from them in: the
        codes are small floats; those of second moments have no zero, also in 8 bits;
        rounding is stochastic, not to the nearest.
    """
    if bits not in (8, 4):
        raise ValueError(f"need bits=8 or bits=4, got {bits=}")
    bits = numerics.check_count("bits", bits)
    block_size = numerics.check_count("block_size", block_size)
    min_size = numerics.check_count("min_size", min_size)
    if block_size < 2 or block_size % 2:
        raise ValueError(f"need an even block_size >= 2, got {block_size=}")
    transform = unwrap(inner)
    globs = {"signed": _as_tuple(signed), "non_negative": _as_tuple(non_negative)}

    def init(params: Params) -> QuantizeState:
        def begin(kind: str, leaf: jax.Array) -> Any:
            if not kind or not _is_worth_it(leaf, min_size):
                return leaf
            return low_bit_codes.encode(
                leaf, low_bit_codes.Coding(bits, kind == "signed"), block_size
            )

        state = transform.init(params)
        coded = jax.tree.map(begin, _kinds(state, globs), state)
        return QuantizeState(numerics.first_step(), coded)

    def advance(
        run: Run, updates: Updates, state: QuantizeState, params: Params
    ) -> tuple[Updates, QuantizeState, Metrics]:
        updates, inner, told = update_coded(
            functools.partial(run, transform), updates, state.inner, params, state.step
        )
        return updates, QuantizeState(numerics.next_step(state.step), inner), told

    return chain(wrapping(init, advance, "quantize_state", transform.trainable))


def describe_quantization(optimizer: TransformLike, params: Params) -> str:
    """Return a table of what `quantize_state` does with each leaf of a state.

    One line a leaf that holds floats: its path in the inner state, its dtype, how it
    is stored, and its bytes before and after. The last line sums up.

    Args:
        optimizer: a transform; with no `quantize_state` in it nothing is in codes.
        params: arrays or ShapeDtypeStructs; nothing is computed.
    """
    state = jax.eval_shape(optimizer.init, params)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_coded)
    rows, total = [], [0, 0]
    for path, leaf in leaves:
        before = jax.tree.leaves(jax.eval_shape(decode, leaf))[0]
        if not jnp.issubdtype(before.dtype, jnp.inexact):
            continue
        stored = f"{leaf.coding.bits} bits" if is_coded(leaf) else str(before.dtype)
        sizes = _bytes(before), _bytes(leaf)
        name = tree.path_string(path).removeprefix("quantize_state/inner/")
        rows.append((name, str(before.dtype), stored, *map(str, sizes)))
        total = [t + s for t, s in zip(total, sizes, strict=True)]
    heads = ("leaf", "dtype", "stored as", "bytes before", "bytes after")
    return _table([heads, *rows, ("total", "", "", *map(str, total))])


def _as_tuple(globs: str | Sequence[str]) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)


def _is_worth_it(leaf: Any, min_size: int) -> bool:
    is_real = jnp.issubdtype(leaf.dtype, jnp.floating)
    return is_real and leaf.size >= max(min_size, 1)


def _kinds(state: Any, globs: dict[str, tuple[str, ...]]) -> Any:
    """Return the state's tree with each leaf's kind, "" for none."""
    chosen = _declared(state)
    paths = list(tree.leaf_paths(state))
    given = [(kind, glob) for kind in KINDS for glob in globs[kind]]
    for kind, glob in given:
        selects = tree.selector_predicate(glob)
        if not any(selects(path, None) for path in paths):
            raise ValueError(
                f"need a glob that selects a leaf of the state, got {kind}={glob!r} "
                f"for {paths}"
            )
        chosen = tree.map_with_path(_choose(kind, selects), chosen)
    return chosen


def _choose(kind: str, selects: Callable[[Path, Any], bool]) -> Callable[..., str]:
    def choose(path: Path, before: str) -> str:
        if not selects(path, None):
            return before
        if before not in ("", kind):
            raise ValueError(f"need one kind a leaf, got {before} and {kind}: {path!r}")
        return kind

    return choose


def _declared(state: Any) -> Any:
    """Return the kinds that the state's classes declare for their fields."""

    def declare(node: Any) -> Any:
        if not _is_declaring(node):
            return ""
        fields = zip(node._fields, node, strict=True)
        return type(node)(*(_kind_of(node, name, value) for name, value in fields))

    return jax.tree.map(declare, state, is_leaf=_is_declaring)


def _kind_of(node: Any, name: str, value: Any) -> Any:
    kinds = [kind for kind in KINDS if name in getattr(node, kind, ())]
    return jax.tree.map(lambda leaf: kinds[0], value) if kinds else _declared(value)


def _is_declaring(node: Any) -> bool:
    return hasattr(node, "_fields") and any(hasattr(node, kind) for kind in KINDS)


def _bytes(leaf: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(leaf))


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) for c, w in zip(row[:3], widths[:3], strict=True)]
        cells += [c.rjust(w) for c, w in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)
