"""Stochastic rounding: updates of 16-bit parameters without bias."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.transforms.queries as queries
from fngrad.numerics.stochastic_rounding import round_stochastically
from fngrad.transforms.core import Transform, chain
from fngrad.types import Key, Params, Updates


class StochasticRoundState(NamedTuple):
    """State of `stochastic_round`."""

    step: jax.Array  # int32, shape ()
    key: Key  # the same at every step
    chain_order = queries.LAST_CHANGE  # type: int


def stochastic_round(key: int | Key) -> Transform:
    r"""Round the sum of a 16-bit parameter and its update stochastically.

    An update below half a unit in the last place is lost when $w + u$ is rounded to
    the nearest: in bfloat16 1 + 0.001 is 1. Here $w + u$ is rounded up or down at
    random, with mean $w + u$, also where $u$ is below the resolution of float32
    (`fngrad.numerics.stochastic_rounding.round_stochastically`), and the update is the
    difference,

    $$u \leftarrow \mathrm{round}(w + u) - w.$$

    It is the last part of a chain: `apply_updates` adds the difference, without an
    error if the new value is between half and twice the old value (Sterbenz), or the
    old value is zero. For larger updates one rounding error of the 16-bit sum remains.
    Leaves of 32 bits and more, and complex leaves, pass unchanged.

    The draws of step $t$ come from ``fold_in(key, t)``, split over the leaves.

    Args:
        key: a typed key or an int.

    Raises:
        TypeError: if the key is neither.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.adamw(3e-4), fg.stochastic_round(key=0))
        >>> state = optimizer.init(jnp.ones(3, jnp.bfloat16))

    References:
        Zamirai et al., Revisiting bfloat16 training, 2020, algorithm 1,
        https://arxiv.org/abs/2010.06192. Sterbenz, Floating-point computation, 1974,
        section 4.3.
    """
    numerics.key(key)

    def init(params: Params) -> StochasticRoundState:
        # A copy: donating the state must not delete the caller's key.
        return StochasticRoundState(numerics.first_step(), jnp.copy(numerics.key(key)))

    def update(
        updates: Updates, state: StochasticRoundState, params: Params
    ) -> tuple[Updates, StochasticRoundState]:
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(leaves))
        old = structure.flatten_up_to(params)
        new = list(map(_rounded_update, leaves, old, keys))
        new_state = StochasticRoundState(numerics.next_step(state.step), state.key)
        return structure.unflatten(new), new_state

    return chain(Transform(init, update, name="stochastic_round"))


def _rounded_update(update: jax.Array, param: jax.Array, key: Key) -> jax.Array:
    """Return the difference between the rounded sum and a 16-bit parameter."""
    if param.dtype not in (jnp.bfloat16, jnp.float16):
        return update
    start = param.astype(update.dtype)
    total, rest = numerics.two_sum(start, update)
    target = round_stochastically(total, key, param.dtype, rest)
    return target.astype(update.dtype) - start
