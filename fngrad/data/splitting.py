"""Disjoint parts of a data set, and scaling by what the training part shows."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.data.dataset import num_examples
from fngrad.data.reads_from_disk import in_memory
from fngrad.numerics.array_inputs import unmasked
from fngrad.programs.printed import preformatted, shown

Arrays = TypeVar("Arrays")


class Splits(NamedTuple):
    """Three disjoint parts: learn on the first, choose on the second, report the third.

    Each is a dict of NumPy arrays, ``x`` of shape (n, ...) and ``y`` of shape (n,).
    """

    train: dict[str, np.ndarray]
    validation: dict[str, np.ndarray]
    test: dict[str, np.ndarray]

    def __repr__(self) -> str:
        return shown(self, _sizes)

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


def split(
    arrays: Arrays,
    fractions: Sequence[float],
    seed: int,
    stratify: Any = None,
) -> tuple[Arrays, ...]:
    r"""Divide examples at random into disjoint parts.

    Part i ends at $\mathrm{round}(n \sum_{j \le i} f_j)$ of the examples in random
    order, so fractions that sum to 1 leave none out. Within a part the examples keep
    the order they had. The parts depend on (n, seed, stratify) and nothing else: the
    random bits are those of PCG64, whose stream NumPy promises never to change.

    Args:
        arrays: any pytree of arrays, each of shape ``(n, ...)``; those on disk are
            read into memory, with a warning.
        fractions: $f_1, f_2, \dots$, each above 0, with a sum of at most 1.
        seed: an int >= 0 of any size; every bit counts.
        stratify: labels, shape (n,); each part then holds the classes in the
            proportions of the whole, but for rounding.

    Returns:
        One tree for each fraction, of NumPy arrays.

    Raises:
        ValueError: if fractions are out of range, a part would be empty, the seed is
            not an int >= 0, an array is masked, arrays differ in their first axis, or
            the labels have another shape.

    Example:
        >>> import numpy as np
        >>> from fngrad.data import split
        >>> train, test = split({"x": np.arange(10)}, [0.8, 0.2], seed=0)
        >>> len(train["x"]), len(test["x"])
        (8, 2)
    """
    n = num_examples(arrays)
    arrays = in_memory(arrays)
    ends = _part_ends(fractions, n)
    order = _random_order(n, seed)
    if stratify is not None:
        order = _interleave_classes(order, _labels(stratify, n))
    parts = [np.sort(part) for part in np.split(order, ends)[: len(fractions)]]
    return tuple(_rows(arrays, part) for part in parts)


def standardize(splits: Splits, *names: str, axis: int | None = 0) -> Splits:
    r"""Scale entries by mean and standard deviation of the training part.

    $$x \leftarrow (x - \mu) / \sigma$$

    Args:
        splits: validation and test are scaled by the same numbers, which do not depend
            on them.
        names: the entries to scale, as float32, also from disk, with a warning; the
            others stay as they are.
        axis: 0 gives every feature its own $\mu$ and $\sigma$, ``None`` one for all.
            A feature that is constant in the training part is only centered.

    Raises:
        KeyError: if a part has no entry of one of the names.
        ValueError: if an array is masked.

    Example:
        >>> import numpy as np
        >>> from fngrad.data import Splits, standardize
        >>> part = {"x": np.array([[1.0], [3.0]]), "y": np.array([0, 1])}
        >>> scaled = standardize(Splits(part, part, part), "x")
        >>> print(scaled.test["x"].ravel())
        [-1.  1.]
    """
    chosen = Splits._make({name: part[name] for name in names} for part in splits)
    pairs = zip(splits, in_memory(chosen), strict=True)
    splits = Splits._make({**part, **read} for part, read in pairs)
    for name in names:
        for part in splits:
            numerics.check_unmasked(f"an array at {name!r}", part[name])
        train = splits.train[name].astype(np.float64)
        mean, deviation = train.mean(axis=axis), train.std(axis=axis)
        is_constant = train.max(axis=axis) == train.min(axis=axis)
        deviation = np.where(is_constant, 1.0, deviation)
        splits = Splits._make(
            {**part, name: ((part[name] - mean) / deviation).astype(np.float32)}
            for part in splits
        )
    return splits


def _sizes(splits: Splits) -> str:
    """Return how many examples the parts have; the parts, if these are no arrays."""
    firsts = {n: jax.tree.leaves(part)[:1] for n, part in splits._asdict().items()}
    if not all(first and np.ndim(first[0]) for first in firsts.values()):
        parts = (f"{name}={part!r}" for name, part in splits._asdict().items())
        return f"Splits({', '.join(parts)})"
    sizes = (f"{name}={len(first)}" for name, (first,) in firsts.items())
    return f"Splits({', '.join(sizes)} examples)"


def _rows(arrays: Any, indices: np.ndarray) -> Any:
    return tree.map_with_path(lambda path, x: unmasked(path, x)[indices], arrays)


def _part_ends(fractions: Sequence[float], n: int) -> np.ndarray:
    sums = np.cumsum(np.asarray(fractions, dtype=np.float64))
    rounding = 1e-9
    if not len(sums) or min(fractions) <= 0 or not sums[-1] <= 1 + rounding:
        raise ValueError(
            f"need fractions above 0 with a sum of at most 1, got {fractions}"
        )
    ends = np.minimum(np.floor(sums * n + 0.5 + rounding), n).astype(int)
    sizes = np.diff(ends, prepend=0)
    if (sizes == 0).any():
        raise ValueError(
            f"need at least one example in each part, got sizes {sizes.tolist()} "
            f"for {fractions=} {n=}"
        )
    return ends


def _random_order(n: int, seed: int) -> np.ndarray:
    numerics.check_seed(seed)
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")


def _labels(stratify: Any, n: int) -> np.ndarray:
    numerics.check_unmasked("stratify", stratify)
    labels = np.asarray(stratify)
    if labels.shape != (n,):
        raise ValueError(f"need stratify of shape ({n},), got {labels.shape}")
    return labels


def _interleave_classes(order: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorder so that every prefix holds the classes in their proportions.

    Member j of the m of its class, in random order, goes to (j + 1/2) / m of the way.
    """
    classes, counts = np.unique(labels, return_counts=True)
    place = np.empty(len(order))
    for label, count in zip(classes, counts, strict=True):
        members = labels[order] == label
        place[members] = (np.arange(count) + 0.5) / count
    return order[np.argsort(place, kind="stable")]
