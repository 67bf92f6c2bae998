"""The gate fails on a test that is skipped for a reason which is not known."""

import os
import pathlib
import subprocess
import sys

import known_skips
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SKIPPED = """
import pytest

@pytest.mark.parametrize("reason", {reasons})
def test_skipped(reason):
    pytest.skip(reason)
"""


@pytest.mark.parametrize(
    ("reasons", "gate", "status"),
    [
        (["Chromium is not installed"], True, 0),
        (["Chromium is not installed", "no time"], True, 1),
        (["no time"], False, 0),
    ],
)
def test_only_known_skips_pass_the_gate(reasons, gate, status, tmp_path):
    file = tmp_path / "test_it.py"
    file.write_text(SKIPPED.format(reasons=reasons))
    environment = {n: x for n, x in os.environ.items() if n != known_skips.GATE}
    environment |= {known_skips.GATE: "1"} if gate else {}
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-p", "known_skips"]
    child = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, file],
        env=environment | {"PYTHONPATH": str(ROOT / "tests" / "support")},
        capture_output=True,
        text=True,
    )
    print(child.stdout, child.stderr)
    assert child.returncode == status
    assert f"1 skipped: {reasons[0]}" in child.stdout
    assert ("not in known_skips.KNOWN" in child.stdout) is ("no time" in reasons)
