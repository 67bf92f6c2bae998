r"""Fingerprints of the values that a traced program computes.

The *fingerprint* of a value is a hash of how it is computed from the program's inputs:
of its operation, the operation's static parameters, and the fingerprints of what it
reads. Constants enter by their bytes. So it does not depend on the order of the
equations, on what else the program computes, on names, addresses and lines of source,
on functions that are jitted inside it, on rematerialization, or on where arrays are
placed.

The first value that the program names so with `jax.ad_checkpoint.checkpoint_name` may
be *cut*: what reads it sees its dtype and shape only.
"""

import dataclasses
import enum
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec, Sharding

import fngrad.programs.equations as equations
import fngrad.tree as tree

_PLAIN = {type(None), bool, int, float, complex, str}
_COSMETIC = {"name", "debug_info", "sharding", "out_sharding"}  # parameters


class Fingerprints(NamedTuple):
    """The fingerprints of a program's values."""

    outputs: list[str]  # of the results' leaves
    named: dict[str, list[str]]  # of the values with a name, as they are traced
    lengths: dict[str, int]  # how often the loops around a named value run


def fingerprints(
    jaxpr: Any, inputs: Sequence[str], cuts: Callable[[str], bool] = lambda name: False
) -> Fingerprints:
    """Return the fingerprints of a program's values.

    Args:
        jaxpr: a traced program with its constants.
        inputs: what identifies each leaf of the arguments, such as its path.
        cuts: whether to cut the first value with this name.

    Returns:
        The fingerprints of the program's results, and of the values that it names.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.programs.fingerprints import fingerprints
        >>> def of(fn):
        ...     return fingerprints(jax.make_jaxpr(fn)(1.0, 2.0), ["x", "y"]).outputs
        >>> twice = of(lambda x, y: (x * y, y / 3.0))
        >>> twice == of(jax.jit(lambda x, y: (x * y, y / 3.0)))
        True
        >>> [a == b for a, b in zip(twice, of(lambda x, y: (x * y, y / 4.0)))]
        [True, False]
    """
    walk = _Walk(cuts)
    outputs = walk.outputs(jaxpr, [digest("input", name) for name in inputs])
    return Fingerprints(outputs, walk.named, walk.lengths)


def digest(*parts: Any) -> str:
    """Return 16 hex digits for text, ints and tuples of them."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def of_array(x: Any) -> str:
    """Return the fingerprint of an array: of its dtype, shape and bytes.

    One whose values are not here, as it is split over several processes, counts by
    dtype and shape alone.
    """
    if tree.is_key(x):
        return digest("key", _named(x.dtype), of_array(jax.random.key_data(x)))
    if isinstance(x, jax.Array):
        is_whole = x.is_fully_addressable or x.is_fully_replicated
        if x.is_deleted() or not is_whole:
            return digest("absent", *_outline(x))
    host = np.asarray(x)
    if host.shape == ():
        return _of_number(host)
    flat = np.ascontiguousarray(host).reshape(-1)
    content = flat.view(np.uint8).data if flat.dtype.itemsize else b""
    text = hashlib.blake2b(content, digest_size=8).hexdigest()
    return digest("array", *_outline(host), text)


def _of_number(x: np.ndarray) -> str:
    return digest("number", _named(x.dtype), x.tobytes())


class _Walk:
    def __init__(self, cuts: Callable[[str], bool]):
        self.named: dict[str, list[str]] = {}
        self.lengths: dict[str, int] = {}
        self._cuts, self._length = cuts, 1
        self._constants: dict[int, tuple[Any, str]] = {}  # by id, kept alive

    def outputs(self, jaxpr: Any, inputs: Sequence[str]) -> list[str]:
        """Return the fingerprints of what a program returns.

        Those of the references among its inputs follow, as the program leaves them.
        """
        constants = map(self._constant, getattr(jaxpr, "consts", ()))
        values = dict(zip(jaxpr.constvars, constants, strict=True))
        values |= dict(zip(jaxpr.invars, inputs, strict=True))

        def read(variable: Any) -> str:
            if equations.is_variable(variable):
                return values[variable]
            return _of_number(np.asarray(variable.val, variable.aval.dtype))

        for equation in jaxpr.eqns:
            made = self._made(equation, [read(v) for v in equation.invars])
            written = _references(equation.invars)
            values.update(zip([*equation.outvars, *written], made, strict=True))
        return [read(v) for v in [*jaxpr.outvars, *_references(jaxpr.invars)]]

    def _constant(self, x: Any) -> str:
        if id(x) not in self._constants:
            self._constants[id(x)] = x, of_array(x)
        return self._constants[id(x)][1]

    def _made(self, equation: Any, inputs: list[str]) -> list[str]:
        """Return the fingerprints of an equation's results, then of its references."""
        name = equations.name_of(equation)
        parameters = equations.parameters_of(equation)
        if name in equations.IDENTITIES or _keeps_precision(equation):
            return inputs
        if name == "name":
            return self._mark(parameters["name"], inputs, equation.outvars[0].aval)
        inner = equations.program_called(equation)
        if inner is not None:
            return self.outputs(inner, inputs)
        written = len(_references(equation.invars))
        if name == "scan" and not written:
            return self._scan(equation, inputs)
        if name == "cond":
            index, *operands = inputs
            branches = (self.outputs(b, operands) for b in parameters["branches"])
            pairs = zip(*branches, strict=True)
            return [digest("cond", index, values) for values in pairs]
        settings = [
            (key, str(value) if written and key == "tree" else self._text(value))
            for key, value in sorted(parameters.items())
            if value is not None and key not in _COSMETIC
        ]
        outlines = [_outline(v.aval) for v in equation.outvars]
        whole = digest(name, settings, inputs, outlines)
        count = len(outlines) + written
        return [whole] if count == 1 else [digest(whole, i) for i in range(count)]

    def _mark(self, name: str, inputs: list[str], aval: Any) -> list[str]:
        is_cut = self._cuts(name) and name not in self.named
        self.named.setdefault(name, []).extend(inputs)
        self.lengths[name] = max(self.lengths.get(name, 1), self._length)
        return [digest("cut", *_outline(aval))] if is_cut else inputs

    def _scan(self, equation: Any, inputs: list[str]) -> list[str]:
        """Return a fingerprint for each result, whatever else the loop stacks."""
        parameters = equation.params
        shared, count = equations.scan_counts(equation)
        length = parameters["length"]
        first, stacks = inputs[shared : shared + count], inputs[shared + count :]
        carry = [digest("carry", i, x) for i, x in enumerate(first)]
        entries = [digest("entry", x) for x in stacks]
        outside, self._length = self._length, self._length * length
        body = [*inputs[:shared], *carry, *entries]
        made = self.outputs(parameters["jaxpr"], body)
        self._length = outside
        loop = digest("scan", length, parameters["reverse"], made[:count])
        return [digest(loop, i < count, x) for i, x in enumerate(made)]

    def _text(self, value: Any, depth: int = 0) -> Any:
        """Return what identifies a static parameter; None for an unknown object.

        The text of a function or of another object may hold an address.
        """
        if type(value) in _PLAIN:
            return repr(value)
        if type(value) is tuple and all(type(item) is int for item in value):
            return repr(value)
        if depth > 8 or isinstance(value, Sharding | Mesh | PartitionSpec):
            return None
        if isinstance(value, enum.Enum):
            return value.name
        if isinstance(value, np.dtype):
            return _named(value)
        if isinstance(value, type):
            return value.__name__
        if equations.is_jaxpr(value):
            jaxpr: Any = value
            operands = [digest("operand", i) for i in range(len(jaxpr.invars))]
            return self.outputs(jaxpr, operands)
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return of_array(value)
        if isinstance(value, bool | int | float | complex | str):
            return repr(value)
        if isinstance(value, dict):
            items = ((str(k), self._text(v, depth + 1)) for k, v in value.items())
            return sorted(items, key=repr)
        if isinstance(value, set | frozenset):
            return sorted((self._text(item, depth + 1) for item in value), key=repr)
        if isinstance(value, list | tuple):
            return [self._text(item, depth + 1) for item in value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = (field.name for field in dataclasses.fields(value))
            return [self._text(getattr(value, name, None), depth + 1) for name in names]
        return None


def _references(variables: Sequence[Any]) -> list[Any]:
    return list(filter(equations.is_reference, variables))


def _keeps_precision(equation: Any) -> bool:
    """Return whether an equation is a rounding to its own dtype, as of a residual."""
    if equation.primitive.name != "reduce_precision":
        return False
    own, asked = jnp.finfo(equation.outvars[0].aval.dtype), equation.params
    return (own.nexp, own.nmant) == (asked["exponent_bits"], asked["mantissa_bits"])


def _outline(x: Any) -> tuple[str, tuple[int, ...]]:
    return _named(getattr(x, "dtype", None)), tuple(getattr(x, "shape", ()))


@functools.cache
def _named(dtype: Any) -> str:
    return str(dtype)  # slow
