"""A family of optimizers against its oracles, update by update.

A test file names its `Family` and calls the four checks from parametrized tests:
every case in float64, every case in lower precision, every argument in the table, and
every argument shown to matter.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import problems
from precision import x64

from fngrad.transforms.core import apply_updates

STEPS = 25
REAL = {"float64": (jnp.float64, jnp.float64)}
DOUBLE = {**REAL, "complex128": (jnp.complex128,) * 2}
SINGLE = {  # of the parameters, of the gradients
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "float16": (jnp.float16, jnp.float16),
    "mixed": (jnp.bfloat16, jnp.float32),
}
UNDECAYED = ("complex128", "float16")
Case = tuple[str, dict[str, Any]]


class Family(NamedTuple):
    """Optimizers, what is right, and what is asked of them.

    An argument's row is (the other arguments, a value, another value): the two must
    differ, and the second must agree with the oracle.
    """

    factories: Any  # a module that has each optimizer by name
    oracles: Any  # a module that has each oracle by the same name
    arguments: dict[str, dict[str, tuple[dict[str, Any], Any, Any]]]
    double: dict[str, Any] = DOUBLE  # REAL for rules that refuse complex parameters
    shape: tuple[int, ...] = (6,)  # of each leaf: six entries, e.g. (2, 3)
    tolerance: float = 1e-12  # in float64
    single_tolerance: float = 4e-6  # in float32

    @property
    def names(self) -> list[str]:
        return list(self.arguments)


def cases(family: Family, conventions: Sequence[Case]) -> list[Case]:
    """Return the conventions, and each argument of the table at its other value."""
    return list(conventions) + [
        (name, {**context, argument: value})
        for name, table in family.arguments.items()
        for argument, (context, _, value) in table.items()
    ]


def pairs(family: Family) -> list[tuple[str, str]]:
    """Return (optimizer, argument) for every row of the table."""
    return [(name, row) for name in family.names for row in family.arguments[name]]


def case_id(case: Any) -> str:
    """Name a case by its arguments."""
    if not isinstance(case, dict):
        return str(case)
    shown = {k: getattr(v, "__name__", v) for k, v in case.items()}
    return " ".join(f"{k}={v}" for k, v in shown.items()) or "defaults"


def check_double(family: Family, name: str, arguments: dict[str, Any]) -> None:
    """Compare float64 (and complex128) updates with the oracle."""
    with x64():
        visited = trajectory(family, name, arguments, family.double)
        for leaf, (gradients, params, got) in visited.items():
            want = expected(
                family, name, arguments, leaf, gradients, params, np.float64
            )
            assert got.dtype == leaf
            assert_close(got, want, family.tolerance)


def check_single(family: Family, name: str, arguments: dict[str, Any]) -> None:
    """Compare float32 and lower-precision updates with the oracle, rounded."""
    visited = trajectory(family, name, arguments, SINGLE)
    tolerance = family.single_tolerance
    for leaf, (gradients, params, got) in visited.items():
        want = expected(family, name, arguments, leaf, gradients, params, np.float32)
        assert got.dtype == SINGLE[leaf][0]
        if got.dtype == jnp.float32:
            assert_close(got, want, tolerance)
        else:
            rounded = want.astype(got.dtype)
            assert_close(got, wide(rounded), tolerance, slack=ulp(rounded))


def check_table(family: Family, name: str) -> None:
    """Require a row for every argument."""
    parameters = inspect.signature(getattr(family.factories, name)).parameters
    assert set(parameters) == set(family.arguments[name])


def check_argument(family: Family, name: str, argument: str) -> None:
    """Require that an argument's two values give different updates."""
    context, value, other = family.arguments[name][argument]
    leaf = "float16" if argument == "mask" else "float32"
    first, second = (
        trajectory(family, name, {**context, argument: v}, SINGLE)[leaf][2]
        for v in (value, other)
    )
    assert not np.allclose(wide(first), wide(second), rtol=1e-3, atol=0)


def trajectory(
    family: Family, name: str, arguments: dict[str, Any], dtypes: dict[str, Any]
) -> dict[str, tuple[Any, Any, Any]]:
    """Return gradients, parameters visited and updates made, by leaf name."""
    factory = getattr(family.factories, name)
    signature = inspect.signature(factory).parameters
    defaults = {k: p.default for k, p in signature.items() if k != "learning_rate"}
    arguments = {**defaults, **arguments}  # all floats are data: fewer programs
    learning_rates = problems.decaying(arguments.pop("learning_rate", 0.1), STEPS)
    floats = {k: v for k, v in arguments.items() if isinstance(v, float)}
    static = tuple((k, v) for k, v in arguments.items() if k not in floats)
    params, gradients = problem(dtypes, family.shape)
    program = compiled(factory, static, dtypes is not SINGLE)
    visited, updates = program(floats, jnp.asarray(learning_rates), params, gradients)
    flat = [{**t["decayed"], **t["rest"]} for t in (gradients, visited, updates)]
    return {leaf: (flat[0][leaf], flat[1][leaf], flat[2][leaf]) for leaf in dtypes}


@functools.cache
def compiled(
    factory: Callable[..., Any], static: tuple[tuple[str, Any], ...], double: bool
) -> Callable[..., Any]:
    """Return the trajectory as one program; float hyperparameters are its data."""

    @jax.jit
    def program(floats, learning_rates, params, gradients):
        optimizer = factory(lambda t: learning_rates[t], **floats, **dict(static))

        def body(carry, gradient):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            return (apply_updates(params, updates), state), (params, updates)

        _, visited = jax.lax.scan(body, (params, optimizer.init(params)), gradients)
        return visited

    return program


def problem(dtypes: dict[str, Any], shape: tuple[int, ...]) -> tuple[dict, dict]:
    """Return parameters, and hard gradients for each of the steps."""
    params, gradients = {}, {}
    for seed, name in enumerate(dtypes):
        huge, tiny = (1e3, 1e-4) if name == "float16" else (1e6, 1e-9)
        gradient = problems.hard_gradients(STEPS, huge, tiny, seed)
        value = np.linspace(-2, 2, 6)
        if name.startswith("complex"):
            gradient = gradient * np.exp(1j * np.arange(6))
            value = value * (1 - 0.5j)
        gradients[name] = gradient.reshape(STEPS, *shape)
        params[name] = value.reshape(shape)
    return tree_of(dtypes, 0, params), tree_of(dtypes, 1, gradients)


def tree_of(dtypes: dict[str, Any], role: int, values: dict[str, Any]) -> dict:
    """Put each named leaf below ``decayed`` or ``rest``, in its dtype."""
    leaves = {name: jnp.asarray(values[name], dtypes[name][role]) for name in dtypes}
    return {
        "decayed": {k: v for k, v in leaves.items() if k not in UNDECAYED},
        "rest": {k: v for k, v in leaves.items() if k in UNDECAYED},
    }


def expected(family, name, arguments, leaf, gradients, visited, dtype) -> np.ndarray:
    """Ask the oracle, with hyperparameters as the program's precision holds them."""
    arguments = {
        k: float(dtype(v)) if isinstance(v, float) else v
        for k, v in {**float_defaults(family, name), **arguments}.items()
    }
    learning_rates = problems.decaying(arguments.pop("learning_rate", 0.1), STEPS)
    if arguments.pop("mask", None) and leaf in UNDECAYED:
        arguments["weight_decay"] = 0.0
    oracle = getattr(family.oracles, name)
    return oracle(
        wide(gradients), wide(visited), learning_rates.astype(dtype), **arguments
    )


def float_defaults(family: Family, name: str) -> dict[str, float]:
    """Return the defaults that are floats: in float32 1 - 0.999 is not 0.001."""
    signature = inspect.signature(getattr(family.factories, name)).parameters
    return {
        k: p.default
        for k, p in signature.items()
        if type(p.default) is float and k != "learning_rate"
    }


def wide(x: Any) -> np.ndarray:
    """Return NumPy numbers of double precision."""
    return np.asarray(x).astype(np.complex128 if jnp.iscomplexobj(x) else np.float64)


def assert_close(got, want: np.ndarray, tolerance: float, slack: Any = 0.0) -> None:
    """Compare relative to each entry and a little to its column's largest."""
    scale = np.abs(want) + 0.1 * np.max(np.abs(want), axis=0)
    excess = np.abs(wide(got) - want) - tolerance * scale - slack
    step = np.argmax(np.max(excess.reshape(len(excess), -1), 1))
    assert np.all(excess <= 0), f"step {step}: {got=} {want=}"


def ulp(x: np.ndarray) -> np.ndarray:
    """Return the distance from |x| to the next larger number of its dtype."""
    info = jnp.finfo(x.dtype)
    smallest = float(info.smallest_subnormal)
    exponent = np.floor(np.log2(np.maximum(np.abs(wide(x)), float(info.tiny))))
    return np.maximum(2.0**exponent * float(info.eps), smallest)
