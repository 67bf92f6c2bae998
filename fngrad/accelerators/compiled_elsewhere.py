"""A step compiled for a TPU in a process of its own, and what came back."""

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import fngrad.accelerators.compile_worker as compile_worker
from fngrad.accelerators.exported_steps import (
    PlacedStep,
    why_not_exported,
    write_request,
)
from fngrad.accelerators.isolated_processes import run_isolated
from fngrad.accelerators.targets import ENVIRONMENT, Target
from fngrad.programs.compiled_memory import Memory

_TOO_LARGE = "RESOURCE_EXHAUSTED"
_NEEDED = re.compile(r"(?:Used |\()([\d.]+)([BKMGT])\)? (?:of|exceeds)")
_UNITS = {unit: 1024**power for power, unit in enumerate("BKMGT")}
_SHOWN = 600  # characters of a refusal


class Compiled(NamedTuple):
    """What the compiler said."""

    refusal: str  # why there is no program; else empty
    is_too_large: bool  # whether that is for its memory
    is_unanswered: bool  # whether the compiler crashed or hung instead
    needed: int | None  # bytes on each device that a refused program takes, if it says
    memory: Memory | None
    peak: int | None  # bytes at once: another estimate
    stays: list[bool]  # of each leaf of the state, whether it is returned where it was
    program: str  # the text of the compiled program
    seconds: float | None


def compiled_elsewhere(
    placed: PlacedStep,
    target: Target,
    time_limit: float,
    worker: str | Path = compile_worker.__file__,
) -> Compiled:
    """Compile a step for a target in a process of its own.

    Args:
        placed: the step.
        target: a TPU.
        time_limit: seconds for the process.
        worker: the script that it runs.
    """
    with tempfile.TemporaryDirectory(prefix="fngrad_preflight_") as name:
        folder = Path(name)
        try:
            write_request(folder / "request.pickle", placed, target.topology)
        except Exception as error:  # JAX has several types for what it cannot export
            return refused(why_not_exported(placed, error))
        # -P: a file jax.py in the current folder is not JAX.
        command = [sys.executable, "-P", str(worker), name]
        environment = {
            **ENVIRONMENT,
            "TPU_LOG_DIR": name,
            "XLA_FLAGS": "",  # which are for this machine's backend
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # it cannot load such programs
        }
        ended = run_isolated(command, folder, environment, time_limit)
        if ended.problem:
            what = f"the process that compiles gave no answer: {ended.problem}"
            failed = refused(f"{what}\n{ended.output}".strip())
            return failed._replace(is_too_large=False, is_unanswered=True)
        answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        program = folder / "program.txt"
        text = program.read_text(encoding="utf-8") if program.exists() else ""
        return _compiled(answer, text)


def refused(text: str, seconds: float | None = None) -> Compiled:
    """Return that there is no program, and why.

    Example:
        >>> from fngrad.accelerators.compiled_elsewhere import refused
        >>> found = refused("RESOURCE_EXHAUSTED: Used 2.00G of 1.00G hbm")
        >>> found.is_too_large, found.needed
        (True, 2147483648)
    """
    is_too_large, said = _TOO_LARGE in text, _NEEDED.search(text)
    needed = None
    if is_too_large and said:
        needed = round(float(said[1]) * _UNITS[said[2]])
    short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return Compiled(short, is_too_large, False, needed, None, None, [], "", seconds)


def _compiled(answer: dict[str, Any], program: str) -> Compiled:
    seconds = answer["seconds"]
    if "refusal" in answer:
        return refused(answer["refusal"], seconds)
    memory = Memory(**{name: answer[name] for name in Memory._fields})
    peak, stays = answer["peak"] or None, answer["stays"]
    needed = max(memory.total, peak or 0)
    return Compiled("", False, False, needed, memory, peak, stays, program, seconds)
