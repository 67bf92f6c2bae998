"""The commands print what is recorded, and exit with a status."""

import json
import os
import pathlib
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from run_folders import SECONDS, write_run

import fngrad as fg
import fngrad.checkpoint as checkpoint
from fngrad.commands.command_line import main
from fngrad.files.locks import Lock

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with three runs: best to worst, a, b, c."""
    write_run(tmp_path / "runs" / "b", {"rate": 0.1, "width": 8, "name": "x"})
    write_run(
        tmp_path / "runs" / "a",
        {"rate": 1.0, "width": 8, "name": "x"},
        (0.5, 0.125),
        started="2026-01-01T10:30:00+00:00",
    )
    write_run(
        tmp_path / "runs" / "c",
        {"rate": 10.0, "width": 8},
        (3.0, "NaN"),
        stopped=None,
        ended=None,
        failure="NonFiniteError: the loss is NaN",
        autopsy="step 20 went bad: log(-1) = nan",
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def run(capsys, *arguments):
    """Return the exit status, and the lines of stdout and of stderr."""
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out
    return status, captured.out.splitlines(), captured.err


def rows_of(lines):
    return [line.split()[0] for line in lines[1:]]


def test_runs_are_a_table_of_status_metrics_and_differing_config(folder, capsys):
    status, lines, _ = run(capsys, "runs")
    assert status == 0
    head = lines[0].split("  ")
    head = [cell.strip() for cell in head if cell.strip()]
    assert head == [
        *("name", "status", "started", "duration", "step"),
        *("val/loss last", "val/loss best", "at step", "rate"),
    ]
    assert rows_of(lines) == ["b", "c", "a"]  # by start
    assert lines[3].split()[1] == "completed"
    assert lines[3].split()[-5:] == ["20", "0.125", "0.125", "20", "1"]
    assert lines[2].split()[1] == "failed"
    assert lines[2].split()[-2:] == ["10", "10"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--sort", "best"], ["a", "b", "c"]),
        (["--sort", "rate", "--reverse"], ["c", "a", "b"]),
        (["--sort", "last", "--metric", "val/score:max"], ["a", "c", "b"]),
        (["--sort", "best", "--metric", "val/score:max"], ["b", "a", "c"]),
        (["--sort", "status"], ["a", "b", "c"]),
        (["--where", "rate=1"], ["a"]),
        (["--where", "status=completed", "rate!=0.1"], ["a"]),
        (["--where", "name=c"], ["c"]),
    ],
)
def test_runs_are_sorted_and_filtered(folder, capsys, options, names):
    status, lines, _ = run(capsys, "runs", folder, *options)
    assert (status, rows_of(lines)) == (0, names)


def test_runs_in_json_are_strict(folder, capsys):
    status, lines, _ = run(capsys, "runs", "--json", "--sort", "name")
    assert status == 0
    a, b, c = json.loads("\n".join(lines), parse_constant=pytest.fail)
    assert (a["name"], a["duration"], a["best"]) == ("a", 1865, 0.125)
    assert b["config"] == {"rate": 0.1, "width": 8, "name": "x"}
    assert (c["last"], c["reason"]) == ("NaN", "NonFiniteError: the loss is NaN")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs", "not_there"], "need a folder of runs, got 'not_there'"),
        (["runs", "--sort", "speed"], "need --sort as one of"),
        (["runs", "--where", "rate"], "need conditions key=value"),
        (["runs", "--where", "rate=7"], "no runs in 'runs'"),
        (["show", "runs"], "need a run folder"),
        (["compare"], "need at least one run folder"),
        (["plot", "runs/a", "--metric", "speed"], "need one of"),
        (["resume", "runs/c"], "need a run with a checkpoint"),
        (["clean", "--keep", "0"], "keep"),
        (["new", "a-b"], "need a name that Python can import"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_status_1(
    folder, capsys, arguments, message
):
    status, lines, error = run(capsys, *arguments)
    assert (status, lines) == (1, [])
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["shwo"], ["runs", "--speed", "1"], []])
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_listed(folder, capsys):
    (folder / "b" / "metrics.jsonl").write_text("no record\n")
    status, lines, error = run(capsys, "runs")
    assert (status, sorted(rows_of(lines))) == (1, ["a", "c"])
    assert "need one JSON object per line" in error


def test_show_prints_every_section(folder, capsys):
    checkpoint.save(folder / "c" / "checkpoints", np.zeros(2), step=10)
    status, lines, _ = run(capsys, "show", folder / "c")
    assert status == 0
    for line in (
        "status    failed: NonFiniteError: the loss is NaN",
        "rate   10.0",
        "command  python train.py --note 'a b'",
        "jax      0.9",
        "steps   10",
        f"stepping   2.50 s  {100 * 2.5 / sum(SECONDS.values()):.0f} %",
        "step 20 went bad: log(-1) = nan",
    ):
        assert line in lines
    titles = ["config", "environment", "checkpoints", "where the time went", "metrics"]
    assert [line for line in lines if line in titles] == titles


def test_show_in_json_holds_the_manifest(folder, capsys):
    _, lines, _ = run(capsys, "show", folder / "c", "--json")
    shown = json.loads("\n".join(lines), parse_constant=pytest.fail)
    assert shown["metrics"]["loss"] == {
        **{"records": 2, "last": "NaN", "best": 3.0, "best_step": 10}
    }
    assert shown["manifest"]["seconds"] == SECONDS


def test_compare_marks_what_differs_and_draws_in_the_terminal(folder, capsys):
    status, lines, _ = run(capsys, "compare", folder / "a", folder / "b", "--all")
    assert status == 0
    assert lines[0].split() == ["a", "b"]
    assert "*  rate      1          0.1" in lines
    assert "   width     8          8" in lines
    cells = ["val/loss", "best", "0.125", "at", "20", "0.25", "at", "20"]
    assert cells in [line.split() for line in lines]
    assert lines.count("* a") == lines.count("o b") == 3  # loss and two evaluations
    _, short, _ = run(capsys, "compare", folder / "a", folder / "b")
    assert "   width     8          8" not in short
    assert "2 equal keys: --all shows them" in short


def test_runs_of_one_name_are_told_apart_by_their_folders(folder, capsys):
    other = write_run(folder.parent / "other" / "a")
    _, lines, _ = run(capsys, "compare", folder / "a", other, "--metric", "loss")
    assert lines[0].split() == ["runs/a", "other/a"]


def test_curves_are_drawn_as_a_picture(folder, capsys, tmp_path):
    for arguments in (
        ["compare", folder / "a", folder / "b", "-o", tmp_path / "x" / "both.png"],
        ["plot", folder / "a", "-o", tmp_path / "x" / "one.png", "--metric", "loss"],
    ):
        status, lines, _ = run(capsys, *arguments)
        assert status == 0
        assert str(tmp_path / "x") in lines[-1]
    before = sorted(path.name for path in (folder / "a").iterdir())
    assert run(capsys, "plot", folder / "a", "--metric", "loss")[0] == 0
    after = sorted(path.name for path in (folder / "a").iterdir())
    assert after == sorted([*before, "plot.png"])  # beside what fit has drawn
    pictures = sorted((tmp_path / "x").iterdir())
    assert [p.read_bytes()[:4] for p in pictures] == 2 * [b"\x89PNG"]


def test_resume_runs_the_recorded_command_in_its_folder(folder, capsys, monkeypatch):
    home = folder.parent
    path = write_run(
        folder / "d",
        stopped=None,
        cwd=str(home),
        executable=sys.executable,
        command="python -c 'import sys; sys.exit(7)' 'a b'",
    )
    checkpoint.save(path / "checkpoints", np.zeros(2), step=10)
    ran = []
    monkeypatch.setattr(os, "execvpe", lambda *arguments: ran.append(arguments) or 7)
    monkeypatch.setattr(os, "chdir", ran.append)
    status, _, _ = run(capsys, "resume", path)
    assert (status, ran[0]) == (7, home)
    program, arguments, environment = ran[1]
    assert (program, arguments[1:]) == (
        sys.executable,
        ["-c", "import sys; sys.exit(7)", "a b"],
    )
    assert environment["FNGRAD_RESUME"] == str(path)
    with Lock(path):
        status, _, error = run(capsys, "resume", path)
    assert status == 1
    assert "still running" in error
    status, lines, _ = run(capsys, "resume", path, "--dry")
    assert status == 0
    assert lines[-1].endswith(" -c 'import sys; sys.exit(7)' 'a b'")
    assert len(ran) == 2


@pytest.mark.parametrize("stopped", ["completed", "early_stopping", "exhausted"])
def test_a_complete_run_is_not_run_again(folder, capsys, stopped):
    path = write_run(folder / "d", cwd=".", stopped=stopped)
    checkpoint.save(path / "checkpoints", np.zeros(2), step=30)
    status, lines, _ = run(capsys, "resume", path)
    assert (status, len(lines)) == (0, 1)
    assert "complete at step 30" in lines[0]


def test_a_run_that_a_callback_ended_is_completed_and_goes_on(
    folder, capsys, monkeypatch
):
    path = write_run(folder / "d", cwd=".", stopped="callback")  # as by max_minutes
    checkpoint.save(path / "checkpoints", np.zeros(2), step=30)
    _, lines, _ = run(capsys, "runs", "--where", "status=completed")
    assert rows_of(lines) == ["b", "d", "a"]
    assert "status    completed: callback" in run(capsys, "show", path)[1]
    monkeypatch.setattr(os, "execvpe", lambda *arguments: 7)
    assert run(capsys, "resume", path)[0] == 7


def test_a_run_of_a_notebook_is_not_resumed(folder, capsys):
    command = "python -m ipykernel_launcher -f x.json"
    path = write_run(folder / "d", stopped=None, command=command)
    checkpoint.save(path / "checkpoints", np.zeros(2), step=10)
    status, _, error = run(capsys, "resume", path)
    assert status == 1
    assert "run its notebook" in error


def test_clean_deletes_all_but_the_newest_and_the_best(folder, capsys):
    checkpoints = folder / "a" / "checkpoints"
    for step, loss in [(1, 0.5), (2, 0.1), (3, 0.3), (4, 0.2)]:
        metrics = {"val/loss": loss}
        checkpoint.save(checkpoints, np.zeros(2), step=step, metrics=metrics)
    (checkpoints / ".00000009.writing").mkdir()
    status, lines, _ = run(capsys, "clean")
    assert status == 0
    assert [line.split()[0][-8:] for line in lines[1:-1]] == ["00000001", "00000003"]
    assert "--delete deletes them" in lines[-1]
    assert checkpoint.steps(checkpoints) == [1, 2, 3, 4]
    with Lock(folder / "a"):
        _, lines, _ = run(capsys, "clean", "--delete")
    assert lines[0].startswith("left alone, as it is running")
    assert checkpoint.steps(checkpoints) == [1, 2, 3, 4]
    _, lines, _ = run(capsys, "clean", folder / "a", "--keep", "2", "--delete")
    assert lines[-1].startswith("1 checkpoints deleted")
    assert checkpoint.steps(checkpoints) == [2, 3, 4]
    assert not list(checkpoints.glob(".*.writing"))


def spoil(path):
    file = max(path.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else -1)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def test_clean_keeps_the_newest_checkpoint_that_is_whole(folder, capsys):
    checkpoints = folder / "a" / "checkpoints"
    for step in (1, 2, 3, 4):
        checkpoint.save(checkpoints, np.arange(999.0), step=step)
    spoil(checkpoints / "00000004")
    run(capsys, "clean", folder / "a", "--delete")
    assert sorted(path.name for path in checkpoints.glob("0*")) == [
        "00000003",  # the newest whole one, and
        "00000004",  # the damaged one, which is left alone
    ]
    spoil(checkpoints / "00000003")
    run(capsys, "clean", folder / "a", "--delete")
    assert len(list(checkpoints.glob("0*"))) == 2


def test_clean_leaves_alone_checkpoints_that_another_run_uses(folder, capsys):
    checkpoints = folder / "a" / "checkpoints"
    for step in (1, 2, 3):
        checkpoint.save(checkpoints, np.zeros(2), step=step)
    with Lock(checkpoints):
        _, lines, _ = run(capsys, "clean", folder / "a", "--delete")
    assert lines[0].startswith("left alone")
    with Lock(checkpoints, name=".writing"):
        _, lines, _ = run(capsys, "clean", folder / "a", "--delete")
    assert lines[0].startswith("left alone")
    assert checkpoint.steps(checkpoints) == [1, 2, 3]


def test_the_optimizers_are_listed_with_their_papers(capsys):
    status, lines, _ = run(capsys, "optimizers", "--json")
    assert status == 0
    rows = {row["name"]: row for row in json.loads("\n".join(lines))}
    assert rows.keys() == fg.REGISTRY.keys()
    assert [n for n, row in rows.items() if not row["papers"]] == []
    assert rows["adam"]["papers"] == ["https://arxiv.org/abs/1412.6980"]
    assert rows["adam"]["arguments"].startswith("learning_rate, b1=0.9, b2=0.999")
    _, lines, _ = run(capsys, "optimizers")
    assert sum(not line.startswith(" ") for line in lines) == len(fg.REGISTRY)


def test_a_new_experiment_is_short_and_never_replaces_a_file(folder, capsys):
    status, lines, _ = run(capsys, "new", "mine/first")
    path = folder.parent / "mine" / "first.py"
    assert (status, lines) == (0, ["wrote mine/first.py: python mine/first.py --help"])
    text = path.read_text()
    compile(text, path, "exec")
    assert len([line for line in text.splitlines() if line.strip()]) < 55
    status, _, error = run(capsys, "new", "mine/first")
    assert status == 1
    assert "not taken" in error


@pytest.mark.slow
def test_a_new_experiment_trains_sweeps_and_is_listed(folder, capsys, monkeypatch):
    run(capsys, "new", "first")
    names = {"__name__": "first"}
    path = folder.parent / "first.py"
    exec(compile(path.read_text(), path, "exec"), names)
    config = names["Config"](epochs=2, width=8)
    names["main"](config)
    names["main"](names["Config"](epochs=1, width=8, sweep=True))
    shown = capsys.readouterr().out
    assert "test: {'accuracy'" in shown
    assert "learning_rate" in shown
    status, lines, _ = run(capsys, "runs", "runs/first")
    assert (status, len(lines)) == (0, 2)
    assert lines[1].split()[1] == "completed"


@pytest.mark.parametrize("module", ["tyro", "matplotlib"])
def test_a_missing_library_is_named_with_the_extra(folder, capsys, monkeypatch, module):
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    status, _, error = run(capsys, "plot", folder / "a")
    extra = {"tyro": "cli", "matplotlib": "plot"}[module]
    assert status == 1
    assert f'need {module} for this: pip install "fngrad[{extra}]"' in error


def test_the_installed_command_is_this_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"fngrad": f"{main.__module__}:main"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_can_complete_commands_and_options(shell, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--tyro-print-completion", shell])
    assert not exit_.value.code
    script = capsys.readouterr().out
    assert all(word in script for word in ("compare", "optimizers", "--where"))


def test_the_module_is_the_command_without_a_terminal(folder):
    done = subprocess.run(
        [sys.executable, "-m", "fngrad", "runs"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert rows_of(done.stdout.splitlines()) == ["b", "c", "a"]
    assert "\x1b" not in done.stdout
