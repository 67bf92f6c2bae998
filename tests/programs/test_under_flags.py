"""The tests of what walks programs pass under JAX's flags for new primitives."""

import os
import pathlib
import subprocess
import sys

import jax
import parts
import pytest
from jax_flags import EXCHANGING, require

TESTS = pathlib.Path(__file__).parents[1]
WALKERS = [
    "programs/test_jaxprs.py",  # slices
    "programs/test_fingerprints.py",
    "programs/test_operation_counts.py",
    "postmortem",
    "layers/test_summaries.py",
    "training/test_summaries.py",
]
SWEEPS = "sweeps/test_block_width.py"  # JAX 0.10 cannot batch names under jax_remat3


@pytest.mark.slow
def test_slices_autopsies_costs_summaries_and_sweeps_are_what_they_are():
    require("jax_remat3")
    names = WALKERS + [SWEEPS] * (jax.__version_info__ >= (0, 11))
    flags = {flag.upper(): "true" for flag in EXCHANGING}  # those that are there
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist"]
        + [TESTS / name for name in names],
        env={**parts.whole(os.environ), **flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]
    assert " passed" in child.stdout
