"""The command line `fngrad`: which command runs, and the exit status."""

import os
import sys
from collections.abc import Sequence

from fngrad.checkpoint.errors import CheckpointError
from fngrad.programs.optional_imports import import_extra

FAILED = 1  # exit status; wrong arguments exit with 2, as usual


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status.

    Args:
        arguments: after the program's name; those of this process if None.

    Returns:
        0, or 1 if the command failed; its message is on stderr.

    Raises:
        SystemExit: with status 2 if the arguments are wrong, 0 after ``--help``.
    """
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `fngrad runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, KeyError, OSError, ImportError, CheckpointError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        print(f"fngrad: {text}", file=sys.stderr)
        return FAILED


def _run(arguments: Sequence[str]) -> int:
    tyro = import_extra("tyro", "cli")
    from fngrad.commands.clean import clean
    from fngrad.commands.compare import compare
    from fngrad.commands.diagnosing import doctor
    from fngrad.commands.new import new
    from fngrad.commands.optimizers import optimizers
    from fngrad.commands.plot import plot
    from fngrad.commands.preflighting import preflight
    from fngrad.commands.reporting import report
    from fngrad.commands.resume import resume
    from fngrad.commands.runs import runs
    from fngrad.commands.show import show

    functions = (
        *(runs, show, compare, plot, report),
        *(resume, clean, new, optimizers, doctor, preflight),
    )
    return tyro.extras.subcommand_cli_from_dict(
        {function.__name__: function for function in functions},
        prog="fngrad",
        description="Training runs, optimizers and devices, from the command line.",
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
    )
