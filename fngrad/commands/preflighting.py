"""`fngrad preflight`: what a step would take on a TPU that is not here."""

import sys
from typing import Any

import jax

import fngrad.commands.texts as texts
from fngrad.accelerators.planned_steps import (
    Attempt,
    Made,
    Plan,
    attempts,
    planned,
    table_of,
)
from fngrad.accelerators.preflight_report import Preflight
from fngrad.accelerators.preflighting import TIME_LIMIT
from fngrad.accelerators.preflighting import preflight as preflight_of
from fngrad.commands.options import Function
from fngrad.sharding.rules import fsdp as fully_sharded


def preflight(
    function: Function,
    /,
    *,
    target: str = "v5e:1x1",
    axes: str = "",
    batch_size: int = 0,
    precision: str = "",
    micro_batches: int = 0,
    remat: bool = False,
    fsdp: bool = False,
    advise: bool = False,
    json: bool = False,
    time_limit: float = TIME_LIMIT,
) -> int:
    """Compile a step for a TPU that is not here: memory, time, what bounds it.

    FUNCTION is FILE:NAME, a function `make(...) -> (step, state, batch)` that takes by
    keyword any of batch_size, precision, micro_batches, remat, rule, and wrap, a
    function of the optimizer. State and batch may be abstract. The exit status is 0 if
    the step compiles and fits.

    Args:
        function: FILE:NAME.
        target: v5e:1x1, v5e:2x4, v6e:2x2, v4:2x2x1, v5p:2x2x1, tpu7x:2x2x1 and larger
            ones; cuda or cpu.
        axes: of the mesh, such as data=4,model=2; by default data alone.
        batch_size: passed to the function, as are the next ones.
        precision: bfloat16 or float16.
        micro_batches: parts of a batch.
        remat: compute activations again in the backward pass.
        fsdp: pass rule=fngrad.sharding.fsdp().
        advise: try each change that the function takes.
        json: print JSON.
        time_limit: seconds for each compilation.
    """
    config: Any = jax.config
    if not config.jax_platforms:  # only shapes are read, and a TPU is left alone
        config.update("jax_platforms", "cpu")
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "precision": precision,
        "micro_batches": micro_batches,
        "remat": remat,
        "rule": fully_sharded() if fsdp else None,
    }
    plan = planned(function, {name: x for name, x in options.items() if x})
    sizes = parsed_axes(axes)

    def run(made: Made) -> Preflight:
        return preflight_of(*made, target, axes=sizes, time_limit=time_limit)

    report = run(plan.step())
    if not json:
        print(report, flush=True)
    found = [Attempt("as it is", report, "")]
    if advise:
        found += _tried(plan, report, run)
    if json:
        print(texts.json_text(as_json(found, advise=advise)))
    elif advise:
        print(f"\n{table_of(found)}")
    return 1 if report.fits is False or report.reason else 0


def _tried(plan: Plan, report: Preflight, run: Any) -> list[Attempt]:
    found = []
    for attempt in attempts(plan, report, run):
        print(f"fngrad: tried {attempt.what}", file=sys.stderr, flush=True)
        found.append(attempt)
    return found


def as_json(found: list[Attempt], *, advise: bool) -> dict[str, Any]:
    """Return a preflight, and those of its changes, in JSON's types."""
    first, *others = found
    whole = first.report.as_json() if first.report else {}
    if not advise:
        return whole
    tried = [
        {
            "what": each.what,
            "problem": each.problem,
            "preflight": each.report and each.report.as_json(),
        }
        for each in others
    ]
    return {**whole, "attempts": tried}


def parsed_axes(text: str) -> dict[str, int] | None:
    """Return the axes that a text such as ``data=4,model=2`` means; None for none.

    Raises:
        ValueError: if it has another form.

    Example:
        >>> from fngrad.commands.preflighting import parsed_axes
        >>> parsed_axes("data=-1,model=2")
        {'data': -1, 'model': 2}
    """
    if not text:
        return None
    pairs = [pair.partition("=") for pair in text.split(",")]
    try:
        return {name.strip(): int(size) for name, _, size in pairs}
    except ValueError:
        raise ValueError(f"need axes such as data=4,model=2, got {text!r}") from None
