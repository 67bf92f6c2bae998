"""A study of Optuna: its trials are asked in batches, and told."""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fngrad.metrics.directions import Directed
from fngrad.programs.optional_imports import import_extra
from fngrad.sweeps.running.peers import Peers

JOURNAL, BATCH = "study.log", "batch"
WORDS = {"min": "minimize", "max": "maximize"}


class Trial(NamedTuple):
    """A trial that was asked."""

    number: int  # in the study
    suggested: dict[str, Any]  # by name
    is_told: bool


class Study:
    """A study, its sampler, and the batches in its storage.

    Args:
        study: of Optuna.
        seed: of the sampler that is made anew for each trial, so that it depends on the
            trials before and the seed alone; ``None`` keeps the study's own sampler.
        resumes: whether the trials of the study are those of this search, in batches.
        peers: the processes of the search. The study is that of the first, which asks
            and tells for all; the others have None.
    """

    def __init__(self, study: Any, seed: int | None, resumes: bool, peers: Peers):
        self.study: Any = study
        self._peers = peers
        self._optuna: Any = import_extra("optuna", "search")
        self._seed, self._resumes = seed, resumes

    def batch(
        self, number: int, size: int, distributions: Mapping[str, Any]
    ) -> list[Trial]:
        """Return the trials of a batch: those in the storage, else asked now.

        Args:
            number: of the batch, from 0.
            size: how many trials it should have.
            distributions: of Optuna, by name.
        """
        if self._peers.count == 1:
            return self._here(number, size, distributions)
        trials = self._here(number, size, distributions) if self.study else []
        text = self._peers.from_first(json.dumps(trials))
        return [Trial(*fields) for fields in json.loads(text)]

    def _here(
        self, number: int, size: int, distributions: Mapping[str, Any]
    ) -> list[Trial]:
        found = [t for t in self._trials() if t.user_attrs.get(BATCH) == number]
        trials = [Trial(t.number, t.params, t.state.is_finished()) for t in found]
        if any(trial.is_told for trial in trials):  # after all of them were asked
            return trials
        with self.failing_on_errors(trials):
            while len(trials) < size:
                trials.append(self._ask(number, distributions))
        return trials

    def check_room(self, num_trials: int) -> None:
        """Check that the storage holds at most this many trials.

        Raises:
            ValueError: if it holds more.
        """
        held = sum(BATCH in trial.user_attrs for trial in self._trials())
        if held > num_trials:
            raise ValueError(
                f"need num_trials >= {held}, which the folder holds, got {num_trials=}"
            )

    def tell(self, trial: Trial, value: float | None) -> None:
        """Tell the value of a trial, None if its training raised."""
        if trial.is_told or not self.study:
            return
        if value is None:
            self.study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial.number, value)

    @contextlib.contextmanager
    def failing_on_errors(self, trials: Sequence[Trial]) -> Iterator[None]:
        """Tell trials as failed if an exception ends the search for good."""
        try:
            yield
        except BaseException:
            if not self._resumes:
                for trial in trials:
                    self.tell(trial, None)
            raise

    def _ask(self, batch: int, distributions: Mapping[str, Any]) -> Trial:
        if self._seed is not None:
            number = len(self.study.get_trials(deepcopy=False))
            mixed = np.random.SeedSequence([self._seed, number]).generate_state(1)
            with warnings.catch_warnings():  # in Optuna 4 it is experimental
                warnings.simplefilter("ignore")
                self.study.sampler = self._optuna.samplers.TPESampler(
                    seed=int(mixed[0]), constant_liar=True
                )
        trial = self.study.ask(dict(distributions))
        if self._resumes:
            trial.set_user_attr(BATCH, batch)
        return Trial(trial.number, trial.params, is_told=False)

    def _trials(self) -> list[Any]:
        """Return the trials of this search that are in the storage."""
        is_here = self.study and self._resumes
        return self.study.get_trials(deepcopy=False) if is_here else []


def open_study(
    study: Any,
    folder: str | Path | None,
    metric: Directed,
    seed: int,
    peers: Peers,
) -> Study:
    """Return the user's study, that of the folder, or a new one.

    Args:
        study: of the user, or None.
        folder: of the search, or None.
        metric: which the study should optimize.
        seed: of a new study's sampler.
        peers: the processes of the search.

    Raises:
        ImportError: if Optuna is not installed.
        ValueError: if the user's study has another direction than the metric.
    """
    optuna: Any = import_extra("optuna", "search")
    direction = WORDS[metric[1]]
    if study is not None:
        directions = [d.name.lower() for d in study.directions]
        if directions != [direction]:
            raise ValueError(
                f"need a study with direction={direction!r}, that of {metric=}, got "
                f"{directions}"
            )
    if not peers.is_first:
        return Study(None, seed=None, resumes=False, peers=peers)
    if study is not None:
        return Study(study, seed=None, resumes=False, peers=peers)
    storage = None if folder is None else _journal(Path(folder) / JOURNAL)
    made = optuna.create_study(
        storage=storage, study_name="search", direction=direction, load_if_exists=True
    )
    opened = Study(made, seed=seed, resumes=folder is not None, peers=peers)
    for trial in made.get_trials(deepcopy=False):
        if not trial.state.is_finished() and BATCH not in trial.user_attrs:
            # The process was killed while it asked for this one.
            opened.tell(Trial(trial.number, trial.params, is_told=False), None)
    return opened


def _journal(path: Path) -> Any:
    """Return the storage in a file that no other process uses."""
    storages: Any = import_extra("optuna.storages", "search")
    journal: Any = import_extra("optuna.storages.journal", "search")
    path.with_name(path.name + ".lock").unlink(missing_ok=True)  # of a killed process
    if path.exists():  # whose last line may be torn
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            path.write_bytes(whole)
    return storages.JournalStorage(journal.JournalFileBackend(str(path)))
