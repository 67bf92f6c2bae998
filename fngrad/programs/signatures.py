"""Signatures of users' functions, whose arguments are recognized by name.

A loss or a metric takes the parameters and the batch, its two required arguments, in
this order. Further arguments are recognized by name (``key``, ``model_state``), in any
position. Arguments with defaults keep them.

The functions are traced with arrays whose values are unknown. An error of Python about
such an array, or about a missing key, is explained, with the function's name.
"""

import contextlib
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

_BATCH_NAMES = ("batch", "data", "examples")
_PARAMS_NAMES = ("params", "parameters", "weights", "w", "theta", "model")
# By JAX's error: what needed the value of an array, and its replacement.
_TRACED: dict[type[Exception], tuple[str, str]] = {
    jax.errors.TracerBoolConversionError: (
        "a Python if, while, and, or, bool() or max() of an array",
        "jnp.where(condition, a, b) chooses between arrays, jax.lax.cond between "
        "computations",
    ),
    jax.errors.TracerIntegerConversionError: (
        "an array as the argument of range(), the index of a list or a bound of a "
        "slice",
        "jnp.asarray(x)[i] takes a traced index, jax.lax.dynamic_slice_in_dim a "
        "traced start, jax.lax.fori_loop a traced length",
    ),
    jax.errors.TracerArrayConversionError: (
        "an array as the argument of a NumPy function",
        "the function of the same name in jax.numpy takes traced arrays",
    ),
    jax.errors.NonConcreteBooleanIndexError: (
        "an array of bools as an index, such as x[x > 0], where the values decide how "
        "many entries there are",
        "jnp.where(mask, x, 0), or where= of the losses and metrics, keeps the shape",
    ),
    jax.errors.ConcretizationTypeError: (
        "an array that Python needs as a number, as float(x), int(x), x.item() and "
        "jnp.zeros(x) do",
        "x.astype(dtype) converts an array that is traced; a shape is made of Python "
        "ints",
    ),
}
_ON_THE_HOST = (
    "fngrad.data.from_source(read, size, batch_size) reads batches with Python and "
    "NumPy, as an iterable of batches does"
)
# What other libraries call the arguments that are recognized by name.
_ELSEWHERE = {
    "key": (
        *("rng", "rngs", "rng_key", "prng", "prng_key", "random_key", "seed"),
        *("dropout_rng", "dropout_key"),
    ),
    "model_state": (
        *("batch_stats", "state", "states", "variables", "buffers", "net_state"),
        *("extra_state", "aux_state", "extra_variables"),
    ),
}


def parameters(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return a function's free parameters by name; none if it has no signature.

    Arguments that `functools.partial` binds by name are not free.
    """
    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    try:
        arguments = inspect.signature(fn).parameters
    except ValueError:  # a builtin
        return {}
    return {name: a for name, a in arguments.items() if name not in bound}


def check_function(fn: Any) -> None:
    """Raise unless something can be called.

    Raises:
        TypeError: if it cannot; the message has only its type, since it may be large.
    """
    if not callable(fn):
        raise TypeError(f"need a function, got {type(fn).__name__}")


def name_of(fn: Any) -> str:
    """Return the name of a function for messages: its own, or its type's."""
    return getattr(fn, "__qualname__", type(fn).__qualname__).split("<locals>.")[-1]


def kind_of(a: Any) -> str:
    """Return a description of a tree for messages: keys or shape, never values."""
    if isinstance(a, Mapping):
        return f"a dict with the keys {list(a)}"
    if isinstance(a, tuple) and hasattr(a, "_fields"):
        return type(a).__name__
    if isinstance(a, list | tuple):
        return f"a {type(a).__name__} of {len(a)}"
    if hasattr(a, "dtype"):
        return f"an array {a.dtype}{list(jnp.shape(a))}"
    return type(a).__name__


def check_predicate(fn: Callable[..., Any]) -> None:
    """Raise unless a selector's function takes (path, leaf).

    Raises:
        TypeError: if it takes other arguments, as the mask of a whole tree does.
    """
    if not takes(fn, 2):
        raise TypeError(
            "need a function (path, leaf) -> bool, which is called leaf by leaf, got "
            f"{name_of(fn)} with the arguments {list(parameters(fn))}: for a mask of "
            'all parameters pass its result, mask(params), or a glob, "**/weight", or '
            'a function such as lambda path, leaf: path.endswith("weight")'
        )


def batch_of(
    fn: Callable[[Any], Any], step: jax.Array, call: Callable | None = None
) -> Any:
    """Return the batch of a user's function ``step -> batch``, traced.

    Args:
        fn: the function, named in messages; it is called unless ``call`` is given.
        step: its argument.
        call: another program of the function, such as that of its shapes.

    Raises:
        TypeError: if it takes other arguments, or needs the value of the traced step.
        Exception: what it raises, with a note if the step is traced.
    """
    if not takes(fn, 1):
        raise TypeError(
            "need a function step -> batch with one argument, got "
            f"{name_of(fn)} with the arguments {list(parameters(fn))}"
        )
    is_traced = call is not None or isinstance(step, Tracer)
    with explained(fn, f"; {_ON_THE_HOST}"):
        try:
            return (call or fn)(step)
        except Exception as error:
            if is_traced and not isinstance(error, tuple(_TRACED)):
                error.add_note(
                    f"JAX traces {_where(fn, error)}, whose step is an array without a "
                    f"value and not a number of Python; {_ON_THE_HOST}"
                )
            raise


@contextlib.contextmanager
def explained(fn: Callable[..., Any], more: str = "") -> Iterator[None]:
    """Explain errors about the value of a traced array.

    Args:
        fn: the user's function that is called inside.
        more: the end of the message.

    Raises:
        TypeError: in place of JAX's error, which is its cause.
    """
    try:
        yield
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        kinds = [words for kind, words in _TRACED.items() if isinstance(error, kind)]
        if not kinds:
            raise
        operation, remedy = kinds[0]
        raise TypeError(
            f"need operations of jax.numpy in {_where(fn, error)}, whose arrays have "
            f"no values while JAX traces it, got {operation}: {remedy}{more}"
        ) from error


def takes(fn: Callable[..., Any], count: int) -> bool:
    """Return whether a function takes so many arguments; a builtin is believed to."""
    try:
        inspect.signature(fn).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # without a signature
        return True
    return True


def _where(fn: Callable[..., Any], error: BaseException) -> str:
    """Return a function's name, and the innermost line of its file in a traceback."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if code is not None and f.filename == code.co_filename]
    if not own:
        return name_of(fn)
    file = own[-1].filename.replace("\\", "/").rpartition("/")[-1]
    return f"{name_of(fn)} ({file}, line {own[-1].lineno})"


@contextlib.contextmanager
def _looked_up(fn: Callable[..., Any], params: Any, batch: Any) -> Iterator[None]:
    """Explain errors about missing keys, with the keys that there are.

    Raises:
        KeyError: if a key is missing; the message has those of parameters and batch.
        TypeError: if an array is indexed by a string.
    """
    try:
        yield
    except (KeyError, TypeError, IndexError) as error:
        is_key = type(error) is KeyError
        if not is_key and not _indexes_by_string(error):
            raise
        got = f"the key {error.args[0]!r}" if is_key else f"the error {str(error)!r}"
        message = (
            f"need keys that are there in {_where(fn, error)}, got {got}; it is given "
            f"the parameters, {kind_of(params)}, and the batch, {kind_of(batch)}, in "
            "this order"
        )
        raise (MissingKeyError if is_key else TypeError)(message) from error


class MissingKeyError(KeyError):
    """A KeyError that shows its message without quotes."""

    def __str__(self) -> str:
        return str(self.args[0])


def _indexes_by_string(error: Exception) -> bool:
    words = ("string indexing", "indices must be integers", "only integers, slices")
    return type(error) in (TypeError, IndexError) and any(
        word in str(error) for word in words
    )


def _way_out(given: Mapping[str, Any], required: list[str], names: Any) -> str:
    """Return how a function of more arguments takes them, by what they are called.

    Args:
        given: all of its arguments, by name.
        required: the names of those that were taken for parameters and batch.
        names: those by which arguments are recognized.
    """
    if len(required) < 3:
        return ""
    hints, rest = [], list(required)
    for name, aliases in _ELSEWHERE.items():
        found = [x for x in rest if x == name or x in aliases]
        if name == "model_state":  # also a name for parameters, which come first
            found = [x for x in found if x != rest[0]]
        rest = [x for x in rest if x not in found]
        if found and name not in names:
            hints.append(f"no {name} is given here, so leave out {' and '.join(found)}")
        elif len(found) == 1 and name not in given:
            hints.append(f"{found[0]} is recognized by its name, so call it {name}")
        elif found:
            hints.append(f"{name} takes the place of {' and '.join(found)}")
    if len(rest) > 2:
        hints.append(
            f"the batch is one argument, so take ({rest[0]}, batch) and unpack it, "
            f"{', '.join(rest[1:])} = batch"
        )
    return f": {'; '.join(hints)}" if hints else ""


OF_A_LOSS = ("key", "model_state")  # recognized by name
OF_A_LOSS_OR_METRIC = (
    "need a loss or a metric function with two required arguments, in this order, for "
    "the parameters and the batch, and optional arguments named key and model_state"
)


def bind(
    fn: Callable[..., Any], by_name: tuple[str, ...], forms: str
) -> Callable[..., Any]:
    """Return ``call(params, batch, **named)``, which passes on the arguments of ``fn``.

    Args:
        fn: the user's function.
        by_name: the arguments that are recognized by name.
        forms: the message if ``fn`` has another signature.

    Raises:
        TypeError: if ``fn`` is not a function, does not have exactly two other
            required arguments, or has them in the wrong order, by their names; in a
            call, see `explained`.
        KeyError: in a call, if a key is missing.
    """
    operand_names = operands(fn, by_name, forms)
    arguments = parameters(fn)
    is_positional = {
        name: argument.kind is argument.POSITIONAL_ONLY
        for name, argument in arguments.items()
    }

    def call(params: Any, batch: Any, **named: Any) -> Any:
        values = dict(zip(operand_names, (params, batch), strict=True)) | {
            name: value for name, value in named.items() if name in arguments
        }
        args = [values[n] for n in arguments if n in values and is_positional[n]]
        kwargs = {n: v for n, v in values.items() if not is_positional[n]}
        with explained(fn), _looked_up(fn, params, batch):
            return fn(*args, **kwargs)

    return call


def operands(
    fn: Callable[..., Any], by_name: tuple[str, ...], forms: str
) -> tuple[str, str]:
    """Return the names of the arguments for the parameters and the batch.

    Args:
        fn: the user's function.
        by_name: the arguments that are recognized by name.
        forms: the message if ``fn`` has another signature.

    Raises:
        TypeError: as `bind`, before a call.
    """
    check_function(fn)
    arguments = parameters(fn)
    required = [
        name
        for name, argument in arguments.items()
        if argument.default is argument.empty and name not in by_name
    ]
    is_variadic = any(
        a.kind in (a.VAR_POSITIONAL, a.VAR_KEYWORD) for a in arguments.values()
    )
    if len(required) != 2 or is_variadic:
        raise TypeError(
            f"{forms}, got {name_of(fn)} with the arguments {list(arguments)}"
            f"{_way_out(arguments, required, by_name)}"
        )
    if required[0] in _BATCH_NAMES and required[1] in _PARAMS_NAMES:
        raise TypeError(
            f"{forms}, got {name_of(fn)}({', '.join(required)}): the parameters come "
            "first"
        )
    return required[0], required[1]
