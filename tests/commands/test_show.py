"""What a run folder holds less of than the run is said."""

import json

import jax
import pytest
from run_folders import write_records, write_run

from fngrad.commands.command_line import main
from fngrad.commands.reporting import page_of
from fngrad.logging import RunFolder


def shown(capsys, path):
    assert main(["show", str(path)]) == 0
    return capsys.readouterr().out.splitlines()


def test_it_is_said_of_how_many_steps_there_are_records(tmp_path, capsys):
    path = write_run(tmp_path / "a", step=34)
    note = "records of 3 of 34 steps: fngrad.fit(log_every=1) would record all"
    note = f"metrics.jsonl has {note}"
    assert note in shown(capsys, path)
    assert note in page_of(path)
    write_records(path, [{"step": 34, "loss": 1.0}])
    assert note.replace("3 of", "1 of") in shown(capsys, path)
    (path / "manifest.json").write_text(json.dumps({"results": {}}))  # not by fit
    assert "log_every" not in "".join(shown(capsys, path))


@pytest.mark.parametrize("first", [1, 101])  # 101: of a state of step 100
def test_nothing_is_said_of_records_of_all_steps(tmp_path, capsys, first):
    path = write_run(tmp_path / "a")
    records = [{"step": i, "loss": 1.0} for i in range(first, first + 4)]
    write_records(path, [*records[:3], records[3] | {"val/loss": 1.0}])
    lines = shown(capsys, path)
    assert ["loss", "4", "1", "1", str(first)] in [line.split() for line in lines]
    assert "log_every" not in "".join(lines)


def test_curves_with_labels_are_not_steps_of_one_run(tmp_path, capsys):
    path = write_run(tmp_path / "a")
    rows = [(i, rule) for rule in ("sgd", "adam") for i in (5, 10)]
    write_records(path, [{"step": i, "rule": r, "loss": 1.0} for i, r in rows])
    assert "log_every" not in "".join(shown(capsys, path))


def test_the_environment_is_that_of_the_last_start(tmp_path, capsys, monkeypatch):
    path = tmp_path / "a"
    for count, processes in (8, 1), (4, 1), (2, 2), (8, 4):
        monkeypatch.setattr(jax, "device_count", lambda count=count: count)
        monkeypatch.setattr(jax, "process_count", lambda many=processes: many)
        RunFolder(path)
        lines = [" ".join(line.split()) for line in shown(capsys, path)]
        rows = {name: rest for name, _, rest in (x.partition(" ") for x in lines)}
        was = "" if count == 8 else " (at first 8)"
        assert rows["device_count"] == f"{count}{was}"
        was = "" if processes == 1 else " (at first 1)"
        assert rows["process_count"] == f"{processes}{was}"
        assert f"<td>{rows['device_count']}" in page_of(path)
    assert rows["starts"] == "4, the environment is that of the last"
    assert len(rows["resumed"].split(", ")) == 3
    assert "starts" not in shown(capsys, write_run(tmp_path / "b"))
