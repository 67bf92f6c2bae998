"""Batches of examples that stay on disk: read on the host, ahead of the steps.

A *source* has the order of a dataset in memory, bit for bit: batch t holds the examples
at the indices that `fngrad.data.from_arrays` takes for the same seed. Threads read the
next batches and put them on the device while the current step runs.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

import fngrad.numerics as numerics
import fngrad.numerics.array_inputs as array_inputs
import fngrad.tree as tree
from fngrad.data.dataset import Dataset, Remainder, num_examples, order_of, take
from fngrad.data.order_ahead import on_host
from fngrad.data.reading_ahead import read_ahead
from fngrad.programs.keywords_elsewhere import OF_DATA, explains_keywords
from fngrad.programs.signatures import name_of, takes
from fngrad.sharding.meshes import check_devices
from fngrad.sharding.placement import batch_spec, put_rows, rows_here, spans_processes
from fngrad.types import Batch

Read = Callable[[np.ndarray], Batch]  # indices, int64 of shape (b,) -> examples


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Examples that are read by index on the host. Made by `from_source`."""

    read: Read
    order: Dataset  # without arrays
    identity: str | None
    prefetch: int
    threads: int
    mesh: Mesh | None = None  # over which batches are split

    def __repr__(self) -> str:
        order = repr(self.order).removeprefix("Dataset(")
        return f"Source({name_of(self.read)}, {order}"

    @property
    def size(self) -> int:
        """Number of examples."""
        return self.order.size

    @property
    def batch_size(self) -> int:
        """Examples per batch."""
        return self.order.batch_size

    @property
    def is_shared(self) -> bool:
        """Whether a batch is on devices of several processes."""
        return self.mesh is not None and spans_processes(self.mesh)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch, rounded up with ``remainder="wrap"``."""
        return self.order.steps_per_epoch

    def steps(self, num_epochs: int) -> int:
        """Return the number of steps in ``num_epochs`` epochs.

        Raises:
            ValueError: if num_epochs is negative.
        """
        return self.order.steps(num_epochs)

    def indices(self, step: int) -> np.ndarray:
        """Return which examples batch ``step`` holds: int64, shape (b,).

        Raises:
            TypeError: if the step is not an integer.
            ValueError: if it is negative or beyond int32.
        """
        with on_host():
            return np.asarray(self.order.indices(step)).astype(np.int64)

    def batch(self, step: int) -> Batch:
        """Return batch ``step``, on the default device or the mesh, now.

        Raises:
            TypeError: as `indices`; or if what was read holds no numbers, or lists of
                them.
            ValueError: as `indices`; or if what was read has not b examples.
            Exception: what ``read`` raises, with a note of the step.
        """
        return self._batch(step, self.indices(step))

    def _batch(self, step: int, indices: np.ndarray) -> Batch:
        return self.mapped(step, self._unmapped(step, indices))

    def _unmapped(self, step: int, indices: np.ndarray) -> Batch:
        with self._noting(f"batch {step}"):
            return self._examples(indices)

    def mapped(self, step: int, examples: Batch) -> Batch:
        """Return batch ``step`` from its examples; all processes of a mesh call it."""
        batch = dataclasses.replace(self.order, arrays=examples)
        return _mapped(batch, np.uint32(step)) if self.order.maps else examples

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches from step ``start`` on, without end, read ahead.

        ``threads`` threads read up to ``prefetch`` batches, the one that is asked for
        among them, under the settings of JAX, such as `jax.default_device`, of the
        thread that asks for the first. An error of ``read`` is raised when its batch is
        asked for. Closing the iterator, or dropping it, cancels what is not begun and
        ends the threads. With several processes the maps run in the thread that asks,
        since all processes must compute in one order.

        Raises:
            ValueError: if ``start`` is not an int >= 0.
        """
        return self._ahead(numerics.check_count("start", start))

    def _ahead(self, start: int) -> Generator[Batch, None, None]:
        is_shared = self.is_shared
        read = self._unmapped if is_shared else self._batch
        ahead = read_ahead(read, self.order, start, self.prefetch, self.threads)
        with contextlib.closing(ahead) as batches:
            for step, batch in batches:
                yield self.mapped(step, batch) if is_shared else batch

    def map(self, fn: Callable[..., Batch]) -> "Source":
        """Return the source whose batches are ``fn(batch)``, or ``fn(batch, key)``.

        As `fngrad.data.Dataset.map`: pure functions, compiled, with the same keys.
        What needs Python or NumPy belongs in ``read``.

        Raises:
            TypeError: if ``fn`` has neither form.
        """
        return dataclasses.replace(self, order=self.order.map(fn))

    def on(self, mesh: Mesh) -> "Source":
        """Return the source that puts each device's part of a batch on that device.

        Of a mesh of several processes each reads what its own devices need.

        Raises:
            TypeError: if it is not a mesh of devices.
            ValueError: if the mesh has Explicit axes.
        """
        check_devices(mesh)
        return dataclasses.replace(self, mesh=mesh)

    def reseed(self, seed: int | jax.Array) -> "Source":
        """Return the source with another order and other randomness in its maps.

        Raises:
            TypeError: if the seed is neither an int nor a typed key.
            ValueError: if it holds more than one key.
        """
        return dataclasses.replace(self, order=self.order.reseed(seed))

    def fingerprint(self) -> str:
        """Return 16 hex digits that identify the examples and their order.

        They cover the number of examples, the key, the batch size, ``shuffle``,
        ``remainder``, and the ``fingerprint`` given to `from_source`; without one, the
        bytes of the first, the middle and the last example.
        """
        digest = hashlib.blake2b(self.order.fingerprint().encode(), digest_size=8)
        if self.identity is not None:
            digest.update(self.identity.encode())
            return digest.hexdigest()
        few = np.unique([0, self.size // 2, self.size - 1])
        with self._noting("three examples"):
            examples = self._checked(self.read(few), few)
        for path, leaf in tree.leaf_paths(examples).items():
            digest.update(f"{path} {leaf.dtype} {leaf.shape};".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    def part(self, start: int, count: int) -> Dataset:
        """Return ``count`` examples from index ``start`` on, as a dataset in memory."""
        with self._noting(f"examples {start} to {start + count - 1}"):
            examples = self._examples(np.arange(start, start + count))
        return dataclasses.replace(
            self.order, arrays=examples, size=count, batch_size=count, read=take
        )

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Note on an error what was read."""
        try:
            yield
        except Exception as error:
            error.add_note(f"reading {what} of {self!r}")
            raise

    def _examples(self, indices: np.ndarray) -> Batch:
        if self.mesh is None or not self.is_shared:
            examples = self._checked(self.read(indices), indices)
            return _to_devices(examples, self.mesh)
        rows, mesh = rows_here(len(indices), self.mesh), self.mesh
        own = self._checked(self.read(indices[rows]), indices[rows])
        return jax.tree.map(lambda x: put_rows(x, rows, len(indices), mesh), own)

    def _checked(self, examples: Any, indices: np.ndarray) -> Batch:
        """Return examples as arrays of numbers, after checking how many they are."""
        array_inputs.check_no_lists("read", examples)
        examples = tree.map_with_path(array_inputs.array, examples)
        leaves = tree.leaf_paths(examples)
        if not leaves:
            raise ValueError("need at least one array from read, got an empty tree")
        for path, leaf in leaves.items():
            if leaf.shape[:1] != (len(indices),):
                raise ValueError(
                    f"need {len(indices)} examples from read, along the first axis, "
                    f"got shape {leaf.shape} at {path!r}"
                )
        return examples


@explains_keywords(OF_DATA)
def from_source(
    read: Any,
    size: int,
    batch_size: int | Literal["all"],
    *,
    seed: int | jax.Array = 0,
    shuffle: bool = True,
    remainder: Remainder = "wrap",
    fingerprint: str | None = None,
    prefetch: int = 8,
    threads: int = 2,
) -> Source:
    """Make batches of examples that do not fit on the device or in memory.

    The order is that of `fngrad.data.from_arrays`, bit for bit, and `fngrad.fit`
    resumes exactly. `fit` reads ahead of the step; `evaluate` reads in batches.

    Args:
        read: how to read examples by index:

            - a function of indices, int64 of shape (b,), that returns a pytree of
              arrays of shape (b, ...); called in threads. Each of several processes
              asks for the examples of its own devices only;
            - a tree of arrays on disk, such as ``np.load(path, mmap_mode="r")`` or
              datasets of an HDF5 file, read in ascending order;
            - a sequence with ``len`` and ``[i]`` for one example, such as a random
              access source or a ``MapDataset`` of grain, a dataset of torch, one of
              Hugging Face in the format "numpy", or a list of examples.
        size: n, the number of examples, 1 <= n <= 2**30.
        batch_size: b, 1 <= b <= n; "all" reads all examples for every batch, in their
            order.
        seed: an int of any size, or a typed key, shape ().
        shuffle: whether each epoch visits the examples in a new random order.
        remainder: see `fngrad.data.from_arrays`.
        fingerprint: identifies the examples, such as a version or a checksum, so that
            a run resumes only with the same; by default a hash of three of them. A
            ``read`` that draws random numbers needs one, and resumes with others.
        prefetch: how many batches are read or wait, the one that is asked for among
            them; 0 reads in the thread that asks.
        threads: how many read at once, >= 1.

    Raises:
        TypeError: if ``read`` is none of these, or an argument has another type.
        ValueError: if a size, ``prefetch`` or ``threads`` is out of range, or ``read``
            has another number of examples.

    Example:
        >>> import numpy as np
        >>> import fngrad as fg
        >>> images = np.arange(12.0).reshape(6, 2)  # np.load(path, mmap_mode="r")
        >>> data = fg.data.from_source({"x": images}, 6, batch_size=2, shuffle=False)
        >>> print(data.batch(1)["x"])
        [[4. 5.]
         [6. 7.]]
    """
    n = numerics.check_count("size", size, 1)
    if not isinstance(fingerprint, str | None):
        raise TypeError(f"need a string as fingerprint, got {fingerprint!r}")
    with on_host():
        order = order_of(n, batch_size, seed, shuffle, remainder)
    return Source(
        read=_reader(read, n),
        order=dataclasses.replace(order, read=_given),
        identity=fingerprint,
        prefetch=numerics.check_count("prefetch", prefetch),
        threads=numerics.check_count("threads", threads, 1),
    )


def _reader(read: Any, n: int) -> Read:
    """Return the function of indices that reads examples."""
    array_inputs.check_one_part(read)
    if isinstance(read, Dataset | Source):
        raise TypeError(
            f"need what holds the examples, got a {type(read).__name__}, which has "
            "batches: fit, evaluate and autopsy take it as it is"
        )
    is_tree = _is_array(read) or not jax.tree_util.all_leaves([read])
    if is_tree and not _is_list_of_examples(read, n):
        arrays = tree.map_with_path(_array_by_position, read)
        _check_size(num_examples(arrays), n)
        return lambda indices: tree.map_with_path(_rows(indices), arrays)
    if hasattr(read, "keys"):
        raise TypeError(
            f"need a dict of arrays, got {type(read).__name__}: pass a dict of those "
            "that hold the examples, {name: read[name] for name in names}"
        )
    if hasattr(read, "__getitem__") and hasattr(read, "__len__"):
        _check_size(len(read), n)
        return lambda indices: _stacked([read[int(i)] for i in indices])
    if callable(read) and takes(read, 1):
        return read
    raise TypeError(
        "need a function of indices, arrays on disk or a sequence of examples to read, "
        f"got {name_of(read) if callable(read) else type(read).__name__}; fit takes an "
        "iterable of batches as it is"
    )


def _is_array(x: Any) -> bool:
    is_table = hasattr(x, "iloc")  # of pandas
    return is_table or (hasattr(x, "shape") and hasattr(x, "dtype"))


def _is_list_of_examples(read: Any, n: int) -> bool:
    """Return whether a list holds n examples, rather than arrays of n examples."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(read)]
    is_long = isinstance(read, list) and len(read) == n
    return is_long and any(shape[:1] != (n,) for shape in shapes)


def _array_by_position(path: str, x: Any) -> Any:
    """Return an array whose ``x[i]`` is row i; that of pandas is the row named i."""
    if not _is_array(x):
        raise TypeError(
            "need arrays with a shape and a dtype, got "
            f"{type(x).__name__} at {path!r}; a function of indices reads anything else"
        )
    return array_inputs.array(path, x) if hasattr(x, "iloc") else x


def _check_size(found: int, n: int) -> None:
    if found != n:
        raise ValueError(f"need size={found}, the number of examples to read, got {n}")


def _rows(indices: np.ndarray) -> Callable[[str, Any], np.ndarray]:
    """Read rows in ascending order, each once, as HDF5 needs and disks prefer."""
    ascending, places = np.unique(indices, return_inverse=True)
    return lambda path, x: array_inputs.unmasked(path, x[ascending])[places]


def _stacked(examples: list[Any]) -> Batch:
    array_inputs.check_no_lists("read[i]", examples[0])
    arrays = [tree.map_with_path(array_inputs.unmasked, x) for x in examples]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *arrays)


def _given(arrays: Batch, indices: jax.Array) -> Batch:
    """Return the batch that was read, as the `read` of a `Dataset`."""
    return arrays


@jax.jit
def _mapped(batch: Dataset, step: jax.Array) -> Batch:
    return batch.batch(step)


def _to_devices(examples: Batch, mesh: Mesh | None) -> Batch:
    # Copies, since the user's function may return the same buffers each time.
    copies = jax.tree.map(
        lambda x: np.array(x, jax.dtypes.canonicalize_dtype(x.dtype)), examples
    )
    if mesh is None:
        return jax.device_put(copies)
    places = jax.tree.map(lambda x: NamedSharding(mesh, batch_spec(x, mesh)), copies)
    return jax.device_put(copies, places)
