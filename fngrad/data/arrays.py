"""Data sets whose examples are cut from an array when they are asked for."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
from fngrad.data.dataset import Dataset, Remainder, from_arrays
from fngrad.programs.keywords_elsewhere import OF_DATA, explains_keywords
from fngrad.types import Batch


@dataclasses.dataclass(frozen=True)
class _ReadWindows:
    length: int
    stride: int

    def __call__(self, tokens: jax.Array, indices: jax.Array) -> Batch:
        offset = jnp.arange(self.length + 1, dtype=jnp.int32)
        place = self.stride * indices[:, None] + offset[None, :]
        window = numerics.rows(tokens, place)
        return {"x": window[:, :-1], "y": window[:, 1:]}


@explains_keywords(OF_DATA)
def windows(
    tokens: Any,
    length: int,
    batch_size: int | Literal["all"],
    *,
    stride: int | None = None,
    seed: int | jax.Array = 0,
    shuffle: bool = True,
    remainder: Remainder = "wrap",
) -> Dataset:
    r"""Make a dataset of windows of a sequence, for predicting what comes next.

    Example i is $x_j = t_{is + j}$ and $y_j = t_{is + j + 1}$ for $0 \le j < l$. There
    are $n = \lfloor (T - l - 1) / s \rfloor + 1$. The sequence is kept once; windows
    are cut from it in the batch.

    Args:
        tokens: t, shape ``(T, ...)``, T <= 2**30; usually int, of shape (T,).
        length: l, 1 <= l < T.
        batch_size: b, 1 <= b <= n, or "all".
        stride: s, from the start of one window to the next; ``None`` means ``length``,
            windows that do not overlap.
        seed: see `from_arrays`.
        shuffle: see `from_arrays`.
        remainder: see `from_arrays`.

    Returns:
        The dataset; its batches are dicts of ``x`` and ``y``, shape (b, l, ...).

    Raises:
        ValueError: if length, stride, batch_size or T is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.data import windows
        >>> data = windows(jnp.arange(10), length=3, batch_size=2, shuffle=False)
        >>> print(data.batch(0)["x"], data.batch(0)["y"])
        [[0 1 2]
         [3 4 5]] [[1 2 3]
         [4 5 6]]
    """
    length = numerics.check_count("length", length)
    stride = length if stride is None else numerics.check_count("stride", stride)
    total = len(tokens)
    if not 1 <= length < total:
        raise ValueError(f"need 1 <= length < len(tokens), got {length=} {total=}")
    if stride < 1:
        raise ValueError(f"need stride >= 1, got {stride=}")
    count = (total - length - 1) // stride + 1
    plan = from_arrays(
        np.empty((count, 0)),
        batch_size,
        seed=seed,
        shuffle=shuffle,
        remainder=remainder,
    )
    held = from_arrays(tokens, 1).arrays
    return dataclasses.replace(plan, arrays=held, read=_ReadWindows(length, stride))
