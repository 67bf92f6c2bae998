"""Fresh run folders get names of their own, and a resumed run keeps its name."""

import datetime
import os
import re

import pytest

import fngrad.logging as logging
import fngrad.logging.run_names as run_names
from fngrad.logging.run_names import RESUMED


def test_run_folders_of_one_second_have_different_names(tmp_path, monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(datetime, "datetime", Clock)
    made = [logging.new_run(tmp_path / "runs" / "digits") for _ in range(3)]
    names = [path.name for path in made]
    assert names == ["20260102-030405", "20260102-030405-1", "20260102-030405-2"]
    assert all(path.is_dir() for path in made)


def test_a_run_that_is_resumed_gets_its_folder_once(tmp_path, monkeypatch):
    old = logging.new_run(tmp_path / "a")
    monkeypatch.setenv(RESUMED, str(old.resolve()))
    monkeypatch.chdir(tmp_path)
    assert logging.new_run("b").name != old  # another experiment's
    assert logging.new_run("a").resolve() == old.resolve()
    assert RESUMED not in os.environ
    assert logging.new_run("a").resolve() != old.resolve()


def test_a_name_is_a_date_and_a_time(tmp_path):
    assert re.fullmatch(r"\d{8}-\d{6}", logging.new_run(str(tmp_path)).name)


def test_all_processes_use_the_folder_of_the_first(tmp_path, monkeypatch):
    class Second:
        count, is_first = 2, False

        def texts(self, text):
            return [str(tmp_path / "first"), text]

    monkeypatch.setattr(run_names, "processes", Second)
    assert logging.new_run(tmp_path) == tmp_path / "first"
    assert not list(tmp_path.iterdir())


def test_a_url_is_refused():
    with pytest.raises(ValueError, match="file system of this machine"):
        logging.new_run("gs://bucket/runs")
