"""Start the tests of `eight_devices`, each file in a process with eight CPU devices."""

import os
import pathlib
import subprocess
import sys

import jax
import parts
import pytest

FOLDER = pathlib.Path(__file__).parent / "eight_devices"
FLAGS = ["--xla_force_host_platform_device_count=8"]
if jax.__version_info__ >= (0, 8):
    # Else XLA ends the process when busy cores let a collective wait for 40 seconds.
    FLAGS.append("--xla_cpu_collective_call_terminate_timeout_seconds=600")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["not slow", "slow"])
@pytest.mark.parametrize("name", sorted(p.name for p in FOLDER.glob("test_*.py")))
def test_all_pass(name, which):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", which]
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
    child = subprocess.run(
        [*command, FOLDER / name],
        env={**parts.whole(os.environ), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if which == "slow" and child.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        return
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]
    assert " passed" in child.stdout
