"""Optimizers against their oracles, update by update.

A `Family` holds optimizers that are tested alike, their oracles and a table of their
arguments. It compares leaf by leaf; subclasses compare other problems in other ways.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import problems
from float64_mode import x64

import fngrad.optimizers as optimizers
from fngrad.transforms.core import apply_updates

STEPS = 25
LR = (0.1, 0.03)
REAL = {"float64": (jnp.float64, jnp.float64)}
DOUBLE = {**REAL, "complex128": (jnp.complex128,) * 2}
SINGLE = {  # of the parameters, of the gradients
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "float16": (jnp.float16, jnp.float16),
    "mixed": (jnp.bfloat16, jnp.float32),
}
UNDECAYED = ("complex128", "float16")
Arguments = dict[str, Any]
Case = tuple[str, Arguments]
Rows = dict[str, tuple[Arguments, Any, Any]]
DECAY: Rows = {  # of rules that do not decay by default
    "weight_decay": ({}, None, 0.1),
    "mask": ({"weight_decay": 0.1}, None, "decayed/**"),
}


class Visit(NamedTuple):
    """The gradients of a leaf, the parameters visited and the updates made."""

    gradients: Any
    params: Any
    updates: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """Optimizers whose updates are compared leaf by leaf.

    An argument's row is (the other arguments, a value, another value): the two values
    must give different updates, and those of the second must be the oracle's.
    """

    oracles: ModuleType  # has each oracle by the name of its optimizer
    arguments: dict[str, Rows]  # by the name of the optimizer
    conventions: Sequence[Case] = ()  # cases besides the defaults and the rows
    double: dict[str, Any] = dataclasses.field(default_factory=lambda: DOUBLE)
    shape: tuple[int, ...] = (6,)  # of each leaf: six entries, e.g. (2, 3)
    tolerance: float = 1e-12  # in float64
    single_tolerance: float = 4e-6  # in float32
    without_oracle: tuple[str, ...] = ()  # arguments that no oracle has
    silent: tuple[str, ...] = ()  # arguments that do not change the updates
    slow_rows: bool = False  # whether the rows are left to the slow tests

    @property
    def named_cases(self) -> list[Case]:
        """Each optimizer's defaults, and the conventions."""
        return [(name, {}) for name in self.arguments] + list(self.conventions)

    @property
    def row_cases(self) -> list[Case]:
        """Each argument of the table at its other value."""
        return [
            (name, {**context, argument: value})
            for name, rows in self.arguments.items()
            for argument, (context, _, value) in rows.items()
            if argument not in self.without_oracle
        ]

    @property
    def single_cases(self) -> list[Case]:
        """The cases whose comparison in lower precision is fast; the rows are slow."""
        return self.named_cases

    @property
    def single_rows(self) -> list[Case]:
        """The slow cases in lower precision."""
        return self.row_cases

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each optimizer with each of the arguments that change its updates."""
        return [
            (name, argument)
            for name, rows in self.arguments.items()
            for argument in rows
            if argument not in self.silent
        ]

    def check_double(self, name: str, arguments: Arguments) -> None:
        """Compare float64 (and complex128) updates with the oracle."""
        with x64():
            visits = self.trajectory(name, arguments, self.double)
            for leaf, visit in visits.items():
                want = self.expected(name, arguments, leaf, visit, np.float64)
                assert visit.updates.dtype == leaf
                assert_close(visit.updates, want, self.tolerance)

    def check_single(self, name: str, arguments: Arguments) -> None:
        """Compare float32 and lower-precision updates with the oracle, rounded."""
        tolerance = self.single_tolerance
        for leaf, visit in self.trajectory(name, arguments, SINGLE).items():
            want = self.expected(name, arguments, leaf, visit, np.float32)
            got = visit.updates
            assert got.dtype == SINGLE[leaf][0]
            if got.dtype == jnp.float32:
                assert_close(got, want, tolerance)
            else:
                rounded = want.astype(got.dtype)
                assert_close(got, wide(rounded), tolerance, slack=ulp(rounded))

    def check_argument(self, name: str, argument: str) -> None:
        """Require that an argument's two values give different updates."""
        context, value, other = self.arguments[name][argument]

        def updates(value):
            arguments = {**context, argument: value}
            if argument == "mask":  # which leaves out this leaf
                return self.trajectory(name, arguments, SINGLE)["float16"].updates
            with x64():
                return self.trajectory(name, arguments, self.double)["float64"].updates

        first, second = updates(value), updates(other)
        assert not np.allclose(wide(first), wide(second), rtol=1e-3, atol=0)

    def trajectory(
        self, name: str, arguments: Arguments, dtypes: dict[str, Any]
    ) -> dict[str, Visit]:
        """Return what happens to each leaf, by its name."""
        params, gradients = problem(dtypes, self.shape)
        double = dtypes is not SINGLE
        visited, updates = self.run(name, arguments, params, gradients, double)
        flat = [{**t["decayed"], **t["rest"]} for t in (gradients, visited, updates)]
        return {leaf: Visit(*(t[leaf] for t in flat)) for leaf in dtypes}

    def rates(self, name: str, arguments: Arguments) -> tuple[np.ndarray, Arguments]:
        """Return the learning rate of each step, and the other arguments."""
        base = {"learning_rate": self.arguments[name]["learning_rate"][1]}
        others = {**base, **arguments}
        return problems.decaying(others.pop("learning_rate"), STEPS), others

    def run(
        self, name: str, arguments: Arguments, params: Any, gradients: Any, double: bool
    ) -> tuple[Any, Any]:
        """Return the parameters before each update, and the updates."""
        rates, arguments = self.rates(name, {**defaults(name), **arguments})
        floats = {k: v for k, v in arguments.items() if isinstance(v, float)}
        static = tuple((k, v) for k, v in arguments.items() if k not in floats)
        program = compiled(getattr(optimizers, name), static, double)
        return program(floats, jnp.asarray(rates), params, gradients)

    def expected(
        self, name: str, arguments: Arguments, leaf: str, visit: Visit, dtype: Any
    ) -> np.ndarray:
        """Return the updates of the oracle; it gets the same rounded numbers."""
        rates, arguments = self.rates(name, {**float_defaults(name), **arguments})
        arguments = {k: in_dtype(v, dtype) for k, v in arguments.items()}
        if arguments.pop("mask", None) and leaf in UNDECAYED:
            arguments["weight_decay"] = 0.0
        oracle = getattr(self.oracles, name)
        gradients, params = wide(visit.gradients), wide(visit.params)
        return oracle(gradients, params, rates.astype(dtype), **arguments)


def case_id(case: Any) -> str:
    """Name a case by its arguments."""
    if not isinstance(case, dict):
        return str(case)
    shown = {k: getattr(v, "__name__", v) for k, v in case.items()}
    return " ".join(f"{k}={v}" for k, v in shown.items()) or "defaults"


def defaults(name: str) -> Arguments:
    """Return the default of each argument but the learning rate."""
    parameters = inspect.signature(getattr(optimizers, name)).parameters
    return {k: p.default for k, p in parameters.items() if k != "learning_rate"}


def float_defaults(name: str) -> dict[str, float]:
    """Return the defaults that are floats: in float32 1 - 0.999 is not 0.001."""
    return {k: v for k, v in defaults(name).items() if type(v) is float}


def in_dtype(value: Any, dtype: Any) -> Any:
    """Round a float, or the floats of a tuple, to a dtype."""
    if isinstance(value, tuple):
        return tuple(in_dtype(v, dtype) for v in value)
    return float(dtype(value)) if isinstance(value, float) else value


@functools.cache
def compiled(
    factory: Callable[..., Any], static: tuple[tuple[str, Any], ...], double: bool
) -> Callable[..., Any]:
    """Return the trajectory as one program; floats are data, so few are compiled."""

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


def wide(x: Any) -> np.ndarray:
    """Return a NumPy array in double precision."""
    return np.asarray(x).astype(np.complex128 if jnp.iscomplexobj(x) else np.float64)


def assert_close(got, want: np.ndarray, tolerance: float, slack: Any = 0.0) -> None:
    """Compare relative to each entry and to a tenth of the largest of its column."""
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
