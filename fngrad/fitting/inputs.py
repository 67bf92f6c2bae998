"""The inputs of a run: where its batches come from, and what is refused beforehand.

A dataset is an argument of the compiled program, and a function of the step is part of
it. A source and an iterable give their batches on the host. An iterable gives each
once; the others can return the batch of any step again.
"""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import fngrad.numerics.array_inputs as array_inputs
import fngrad.tree as tree
from fngrad.data.dataset import Dataset
from fngrad.data.foreign_datasets import check_foreign
from fngrad.data.sources import Source
from fngrad.fitting.dataset_reader import DatasetReader, batch_program
from fngrad.fitting.iterables import Batches
from fngrad.programs.caller_warnings import warn
from fngrad.programs.signatures import batch_of
from fngrad.sharding.placement import is_on, shard_batch
from fngrad.training import TrainState, check_order, check_train_state
from fngrad.types import Batch, Path


class Feed:
    """The data of a run, whatever their kind.

    Args:
        data: a dataset or a source of `fngrad.data`, a function ``step -> batch``, or
            an iterable of batches.
        mesh: over which the batches are split.

    Raises:
        TypeError: if the data are of another kind, such as plain arrays or a dataset
            of another library.
        ValueError: if an iterable yields no batch.
    """

    def __init__(self, data: Any, mesh: Mesh | None = None):
        self.data: Any = data
        self.mesh: Mesh | None = mesh
        check_foreign(data)
        self.is_dataset: bool = isinstance(data, Dataset)
        self.is_source: bool = isinstance(data, Source)
        self._is_shared: bool = self.is_source and self.data.is_shared
        self.failure: BaseException | None = None  # raised while a batch was read
        self.is_iterable: bool = isinstance(data, Iterable) and not self.is_dataset
        self.read_outline: Any = None  # of a source's examples, before its maps
        self.batches: Iterator[Batch] = iter(())  # of what comes from the host
        self._iterable: Batches | None = None
        self._ahead: Generator[Batch, None, None] | None = None  # of a source
        self._position: int | None = None  # the step of the next batch of a source
        self._watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter
        if isinstance(data, Mapping | tuple) or hasattr(data, "dtype"):
            arrays = "splits.train" if hasattr(data, "train") else "arrays"
            raise TypeError(
                f"need a dataset, got arrays ({type(data).__name__}): "
                f"fngrad.data.from_arrays({arrays}, batch_size) makes one"
            )
        if self.is_iterable:
            place = functools.partial(_place, mesh=mesh)
            self._iterable = Batches(data, place)
            if not self._iterable.is_stateful:
                warn(
                    "batches from an iterable cannot be asked for again, so this run "
                    "cannot be resumed exactly; a dataset or a function of the step "
                    "can"
                )
            self._first = self._iterable.first
            self.batches = self._until_failure(iter(self._iterable))
        elif isinstance(data, Source):
            examples = _without_maps(data).batch(0)
            self.read_outline = jax.eval_shape(lambda x: x, examples)
            self._first = data.mapped(0, examples)
        elif not (self.is_dataset or callable(data)):
            raise TypeError(
                "need a dataset, a source, a function step -> batch or an iterable of "
                f"batches, got {type(data).__name__}"
            )

    @property
    def comes_from_host(self) -> bool:
        """Whether the loop is given batches, instead of reading them in its program."""
        return self.is_iterable or self.is_source

    @property
    def forgets(self) -> bool:
        """Whether batches cannot be asked for again: an iterable without a state."""
        return self._iterable is not None and not self._iterable.is_stateful

    def notes(self) -> dict[str, Any] | None:
        """Return the state of an iterable that has one, for a checkpoint."""
        return None if self._iterable is None else self._iterable.notes()

    def resume(self, notes: dict[str, Any] | None) -> bool:
        """Continue an iterable after the state in a checkpoint; return whether it did.

        Only an iterable needs it; other data are read by the step.
        """
        if self._iterable is None:
            return True
        if notes is None or self.forgets:
            return False
        batches = self._iterable.resume(notes)
        self.batches = self._watch(self._until_failure(batches))
        return True

    def watch(self, wrap: Callable[[Iterator[Batch]], Iterator[Batch]]) -> None:
        """Pass all batches that come from the host through a wrapper."""
        self._watch, self.batches = wrap, wrap(self.batches)

    def seek(self, step: int) -> None:
        """Make the next batch of a source that of a step, wherever it was before."""
        if self.is_source and step != self._position:
            self.close()
            data = _without_maps(self.data) if self._is_shared else self.data
            self._ahead = ahead = data.batches(step)
            self._position = step
            batches = self._until_failure(self._counted(ahead))
            self.batches = self._watch(batches)

    def close(self) -> None:
        """End the threads that read ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = self._position = None

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Any]:
        for batch in batches:
            now = self._position or 0
            self._position = now + 1
            mapped = functools.partial(self.data.mapped, now, batch)
            yield mapped if self._is_shared else batch

    def take(self, count: int, agreed: Callable[[int], int] | None = None) -> list[Any]:
        """Return the next entries of ``batches``, at most so many.

        Args:
            count: how many.
            agreed: returns how many all processes have, from how many this one has. A
                checkpoint takes those that are left over for not read.
        """
        if agreed is None:
            return list(itertools.islice(self.batches, count))
        iterable = self._iterable
        state = (lambda: None) if iterable is None else iterable.state
        states, taken = [state()], []
        for batch in itertools.islice(self.batches, count):
            taken.append(batch)
            states.append(state())
        used = agreed(len(taken))
        if iterable is not None and used < len(taken):
            iterable.end_at(states[used])
        return taken[:used]

    def finished(self, batch: Any) -> Batch:
        """Return a batch to make a step of, from an entry of ``batches``.

        Those of several processes are mapped only now that all have read theirs, since
        a map may compute together, and one that is alone would wait forever.
        """
        return batch() if self._is_shared else batch

    @property
    def static(self) -> Any:
        """The static part: how to read a dataset, or a function of the step."""
        if self.is_dataset:
            return DatasetReader.of(self.data)
        return None if self.comes_from_host else self.data

    @property
    def argument(self) -> Any:
        """The program's argument: a dataset's leaves by path, or an empty tuple."""
        return tree.leaf_paths(self.data) if self.is_dataset else ()

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """The dataset's checksum, if it has one; cached, as it reads every byte."""
        return self.data.fingerprint() if hasattr(self.data, "fingerprint") else None

    @property
    def arrays(self) -> Any:
        """The arrays that the step reads first: a dataset's leaves, or a batch."""
        return self._first if self.comes_from_host else self.argument

    def _until_failure(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches to the end or to an exception, which is kept for the caller.

        If the loop itself raised it, the donated state would be lost.
        """
        try:
            yield from batches
        except BaseException as error:
            self.failure = error

    def abstract_batch(self, step: jax.Array) -> Any:
        """Return the shapes and dtypes of a batch."""
        if self.comes_from_host:
            return jax.eval_shape(lambda batch: batch, self._first)
        if self.is_dataset:
            return jax.eval_shape(batch_program(self.static), self.argument, step)
        shapes = functools.partial(jax.eval_shape, self.data)
        return batch_of(self.data, step, shapes)


def _without_maps(source: Source) -> Source:
    order = dataclasses.replace(source.order, maps=())
    return dataclasses.replace(source, order=order)


def _place(batch: Batch, mesh: Mesh | None) -> Batch:
    """Return a batch in memory of its own, arrays of another library too, on a mesh.

    JAX may read NumPy's memory while a step runs, which an iterable may refill by then.
    """

    def own(path: Path, x: Any) -> Any:
        x = array_inputs.of_another_library(path, x)
        return np.array(x) if isinstance(x, np.ndarray) else x

    batch = tree.map_with_path(own, batch)
    if mesh is None or all(is_on(mesh, x) for x in jax.tree.leaves(batch)):
        return batch
    return shard_batch(batch, mesh)


def checked_feed(
    step: Any, data: Any, eval_data: Any, loop: Any, mesh: Mesh | None = None
) -> Feed:
    """Return what feeds a run, after checking that all data can be read.

    Args:
        step, data, eval_data, loop, mesh: see `fngrad.fit`.

    Raises:
        ValueError: if the loop is unknown, or is ``"scan"`` over an iterable; or as
            `Feed`.
        TypeError: if step and data are swapped, or as `Feed`.
        RuntimeError: if an array was donated.
    """
    check_order(step, data)
    feed = Feed(data, mesh)
    check_option("loop", loop, ("auto", "python", "scan"))
    if feed.comes_from_host and loop == "scan":
        raise ValueError(
            'need a dataset or a function of the step for loop="scan", got batches '
            "that come from the host"
        )
    check_not_donated("data", feed.argument)
    check_not_donated("eval_data", eval_data)
    return feed


def check_option(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise unless a value is one of those allowed.

    Raises:
        ValueError: if it is not.
    """
    if value not in allowed:
        raise ValueError(f"need {name} to be one of {allowed}, got {value!r}")


def check_functions(name: str, functions: Any, *arguments: Any) -> None:
    """Raise unless every function of a list takes these arguments.

    Args:
        name: the argument of `fngrad.fit`, a key of `FORMS`.
        functions: the list.
        arguments: what they will be called with, by position.

    Raises:
        TypeError: if it is not a list, or an entry cannot be called so.
    """
    if not isinstance(functions, Sequence) or isinstance(functions, str):
        raise TypeError(
            f"need a list of functions for {name}, got {type(functions).__name__}: "
            f"{name}=[...]"
        )
    for function in functions:
        if not callable(function):
            raise TypeError(f"need functions in {name}, got {function!r}")
        _check_call(
            f"functions of {len(arguments)} arguments in {name}, {FORMS[name]}",
            function,
            arguments,
        )


def check_methods(loggers: Sequence[Any]) -> None:
    """Raise unless the optional methods of loggers take what they will be called with.

    Raises:
        TypeError: if one does not.
    """
    for logger in loggers:
        for form in METHODS:
            name, _, rest = form.partition("(")
            method = getattr(logger, name, None)
            if method is None:
                continue
            what = f"loggers whose optional method {name} is called as logger.{form}"
            if not callable(method):
                raise TypeError(f"need {what}, got {method!r} in {logger!r}")
            arguments = [each for each in rest.rstrip(")").split(", ") if each]
            _check_call(what, method, arguments)


def _check_call(what: str, function: Callable[..., Any], arguments: Any) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"need {what}, got {function!r} with the arguments {signature}: {error}"
        ) from None


FORMS = {
    "callbacks": "callback(step, state, values)",
    "loggers": "logger(step, values)",
}

METHODS = (  # of loggers, see `fngrad.logging.Logger`
    *("configure(config)", "cut(step)", "images(step, images)"),
    *("histograms(step, histograms)", "close()", "fail()", "kill()"),
)


def check_state(state: TrainState) -> None:
    """Raise unless a state can be copied and trained from.

    Raises:
        TypeError: if it is not a TrainState, or a leaf is not an array.
        RuntimeError: if a leaf was donated.
        ValueError: if it holds the states of many runs.
    """
    check_train_state(state)
    for path, leaf in tree.leaf_paths(state).items():
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"need arrays in the state, got {type(leaf).__name__} at {path!r}"
            )
    check_not_donated("state", state)
    if jnp.shape(state.step) != ():
        raise ValueError(
            f"need the state of one run, got step with shape {jnp.shape(state.step)}; "
            "fngrad.run trains many under vmap"
        )


def check_not_donated(name: str, a: Any) -> None:
    """Raise if an array of an argument was deleted.

    Args:
        name: the argument of `fngrad.fit`.
        a: any pytree; leaves that are not JAX arrays pass.

    Raises:
        RuntimeError: if a leaf was deleted; it is named.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(a):
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise RuntimeError(
                f"need {name} whose arrays still exist, got a deleted array at "
                f"{tree.path_string(path)!r}: its memory was donated to an earlier "
                f"call; keep fngrad.snapshot({name}) of what you need later"
            )


def check_hashable(*functions: Any) -> None:
    """Raise unless functions can be hashed, as the cache of programs needs.

    Raises:
        TypeError: if one cannot.
    """
    for function in functions:
        if getattr(function, "__hash__", None) is None:
            raise TypeError(
                f"need functions that can be hashed, got {type(function).__name__}"
            )
