"""Images and histograms of a run, every so many steps, for all loggers that take them.

What they show is computed between two chunks of steps, so it changes no bit of the run.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.fitting.dataset_reader import batch_at
from fngrad.fitting.hooks import Hook, RunView
from fngrad.fitting.inputs import check_option
from fngrad.fitting.loops import Advance, Carry
from fngrad.logging.histograms import BINS, Histogram, histogram
from fngrad.programs.caller_warnings import warn
from fngrad.programs.step_wrappers import gradients_of
from fngrad.sharding.constraints import split
from fngrad.sharding.meshes import auto_mesh_of
from fngrad.sharding.placement import shard_batch
from fngrad.training import TrainState
from fngrad.types import Batch, Params, Path, Selector

Kind = Literal["params", "gradients", "updates"]
KINDS = ("params", "gradients", "updates")


def images(image_fn: Callable[[TrainState], Mapping[str, Any]], *, every: int) -> Hook:
    """Log images of the state every so many steps, to all loggers that take images.

    Args:
        image_fn: returns images by name: of shape (height, width) or (height, width,
            channels) with 1, 3 or 4 channels; uint8, or floats in [0, 1].
        every: the number of steps between them, >= 1; a run that ends before the
            first ends with a warning.

    Returns:
        A callback of `fngrad.fit`.

    Raises:
        ValueError: if ``every`` is out of range; when the run begins, if no logger
            takes images.
        TypeError: if ``image_fn`` is not a function.

    Example:
        >>> import fngrad as fg
        >>> def filters(state):
        ...     return {"filters": state.params["conv"]["kernel"][..., 0]}
        >>> fg.callbacks.images(filters, every=500)
        images(every=500)
    """
    every = numerics.check_count("every", every, 1)
    if not callable(image_fn):
        raise TypeError(
            f"need a function state -> images by name, got {type(image_fn).__name__}"
        )
    timer = _EverySoMany("images", every, image_fn)
    return Hook.of(f"images({every=})", timer)


def histograms(
    mask: Selector = "**",
    *,
    every: int,
    of: Sequence[Kind] = ("params",),
    bins: int = BINS,
) -> Hook:
    r"""Log histograms of leaves every so many steps, to all loggers that take them.

    At step t, which leads from $\theta_{t-1}$ to $\theta_t$, they are of

    $$\texttt{params}: \theta_t, \quad
      \texttt{updates}: \theta_t - \theta_{t-1}, \quad
      \texttt{gradients}: \nabla L(\theta_{t-1}, b_t)$$

    Their names are such as ``updates/layers/0/weight``. The counts are of every entry,
    see `fngrad.logging.histogram`; those of the real and the imaginary part of a
    complex leaf are apart. The leaves are copied to the host for that. The gradient is
    computed a second time, for these steps alone, with the batch and the key of the
    step. Updates need a copy of the selected leaves during the step.

    Args:
        mask: which leaves: a glob over paths, such as ``"**/weight"``, a predicate, or
            a tree of bools. Leaves that are not floats are left out; gradients have
            only those that are trained.
        every: the number of steps between them, >= 1; a run that ends before the
            first ends with a warning.
        of: what is counted, one or more of ``"params"``, ``"gradients"``,
            ``"updates"``.
        bins: how many bins, of equal width, from 1 to 512.

    Returns:
        A callback of `fngrad.fit`.

    Raises:
        ValueError: if an argument is out of range; when the run begins, if no logger
            takes histograms, the glob selects no leaf, or there are gradients to count
            and the step does not have them or the data cannot be asked for a batch
            again.
        TypeError: if the mask is not a selector.

    Example:
        >>> import fngrad as fg
        >>> fg.callbacks.histograms("**/weight", every=100, of=["params", "updates"])
        histograms('**/weight', every=100, of=('params', 'updates'))
    """
    every = numerics.check_count("every", every, 1)
    bins = numerics.check_count("bins", bins, 1, 512)
    kinds: tuple[str, ...] = (of,) if isinstance(of, str) else tuple(of)
    for kind in kinds:
        check_option("of", kind, KINDS)
    if not kinds:
        raise ValueError(f"need at least one of {KINDS} in of, got none")
    counter = _Histograms(mask, every, kinds, bins)
    return Hook.of(f"histograms({mask!r}, {every=}, of={kinds})", counter)


class _EverySoMany:
    """Takes what is due after a step from its state, and logs it before the next one.

    Args:
        method: of the loggers.
        every: the number of steps.
        make: what to log, from the state; it is called between two chunks, where an
            exception does not lose the state.
    """

    def __init__(self, method: str, every: int, make: Callable[[TrainState], Any]):
        self._method, self._every, self._make = method, every, make
        self._needs_step = False  # whether the step that is due is made alone
        self._run: RunView | None = None
        self._now = 0
        self._due: tuple[int, TrainState] | None = None
        self._was_due = False

    def check(self, run: RunView) -> None:
        if not run.loggers.take(self._method):
            raise ValueError(
                f"need a logger that takes {self._method}, such as "
                f"fngrad.logging.tensorboard(folder), for the callback {self._method}"
            )

    def begin(self, run: RunView) -> None:
        self._run, self._due, self._now = run, None, 0
        self._was_due = False

    def before(self, now: int) -> int | None:
        self._now = now
        if self._due and self._due[0] > now:  # the run has rolled back
            self._due = None
        if not self._is_taken:
            return None
        due = (now // self._every + 1) * self._every
        return due - 1 if self._needs_step and now < due - 1 else due

    def around(self, advance: Advance) -> Advance:
        def watched(carry: Carry, length: int) -> tuple[Carry, int]:
            is_due = self._is_taken and (self._now + length) % self._every == 0
            if is_due:
                self._prepare(carry.state)
            carry, made = advance(carry, length)
            if is_due and made == length:
                self._due = self._now + length, carry.state
                self._was_due = True
            return carry, made

        return watched

    def after(self, now: int) -> None:
        self._now = now
        self._log_due()

    def forget(self) -> None:
        self._due = None

    def end(self) -> None:
        """Log what is due; warn if nothing ever was."""
        self._log_due()
        if self._run and not self._was_due and 0 < self._now < self._every:
            warn(
                f"{self._method}(every={self._every}) logged nothing: the run ended at "
                f"step {self._now}"
            )

    def _log_due(self) -> None:
        due, self._due = self._due, None
        if due is not None and self._run is not None and self._is_taken:
            step, state = due
            self._run.loggers.call(self._method, step, self._make(state))

    @property
    def _is_taken(self) -> bool:
        """Whether a logger that takes them is left."""
        return self._run is not None and self._run.loggers.take(self._method)

    def _prepare(self, state: TrainState) -> None:
        """Take what is needed of the state before the step that is due."""


class _Histograms(_EverySoMany):
    def __init__(self, mask: Any, every: int, of: tuple[str, ...], bins: int):
        super().__init__("histograms", every, self._count)
        self._mask, self._of, self._bins = mask, of, bins
        self._needs_step = of != ("params",)
        self._before: dict[Path, jax.Array] = {}
        self._gradients: dict[Path, jax.Array] = {}

    def check(self, run: RunView) -> None:
        super().check(run)
        tree.check_mask(self._mask, run.state.params)
        if "gradients" in self._of:
            _check_gradients(run)

    def _prepare(self, state: TrainState) -> None:
        if "updates" in self._of:
            chosen = _chosen(self._mask, state.params)
            self._before = {path: jnp.copy(leaf) for path, leaf in chosen.items()}
        if "gradients" in self._of and self._run is not None:
            # Waited for: XLA deadlocks where programs of several CPU devices queue up.
            gradients = jax.block_until_ready(_gradients(self._run, state, self._now))
            mask = tree.selected(self._mask, state.params)
            self._gradients = tree.leaf_paths(tree.floats(_kept(mask, gradients)))

    def _count(self, state: TrainState) -> dict[str, Histogram]:
        chosen = _chosen(self._mask, state.params)
        trees = {"params": chosen, "gradients": self._gradients}
        if "updates" in self._of:
            trees["updates"] = {
                path: _difference(leaf, self._before[path])
                for path, leaf in chosen.items()
            }
        self._before, self._gradients = {}, {}
        return {
            name: histogram(part, bins=self._bins)
            for kind in self._of
            for path, leaf in trees[kind].items()
            for name, part in _real_parts(f"{kind}/{path}", leaf).items()
        }


def _chosen(mask: Selector, params: Params) -> dict[Path, jax.Array]:
    """Return the float leaves that a mask selects, by path."""
    return tree.leaf_paths(tree.floats(tree.keep(tree.selected(mask, params), params)))


def _kept(mask: Any, gradients: Any) -> Any:
    """Return the selected gradients; those of leaves that are not trained are None."""
    return jax.tree.map(
        lambda x, m: x if m else None, gradients, mask, is_leaf=lambda x: x is None
    )


def _real_parts(name: str, x: jax.Array) -> dict[str, jax.Array]:
    if not jnp.iscomplexobj(x):
        return {name: x}
    return {f"{name}/real": jnp.real(x), f"{name}/imag": jnp.imag(x)}


@jax.jit
def _difference(a: jax.Array, b: jax.Array) -> jax.Array:
    return tree.widen(a) - tree.widen(b)  # 16 bits would round it


def _check_gradients(run: RunView) -> None:
    if gradients_of(run.guard.step) is None:
        raise ValueError(
            "need a step of fngrad.make_step, or of fngrad.steps with a gradient, for "
            'histograms of "gradients", got another; "updates" needs none'
        )
    if run.guard.feed.is_iterable and not run.guard.feed.is_source:
        raise ValueError(
            'need a dataset, a source or a function of the step for "gradients", got '
            "an iterable: its batches cannot be asked for again"
        )


def _gradients(run: RunView, state: TrainState, step: int) -> Any:
    """Return the gradient of the step that comes next."""
    feed, gradients = run.guard.feed, gradients_of(run.guard.step)
    assert gradients is not None
    if feed.is_source:
        batch = feed.data.batch(step)
        batch = batch if feed.mesh is None else shard_batch(batch, feed.mesh)
        return _fed_program(gradients)(state, batch)
    return _program(gradients, feed.static)(feed.argument, state)


@functools.lru_cache(maxsize=8)
def _fed_program(gradients: Callable[[TrainState, Batch], Any]) -> Callable[..., Any]:
    return jax.jit(gradients)


@functools.lru_cache(maxsize=8)
def _program(
    gradients: Callable[[TrainState, Batch], Any], static: Any
) -> Callable[..., Any]:
    def at_next_step(argument: Any, state: TrainState) -> Any:
        batch = batch_at(static, argument, state.step)
        return gradients(state, split(batch, auto_mesh_of(state)))

    return jax.jit(at_next_step)
