"""A process that was killed leaves a file that nobody locks, and is named by it."""

import contextlib

import pytest

import fngrad.fitting.presence as presence
from fngrad.distributed import Processes
from fngrad.files.locks import is_in_use
from fngrad.fitting.presence import Presence, forget_dead


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(presence, "_PATIENCE", 0.05)


@pytest.fixture
def alive(tmp_path):
    """Four processes, as they see each other."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(Presence(tmp_path, Processes(rank, 4)))
            for rank in range(4)
        ]
        for each in processes:
            each.look()
        yield processes


def kill(folder, rank, alive):
    alive[rank].close()
    (folder / f".process-{rank}").touch()


def test_the_killed_are_named_and_those_that_ended_are_not(tmp_path, alive):
    assert alive[0].dead() == []
    alive[1].close()
    assert alive[0].dead() == []
    kill(tmp_path, 2, alive)
    assert alive[0].dead() == alive[3].dead() == [2]
    kill(tmp_path, 3, alive)
    assert alive[0].dead() == [2, 3]


def test_the_first_alone_is_named_as_jax_ends_the_others_after_it(tmp_path, alive):
    kill(tmp_path, 2, alive)
    kill(tmp_path, 0, alive)
    assert alive[1].dead() == [0]


def test_nobody_is_named_whose_lock_was_never_seen(tmp_path, alive, monkeypatch):
    def sees_none_of_other_machines(folder, *, name):
        return name in (".process-0", ".process-1") and is_in_use(folder, name=name)

    monkeypatch.setattr(presence, "is_in_use", sees_none_of_other_machines)
    alive[0].look()
    assert alive[0].dead() == []
    kill(tmp_path, 1, alive)
    assert alive[0].dead() == [1]
    monkeypatch.setattr(presence, "is_in_use", lambda *_, **__: False)
    alive[3].look()
    assert alive[3].dead() == []


def test_one_that_ends_during_the_look_is_not_named(alive, monkeypatch):
    def ends_before(folder, *, name):
        if name == ".process-2":
            alive[2].close()
        return is_in_use(folder, name=name)

    monkeypatch.setattr(presence, "is_in_use", ends_before)
    assert alive[0].dead() == []


def test_nothing_stays_of_those_that_ended_or_are_forgotten(tmp_path, alive):
    kill(tmp_path, 2, alive)
    forget_dead(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for each in alive:
        each.close()
    assert list(tmp_path.iterdir()) == []
