"""`fngrad preflight`, for platforms that need no compiler."""

import json

import pytest

from fngrad.commands.command_line import main

PLAN = """
import planned_networks

def make(*, batch_size=128, rule=None, precision=None):
    return planned_networks.mlp(batch_size=batch_size, rule=rule, precision=precision)

def wrong():
    return 1

def printing():
    import jax
    step, state, batch = planned_networks.mlp()
    def print_and_step(state, batch):
        jax.debug.print("a step")
        return step(state, batch)
    return print_and_step, state, batch
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(PLAN)
    return f"{path}:make"


def run(capsys, *arguments):
    status = main(["preflight", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_step_is_shown(plan, capsys):
    status, out, _ = run(capsys, plan, "--target", "cuda")
    assert status == 0
    assert out.startswith("Preflight for cuda: lowers\nmemory")


def test_options_reach_the_function(plan, capsys):
    options = ("--batch-size", 64, "--fsdp", "--precision", "bfloat16")
    status, out, _ = run(
        capsys, plan, "--target", "cuda", "--axes", "data=8", *options, "--json"
    )
    found = json.loads(out)
    assert status == 0
    assert (found["examples"], found["axes"]) == (64, {"data": 8})
    assert found["state"]["bytes"] < 313484 / 5


def test_advice_is_a_table_and_in_json(plan, capsys):
    options = (plan, "--target", "cuda", "--axes", "data=8", "--advise")
    status, out, err = run(capsys, *options)
    assert status == 0
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("change  "))
    names = [line.split("  ")[0] for line in lines[start + 1 :]]
    assert names == ["as it is", "smaller batch", "bfloat16", "FSDP", "bfloat16 + FSDP"]
    assert "fngrad: tried FSDP" in err
    _, out, _ = run(capsys, *options, "--json")
    found = json.loads(out)
    assert [each["what"] for each in found["attempts"]] == names[1:]
    assert found["attempts"][0]["preflight"]["examples"] == 64


def test_what_is_not_lowered_exits_with_1(plan, capsys):
    where = plan.replace(":make", ":printing")
    status, out, _ = run(capsys, where, "--target", "cuda")
    assert status == 1
    assert "does not compile" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "v3:2x2x1"), "need a target such as"),
        (("--target", "cuda", "--axes", "data"), "need axes such as data=4,model=2"),
        (("--target", "cuda", "--remat"), "(batch_size, precision, rule), got remat"),
    ],
)
def test_errors_are_one_line(plan, capsys, arguments, message):
    status, out, err = run(capsys, plan, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("fngrad: need ")
    assert message in err


def test_a_file_that_is_not_there_is_an_error(capsys):
    status, _, err = run(capsys, "nowhere.py:make")
    assert status == 1
    assert "there is no file 'nowhere.py'" in err
