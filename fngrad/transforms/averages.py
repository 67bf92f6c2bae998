"""Averages of the parameters, kept beside the parameters that are trained.

The *fast* weights are the parameters, to which every update is added. The *slow*
weights are an average of them, at which the model is evaluated (`fngrad.eval_params`).
`lookahead` resets the fast weights to the slow ones now and then; `ema_params` and
`average_params` leave them alone. Slow weights are kept in at least float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.transforms.queries as queries
import fngrad.tree as tree
from fngrad.programs.keywords_elsewhere import explains_keywords
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    UpdateFn,
    apply_updates,
    chain,
    trainable_leaves,
    unwrap,
    wrapper,
)
from fngrad.transforms.moment_arithmetic import check_decay
from fngrad.transforms.tunable_hyperparameters import TunableState
from fngrad.types import Hyper, Metrics, OptState, Params, Updates

_FULL = -100.0  # log of a rest that rounds to nothing beside 1 in every dtype


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
    log_rest: jax.Array  # float, shape (); log of 1 - the sum of weights so far
    average: Params  # None for integer leaves
    chain_order = queries.AFTER_STEP  # type: int

    def eval_params(self, params: Params) -> Params:
        """Return the average, or the parameters while it is empty."""
        weight = -jnp.expm1(self.log_rest)
        is_empty = weight <= 0

        def corrected(a: jax.Array | None, p: jax.Array) -> jax.Array:
            if a is None:
                return p
            mean = a / jnp.where(is_empty, 1, weight).astype(a.dtype)
            return jnp.where(is_empty, p.astype(a.dtype), mean)

        return jax.tree.map(corrected, self.average, params, is_leaf=_is_hole)


def lookahead(
    inner: TransformLike,
    sync_period: int = 6,
    slow_step_size: Hyper = 0.5,
    reset_state: bool = False,
) -> Transform:
    r"""Average an optimizer's weights, and restart it from the average every k steps.

    The optimizer updates the fast weights $\theta$. After every k-th update the slow
    weights $\phi$ move a part of the way to them, and the fast weights are reset:

    $$\phi \leftarrow \phi + \alpha\,(\theta - \phi), \qquad \theta \leftarrow \phi$$

    With $\alpha = 1$ this is ``inner``. `fngrad.eval_params` gives the slow weights.

    Args:
        inner: a whole optimizer.
        sync_period: k >= 1, an int.
        slow_step_size: $\alpha$ in [0, 1].
        reset_state: whether the state of ``inner`` is reset with the fast weights:
            its averages and its steps, so its schedules restart too. Values that
            `tunable` keeps stay.

    Raises:
        ValueError: if a number is out of range.

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
        parameters are the fast weights; the slow weights are in the state.
    """
    sync_period = numerics.check_count("sync_period", sync_period, low=1)
    numerics.check_number("slow_step_size", slow_step_size, 0.0, 1.0)
    within = unwrap(inner)

    def init(params: Params) -> LookaheadState:
        slow = tree.wide_copy(tree.keep(trainable_leaves(within, params), params))
        return LookaheadState(numerics.first_step(), slow, within.init(params))

    def advance(
        update_fn: UpdateFn, updates: Updates, state: LookaheadState, params: Params
    ) -> tuple[Updates, LookaheadState, Metrics]:
        made, new, metrics = update_fn(within, updates, state.inner, params)
        trainable = trainable_leaves(within, params)
        kept, moves = (tree.keep(trainable, x) for x in (params, made))
        alpha = numerics.hyper(slow_step_size, state.step)
        syncs = (state.step + 1) % sync_period == 0
        fast = tree.add(tree.widen(kept), moves)
        slow = tree.lerp(state.slow, fast, alpha)
        back = tree.add(moves, tree.sub(slow, fast))
        if reset_state:
            start = tree.merge(tree.cast_like(slow, kept), params)
            restarted = _with_values_of(new, within.init(start))
            new = tree.where(syncs, restarted, new)
        new_updates = tree.merge(tree.where(syncs, back, moves), made)
        new_slow = tree.where(syncs, slow, state.slow)
        step = numerics.next_step(state.step)
        return new_updates, LookaheadState(step, new_slow, new), metrics

    return chain(wrapper(init, advance, "lookahead", within.trainable))


@explains_keywords()
def ema_params(
    decay: Hyper = 0.999,
    debias: bool = True,
    every: int = 1,
    start_step: int = 0,
) -> Transform:
    r"""Keep an exponential moving average of the parameters; updates pass unchanged.

    With $w_t$ the parameters after the t-th update

    $$\bar w_t = \beta\,\bar w_{t-1} + (1 - \beta)\,w_t$$

    With ``debias`` the average begins at $\bar w_0 = 0$ and is divided by
    $1 - \prod \beta$, the sum of its weights; without, it begins at the first
    parameters. `fngrad.eval_params` gives the average, or the parameters while it is
    empty. It belongs last in a chain, after the learning rate; a chain with a part
    after it that changes the updates raises at ``init``. Inside `accumulate` it counts
    updates.

    Args:
        decay: $\beta$, in [0, 1) with ``debias``, else in [0, 1]; may be a schedule,
            for which the correction uses the values that it had.
        debias: whether to begin at zero and correct for it, or to begin at the
            parameters.
        every: how many updates apart the terms of the average are, an int >= 1.
        start_step: how many updates to wait, an int >= 0; until then the average is
            empty, or without ``debias`` equal to the parameters.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.adam(1e-3), fg.ema_params(0.999))

    References:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging,
        1992, https://doi.org/10.1137/0330046. Differs from it in: the weights of the
        average fall exponentially.
    """
    check_decay("decay", decay, corrected=debias)
    every = numerics.check_count("every", every, low=1)
    start_step = numerics.check_count("start_step", start_step, low=0)

    def init(params: Params) -> EmaParamsState:
        empty = empty_average(params)
        if debias:
            return empty
        full = jnp.full_like(empty.log_rest, _FULL)
        return empty._replace(
            log_rest=full, average=tree.wide_copy(tree.floats(params))
        )

    def update(
        updates: Updates, state: EmaParamsState, params: Params
    ) -> tuple[Updates, EmaParamsState]:
        new_params = apply_updates(params, tree.cast_like(updates, params))
        is_due = (state.step - start_step + 1) % every == 0
        beta = numerics.hyper(decay, state.step)
        beta = jnp.where((state.step >= start_step) & is_due, beta, 1)
        new_state = with_term(state, new_params, beta)
        if not debias:
            term = tree.widen(tree.floats(new_params))
            is_before = state.step < start_step
            average = tree.where(is_before, term, new_state.average)
            new_state = new_state._replace(average=average)
        return updates, new_state

    return chain(Transform(init, update, name="ema_params"))


def empty_average(values: Params) -> EmaParamsState:
    """Return the average before its first term, of the floats among some values."""
    zeros = tree.zeros_like(tree.wide_copy(tree.floats(values)))
    log_rest = numerics.scalar(0.0)
    return EmaParamsState(numerics.first_step(), log_rest, zeros)


def with_term(
    state: EmaParamsState, values: Params, decay: jax.Array
) -> EmaParamsState:
    """Return the average with one more term, of the weight 1 - decay."""
    term = tree.widen(tree.floats(values))
    average = tree.average(decay, state.average, term)
    log_rest = jnp.maximum(state.log_rest + jnp.log(decay), _FULL)
    return EmaParamsState(numerics.next_step(state.step), log_rest, average)


def _with_values_of(old: OptState, fresh: OptState) -> OptState:
    """Return the fresh state with the hyperparameters of the old one."""

    def keep(new: TunableState, before: TunableState) -> TunableState:
        inner = _with_values_of(before.inner, new.inner)
        return TunableState(before.hyperparameters, inner)

    return queries.replace(fresh, TunableState, keep, old)


def _is_hole(x: Any) -> bool:
    return x is None


class AverageParamsState(NamedTuple):
    """State of `average_params`."""

    step: jax.Array  # int32, shape ()
    average: Params  # of the parameters after each step
    chain_order = queries.AFTER_STEP  # type: int

    def eval_params(self, params: Params) -> Params:
        """Return the average."""
        return self.average


def average_params(gamma: Hyper = 8.0) -> Transform:
    r"""Keep an average with polynomial weights of the parameters; updates stay.

    With $w_t$ the parameters after the t-th update

    $$\bar w_t = (1 - c_t)\,\bar w_{t-1} + c_t\,w_t, \qquad
      c_t = \frac{1 + \gamma}{t + \gamma}$$

    so that after n steps the weight of $w_t$ is about proportional to
    $(t / n)^\gamma$: the end of the run counts most, whatever its length. It belongs
    last in a chain, after the learning rate. `fngrad.eval_params` gives the average.

    Args:
        gamma: $\gamma$ >= 0; with 0 all weights are equal.

    Raises:
        ValueError: if ``gamma`` is negative.

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
        power = numerics.hyper(gamma, state.step)
        before = state.step.astype(power.dtype)
        weight = (1 + power) / (1 + before + power)
        average = tree.lerp(
            state.average, tree.add(tree.widen(params), updates), weight
        )
        return updates, AverageParamsState(numerics.next_step(state.step), average)

    return chain(Transform(init, update, name="average_params"))
