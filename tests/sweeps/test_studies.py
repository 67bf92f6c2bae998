"""A study of several processes: the first one asks and tells, all get its trials."""

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from fngrad.sweeps.running.peers import Peers
from fngrad.sweeps.searching.studies import open_study

optuna.logging.set_verbosity(optuna.logging.WARNING)
AXES = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "layer": CategoricalDistribution([None, True, "wide", 3]),
}


@pytest.fixture
def pair(monkeypatch):
    """Return two processes, of which the first has to be called first."""
    said = []

    def from_first(self, text):
        if self.is_first:
            said.append(text)
        return said[-1]

    monkeypatch.setattr(Peers, "from_first", from_first)
    return Peers(0, 2), Peers(1, 2)


def opened(peers):
    return open_study(None, None, ("loss", "min"), 0, peers)


def test_all_processes_get_the_trials_that_the_first_asks(pair):
    alone = opened(Peers()).batch(0, 3, AXES)
    first, other = map(opened, pair)
    assert first.batch(0, 3, AXES) == alone
    assert other.batch(0, 3, AXES) == alone


def test_only_the_first_process_tells(pair):
    first, other = map(opened, pair)
    (trial,) = first.batch(0, 1, AXES)
    assert other.batch(0, 1, AXES) == [trial]
    other.check_room(0)
    other.tell(trial, 1.0)
    first.tell(trial, 2.0)
    assert other.study is None
    assert first.study.best_value == 2.0
