"""The doctor tells problems first, with an exit status, as text and as JSON."""

import html
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

import fngrad as fg
import fngrad.accelerators.diagnosis as diagnosis
import fngrad.accelerators.fallbacks as fallbacks
import fngrad.accelerators.versions as versions
from fngrad.accelerators.fallbacks import Sign
from fngrad.accelerators.self_test import Outcome
from fngrad.accelerators.speed import Speed
from fngrad.commands.command_line import main

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHIP = Sign("tpu", "/dev/accel0")


@pytest.fixture
def well(monkeypatch):
    """Let a machine be well, whatever it is, and compute nothing."""
    monkeypatch.setattr(fallbacks, "signs", lambda environment: [])
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    asked = jax.config.jax_platforms  # pyright: ignore
    jax.config.update("jax_platforms", None)
    monkeypatch.setattr(
        diagnosis, "self_test", lambda *args: [Outcome("matmul", True, 0.25)]
    )
    fast = Speed("float32", 1e11, 2e10, None, None)
    monkeypatch.setattr(diagnosis, "measure_speed", lambda device: fast)
    yield
    jax.config.update("jax_platforms", asked)


def run(capsys, *arguments):
    status = main(["doctor", *arguments])
    return status, capsys.readouterr().out


def test_a_machine_that_is_well_exits_with_0(well, capsys):
    status, shown = run(capsys)
    assert status == 0
    assert shown.splitlines()[0].startswith("Diagnosis: ")
    subjects = [line.split("  ")[0] for line in shown.splitlines()[1:]]
    assert "PROBLEM" not in subjects
    for word in (
        "backend",
        "devices",
        "versions",
        "compile cache",
        "self-test",
        "speed",
    ):
        assert f"  {word}  " in shown


@pytest.mark.slow
def test_the_whole_examination_of_this_machine(capsys):
    status, shown = run(capsys, "--json")
    found = json.loads(shown, parse_constant=pytest.fail)
    assert status == (0 if found["is_well"] else 1)
    assert found["devices"]["kind"] == jax.devices()[0].device_kind
    assert found["speed"]["flops"] > 1e8
    assert all(each["passed"] for each in found["self_test"])


def problem_of(monkeypatch, kind):
    if kind == "backend":
        monkeypatch.setattr(fallbacks, "signs", lambda environment: [CHIP])
        return "THE TPU IS NOT USED: /dev/accel0 is there"
    if kind == "versions":
        monkeypatch.setattr(versions, "asked_versions", lambda: {"jaxlib": "==0.1.0"})
        return "it must be jaxlib==0.1.0"
    failed = [Outcome("scan", False, 7.0), Outcome("matmul", True, 0.0)]
    monkeypatch.setattr(diagnosis, "self_test", lambda *args: failed)
    return "scan: 7 times the error that is allowed"


@pytest.mark.parametrize("kind", ["backend", "versions", "self-test"])
def test_a_problem_comes_first_with_its_way_out_and_exits_with_1(
    well, monkeypatch, capsys, kind
):
    words = problem_of(monkeypatch, kind)
    status, shown = run(capsys)
    assert status == 1
    head, first, *others = shown.splitlines()
    assert head.startswith("Diagnosis: 1 problem")
    assert first.split()[:2] == ["PROBLEM", kind]
    assert words.split(", ")[0][-20:] in shown
    assert any(line.strip().startswith("-> ") for line in others[:4])
    status, shown = run(capsys, "--json")
    found = json.loads(shown)
    assert (status, found["is_well"]) == (1, False)
    assert words in found["findings"][0]["text"]


def test_a_platform_that_does_not_start_is_a_problem(well, monkeypatch, capsys):
    def devices(*args):
        raise RuntimeError("Unable to initialize backend 'tpu': no libtpu.so\nmore")

    monkeypatch.setattr(jax, "devices", devices)
    status, shown = run(capsys, "--json")
    found = json.loads(shown)
    assert (status, found["devices"], found["self_test"]) == (1, None, [])
    assert found["findings"][0]["text"] == (
        "JAX does not start: Unable to initialize backend 'tpu': no libtpu.so"
    )
    assert "JAX_PLATFORMS" in found["findings"][0]["way_out"]
    assert {"jax", "jaxlib"} <= found["versions"].keys()


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() == "tpu", reason="there is a TPU")
def test_a_process_that_asks_for_a_tpu_that_is_not_there_is_told_so():
    done = subprocess.run(
        [sys.executable, "-m", "fngrad", "doctor", "--require", "tpu"],
        env=os.environ | {"JAX_PLATFORMS": "tpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "JAX does not start: Unable to initialize backend 'tpu'" in done.stdout


def test_a_warning_exits_with_0(well, monkeypatch, capsys):
    slow = Speed("bfloat16", 1e12, 1e10, 0.01, 0.01)
    monkeypatch.setattr(diagnosis, "measure_speed", lambda device: slow)
    status, shown = run(capsys)
    assert (status, "warning" in shown.splitlines()[0]) == (0, True)


def test_a_speed_that_cannot_be_measured_is_a_warning(well, monkeypatch):
    def full(device):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(diagnosis, "measure_speed", full)
    found = fg.doctor()
    assert (found.is_well, found.speed) == (True, None)
    (told,) = [each for each in found.findings if each.subject == "speed"]
    assert (told.status, "out of memory" in told.text) == ("warning", True)


def test_another_backend_than_the_required_one_is_refused_as_by_fit(well, monkeypatch):
    with pytest.raises(RuntimeError, match="need the backend 'tpu', got 'cpu'"):
        fg.doctor(require="tpu")
    monkeypatch.setattr(fallbacks, "signs", lambda environment: [CHIP])
    way_out = r"/dev/accel0 is there.*\n?.*pip install \"jax\[tpu\]=="
    with pytest.raises(RuntimeError, match=way_out):
        fg.doctor(require="tpu")
    assert fg.doctor(require="cpu").devices.platform == "cpu"


def test_the_command_tells_the_required_backend_with_all_else(well, capsys):
    status, shown = run(capsys, "--require", "tpu")
    assert status == 1
    assert shown.splitlines()[1].startswith("PROBLEM  required")
    assert "self-test" in shown
    assert run(capsys, "--require", "cpu")[0] == 0


def test_a_notebook_shows_the_same_text(well, monkeypatch):
    problem_of(monkeypatch, "backend")
    found = fg.doctor()
    assert html.escape(repr(found)) in found._repr_html_()
    assert "PROBLEM" in repr(found)


def test_the_json_holds_every_field(well):
    found = fg.doctor().to_json()
    assert found.keys() == {"is_well", *fg.Diagnosis._fields}
    assert found["self_test"] == [
        {"name": "matmul", "passed": True, "error": 0.25, "failure": ""}
    ]
    assert json.dumps(found, allow_nan=False)
