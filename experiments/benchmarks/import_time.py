"""What does `import fngrad` cost beyond `import jax`?

Claim: importing fngrad adds at most 0.15 s to importing jax.

Command:  python -m experiments.benchmarks.import_time
Minutes:  under one on two cores.
Expected: 0.61 s for fngrad against 0.47 s for jax, a ratio of about 1.3.

Each import runs in a new process, the two take turns, and medians are compared. The
exit status is 1 if the claim fails.
"""

import os
import statistics
import subprocess
import sys

from experiments.benchmarks.timing import interleave, table

CLAIM = 0.15  # seconds
REPEATS = 15


def import_seconds(module: str) -> float:
    """Return the seconds that a fresh process takes to import a module."""
    code = (
        "import time; start = time.perf_counter(); "
        f"import {module}; print(time.perf_counter() - start)"
    )
    # Empty means unset: without bytecode every import would compile the sources again.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    )
    return float(done.stdout)


def main() -> int:
    """Print the table and whether the claim holds; return the exit status."""
    times = interleave(
        {
            "import jax": lambda: import_seconds("jax"),
            "import fngrad": lambda: import_seconds("fngrad"),
        },
        REPEATS,
    )
    print(table(times, against="import jax", unit="s"))
    base, ours = (statistics.median(values) for values in times.values())
    holds = ours - base <= CLAIM
    verdict = "holds" if holds else "FAILS"
    print(f"fngrad adds {ours - base:.3f} s; at most {CLAIM} s is claimed: {verdict}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
