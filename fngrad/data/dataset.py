r"""Batches of a data set as a pure function of (seed, step).

A *dataset* is a pytree: arrays whose first axis counts the n examples, and a key. An
*epoch* is one pass over them in the order that (key, epoch) selects, see
`fngrad.data.epoch_order`. The epochs, one after the other, are a *stream* of positions,
and batch t is the examples at the positions

$$t b, \; t b + 1, \; \dots, \; t b + b - 1 .$$

So a batch may begin in one epoch and end in the next (``remainder="wrap"``), or each
epoch gives only its $\lfloor n / b \rfloor$ whole batches (``remainder="drop"``). With
b = n a step is one of gradient descent, with b = 1 one of single-sample SGD.

Pass a dataset to a jitted function as an argument. An array that a function closes
over becomes part of the program.
"""

import dataclasses
import hashlib
import numbers
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.numerics as numerics
import fngrad.numerics.array_inputs as array_inputs
import fngrad.programs.leaf_tables as leaf_tables
import fngrad.tree as tree
from fngrad.data.epoch_order import MAX_SIZE, divmod_product, permute
from fngrad.data.maps import MAPS, call_map, check_map, map_keys, takes_key
from fngrad.data.reads_from_disk import in_memory
from fngrad.programs.keywords_elsewhere import OF_DATA, explains_keywords
from fngrad.programs.printed import preformatted
from fngrad.sharding.constraints import WHOLE, constrained
from fngrad.sharding.meshes import auto_mesh_of
from fngrad.sharding.placement import fetched
from fngrad.types import Batch, Key

Remainder = Literal["wrap", "drop"]

_STATIC: Any = {"metadata": {"static": True}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Arrays and a key: the data fields of the pytree; the rest is static.

    Made by `from_arrays`. Values are not checked: a NaN in the data reaches the
    batch and shows in the loss.
    """

    arrays: Any
    key: Key
    size: int = dataclasses.field(**_STATIC)  # n, examples
    batch_size: int = dataclasses.field(**_STATIC)  # b
    shuffle: bool = dataclasses.field(**_STATIC)
    remainder: Remainder = dataclasses.field(**_STATIC)
    read: Callable[[Any, jax.Array], Batch] = dataclasses.field(
        **_STATIC
    )  # (arrays, indices) -> batch
    maps: tuple[Callable[..., Batch], ...] = dataclasses.field(**_STATIC)

    def __repr__(self) -> str:
        names = "".join(f".map({_name(fn)})" for fn in self.maps)
        return (
            f"Dataset({self.size} examples, batch_size={self.batch_size}, "
            f"shuffle={self.shuffle}, remainder={self.remainder!r}){names}"
        )

    def _repr_html_(self) -> str:
        leaves = leaf_tables.leaves_of(self.arrays)
        table = leaf_tables.table(leaves, most=leaf_tables.MOST)
        return preformatted(repr(self), *([table] if leaves else []))

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch, rounded up with ``remainder="wrap"``."""
        return self.steps(1)

    def steps(self, num_epochs: int) -> int:
        """Return the number of steps in ``num_epochs`` epochs.

        It is e floor(n / b) for ``remainder="drop"``, and ceil(e n / b) for "wrap".

        Raises:
            ValueError: if num_epochs is negative.
        """
        num_epochs = numerics.check_count("num_epochs", num_epochs)
        if self.remainder == "drop":
            return num_epochs * (self.size // self.batch_size)
        return -(-num_epochs * self.size // self.batch_size)

    def batch(self, step: int | jax.Array) -> Batch:
        """Return batch ``step``: the structure of the arrays, b examples.

        Args:
            step: an int or an integer scalar, also traced; 0 <= step < 2**31.

        Raises:
            TypeError: if the step is not an integer scalar.
            ValueError: if a Python int is out of range.

        Example:
            >>> import jax.numpy as jnp
            >>> import fngrad.data.dataset as batching
            >>> data = batching.from_arrays({"x": jnp.arange(5)}, 2, shuffle=False)
            >>> print(data.batch(0)["x"], data.batch(1)["x"], data.batch(2)["x"])
            [0 1] [2 3] [4 0]
        """
        number = _step_number(step)
        if self._is_whole and self.read is take:
            batch = self.arrays
        else:
            batch = self.read(self.arrays, self.indices(number))
        keys = self._map_keys(number)
        for fn in self.maps:
            batch = call_map(fn, batch, keys)
        return batch

    def indices(self, step: int | jax.Array) -> jax.Array:
        """Return which examples batch ``step`` holds: int32, shape (b,).

        Raises:
            TypeError: if the step is not an integer scalar.
            ValueError: if a Python int is out of range.
        """
        return _indices(order_alone(self), _step_number(step))

    def map(self, fn: Callable[..., Batch]) -> "Dataset":
        """Return the dataset whose batches are ``fn(batch)``, or ``fn(batch, key)``.

        Maps apply in the order they were added, inside the jitted step.

        Args:
            fn: a pure function of a batch. An argument named ``key`` receives
                ``fold_in(fold_in(dataset.key, MAPS), step)``; if several maps take a
                key, it is split among them. The two arguments may stand in either
                order; a key bound by `functools.partial` is kept. Maps do not change
                the order of the examples. Redefining the function recompiles a jitted
                step.

        Raises:
            TypeError: if ``fn`` has neither form.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> import fngrad.data.dataset as batching
            >>> def jitter(batch, key):
            ...     return batch + 0.1 * jax.random.normal(key, batch.shape)
            >>> data = batching.from_arrays(jnp.zeros((6, 2)), "all").map(jitter)
            >>> data.batch(0).shape
            (6, 2)
        """
        check_map(fn)
        return dataclasses.replace(self, maps=(*self.maps, fn))

    def reseed(self, seed: int | jax.Array) -> "Dataset":
        """Return the dataset with another order and other randomness in its maps.

        Args:
            seed: an int of any size, also traced, or a typed key, shape ().

        Raises:
            TypeError: if the seed is neither an int nor a typed key.
            ValueError: if it holds more than one key.
        """
        return dataclasses.replace(self, key=_one_key(seed))

    def fingerprint(self) -> str:
        """Return 16 hex digits that identify the examples and their order.

        They cover the leaves' paths, dtypes, shapes and bytes, the key, the batch
        size, ``shuffle``, ``remainder`` and the name of ``read``, but not the maps.
        Every byte is read on the host: call it once per run, outside jit, and in all
        processes, which exchange what they hold apart.
        """
        order = (self.size, self.batch_size, self.shuffle, self.remainder)
        digest = hashlib.blake2b(repr(order).encode(), digest_size=8)
        digest.update(_name(self.read).encode())
        for path, leaf in tree.leaf_paths((self.arrays, self.key)).items():
            array = fetched(leaf)
            digest.update(f"{path} {leaf.dtype} {leaf.shape};".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def _map_keys(self, step: jax.Array) -> Iterator[Key]:
        if not any(takes_key(fn) for fn in self.maps):
            return iter(())
        k_maps = jax.random.fold_in(self.key, MAPS)
        return map_keys(self.maps, jax.random.fold_in(k_maps, step))

    @property
    def _is_whole(self) -> bool:
        return self.batch_size == self.size and not self.shuffle


@explains_keywords(OF_DATA)
def from_arrays(
    arrays: Any,
    batch_size: int | Literal["all"],
    *,
    seed: int | jax.Array = 0,
    shuffle: bool = True,
    remainder: Remainder = "wrap",
) -> Dataset:
    """Make a dataset of arrays that fit on the device.

    Args:
        arrays: any pytree of arrays, each of shape ``(n, ...)``, 1 <= n <= 2**30.
            They move to the default device once, those on disk with a warning; without
            x64, float64 becomes float32 and int64 becomes int32. NaN and infinity pass
            as they are. Arrays on a mesh stay there, but `fngrad.fit` copies others
            to each of its devices: split by `fngrad.sharding.shard_batch`, each device
            and process holds its part only, and the devices add up each batch, whose
            order and values are the same (-0.0 becomes 0.0). Data on disk need no host
            to hold all of them: `fngrad.data.from_source` reads its part of each batch.
        batch_size: b, 1 <= b <= n; "all" gives the arrays as they are at every step,
            neither copied nor shuffled.
        seed: an int of any size, also traced, or a typed key, shape ().
        shuffle: whether each epoch visits the examples in a new random order;
            otherwise in the order of the arrays.
        remainder: what becomes of the last n mod b examples of an epoch: "wrap" puts
            them into a batch with the first of the next epoch, "drop" leaves them out
            (different examples each epoch if shuffled).

    Returns:
        The dataset; its batches have the structure of ``arrays``.

    Raises:
        TypeError: if batch_size, seed or shuffle has another type, ``arrays`` are all
            parts of a data set, or a leaf holds neither numbers nor bools.
        ValueError: if batch_size or remainder is out of range, or the arrays are empty,
            are scalars, differ in their first axis, are masked, or hold integers
            outside int32.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.data.dataset as batching
        >>> data = batching.from_arrays({"x": jnp.arange(10)}, batch_size=4, seed=1)
        >>> data.steps_per_epoch, data.steps(num_epochs=2)
        (3, 5)
        >>> seen = jnp.concatenate([data.batch(step)["x"] for step in range(5)])
        >>> sorted(seen.tolist()) == sorted(2 * list(range(10)))
        True
    """
    array_inputs.check_one_part(arrays)
    order = order_of(num_examples(arrays), batch_size, seed, shuffle, remainder)
    arrays = in_memory(arrays)
    return dataclasses.replace(order, arrays=tree.map_with_path(_to_device, arrays))


def order_of(
    n: int,
    batch_size: int | Literal["all"],
    seed: int | jax.Array,
    shuffle: bool,
    remainder: Remainder,
) -> Dataset:
    """Return the order of n examples, as a dataset without arrays; see `from_arrays`.

    Raises:
        TypeError: if batch_size, seed or shuffle has another type.
        ValueError: if n, batch_size or remainder is out of range.
    """
    if not 1 <= n <= MAX_SIZE:
        raise ValueError(f"need 1 <= n <= {MAX_SIZE} examples, got {n=}")
    b = n if batch_size == "all" else _batch_size(batch_size, n)
    if not isinstance(shuffle, bool | np.bool_):
        raise TypeError(f"need shuffle to be a bool, got {shuffle=}")
    if remainder not in ("wrap", "drop"):
        raise ValueError(f'need remainder "wrap" or "drop", got {remainder=}')
    return Dataset(
        arrays=(),
        key=_one_key(seed),
        size=n,
        batch_size=b,
        shuffle=bool(shuffle) and batch_size != "all",
        remainder=remainder,
        read=take,
        maps=(),
    )


def order_alone(data: Dataset) -> Dataset:
    """Return what decides the order: all datasets of one order share a program."""
    return dataclasses.replace(data, arrays=(), read=take, maps=())


@jax.jit
def _indices(order: Dataset, step: jax.Array) -> jax.Array:
    """Return the indices of a batch, as one program also where nothing is jitted."""
    epoch, start = _locate(order, step)
    position = start + jnp.arange(order.batch_size, dtype=jnp.uint32)
    is_next = position >= np.uint32(order.size)
    position = jnp.where(is_next, position - np.uint32(order.size), position)
    if order.shuffle:
        epochs = epoch + is_next.astype(jnp.uint32)
        position = permute(order.key, epochs, position, order.size)
    # Whole on every device, or each walk of the permutation would reduce over them.
    return constrained(position.astype(jnp.int32), WHOLE, auto_mesh_of(order))


def _locate(order: Dataset, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the epoch and the position in it where a batch begins."""
    if order.remainder == "wrap":
        return divmod_product(step, order.batch_size, order.size)
    per_epoch = np.uint32(order.size // order.batch_size)
    return step // per_epoch, step % per_epoch * np.uint32(order.batch_size)


def take(arrays: Any, indices: jax.Array) -> Batch:
    """Return the examples at these indices, which must lie in [0, n)."""
    return _taken(arrays, indices)


@jax.jit  # apart from `take`, which datasets are pickled and compared by
def _taken(arrays: Any, indices: jax.Array) -> Batch:
    return jax.tree.map(lambda x: numerics.rows(x, indices), arrays)


def num_examples(arrays: Any) -> int:
    """Return the length of the first axis that all leaves share.

    Raises:
        ValueError: if there are no leaves, a leaf has no axes, the first axes differ or
            are empty, or there are more than 2**30 examples.
    """
    shapes = {path: np.shape(leaf) for path, leaf in tree.leaf_paths(arrays).items()}
    if not shapes:
        raise ValueError("need at least one array, got an empty tree")
    for path, shape in shapes.items():
        if shape == ():
            raise ValueError(f"need arrays (n, ...), got a scalar at {path!r}")
    sizes = {path: shape[0] for path, shape in shapes.items()}
    n = next(iter(sizes.values()))
    if len(set(sizes.values())) > 1:
        raise ValueError(f"need first axes of one length, got {sizes}")
    if not 1 <= n <= MAX_SIZE:
        raise ValueError(f"need 1 <= n <= {MAX_SIZE} examples, got {n=}")
    return n


def batch_size_of(batch: Batch) -> int | None:
    """Return the length of the first axis of all arrays, None if they share none."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(batch)]
    lengths = {shape[0] if shape else None for shape in shapes}
    return lengths.pop() if len(lengths) == 1 else None


def _batch_size(batch_size: Any, n: int) -> int:
    b = numerics.as_int(batch_size)
    if b is None:
        raise TypeError(f'need batch_size, an int or "all", got {batch_size!r}')
    if not 1 <= b <= n:
        raise ValueError(f"need 1 <= batch_size <= n, got {batch_size=} {n=}")
    return b


def _one_key(seed: int | jax.Array) -> Key:
    key = numerics.key(seed)
    if key.shape != ():
        raise ValueError(
            f"need one key, got shape {key.shape}; jax.vmap(data.reseed) takes many"
        )
    return key


def _step_number(step: int | jax.Array) -> jax.Array:
    if isinstance(step, numbers.Integral) and not isinstance(step, bool):
        if not 0 <= step <= numerics.MAX_STEP:
            raise ValueError(f"need 0 <= step <= {numerics.MAX_STEP}, got {step=}")
        return jax.device_put(np.uint32(step))  # compiles nothing
    if not _is_integer_scalar(step):
        raise TypeError(f"need an integer scalar as step, got {step!r}")
    return jnp.asarray(step).astype(jnp.uint32)


def _is_integer_scalar(x: Any) -> bool:
    is_scalar = isinstance(x, jax.Array | np.ndarray) and x.shape == ()
    return is_scalar and jnp.issubdtype(x.dtype, np.integer)


def _to_device(path: str, leaf: Any) -> jax.Array:
    x = array_inputs.array(path, leaf)
    return jnp.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))


def _name(fn: Any) -> str:
    return getattr(fn, "__qualname__", repr(fn))
