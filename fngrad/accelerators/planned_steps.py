"""Steps by their plan: a function of a file that makes a step in several ways.

The function is ``make(...) -> (step, state, batch)``. Which of the arguments in
`ARGUMENTS` it takes, by keyword, says what about the step can be changed:

    def make(*, batch_size=256, precision=None, rule=None, wrap=lambda o: o):
        optimizer = wrap(fg.adamw(3e-4))
        step = fg.make_step(loss_fn, optimizer, precision=precision, rule=rule)
        state = jax.eval_shape(lambda: fg.init_state(model.init(key), optimizer, key))
        return step, state, jax.ShapeDtypeStruct((batch_size, 512), jnp.int32)
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fngrad.programs.text_tables as text_tables
from fngrad.accelerators.advice import all_changes
from fngrad.accelerators.preflight_report import Change, Preflight
from fngrad.programs.units import seconds_text, size_text

Made = tuple[Any, Any, Any]  # step, state, batch
Run = Callable[[Made], Preflight]

_UNCHANGED = {
    "precision": None,
    "micro_batches": 1,
    "remat": False,
    "rule": None,
    "wrap": lambda optimizer: optimizer,
}
ARGUMENTS = ("batch_size", *_UNCHANGED)


class Attempt(NamedTuple):
    """A step with a change, and what its preflight found."""

    what: str
    report: Preflight | None  # None if it cannot be made
    problem: str  # why not


class Plan(NamedTuple):
    """A function that makes a step, and what it is called with."""

    make: Callable[..., Made]
    name: str
    options: dict[str, Any]

    def step(self, **changes: Any) -> Made:
        """Return a step, its state and its batch.

        Raises:
            TypeError: if the function returns something else.
            Exception: whatever it raises.
        """
        made = self.make(**{**self.options, **changes})
        if not isinstance(made, tuple) or len(made) != 3:
            got = type(made).__name__
            raise TypeError(f"need (step, state, batch) from {self.name}, got {got}")
        return made


def planned(where: str, given: Mapping[str, Any]) -> Plan:
    """Return the plan that ``FILE:FUNCTION`` names.

    Args:
        where: the path of a file and the name of a function in it.
        given: arguments for it, some of `ARGUMENTS`.

    Raises:
        ValueError: if there is no such file or function, it does not take a given
            argument, or needs one that is not given.
    """
    file, _, name = where.rpartition(":")
    path = Path(file)
    if not file or not name or not path.is_file():
        raise ValueError(
            f"need FILE:FUNCTION, such as train.py:make, got {where!r}"
            + (f": there is no file {file!r}" if file and name else "")
        )
    make: Any = getattr(_module(path), name, None)
    if make is None:
        raise ValueError(f"need a function {name!r} in {file}, got none")
    taken = accepted(make)
    strange = [argument for argument in given if argument not in taken]
    if strange:
        raise ValueError(
            f"need arguments that {where} takes ({', '.join(taken) or 'none'}), got "
            f"{', '.join(strange)}"
        )
    return Plan(make, where, {**_required(make, where, given), **given})


def _required(
    make: Callable[..., Any], where: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what changes nothing for arguments without a default.

    Raises:
        ValueError: if there is no such value for one.
    """
    found = {}
    for name, parameter in inspect.signature(make).parameters.items():
        named = (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        is_named = parameter.kind in named
        if not is_named or parameter.default is not parameter.empty or name in given:
            continue
        if name not in _UNCHANGED:
            how = "give --batch-size" if name == "batch_size" else "give it a default"
            raise ValueError(f"need a value for {name!r} of {where}: {how}")
        found[name] = _UNCHANGED[name]
    return found


def accepted(make: Callable[..., Any]) -> list[str]:
    """Return those of `ARGUMENTS` that a function takes.

    Example:
        >>> from fngrad.accelerators.planned_steps import accepted
        >>> accepted(lambda *, rule=None, width=8: None)
        ['rule']
    """
    parameters = inspect.signature(make).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return [name for name in ARGUMENTS if takes_all or name in parameters]


def _module(path: Path) -> Any:
    """Import a file; what stands beside it, and in this folder, it can import."""
    for folder in ("", str(path.resolve().parent)):  # the last is searched first
        if folder not in sys.path:
            sys.path.insert(0, folder)
    name = f"_preflight_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"need a file of Python, got {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def attempts(plan: Plan, first: Preflight, run: Run) -> Iterator[Attempt]:
    """Try each change that the plan takes, then those that save memory together.

    Args:
        plan: the step.
        first: its preflight without a change.
        run: makes a preflight of a step.

    Yields:
        What was found, one change after the other.
    """
    changes = [c for c in all_changes(first) if _is_new(c, plan)]
    if not first.fits:
        changes = [change for change in changes if change.what != "larger batch"]
    for change in changes:
        attempt = _attempt(change.what, plan, {change.argument: change.value}, run)
        yield attempt
        if attempt.report and attempt.report.verdict == "no answer":
            return  # each of the others could take as long
    together = [change for change in changes if change.argument != "batch_size"]
    if len(together) > 1:
        options = {change.argument: change.value for change in together}
        yield _attempt(" + ".join(c.what for c in together), plan, options, run)


def _is_new(change: Change, plan: Plan) -> bool:
    """Return whether a plan takes a change and does not have it already."""
    if change.argument not in accepted(plan.make):
        return False
    parameter = inspect.signature(plan.make).parameters.get(change.argument)
    default = parameter.default if parameter else inspect.Parameter.empty
    now = plan.options.get(change.argument, default)
    if change.argument == "rule":
        return now is None or now is inspect.Parameter.empty
    return now != change.value


def _attempt(what: str, plan: Plan, options: dict[str, Any], run: Run) -> Attempt:
    try:
        return Attempt(what, run(plan.step(**options)), "")
    except Exception as error:  # of the user's function, or one that does not fit it
        return Attempt(what, None, f"{type(error).__name__}: {error}")


def table_of(found: list[Attempt]) -> str:
    """Return a table of attempts, one line each."""
    head = ["change", "memory", "step", "utilization", "examples/s", "verdict"]
    return text_tables.table([head, *map(_row, found)])


def _row(attempt: Attempt) -> list[str]:
    it = attempt.report
    if it is None:
        return [attempt.what, "-", "-", "-", "-", attempt.problem.partition("\n")[0]]
    memory = "-" if it.needed is None else size_text(it.needed)
    if it.times is None:
        return [attempt.what, memory, "-", "-", "-", it.verdict]
    seconds = it.times.overlapped
    rate = f"{it.examples / seconds:.3g}" if it.examples else "-"
    used = f"{100 * it.times.utilization:.3g} %"
    bound = f"{it.verdict}, bound by {it.times.bound}"
    return [attempt.what, memory, seconds_text(seconds), used, rate, bound]
