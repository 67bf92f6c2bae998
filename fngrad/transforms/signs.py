"""Rules that keep of a direction its signs alone.

A sign is -1, 0 or 1: an entry that points nowhere does not move. All parts here need
real parameters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.leaves as leaves
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.roots import check_decay
from fngrad.types import Hyper, Params, Updates


class ScaleByLionState(NamedTuple):
    """State of `scale_by_lion`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g

    signed = ("mu",)


class ScaleByRpropState(NamedTuple):
    """State of `scale_by_rprop`."""

    step: jax.Array  # int32, shape ()
    step_sizes: Updates  # of the last update, in units of the parameters
    signs: Updates  # of the last gradient; 0 where it had just turned


def scale_by_sign() -> Transform:
    r"""Keep the sign of each entry: $u \leftarrow \operatorname{sign} u$.

    Raises:
        TypeError: at ``init``, complex parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> rule, params = fg.scale_by_sign(), jnp.zeros(3)
        >>> gradient = jnp.array([0.2, 0.0, -7.0])
        >>> print(rule.update(gradient, rule.init(params), params)[0])
        [ 1.  0. -1.]

    References:
        Bernstein et al., signSGD: compressed optimisation for non-convex problems,
        2018, algorithm 1, https://arxiv.org/abs/1802.04434.
    """

    def init(params: Params) -> tuple:
        leaves.check_real("scale_by_sign", params)
        return ()

    def update(updates: Updates, state: tuple, params: Params) -> tuple[Updates, tuple]:
        return jax.tree.map(jnp.sign, updates), state

    return chain(Transform(init, update, name="scale_by_sign"))


def scale_by_lion(b1: Hyper = 0.9, b2: Hyper = 0.99) -> Transform:
    r"""Take the sign of two averages' mean: Lion's direction.

    $$u_t = \operatorname{sign}(\beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t), \qquad
      \mu_t = \beta_2\,\mu_{t-1} + (1 - \beta_2)\,g_t$$

    Args:
        b1: $\beta_1$ in [0, 1], the weight of the past in the update.
        b2: $\beta_2$ in [0, 1], the weight of the past in what is kept.

    Raises:
        TypeError: at ``init``, complex parameters.
        ValueError: a number out of range.

    References:
        Chen et al., Symbolic discovery of optimization algorithms, 2023, algorithm 2,
        https://arxiv.org/abs/2302.06675.
    """
    check_decay("b1", b1, corrected=False)
    check_decay("b2", b2, corrected=False)

    def init(params: Params) -> ScaleByLionState:
        leaves.check_real("scale_by_lion", params)
        return ScaleByLionState(numerics.first_step(), tree.wide_zeros_like(params))

    def update(
        updates: Updates, state: ScaleByLionState, params: Params
    ) -> tuple[Updates, ScaleByLionState]:
        blend = tree.average(numerics.hyper(b1, state.step), state.mu, updates)
        mu = tree.average(numerics.hyper(b2, state.step), state.mu, updates)
        new_state = ScaleByLionState(numerics.next_step(state.step), mu)
        return jax.tree.map(jnp.sign, blend), new_state

    return chain(Transform(init, update, name="scale_by_lion"))


def scale_by_rprop(
    learning_rate: Hyper,
    eta_minus: Hyper = 0.5,
    eta_plus: Hyper = 1.2,
    min_step_size: Hyper = 1e-6,
    max_step_size: Hyper = 50.0,
) -> Transform:
    r"""Walk by a step size of each entry's own, that learns from the signs: Rprop.

    With $c_t = \operatorname{sign}(g_t)\,s_{t-1}$, where $s_{t-1}$ is the last
    gradient's sign, $s_0 = 0$, and $\Delta_0$ the learning rate,

    $$\Delta_t = \operatorname{clip}(\eta\,\Delta_{t-1},
      \Delta_{\min}, \Delta_{\max}), \qquad
      \eta = \eta^+,\ \eta^-,\ 1 \quad\text{where } c_t > 0,\ < 0,\ = 0$$
    $$s_t = 0 \text{ where } c_t < 0, \text{ else } \operatorname{sign}(g_t), \qquad
      u_t = \Delta_t\,s_t$$

    An entry whose gradient has changed its sign rests for a step, and begins anew with
    the smaller step size.

    Args:
        learning_rate: $\Delta_0$ >= 0, the first step size, in units of the
            parameters. It is read at the first update and never again; of a schedule
            the value at step 0 counts.
        eta_minus: $\eta^-$ in [0, 1].
        eta_plus: $\eta^+$ >= 1.
        min_step_size: $\Delta_{\min}$ >= 0, in units of the parameters.
        max_step_size: $\Delta_{\max}$ >= 0, in units of the parameters.

    Raises:
        TypeError: ``learning_rate`` is None; at ``init``, complex parameters.
        ValueError: a number out of range.

    References:
        Riedmiller and Braun, A direct adaptive method for faster backpropagation
        learning: the RPROP algorithm, 1993, https://doi.org/10.1109/ICNN.1993.298623.
        Differs from it in: after a change of sign the last step is not taken back, as
        in PyTorch and in iRprop- (Igel and Hüsken, Improving the Rprop learning
        algorithm, 2000).
    """
    if learning_rate is None:
        raise TypeError("need a learning_rate, got None")
    numerics.check_number("learning_rate", learning_rate, low=0.0)
    numerics.check_number("eta_minus", eta_minus, 0.0, 1.0)
    numerics.check_number("eta_plus", eta_plus, low=1.0)
    numerics.check_number("min_step_size", min_step_size, low=0.0)
    numerics.check_number("max_step_size", max_step_size, low=0.0)

    def init(params: Params) -> ScaleByRpropState:
        leaves.check_real("scale_by_rprop", params)
        sizes, signs = tree.wide_zeros_like(params), tree.wide_zeros_like(params)
        return ScaleByRpropState(numerics.first_step(), sizes, signs)

    def update(
        updates: Updates, state: ScaleByRpropState, params: Params
    ) -> tuple[Updates, ScaleByRpropState]:
        step = state.step
        first = numerics.hyper(learning_rate, step)
        minus, plus = numerics.hyper(eta_minus, step), numerics.hyper(eta_plus, step)
        low = numerics.hyper(min_step_size, step)
        high = numerics.hyper(max_step_size, step)

        def resize(turn: jax.Array, size: jax.Array) -> jax.Array:
            plus_, minus_, low_, high_ = (
                value.astype(size.dtype) for value in (plus, minus, low, high)
            )
            size = jnp.where(step == 0, first.astype(size.dtype), size)
            factor = jnp.where(turn > 0, plus_, jnp.where(turn < 0, minus_, 1))
            return jnp.clip(size * factor, low_, high_)

        signs = jax.tree.map(jnp.sign, updates)
        turns = jax.tree.map(jnp.multiply, signs, state.signs)
        sizes = jax.tree.map(resize, turns, state.step_sizes)
        signs = jax.tree.map(lambda turn, s: jnp.where(turn < 0, 0, s), turns, signs)
        new_updates = jax.tree.map(jnp.multiply, sizes, signs)
        return new_updates, ScaleByRpropState(numerics.next_step(step), sizes, signs)

    return chain(Transform(init, update, name="scale_by_rprop"))
