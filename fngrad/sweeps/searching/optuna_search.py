r"""A search whose points a study of Optuna chooses, batch by batch.

A *trial* is a point: its hyperparameters, trained with every seed. A *batch* of trials
is asked from the study, trained as lanes of one compiled program, and told: the value
of a trial is the median of the metric over its seeds. The program is compiled once and
runs with the points of every batch; static values select one of several programs, and
the trials of a batch are grouped by them.

A trial half of whose lanes diverge is told as infinitely bad: it is a fact about the
space from which a sampler learns to stay away, whereas it would forget a trial that is
told as failed and return to where trainings diverge. A trial whose training raises has
no value; it is told as failed.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import fngrad.numerics as numerics
import fngrad.sweeps.results.statistics as statistics
import fngrad.sweeps.running.block_width as block_width
from fngrad.files.locks import Lock
from fngrad.logging import ProgressBar
from fngrad.metrics.directions import Metric
from fngrad.programs.keywords_elsewhere import OF_SWEEPS, explains_keywords
from fngrad.sweeps.results.result import SweepResult
from fngrad.sweeps.results.saved import save
from fngrad.sweeps.running.peers import all_peers
from fngrad.sweeps.running.program import Lanes
from fngrad.sweeps.running.runner import check_options, seed_keys, training_devices
from fngrad.sweeps.running.storage import Folder, digest
from fngrad.sweeps.searching.search_space import search_space
from fngrad.sweeps.searching.studies import Study, open_study
from fngrad.sweeps.searching.trial_batches import Batches
from fngrad.types import Key


@explains_keywords(OF_SWEEPS)
def search(
    train_fn: Callable[..., tuple[Any, dict[str, jax.Array]]],
    space: Mapping[str, Any],
    num_trials: int,
    keys: int | Key = 5,
    *,
    trials_per_batch: int = 16,
    study: Any = None,
    seed: int = 0,
    args: tuple[Any, ...] = (),
    static: Mapping[str, Any] | None = None,
    metric: Metric = ("val/loss", "min"),
    mode: block_width.Mode = "auto",
    folder: str | Path | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = True,
) -> SweepResult:
    """Train at points that Optuna chooses from the results of those before.

    It needs the extra ``search``. The trials of a batch are asked before one of them is
    told, so a batch as large as ``num_trials`` is a random search, and smaller ones
    learn more often. In a program of several processes all call this function; each
    trains a part of the lanes, and the first one has the study.

    Args:
        train_fn: as for `fngrad.sweep`.
        space: name -> `uniform`, `log_uniform`, `choice`, a list of numbers (a choice
            of them), one number, or a distribution of Optuna whose values are numbers.
            A tuple (low, high), a range for others, is refused.
        num_trials: how many trials the result holds, >= 1.
        keys: how many seeds, or typed keys (S,); every trial sees the same ones.
        trials_per_batch: how many trials are asked, trained and told at a time, >= 1.
        study: an ``optuna.Study`` with the direction of the metric, whose sampler,
            storage and earlier trials are used as they are; ``None`` makes one with
            Optuna's tree-structured Parzen estimator, which takes trials that are being
            trained for bad ones (``constant_liar``).
        seed: of that estimator, an int >= 0.
        args: what the lanes share, such as data: pytrees of arrays.
        static: name -> a list of values of any type, or an ``IntDistribution`` or
            ``CategoricalDistribution``: choices that change the program. Each
            combination is compiled when the study first suggests it. One that raises
            is left out with a warning, unless all that were suggested do.
        metric: the name of the metric that trials are told by, and ``"min"`` or
            ``"max"``, or a name that implies the direction, see
            `fngrad.metrics.directions`. Of a curve the last value counts.
        mode: the width of the blocks on each device, as for `fngrad.sweep`; ``"auto"``
            and ``"vmap"`` count the lanes of a combination's share of a batch.
        folder: where the study (``study.log``, an Optuna journal) and the lanes are
            saved, so that the same call resumes a killed search with the bits of one
            that was not, and a larger ``num_trials`` continues it; not with ``study``,
            which has a storage of its own.
        devices: where lanes are trained; all devices of this process by default.
        progress: whether to show a progress bar.

    Returns:
        The trials as points, in the order in which they were asked. With ``static``
        the trials of every combination follow one another, those that failed last, and
        the state is a list with one tree for each of these groups. The ``notes`` hold
        ``metric``, ``values``, ``keys``, ``static``, ``modes``, ``failures``,
        ``seconds`` and ``restored`` as those of `fngrad.sweep`, by combination in the
        order of its first use; ``trials``, the study's number of each point;
        ``counts``, the number of points in each group; and the ``study``, which other
        processes than the first have not.

    Raises:
        ImportError: if Optuna is not installed.
        ValueError: if an argument is out of range, the metric is one of the test data,
            the study has another direction or several, the folder holds another search
            or more trials, or as `fngrad.sweep`.
        TypeError: as `fngrad.sweep`, or if a value of ``space`` is not a number.
        Exception: of the first combination of static values, if all that were suggested
            fail.
        LockError: if another process uses the folder, or it cannot be written.

    Example:
        >>> import jax.numpy as jnp
        >>> from fngrad.sweeps import log_uniform, search
        >>> def train_fn(point, key):
        ...     return (), {"val/loss": jnp.log(point["rate"] / 0.1) ** 2}
        >>> space = {"rate": log_uniform(1e-4, 10.0)}
        >>> result = search(train_fn, space, 30, 1, trials_per_batch=5, progress=False)
        >>> print(result.points["rate"].shape, len(result.notes["study"].trials))
        (30,) 30

    References:
        T. Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization
        Framework", 2019, https://arxiv.org/abs/1907.10902; its ask-and-tell interface.
        Differs from ``Study.optimize`` in: a batch of trials is one program; nothing
        is pruned; a trial that diverges is told as infinitely bad.
    """
    begin = time.perf_counter()
    metric = statistics.selecting(metric)
    check_options(mode, args)
    num_trials = numerics.check_count("num_trials", num_trials, 1)
    size = numerics.check_count("trials_per_batch", trials_per_batch, 1)
    numerics.check_seed(seed)
    if folder is not None and study is not None:
        raise ValueError("need folder or study, got both: a study has its own storage")
    axes, keys, peers = search_space(space, static), seed_keys(keys), all_peers()
    devices = training_devices(devices)
    told = {"space": axes.describe(), "metric": metric, "seed": seed}
    told["keys"] = digest(keys)
    peers.check_same([told, num_trials, size, len(devices)])
    with contextlib.ExitStack() as stack:
        if folder is not None and peers.is_first:
            stack.enter_context(Lock(folder, purpose="this search"))
            Folder(folder, told, {})
        opened = open_study(study, folder, metric, seed, peers)
        opened.check_room(num_trials)
        batches = Batches(
            train_fn,
            axes,
            Lanes(train_fn, {}, keys, args, devices, peers),
            metric=metric,
            mode=mode,
            size=size,
            folder=folder,
        )
        lanes, shown = num_trials * len(keys), progress and peers.is_first
        with ProgressBar(lanes, 0, "search", enabled=shown, unit="lanes") as bar:
            _run(opened, batches, num_trials, bar)
        notes = {"metric": metric, "keys": keys, "static": list(static or {})}
        notes |= {"study": opened.study, "seconds": time.perf_counter() - begin}
        result = batches.gather(notes)
        if folder is not None and peers.is_first:
            save(Path(folder), result)
    return result


def _run(opened: Study, batches: Batches, num_trials: int, bar: ProgressBar) -> None:
    """Ask, train and tell batch by batch."""
    done = number = 0
    while done < num_trials:
        size = min(batches.size, num_trials - done)
        trials = opened.batch(number, size, batches.space.distributions)
        with opened.failing_on_errors(trials):
            values = batches.train(number, trials, bar)
        for trial, value in zip(trials, values, strict=True):
            opened.tell(trial, value)
        done, number = done + len(trials), number + 1
