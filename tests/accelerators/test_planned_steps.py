"""Functions that make a step in several ways: found, called, and changed."""

import textwrap

import planned_networks
import pytest

import fngrad as fg
from fngrad.accelerators.planned_steps import (
    accepted,
    attempts,
    planned,
    table_of,
)
from fngrad.accelerators.roofline import Times


@pytest.fixture
def plan(tmp_path):
    """Return a function that plans with the text of a file."""

    def make(code, name="make", **given):
        path = tmp_path / "train.py"
        path.write_text(textwrap.dedent(code))
        return planned(f"{path}:{name}", given)

    return make


NOTES = "def make(*, {}):\n    return ({}), 'state', 'batch'\n"


def test_a_function_is_called_with_what_it_takes(plan):
    code = NOTES.format("batch_size=8, precision=None", "batch_size, precision")
    assert plan(code).step() == ((8, None), "state", "batch")
    assert plan(code, batch_size=16).step(precision="bfloat16")[0] == (16, "bfloat16")


def test_arguments_without_a_default_get_what_changes_nothing(plan):
    code = NOTES.format(
        "precision, micro_batches, remat, rule, wrap",
        "precision, micro_batches, remat, rule, wrap(7)",
    )
    assert plan(code).step()[0] == (None, 1, False, None, 7)


def test_what_stands_beside_a_file_is_imported(plan, tmp_path):
    (tmp_path / "beside_a_plan.py").write_text("SIZE = 5")
    code = """
        import dataclasses
        import beside_a_plan

        @dataclasses.dataclass
        class Config:
            size: int = beside_a_plan.SIZE

        def make():
            return Config().size, 0, 0
    """
    assert plan(code).step()[0] == 5


@pytest.mark.parametrize(
    ("code", "given", "message"),
    [
        ("other = 1", {}, "need a function 'make' in .*train.py, got none"),
        (NOTES.format("batch_size", "0"), {}, "need a value for 'batch_size'.*give --"),
        (NOTES.format("width", "0"), {}, "need a value for 'width'.*give it a default"),
        (
            NOTES.format("rule=None", "0"),
            {"remat": True},
            r"that .*:make takes \(rule\), got remat",
        ),
        ("def make(): return 1, 2, 3", {"remat": True}, r"takes \(none\), got remat"),
    ],
)
def test_what_does_not_fit_is_refused(plan, code, given, message):
    with pytest.raises(ValueError, match=message):
        plan(code, **given)


@pytest.mark.parametrize("where", ["make", "train.py", ":make", "train.py:"])
def test_a_plan_is_a_file_and_a_function(where):
    with pytest.raises(ValueError, match="need FILE:FUNCTION, such as"):
        planned(where, {})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        planned(f"{tmp_path / 'none.py'}:make", {})


def test_what_is_returned_is_a_step_a_state_and_a_batch(plan):
    with pytest.raises(TypeError, match=r"need \(step, state, batch\).*got int"):
        plan("def make(): return 5").step()


def test_a_function_of_any_arguments_takes_all():
    assert accepted(lambda **options: None) == [
        *("batch_size", "precision", "micro_batches", "remat", "rule", "wrap")
    ]
    assert accepted(lambda batch_size, *, width: None) == ["batch_size"]


@pytest.fixture
def mlp_plan(plan):
    code = """
        import planned_networks
        def make(*, batch_size=128, rule=None, precision="bfloat16", wrap=lambda o: o):
            if batch_size > 128:
                raise ValueError("too many")
            options = dict(rule=rule, precision=precision, wrap=wrap)
            return planned_networks.mlp(batch_size=batch_size, **options)
    """
    return plan(code)


def run(made):
    return fg.preflight(*made, "cuda", axes={"data": 8})


def test_each_change_that_a_plan_takes_and_does_not_have_is_tried(mlp_plan):
    first = run(mlp_plan.step())._replace(verdict="fits")
    found = {attempt.what: attempt for attempt in attempts(mlp_plan, first, run)}
    assert [*found] == [
        *("smaller batch", "larger batch", "8-bit moments", "FSDP"),
        "8-bit moments + FSDP",
    ]
    reports = {what: attempt.report for what, attempt in found.items()}
    assert reports["larger batch"] is None
    assert found["larger batch"].problem == "ValueError: too many"
    assert reports["smaller batch"] is not None
    assert reports["smaller batch"].examples == 64
    assert reports["FSDP"].state.bytes < first.state.bytes / 5
    assert reports["8-bit moments"].state.bytes < 0.7 * first.state.bytes
    both = reports["8-bit moments + FSDP"].state.bytes
    assert both < reports["FSDP"].state.bytes


def test_a_step_that_does_not_fit_is_not_tried_with_more(mlp_plan):
    first = run(mlp_plan.step())._replace(verdict="does not fit")
    names = [attempt.what for attempt in attempts(mlp_plan, first, run)]
    assert "larger batch" not in names


def test_a_compiler_without_an_answer_is_not_asked_again(mlp_plan):
    first = run(mlp_plan.step())._replace(verdict="fits")
    unanswered = first._replace(verdict="no answer")
    found = [a.what for a in attempts(mlp_plan, first, lambda made: unanswered)]
    assert found == ["smaller batch"]


def test_attempts_are_a_table(mlp_plan):
    report = run(planned_networks.mlp())
    timed = report._replace(
        verdict="fits", needed=2**30, times=Times(0.01, 0.02, 0.005), examples=128
    )
    attempt = next(attempts(mlp_plan, report, run))
    failed = attempt._replace(what="remat", report=None, problem="E: why\nmore")
    refused = report._replace(verdict="does not fit", needed=2**34)
    lines = table_of(
        [
            attempt._replace(what="as it is", report=timed),
            attempt._replace(what="FSDP", report=refused),
            failed,
        ]
    ).splitlines()
    assert lines[0].split()[:3] == ["change", "memory", "step"]
    assert "1.0 GiB   20 ms  50 %         6.4e+03" in lines[1]
    assert lines[1].endswith("fits, bound by memory")
    assert lines[2].endswith("does not fit")
    assert lines[3].endswith("E: why")
