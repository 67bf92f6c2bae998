"""``python -m experiments`` lists every experiment and runs any of them."""

import ast
import importlib
import re
import sys

import pytest

import experiments.__main__ as command
import experiments.backpropagation as backpropagation
import experiments.momentum as momentum
import experiments.outputs as outputs
import fngrad as fg


def test_every_experiment_states_claim_command_minutes_and_expected_numbers():
    found = command.experiments()
    assert {"digits", "optimizer_zoo", "benchmarks.training_loop"} <= set(found)
    assert not {"benchmarks.timing", "__main__"} & set(found)
    for name, docstring in found.items():
        assert command.entry(docstring, "Claim"), name
        assert f"python -m experiments.{name}" in command.entry(docstring, "Command")
        assert command.entry(docstring, "Minutes"), name
        assert re.search(r"\d", command.entry(docstring, "Expected")), name
        if not name.startswith("benchmarks."):
            assert f"``runs/{name}/...``) holds config.json" in docstring, name


def test_the_list_has_names_claims_and_minutes(capsys):
    command.main([])
    shown = capsys.readouterr().out
    for name, docstring in command.experiments().items():
        claim = command.entry(docstring, "Claim")
        assert f"\n{name}\n    {claim[0].upper()}{claim[1:20]}" in shown, name
        assert f"minutes: {command.entry(docstring, 'Minutes')}" in shown


def test_the_list_ends_with_every_notebook():
    lines = command.listing().splitlines()[-len(command.NOTEBOOKS) :]
    files = sorted(path.name for path in command.FOLDER.glob("*.ipynb"))
    assert sorted(line.partition(",")[0] for line in lines) == files


def test_an_entry_ends_where_the_next_begins():
    docstring = (
        "Title.\n\nClaim: one\n    two.\nMinutes: under one.\nExpected: much\n"
        "    more.\n\nRest: of it"
    )
    assert command.entry(docstring, "Claim") == "one two."
    assert command.entry(docstring, "Minutes") == "under one."
    assert command.entry(docstring, "Expected") == "much more."
    assert command.entry(docstring, "Command") == ""


def test_a_name_runs_its_experiment_with_its_options(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments"])
    importlib.import_module("experiments.digits")  # as other tests do
    with pytest.raises(SystemExit) as stopped:
        command.main(["digits", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "python -m experiments.digits" in shown
    assert "--optimizers" in shown


@pytest.mark.parametrize(
    "name",
    [
        "backpropagation",
        "batch_sizes",
        "closed_form_or_descent",
        "compare_optimizers",
        "critical_points",
        "digits",
        "linear_approximation",
        "momentum",
        "naive_or_gradient",
        "noise_floors",
        "races",
        "residual_network",
        "saddle_points",
        "training_loop",
    ],
)
def test_every_option_has_the_comment_that_its_help_shows(name):
    source = (command.FOLDER / f"{name}.py").read_text()
    lines = source.splitlines()
    options = [
        field
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.decorator_list
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    ]
    assert options
    for field in options:
        before, line = (
            lines[field.lineno - 2].strip(),
            lines[(field.end_lineno or field.lineno) - 1],
        )
        is_nested = "default_factory" in line or line.endswith("Rates()")
        assert is_nested or "  # " in line or before.startswith("# "), line


def test_invalid_settings_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="need shown < depth"):
        backpropagation.main(backpropagation.Config(depth=20, runs=tmp_path))
    with pytest.raises(SystemExit, match="need kappas above 1"):
        momentum.main(momentum.Config(kappas=(1.0, 3.0), runs=tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_error_for_an_unknown_name_lists_the_known_ones():
    with pytest.raises(SystemExit, match=r"(?s)got 'digit'.*\ndigits\n"):
        command.main(["digit"])


def test_experiments_keep_their_programs_and_benchmarks_do_not(monkeypatch, capsys):
    calls = []

    def keep() -> None:
        calls.append("kept")
        raise OSError("a full disk")

    monkeypatch.setattr(fg, "cache_compilations", keep)
    outputs.keep_compiled(str(command.FOLDER / "benchmarks" / "sweeps.py"))
    assert not calls
    outputs.keep_compiled(str(command.FOLDER / "momentum.py"))
    assert calls == ["kept"]
    shown = capsys.readouterr().err
    assert shown == "compiled programs are not kept: a full disk\n"
