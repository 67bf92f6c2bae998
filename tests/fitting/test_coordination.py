"""What processes tell each other, with another process that says what a test gives."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad.distributed import PeerError, Processes
from fngrad.fitting.arguments import ALIKE, Arguments
from fngrad.fitting.coordination import KEEPS, REPLACES, Coordination, Status
from fngrad.fitting.interrupts import Interruption, handled_signals


class Other(Processes):
    """Two processes, of which the other one tells what it is given."""

    told = Status()
    said = ""
    asked = ()

    def gather(self, value):
        type(self).asked += (value,)
        rows = [np.asarray(value), np.array(self.told, np.int32)]
        return np.stack(rows if self.is_first else rows[::-1])

    def texts(self, text):
        return [text, self.said] if self.is_first else [self.said, text]


def with_other(rank, said="", **told):
    other = type("_", (Other,), {"told": Status(**told), "said": said})(rank, 2)
    return Coordination(Interruption(), other)


def test_the_first_process_decides_and_a_flag_of_any_counts():
    told = {"chunk": 7, "is_late": True, "stops": True, "is_writing": True, "media": 2}
    heard = with_other(0, **told).meet(Status(chunk=3))
    assert (heard.chunk, heard.is_late, heard.media) == (3, False, 0)
    assert heard.stops
    assert heard.is_writing
    heard = with_other(1, **told).meet(Status(chunk=3))
    assert (heard.chunk, heard.is_late, heard.media) == (7, True, 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_of_one_process_reaches_all(rank):
    peers = with_other(rank, interrupted=True, signal=15)
    interrupted = peers._interrupted
    assert not interrupted.is_set()
    peers.meet()
    assert interrupted.is_set()
    assert interrupted.terminated == 15


@pytest.mark.parametrize(("failed", "may_save"), [(2, True), (1, False)])
def test_a_failure_of_one_process_is_raised_in_all(failed, may_save):
    told = {"failed": failed, "said": "process 1 failed: KeyError: 3"}
    peers = with_other(0, **told)
    with pytest.raises(PeerError, match="process 1 failed: KeyError: 3") as caught:
        peers.meet()
    assert (peers.may_save, peers.is_lost) == (may_save, False)
    other = peers.processes
    assert isinstance(other, Other)
    asked = other.asked
    peers.fail(caught.value, saves=True)
    assert other.asked == asked  # they know
    peers = with_other(0, **told)
    peers.fail(OSError("mine"), saves=True)
    assert peers.may_save == may_save
    peers = with_other(0)
    peers.fail(OSError("mine"), saves=False)
    assert not peers.may_save


def test_nothing_is_told_from_inside_of_a_computation_of_all():
    peers = with_other(0)
    error = jax.errors.JaxRuntimeError("connection closed")
    with pytest.raises(jax.errors.JaxRuntimeError), peers.computing():
        raise error
    peers.fail(error, saves=True)
    assert (peers.may_save, peers.is_lost) == (False, True)
    assert "what it printed tells why" in error.__notes__[0]
    peers = with_other(0)
    peers.fail(KeyboardInterrupt(), saves=True)
    assert (peers.may_save, peers.is_lost) == (False, True)


@pytest.mark.parametrize(("saves", "may_save"), [(True, True), (False, False)])
def test_what_one_process_does_within_a_computation_of_all_is_told(saves, may_save):
    peers = with_other(0)
    inside = peers.computing(), peers.together(saves=saves)
    with pytest.raises(OSError, match="disk"), inside[0], inside[1]:
        raise OSError("disk")
    assert (peers.may_save, peers.is_lost) == (may_save, False)
    peers = with_other(1, failed=2, said="process 0 failed: OSError: disk")
    with pytest.raises(PeerError, match="disk"), peers.computing():
        peers.telling(abs)(-1)
    peers = with_other(0)
    with peers.computing():
        assert peers.telling(abs)(-1) == 1
        assert peers._is_inside


def test_the_error_of_a_computation_names_the_process_that_was_killed():
    peers = with_other(0)
    presence = SimpleNamespace(dead=lambda: [1])
    peers.presence = presence  # pyright: ignore
    for error in (ValueError("UNKNOWN: Gloo failed"), KeyError("a bug")):
        peers._lose(error)
        note = " ".join(getattr(error, "__notes__", []))
        named = "with the others: process 1 has died, as by a kill; a run with"
        assert (named in note) == isinstance(error, ValueError)
    peers._lose(error := ValueError("need another shape"))
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_after_the_last_meeting_reaches_all(rank):
    told = {"told": Status(interrupted=True, signal=15)}
    other = type("_", (Other,), told)(rank, 2)
    with pytest.raises(SystemExit, match="75"), handled_signals() as interrupted:
        Coordination(interrupted, other)


def test_a_kill_after_the_last_meeting_is_named():
    def ended(*_):
        raise ValueError("UNKNOWN: Gloo failed")

    other = type("_", (Other,), {"gather": ended})(0, 2)
    peers = Coordination(Interruption(), other)
    presence = SimpleNamespace(dead=lambda: [1])
    peers.presence = presence  # pyright: ignore
    with pytest.raises(ValueError, match="Gloo") as caught:
        peers._interrupted.settle()
    assert "process 1 has died, as by a kill" in caught.value.__notes__[0]


def test_every_argument_that_decides_what_is_computed_is_compared():
    of_one_process = {"run_dir", "checkpoint_dir", "loggers", "exit_signals", "require"}
    in_part = {"step", "state", "data", "metric_fn", "eval_data", "config", "callbacks"}
    others = of_one_process | in_part | {"progress"}
    assert set(ALIKE) == set(Arguments._fields) - others
    state = fg.init_state({"w": np.ones(1)}, fg.sgd(0.1), key=3)
    source = fg.data.from_source(lambda i: i, 9, 4, seed=2)
    given = dict.fromkeys(Arguments._fields) | {"state": state, "data": source}
    settings = Arguments(**given | {"callbacks": [print]}).settings(is_saved=True)
    keys = settings["the state's key"], settings["the data's key"]
    assert (keys, settings["the data's size"]) == (([0, 3], [0, 2]), 9)
    assert settings["the number of callbacks"] == 1
    foreign = SimpleNamespace(order=print, size=object().__repr__, batch_size=4)
    for data in (foreign, lambda step: step, [1]):
        settings = Arguments(**given | {"callbacks": [], "data": data}).settings(
            is_saved=False
        )
        assert settings["the data's size"] is None  # an object's text has its address
        assert settings["the data's key"] is None


def test_a_callback_must_answer_the_same_in_all_processes():
    peers = with_other(0, answer=KEEPS)
    assert peers.meet(Status(answer=KEEPS)).answer == KEEPS
    assert peers.meet(Status(stops=True)).stops
    with pytest.raises(ValueError, match="the same answer of a callback in all proc"):
        peers.meet(Status(answer=REPLACES))


def test_other_settings_in_a_process_are_named():
    peers = with_other(0, said='{"num_steps": "20", "loop": "\'scan\'"}')
    with pytest.raises(ValueError, match="num_steps 10 in process 0 and 20 in process"):
        peers.check_same({"num_steps": 10, "loop": "scan"})
    peers.check_same({"num_steps": 20, "loop": "scan"})
    assert with_other(1, said="/of/0").folder_of_the_first(None).name == "0"
    assert with_other(1).folder_of_the_first("here") is None


def test_a_process_alone_asks_nobody(monkeypatch):
    asked = []
    monkeypatch.setattr(Processes, "gather", lambda *_: asked.append(0))
    interrupted = Interruption()
    peers = Coordination(interrupted)
    assert peers.is_alone
    assert peers.meet(Status(chunk=5, stops=True)) == Status(chunk=5, stops=True)
    interrupted.set()
    assert peers.meet().interrupted
    with pytest.raises(KeyError), peers.together():
        raise KeyError
    peers.check_same({"a": 1})
    assert peers.agree(2.5) == 2.5
    assert peers.folder_of_the_first(None) is None
    assert asked == []


def test_processes_that_jax_found_alone_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    need = r"need fngrad.distributed.initialize\(\).*got 4 processes"
    data = fg.data.from_arrays({"x": np.ones((4, 1))}, 2)
    state = fg.init_state({"w": np.ones(1)}, fg.sgd(0.1), key=0)
    step = fg.make_step(lambda params, batch: jnp.sum(params["w"]), fg.sgd(0.1))
    with pytest.raises(RuntimeError, match=need):
        fg.fit(step, state, data, num_steps=1)
    with pytest.raises(RuntimeError, match=need):
        fg.checkpoint.save("never_made", state)
    with pytest.raises(RuntimeError, match=need):
        fg.sweep(lambda rate, key: {"loss": rate}, {"rate": np.ones(1)}, keys=1)
