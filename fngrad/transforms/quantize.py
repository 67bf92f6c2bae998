"""Quantized moments: 16, 8 or 4 bits per entry."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.numerics.low_bit_codes as low_bit_codes
import fngrad.numerics.stochastic_rounding as stochastic_rounding
import fngrad.programs.text_tables as text_tables
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    UpdateFn,
    chain,
    unwrap,
    wrapper,
)
from fngrad.transforms.leaf_states import num_bytes
from fngrad.transforms.quantized_update import (
    Short,
    decode,
    is_short,
    update_coded,
    update_rounded,
)
from fngrad.types import Metrics, OptState, Params, Updates

# Programs, since outside of one each of their operations would be a program.
_rounded = jax.jit(stochastic_rounding.round_by_dither)
_coded = jax.jit(low_bit_codes.encode, static_argnums=(1, 2))


class QuantizeState(NamedTuple):
    """State of `quantize_state`."""

    step: jax.Array  # int32, shape (); selects the draws of the rounding
    inner: OptState  # with a Coded or a Rounded for every moment that is quantized


def quantize_state(
    inner: TransformLike,
    bits: int = 8,
    block_size: int = 256,
    signed: str | Sequence[str] = (),
    non_negative: str | Sequence[str] = (),
    *,
    min_size: int | None = None,
) -> Transform:
    r"""Keep a transform's moments in bfloat16, or in codes of 8 or 4 bits.

    At every update the moments $m$ are decoded, ``inner`` makes its update in float32,
    and its new moments are encoded. They are rounded up or down at random, without
    bias:

    $$\mathbb E\,[\,\mathrm{decode}(\mathrm{encode}(m_t))\,] = m_t$$

    Rounding to nearest would not do: with $\beta_2 = 0.999$ a second moment falls by at
    most a thousandth per step, a quarter of the distance between numbers of bfloat16 or
    less, and would stay where it is. The rounding is a function of the step and the
    entry's position, so a run repeats exactly.

    With 16 bits a moment is an array in bfloat16, and the update is made of the rounded
    moments. An optimizer's step takes at most 1.1 times as long as in float32, see
    ``experiments/benchmarks/step_cost.py``. In optax this is ``mu_dtype``, for the
    first moment alone and rounded to nearest; here it holds for all moments.

    With 8 or 4 bits a block of ``block_size`` entries shares a float32 scale $s$, its
    largest modulus; each entry $x$ is kept as the code of $x / s$, see
    `fngrad.numerics.low_bit_codes`. (An entry of a second moment below $10^{-10}$ of
    its block's largest is raised to that, never rounded to zero, since updates are
    divided by its root.) On CPU the optimizer's step takes two to three times as long;
    parameters are updated one after another, so that the decoded moments of one
    parameter at a time are in memory; see ``experiments/benchmarks/state_memory.py``.

    The state classes of fngrad's rules declare which fields are moments. All other
    state (counters, iterates, averages of parameters, bases, factors) keeps its dtype,
    as do complex moments and those with fewer than ``min_size`` entries.
    `describe_quantization` prints how each leaf is stored.

    Rounding has no derivative, so a run with it cannot be differentiated.

    Args:
        inner: the transform, usually a whole optimizer.
        bits: 16, 8 or 4. With 4, codes are up to a factor of 2 apart, and training is
            no longer the same as in float32: try it beside 8.
        block_size: entries per scale, even; a scale costs 4 bytes. Not used with 16
            bits.
        signed: for rules that declare no moments: globs over the paths of the inner
            state, such as ``"**/mu/**"``, of moments of either sign.
        non_negative: likewise, of moments that are never negative.
        min_size: the fewest entries of a leaf that is encoded; ``None`` means 0 with 16
            bits and 4096 with fewer.

    Raises:
        ValueError: if ``bits`` is not 16, 8 or 4, or ``block_size`` is odd or not
            positive; at ``init``, if a glob selects no leaf, a leaf has two kinds, or
            there is a `quantize_state` in ``inner``.

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
    if bits not in (16, 8, 4):
        raise ValueError(f"need bits=16, 8 or 4, got {bits=}")
    bits = numerics.check_count("bits", bits)
    block_size = numerics.check_count("block_size", block_size)
    if min_size is None:
        min_size = 0 if bits == 16 else 4096
    min_size = numerics.check_count("min_size", min_size)
    if block_size < 2 or block_size % 2:
        raise ValueError(f"need an even block_size >= 2, got {block_size=}")
    transform = unwrap(inner)
    globs = {"signed": _as_tuple(signed), "non_negative": _as_tuple(non_negative)}

    def encode(leaf: jax.Array, kind: str) -> Short:
        if bits == 16:
            return _rounded(leaf)
        coding = low_bit_codes.Coding(bits, kind == "signed")
        return _coded(leaf, coding, block_size)

    def init(params: Params) -> QuantizeState:
        def begin(kind: str, leaf: jax.Array) -> Any:
            is_chosen = kind and _is_worth_it(leaf, min_size)
            return encode(leaf, kind) if is_chosen else leaf

        state = transform.init(params)
        _check_once(state)
        short = jax.tree.map(begin, queries.moment_kinds(state, globs), state)
        return QuantizeState(numerics.first_step(), short)

    def advance(
        update_fn: UpdateFn, updates: Updates, state: QuantizeState, params: Params
    ) -> tuple[Updates, QuantizeState, Metrics]:
        update = update_rounded if bits == 16 else update_coded
        updates, inner, metrics = update(
            functools.partial(update_fn, transform),
            updates,
            state.inner,
            params,
            step=state.step,
        )
        return updates, QuantizeState(numerics.next_step(state.step), inner), metrics

    return chain(wrapper(init, advance, "quantize_state", transform.trainable))


def describe_quantization(optimizer: TransformLike, params: Params) -> str:
    """Return a table of how `quantize_state` stores each leaf of a state.

    One line per float leaf: its path in the inner state, its dtype, how it is stored,
    and its bytes before and after. The last line has the totals.

    Args:
        optimizer: a transform; without `quantize_state` in it nothing is in codes.
        params: arrays or ShapeDtypeStructs; nothing is computed.
    """
    state = jax.eval_shape(optimizer.init, params)
    leaves, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_short)
    rows, total = [], [0, 0]
    for path, leaf in leaves:
        before = jax.tree.leaves(jax.eval_shape(decode, leaf))[0]
        if not tree.is_float(before):
            continue
        sizes = num_bytes(before), num_bytes(leaf)
        name = tree.path_string(path).removeprefix("quantize_state/inner/")
        rows.append((name, str(before.dtype), _storage(leaf), *map(str, sizes)))
        total = [t + s for t, s in zip(total, sizes, strict=True)]
    heads = ("leaf", "dtype", "stored as", "bytes before", "bytes after")
    total_row = ("total", "", "", *map(str, total))
    return text_tables.table([heads, *rows, total_row], left=3)


def _check_once(state: OptState) -> None:
    if queries.find(state, is_short):
        raise ValueError(
            "need moments in their full dtype to quantize, got a quantize_state inside "
            "another"
        )


def _storage(leaf: Any) -> str:
    if isinstance(leaf, low_bit_codes.Coded):
        return f"{leaf.coding.bits} bits"
    stored = leaf.values if is_short(leaf) else leaf
    return str(stored.dtype)


def _as_tuple(globs: str | Sequence[str]) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)


def _is_worth_it(leaf: Any, min_size: int) -> bool:
    is_real = jnp.issubdtype(leaf.dtype, jnp.floating)
    return is_real and leaf.size >= max(min_size, 1)
