"""Where an equation is in the user's code: phase, layer, line."""

import re
import sysconfig
from collections.abc import Sequence
from typing import Any

import jax
import jaxlib

from fngrad.programs.reasons_of_nans import REASONS
from fngrad.types import Path

_LIBRARIES = tuple(f"{path}/" for path in (*jax.__path__, *jaxlib.__path__))
_OURS = __file__.removesuffix("source_locations.py").removesuffix("postmortem/")
_INSTALLED = (_OURS, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
_OF_JAX = "rematted_computation", "checkpoint"  # scopes that it adds
_MARKS = {"", *_OF_JAX, *REASONS}


def layer_of(scopes: str) -> Path:
    """Return the path that the named scopes form, without the marks of JAX.

    Where a derivative has a rule of its own, its transpose has the whole path twice.

    Example:
        >>> from fngrad.postmortem.source_locations import layer_of
        >>> layer_of("transpose(jvp(vmap(layers/0)))/head")
        'layers/0/head'
        >>> layer_of("transpose(jvp(vmap(layers/0)))/head/jvp(vmap(layers/0))/head")
        'layers/0/head'
        >>> layer_of("transpose(jvp(layers/0))/vmap(layers/0)")  # a model in a layer
        'layers/0/layers/0'
        >>> layer_of("transpose(jvp(loss))/vmap(a)/norm/jvp(loss)/vmap(a)/norm")
        'loss/a/norm'
    """
    before, _, after = scopes.partition("/jvp(")
    if "transpose(" not in before:
        return "/".join(_names(scopes))
    path, again = _names(before), _names(after)
    return "/".join(again if again[: len(path)] == path else path + again)


def _names(scopes: str) -> list[str]:
    bare = re.sub(r"\w+\(|\)", "", scopes)
    # einsum writes its subscripts, "ij,jk->ik".
    return [p for p in bare.split("/") if p not in _MARKS and "->" not in p]


def phase_of(scopes: str, reaches_loss: bool) -> str:
    """Return forward, backward or optimizer.

    JAX computes what a derivative needs along with the forward pass, in the same
    scopes; but the loss does not depend on it.
    """
    if "transpose(" in scopes:
        return "backward"
    if reaches_loss:
        return "forward"
    return "backward" if "jvp(" in scopes else "optimizer"


def lines_of(equations: Sequence[Any]) -> list[str]:
    """Return the source lines of an equation, as ``file:line (function)``.

    The first is the innermost line outside JAX. If it belongs to fngrad or another
    installed package, the second is the innermost line of the user's code, or else of
    another file.

    Args:
        equations: the equation and those that contain it, innermost first.
    """
    tracebacks = [e.source_info.traceback for e in equations]
    frames = [
        frame for traceback in tracebacks if traceback for frame in traceback.frames
    ]
    outside = [f for f in frames if not f.file_name.startswith(_LIBRARIES)]
    if not outside:
        return []
    users = [f for f in outside if not f.file_name.startswith(_INSTALLED)]
    others = [f for f in outside if f.file_name != outside[0].file_name]
    return list(dict.fromkeys(map(_line, [outside[0], *(users or others)[:1]])))


def _line(frame: Any) -> str:
    function = frame.function_name.rpartition("<locals>.")[2]
    return f"{frame.file_name}:{frame.line_num} ({function})"
