"""A second set of weights beside the ones that are trained.

The *fast* weights are the parameters, which take every update. The *slow* ones follow
them, and are the ones to evaluate (`fngrad.eval_params`): either they pull the fast
weights back now and then (`lookahead`), or they only watch (`ema_params`,
`average_params`). They are kept in at least float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import (
    Run,
    Transform,
    TransformLike,
    apply_updates,
    chain,
    learned_leaves,
    unwrap,
    wrapping,
)
from fngrad.transforms.moment_arithmetic import check_decay
from fngrad.transforms.tunable_hyperparameters import TunableState
from fngrad.types import Hyper, Metrics, OptState, Params, Updates

_NONE_LEFT = -100.0  # e**-100 is lost beside 1 in every dtype


class LookaheadState(NamedTuple):
    """State of `lookahead`."""

    step: jax.Array  # int32, shape ()
    slow: Params  # slow weights; None for leaves that are not trained
    inner: OptState

    def eval_params(self, params: Params) -> Params:
        """Return the slow weights."""
        return tree.merge(self.slow, params)


class EmaParamsState(NamedTuple):
    """State of `ema_params`."""

    step: jax.Array  # int32, shape ()
    log_rest: jax.Array  # float, shape (); log of the weight that nothing has yet
    average: Params  # None for leaves of integers

    def eval_params(self, params: Params) -> Params:
        """Return the average, and the parameters while nothing is in it."""
        weight = -jnp.expm1(self.log_rest)
        is_empty = weight <= 0

        def debiased(a: jax.Array | None, p: jax.Array) -> jax.Array:
            if a is None:
                return p
            mean = a / jnp.where(is_empty, 1, weight).astype(a.dtype)
            return jnp.where(is_empty, p.astype(a.dtype), mean)

        return jax.tree.map(debiased, self.average, params, is_leaf=_is_hole)


def lookahead(
    inner: TransformLike,
    sync_period: int = 6,
    slow_step_size: Hyper = 0.5,
    reset_state: bool = False,
) -> Transform:
    r"""Let slow weights follow an optimizer, and pull it back to them.

    The optimizer moves the fast weights $\theta$. After every k-th update the slow
    weights $\phi$ go a part of the way to them, and the fast ones start again there:

    $$\phi \leftarrow \phi + \alpha\,(\theta - \phi), \qquad \theta \leftarrow \phi$$

    With $\alpha = 1$ this is ``inner``. `fngrad.eval_params` gives the slow weights.

    Args:
        inner: a whole optimizer.
        sync_period: k >= 1, an int.
        slow_step_size: $\alpha$ in [0, 1].
        reset_state: whether ``inner`` begins anew with the fast weights: its averages,
            and with them its steps, so its schedules too; values that `tunable` keeps
            stay.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.lookahead(fg.sgd(1.0), sync_period=2)
        >>> params, gradient = jnp.zeros(1), jnp.ones(1)
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(gradient, state, params)
        ...     params = fg.apply_updates(params, updates)
        ...     print(params)
        [-1.]
        [-1.]

    References:
        Zhang et al., Lookahead optimizer: k steps forward, 1 step back, 2019,
        algorithm 1, https://arxiv.org/abs/1907.08610. Differs from optax in: the
        parameters are the fast weights alone, and the slow ones are in the state.
    """
    sync_period = numerics.check_count("sync_period", sync_period, low=1)
    numerics.check_number("slow_step_size", slow_step_size, 0.0, 1.0)
    within = unwrap(inner)

    def init(params: Params) -> LookaheadState:
        slow = tree.wide_copy(tree.keep(learned_leaves(within, params), params))
        return LookaheadState(numerics.first_step(), slow, within.init(params))

    def advance(
        run: Run, updates: Updates, state: LookaheadState, params: Params
    ) -> tuple[Updates, LookaheadState, Metrics]:
        made, new, told = run(within, updates, state.inner, params)
        learned = learned_leaves(within, params)
        kept, moves = (tree.keep(learned, x) for x in (params, made))
        alpha = numerics.hyper(slow_step_size, state.step)
        syncs = (state.step + 1) % sync_period == 0
        fast = tree.add(tree.widen(kept), moves)
        slow = tree.lerp(state.slow, fast, alpha)
        back = tree.add(moves, tree.sub(slow, fast))
        if reset_state:
            start = tree.merge(tree.cast_like(slow, kept), params)
            anew = _with_values_of(new, within.init(start))
            new = tree.where(syncs, anew, new)
        new_updates = tree.merge(tree.where(syncs, back, moves), made)
        new_slow = tree.where(syncs, slow, state.slow)
        step = numerics.next_step(state.step)
        return new_updates, LookaheadState(step, new_slow, new), told

    return chain(wrapping(init, advance, "lookahead", within.trainable))


def ema_params(
    decay: Hyper = 0.999,
    debias: bool = True,
    every: int = 1,
    start_step: int = 0,
) -> Transform:
    r"""Keep an exponential average of the parameters; pass updates on.

    With $w_t$ the parameters after the t-th update

    $$\bar w_t = \beta\,\bar w_{t-1} + (1 - \beta)\,w_t$$

    from $\bar w_0 = 0$, divided by $1 - \prod \beta$, the weight that the $w$ have in
    it, if ``debias``; else from the first parameters. `fngrad.eval_params` gives the
    average; before there is anything in it, the parameters. It belongs last in a
    chain, after the learning rate. Inside `accumulate` it counts updates.

    Args:
        decay: $\beta$, in [0, 1) if ``debias``, else in [0, 1]. A schedule is
            corrected for with the values that it had.
        debias: whether to begin at zero and correct for it, or to begin at the
            parameters.
        every: average after every so many updates, an int >= 1.
        start_step: how many updates to wait for, an int >= 0; until then the average
            is empty, or without ``debias`` the parameters.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.adam(1e-3), fg.ema_params(0.999))

    References:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging,
        1992, https://doi.org/10.1137/0330046. Differs from it in: the average forgets.
    """
    check_decay("decay", decay, corrected=debias)
    every = numerics.check_count("every", every, low=1)
    start_step = numerics.check_count("start_step", start_step, low=0)

    def init(params: Params) -> EmaParamsState:
        copy = tree.wide_copy(_floats(params))
        log_rest = jnp.full((), 0.0 if debias else _NONE_LEFT, jnp.result_type(float))
        average = tree.zeros_like(copy) if debias else copy
        return EmaParamsState(numerics.first_step(), log_rest, average)

    def update(
        updates: Updates, state: EmaParamsState, params: Params
    ) -> tuple[Updates, EmaParamsState]:
        moved = apply_updates(params, tree.cast_like(updates, params))
        moved = tree.widen(_floats(moved))
        is_due = (state.step - start_step + 1) % every == 0
        beta = numerics.hyper(decay, state.step)
        beta = jnp.where((state.step >= start_step) & is_due, beta, 1)
        average = tree.average(beta, state.average, moved)
        if not debias:
            average = tree.where(state.step < start_step, moved, average)
        log_rest = jnp.maximum(state.log_rest + jnp.log(beta), _NONE_LEFT)
        return updates, EmaParamsState(
            numerics.next_step(state.step), log_rest, average
        )

    return chain(Transform(init, update, name="ema_params"))


def _with_values_of(old: OptState, fresh: OptState) -> OptState:
    """Return a fresh state with the hyperparameters that the old one keeps."""

    def keep(new: Any, before: Any) -> Any:
        if not isinstance(new, TunableState):
            return new
        inner = _with_values_of(before.inner, new.inner)
        return TunableState(before.hyperparameters, inner)

    return jax.tree.map(keep, fresh, old, is_leaf=lambda x: isinstance(x, TunableState))


def _floats(params: Params) -> Params:
    is_float = jax.tree.map(lambda p: jnp.issubdtype(p.dtype, jnp.inexact), params)
    return tree.keep(is_float, params)


def _is_hole(x: Any) -> bool:
    return x is None


class AverageParamsState(NamedTuple):
    """State of `average_params`."""

    step: jax.Array  # int32, shape ()
    average: Params  # of the parameters after each step

    def eval_params(self, params: Params) -> Params:
        """Return the average."""
        return self.average


def average_params(gamma: Hyper = 8.0) -> Transform:
    r"""Keep an average of the parameters that forgets polynomially; pass updates on.

    With $w_t$ the parameters after the t-th update

    $$\bar w_t = (1 - c_t)\,\bar w_{t-1} + c_t\,w_t, \qquad
      c_t = \frac{1 + \gamma}{t + \gamma}$$

    so that after n steps $w_t$ weighs in proportion to $(t / n)^\gamma$, about: the end
    of the run counts most, whatever its length. It belongs last in a chain, after the
    learning rate. `fngrad.eval_params` gives the average.

    Args:
        gamma: $\gamma$ >= 0; 0 weighs all alike.

    Raises:
        ValueError: a negative number.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.sgd(0.1), fg.average_params())

    References:
        Shamir and Zhang, Stochastic gradient descent for non-smooth optimization, 2013,
        section 4, https://proceedings.mlr.press/v28/shamir13.html.
    """
    numerics.check_number("gamma", gamma, low=0.0)

    def init(params: Params) -> AverageParamsState:
        return AverageParamsState(numerics.first_step(), tree.wide_copy(params))

    def update(
        updates: Updates, state: AverageParamsState, params: Params
    ) -> tuple[Updates, AverageParamsState]:
        forgets = numerics.hyper(gamma, state.step)
        before = state.step.astype(forgets.dtype)
        weight = (1 + forgets) / (1 + before + forgets)
        average = tree.lerp(
            state.average, tree.add(tree.widen(params), updates), weight
        )
        return updates, AverageParamsState(numerics.next_step(state.step), average)

    return chain(Transform(init, update, name="average_params"))
