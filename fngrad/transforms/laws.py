"""Laws of transforms, as checks for any transform.

A *law* is an equation between two ways to compute one thing: alone or in a chain,
eagerly or compiled, one by one or batched. Values are compared leaf by leaf, with a
tolerance where the two ways may round differently.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.transforms.chain_inputs as chain_inputs
import fngrad.transforms.law_examples as law_examples
import fngrad.tree as tree
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    apply_updates,
    chain,
    identity,
    named,
    report,
    update_and_report,
)
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import OptState, Params, Updates

ROUNDING = 1e-5  # of float32, where a compiler may reorder and fuse
STEPS = 3
NARROW = (jnp.bfloat16, jnp.float16)


class _Subject(NamedTuple):
    """A transform under test, with its trajectories."""

    transform: TransformLike
    chained: Transform
    params: Params
    gradients: list[Updates]  # one for each of three steps
    eager: list[tuple[Updates, OptState]]  # after each step
    jitted: list[tuple[Updates, OptState]]
    step: Callable[..., Any]  # jitted, see _donating_step
    traces: int  # how often the three jitted steps were traced


def check_transform(transform: TransformLike, params: Params | None = None) -> None:
    """Raise unless a transform keeps the laws that the rest of fngrad relies on.

    - ``init`` works on abstract shapes, and its state shares no memory with the
      parameters or within itself.
    - ``update`` keeps the structure, shapes and dtypes of the state, whatever float
      dtype the gradients have, and gives updates shaped like the parameters.
    - jit equals eager; three calls are traced once; a scan equals the loop; vmap over
      states equals one by one; the first step can donate parameters and state.
    - `identity` is the unit of `chain`, and chaining is associative.
    - bfloat16 and float16 parameters get the float32 updates, rounded.
    - Zero gradients give finite updates.
    - ``report`` is the update with metrics: its updates and state are those of
      ``update``; its metrics are scalars.

    Args:
        transform: a transform, or any object with ``init`` and ``update``.
        params: float arrays to test it with; the default is a small tree with leaves
            of zero, one and two axes. Pass your own if the transform selects leaves by
            path.

    Raises:
        ValueError: if a law is broken; the message names the law, the leaf and both
            values.

    Example:
        >>> import fngrad as fg
        >>> halve = fg.Transform(
        ...     init=lambda params: (),
        ...     update=lambda updates, state, params: (fg.tree.scale(0.5, updates), ()),
        ... )
        >>> fg.check_transform(halve)
    """
    params = law_examples.params() if params is None else params
    arrays = jax.tree.map(lambda p: jnp.array(p, jnp.result_type(p)), params)
    gradients = [law_examples.gradients(arrays, step) for step in range(STEPS)]
    chained = chain(transform)
    _hold("init needs only shapes", _check_abstract_init, chained, arrays)
    _hold("the state is fresh", _check_fresh, chained, arrays)
    _hold(
        "updates fit the parameters",
        _check_updates_form,
        transform,
        arrays,
        gradients[0],
    )
    _hold("the state keeps its form", _check_state_form, chained, arrays, gradients[0])
    eager = _hold("update runs", _loop, chained.update, chained, arrays, gradients)
    step, traces = _donating_step(chained)
    jitted = _hold("update can be jitted", _jitted, step, chained, arrays, gradients)
    subject = _Subject(
        transform, chained, arrays, gradients, eager, jitted, step, len(traces)
    )
    for law, check in LAWS.items():
        _hold(law, check, subject)


def _check_abstract_init(chained: Transform, params: Params) -> None:
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    state = chained.init(params)
    _require_form(state, chained.init(abstract))
    _require_form(state, jax.eval_shape(chained.init, abstract))


def _check_fresh(chained: Transform, params: Params) -> None:
    owners = {_address(leaf): f"params {path!r}" for path, leaf in _leaves(params)}
    for path, leaf in _leaves(chained.init(params)):
        if not isinstance(leaf, jax.Array):
            raise ValueError(
                f"need jax arrays in the state, got {type(leaf).__name__} at {path!r}; "
                "use jnp.asarray in init"
            )
        owner = owners.setdefault(_address(leaf), f"state {path!r}")
        if owner != f"state {path!r}":
            raise ValueError(
                f"state must not alias other leaves, got {owner} in state {path!r}"
            )


def _check_updates_form(
    transform: TransformLike, params: Params, gradient: Updates
) -> None:
    wide, updates = tree.widen(params), tree.widen(gradient)
    state = transform.init(wide)
    made = transform.update(updates, state, wide)
    _require_form(wide, chain_inputs.updated("transform", made, updates, state)[0])


def _check_state_form(chained: Transform, params: Params, gradient: Updates) -> None:
    wide = [(params, dtype) for dtype in (jnp.float32, *NARROW)]
    for cast_params, dtype in (
        *wide,
        *((tree.cast_real(params, d), d) for d in NARROW),
    ):
        state = jax.eval_shape(chained.init, cast_params)
        gradients = tree.cast_real(gradient, dtype)
        try:
            _, new = jax.eval_shape(chained.update, gradients, state, cast_params)
            _require_form(state, new)
        except ValueError as error:
            raise ValueError(f"{error}{_widening(state)}") from error


def _widening(state: Any) -> str:
    """Return how a state with moments in a low precision is made wide."""
    low = {x.dtype for x in jax.tree.leaves(state) if x.dtype in NARROW}
    if not low:
        return ""
    return (
        f"; init makes moments in {low.pop()}: fngrad.tree.wide_zeros_like(params) "
        "makes them in at least float32"
    )


def _check_jit(subject: _Subject) -> None:
    _require_same(subject.eager, subject.jitted, ROUNDING)


def _check_traces(subject: _Subject) -> None:
    if subject.traces != 1:
        raise ValueError(f"need one trace for three calls, got {subject.traces}")


def _check_vmap(subject: _Subject) -> None:
    """Map a scan; where that differs, a scan alone shows which of the two is broken."""
    try:
        _check_lanes(subject)
    except Exception:
        _hold("a scan equals the loop", _check_scan, subject)
        raise


def _check_lanes(subject: _Subject) -> None:
    lanes = [subject.gradients, subject.gradients[::-1]]
    stacked = _stack([_stack(lane) for lane in lanes])
    made = jax.jit(jax.vmap(_scanned(subject)))(stacked, _stack([subject.params] * 2))
    alone = subject.jitted, _jitted_loop(subject, subject.params, lanes[1])
    for i, trajectory in enumerate(alone):
        lane = jax.tree.map(lambda x, i=i: x[i], made)
        _require_same_trajectory(trajectory, *lane)


def _check_scan(subject: _Subject) -> None:
    made = jax.jit(_scanned(subject))(_stack(subject.gradients), subject.params)
    _require_same_trajectory(subject.jitted, *made)


def _scanned(subject: _Subject) -> Callable[..., tuple[OptState, Updates]]:
    """Return a scan from a new state to the last state and all updates."""

    def scan(stacked: Updates, params: Params) -> tuple[OptState, Updates]:
        def body(state: OptState, gradient: Updates) -> tuple[OptState, Updates]:
            updates, state = subject.chained.update(gradient, state, params)
            return state, updates

        return jax.lax.scan(body, subject.chained.init(params), stacked)

    return scan


def _require_same_trajectory(
    alone: list[tuple[Updates, OptState]], state: OptState, updates: Updates
) -> None:
    _require_same(alone[-1][1], state, ROUNDING)
    _require_same(_stack([u for u, _ in alone]), updates, ROUNDING)


def _check_donation(subject: _Subject) -> None:
    want = apply_updates(subject.params, subject.jitted[0][0])
    for _ in range(2):  # a state that init returns twice is deleted after the first
        params = _copy(subject.params)
        state = subject.chained.init(params)
        got, _, _ = subject.step(params, state, subject.gradients[0])
        _require_same(want, got, ROUNDING)


def _check_unit(subject: _Subject) -> None:
    chained = chain(identity(), subject.transform, identity())
    got = _loop(chained.update, chained, subject.params, subject.gradients)
    _require_same(subject.eager, got, 0.0)


def _check_associativity(subject: _Subject) -> None:
    a = named("first", scale_by_learning_rate(0.5))
    b = named("second", scale_by_learning_rate(2.0))
    three = a, subject.transform, b
    state = subject.chained.init(subject.params)
    if chain_inputs.latest_order(state):  # it belongs last
        three = a, b, subject.transform
    left, right = (
        _loop(chained.update, chained, subject.params, subject.gradients)
        for chained in (
            chain(chain(*three[:2]), three[2]),
            chain(three[0], chain(*three[1:])),
        )
    )
    _require_same(left, right, 0.0)


def _check_low_precision(subject: _Subject) -> None:
    for dtype in NARROW:
        low = tree.cast_real(subject.params, dtype)
        gradients = [tree.cast_real(g, dtype) for g in subject.gradients]
        wide = [tree.widen(g) for g in gradients]
        got = _loop(subject.chained.update, subject.chained, low, gradients)
        want = _jitted_loop(subject, tree.widen(low), wide)
        for (updates, _), (reference, _) in zip(got, want, strict=True):
            rounded = tree.cast_like(reference, low)
            # Foreign code computes in the parameters' dtype, with rounding errors.
            _require_same(rounded, updates, 8 * float(jnp.finfo(dtype).eps))
            _require_finite(updates)


def _check_zero_gradients(subject: _Subject) -> None:
    zeros = [tree.zeros_like(subject.params)] * STEPS
    for updates, _ in _jitted_loop(subject, subject.params, zeros):
        _require_finite(updates)


def _check_report(subject: _Subject) -> None:
    state = subject.chained.init(subject.params)
    for gradient, want in zip(subject.gradients, subject.eager, strict=True):
        *got, _ = update_and_report(subject.chained, gradient, state, subject.params)
        _require_same(want, tuple(got), 0.0)
        _, state = want


def _check_metrics(subject: _Subject) -> None:
    state = subject.chained.init(subject.params)
    metrics = report(subject.chained, subject.gradients[0], state, subject.params)
    for name, value in metrics.items():
        if jnp.shape(value) != ():
            raise ValueError(f"need scalars, got shape {jnp.shape(value)} at {name!r}")


LAWS: dict[str, Callable[[_Subject], None]] = {
    "jit equals eager": _check_jit,
    "three calls trace once": _check_traces,
    "vmap equals one by one": _check_vmap,  # of a scan, which equals the loop
    "the first step can be donated": _check_donation,
    "identity is the unit of chain": _check_unit,
    "chain is associative": _check_associativity,
    "low precision is float32, rounded": _check_low_precision,
    "zero gradients give finite updates": _check_zero_gradients,
    "report is the update with metrics": _check_report,
    "a report contains scalars": _check_metrics,
}


def _hold(law: str, check: Callable[..., Any], *args: Any) -> Any:
    try:
        return check(*args)
    except Exception as error:  # the user's code runs in here
        raise ValueError(f"law broken: {law}: {error}") from error


def _loop(
    update: Callable[..., Any],
    chained: Transform,
    params: Params,
    gradients: list[Updates],
) -> list[tuple[Updates, OptState]]:
    state, results = chained.init(params), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        results.append((updates, state))
    return results


def _donating_step(chained: Transform) -> tuple[Callable[..., Any], list[None]]:
    """Return a jitted step that donates its state, and a list of its traces."""
    traces: list[None] = []

    def step(
        params: Params, state: OptState, gradient: Updates
    ) -> tuple[Params, OptState, Updates]:
        traces.append(None)
        updates, state = chained.update(gradient, state, params)
        return apply_updates(params, updates), state, updates

    return jax.jit(step, donate_argnums=(0, 1)), traces


def _jitted(
    step: Callable[..., Any],
    chained: Transform,
    params: Params,
    gradients: list[Updates],
) -> list[tuple[Updates, OptState]]:
    def update(
        gradient: Updates, state: OptState, params: Params
    ) -> tuple[Updates, OptState]:
        _, state, updates = step(_copy(params), _copy(state), gradient)
        return updates, state

    return _loop(update, chained, params, gradients)


def _jitted_loop(
    subject: _Subject, params: Params, gradients: list[Updates]
) -> list[tuple[Updates, OptState]]:
    return _jitted(subject.step, subject.chained, params, gradients)


def _copy(a: Any) -> Any:
    return jax.tree.map(jnp.copy, a)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _leaves(a: Any) -> list[tuple[str, Any]]:
    return list(tree.leaf_paths(a).items())


def _address(leaf: Any) -> int:
    return id(leaf) if tree.is_key(leaf) else leaf.unsafe_buffer_pointer()


def _numbers(leaf: Any) -> np.ndarray:
    if tree.is_key(leaf):
        leaf = jax.random.key_data(leaf)
    kind = np.complex128 if jnp.iscomplexobj(leaf) else np.float64
    return np.asarray(leaf).astype(kind)


def _require_form(want: Any, got: Any) -> None:
    difference = tree.mismatch(want, got)
    if difference:
        raise ValueError(difference)


def _require_finite(a: Any) -> None:
    for path, leaf in _leaves(a):
        if not np.all(np.isfinite(_numbers(leaf))):
            raise ValueError(f"need finite updates, got {leaf} at {path!r}")


def _require_same(want: Any, got: Any, tolerance: float) -> None:
    """Compare entries, with a tolerance relative to the leaf's largest finite one."""
    _require_form(want, got)
    for (path, a), (_, b) in zip(_leaves(want), _leaves(got), strict=True):
        x, y = _numbers(a), _numbers(b)
        sizes = np.abs(x[np.isfinite(x)])
        slack = tolerance * np.max(sizes, initial=0.0)
        if not np.allclose(x, y, rtol=tolerance, atol=slack, equal_nan=True):
            raise ValueError(f"need {a} at {path!r}, got {b}")
