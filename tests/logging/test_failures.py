"""A failure to show or draw something never ends a run."""

import contextlib
import importlib
import io
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from linear_regression import quiet_fit

import fngrad.logging as logging
import fngrad.logging.manifest as manifest
import fngrad.logging.progress as progress
from fngrad.logging.history import History


class WithoutTty:
    """The minimum that print needs."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


class Broken(io.StringIO):
    """A pipe whose reader has closed."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


class BreaksLater(io.StringIO):
    """A pipe whose reader closes after a while."""

    def write(self, text: str) -> int:
        if "compiling" not in text:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


class Awkward(io.StringIO):
    def isatty(self) -> bool:
        raise RuntimeError("no such question")

    @property
    def encoding(self) -> Any:
        raise RuntimeError("no such question")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {
    "missing": lambda: None,
    "without isatty": WithoutTty,
    "broken": Broken,
    "breaks later": BreaksLater,
    "closed": closed,
    "awkward": Awkward,
    "an object": object,
}


@pytest.mark.parametrize("name", STREAMS)
def test_no_broken_stream_ends_a_run(name, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stderr", STREAMS[name]())
    result = quiet_fit(num_steps=60, progress=True)
    again = quiet_fit(result.state, num_steps=60)  # prints that there is nothing to do
    monkeypatch.undo()
    assert (result.stopped, int(result.state.step)) == ("completed", 60)
    assert again.stopped == "completed"


@pytest.mark.parametrize("name", STREAMS)
def test_no_broken_stream_makes_a_bar_raise(name, monkeypatch):
    monkeypatch.setattr(sys, "stderr", STREAMS[name]())
    with logging.ProgressBar(10, description="training") as bar:
        bar.advance(3)
        bar.describe("compiling")
        bar.show({"loss": 0.5})
        bar.advance(7)
    progress.print_to_stderr("done")


def test_nothing_is_written_to_stdout_instead(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    progress.print_to_stderr("done")
    logging.ProgressBar(10).close()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "method", ["__init__", "update", "set_postfix", "set_description", "close"]
)
def test_a_bar_that_fails_is_removed(method, monkeypatch, capfd):
    class Failing:
        def __init__(self, **options: Any):
            self._fail("__init__")

        def _fail(self, name: str) -> None:
            if name == method:
                raise ZeroDivisionError("in the bar")

        def update(self, n: int) -> None:
            self._fail("update")

        def set_postfix(self, values: Any, refresh: bool) -> None:
            self._fail("set_postfix")

        def set_description(self, text: str) -> None:
            self._fail("set_description")

        def close(self) -> None:
            self._fail("close")

    monkeypatch.setattr(progress, "bar_type", lambda: Failing)
    bar = logging.ProgressBar(10)
    for _ in range(2):
        bar.advance(1)
        bar.show({"loss": 0.5})
        bar.describe("training")
    bar.close()
    said = capfd.readouterr().err
    assert said.count("the progress bar failed and was removed: ZeroDivisionError") == 1


def test_a_bar_that_cannot_be_imported_is_not_shown(monkeypatch, capfd):
    def fail(*names: str) -> None:
        raise AttributeError("a broken installation")

    monkeypatch.setattr(progress, "import_extra", fail)
    progress.bar_type.cache_clear()
    logging.ProgressBar(10).close()
    progress.bar_type.cache_clear()
    assert capfd.readouterr().err == "no progress bar: a broken installation\n"


def drawn_history() -> History:
    history = History()
    history.extend(np.array([1, 2]), {"loss": np.array([1.0, 0.5])})
    return history


def test_a_picture_that_cannot_be_drawn_warns_with_the_reason(tmp_path):
    folder = logging.RunFolder(tmp_path)

    def fail() -> None:
        raise RuntimeError("something in matplotlib")

    with pytest.warns(UserWarning, match=r"curves\.png' is not written: RuntimeErr"):
        folder.draw("curves", fail)
    assert not folder.curves.exists()


def test_a_picture_that_cannot_be_written_warns(tmp_path):
    folder = logging.RunFolder(tmp_path)
    folder.curves.mkdir()
    with pytest.warns(UserWarning, match=r"curves\.png' is not written: IsADirector"):
        folder.draw("curves", drawn_history().plot)
    assert sorted(os.listdir(tmp_path)) == [
        *("config.json", "curves.png", "manifest.json"),
    ]


@pytest.mark.filterwarnings("ignore:Matplotlib")
def test_a_run_whose_picture_and_manifest_cannot_be_written_is_not_lost(tmp_path):
    def block(step: int, state: Any, values: Any) -> None:
        (tmp_path / "curves.png").mkdir(exist_ok=True)
        if not (tmp_path / "manifest.json").is_dir():
            (tmp_path / "manifest.json").unlink(missing_ok=True)
            (tmp_path / "manifest.json").mkdir()

    with pytest.warns(UserWarning, match="is not written") as warned:
        result = quiet_fit(num_steps=20, run_dir=tmp_path, callbacks=[block])
    assert (result.stopped, int(result.state.step)) == ("completed", 20)
    words = " ".join(str(warning.message) for warning in warned)
    assert "manifest.json' is not written" in words
    assert "curves.png' is not written" in words


def test_a_picture_with_letters_that_the_font_lacks_is_written(tmp_path):
    folder = logging.RunFolder(tmp_path)
    history = History()
    history.extend(np.array([1, 2]), {"損失 🚀": np.array([1.0, 0.5])})
    folder.draw("curves", history.plot)
    assert folder.curves.read_bytes()[:4] == b"\x89PNG"


def test_a_run_folder_is_resolved_when_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = logging.RunFolder("run")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    folder.update_manifest(loop="scan")
    folder.draw("curves", drawn_history().plot)
    assert folder.manifest["loop"] == "scan"
    assert os.listdir(tmp_path / "other") == []
    assert (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize(
    "metadata", [b"Name: caf\xe9\nVersion: 1\n", b"", b"\x00\xff", None]
)
def test_damaged_metadata_hides_only_that_package(metadata, tmp_path, monkeypatch):
    info = tmp_path / "damaged-1.0.dist-info"
    info.mkdir()
    if metadata is not None:
        (info / "METADATA").write_bytes(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    facts = manifest.collect()
    assert facts["versions"]["jax"] is not None
    assert not any("damaged" in line for line in facts["freeze"])
    logging.RunFolder(tmp_path / "run")


def test_a_program_may_print_invalid_utf_8(tmp_path: pathlib.Path):
    command = (sys.executable, "-c", "import os; os.write(1, b'caf\\xe9\\n')")
    assert manifest._output(*command) == "caf\N{REPLACEMENT CHARACTER}"
    with contextlib.suppress(FileNotFoundError):
        assert manifest._output("a command that is not there") is None
