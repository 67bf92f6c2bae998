"""Noise added to updates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.types import Hyper, Key, Params, Updates


class AddNoiseState(NamedTuple):
    """State of `add_noise`."""

    step: jax.Array  # int32, shape ()
    key: Key  # the same at every step


def add_noise(eta: Hyper, gamma: Hyper, key: int | Key) -> Transform:
    r"""Add Gaussian noise whose variance decays with the step.

    $$u_t \leftarrow u_t + \mathcal N\big(0, \eta / (1 + t)^\gamma\big),
      \qquad t = 0, 1, \ldots$$

    The noise of step $t$ is drawn from ``fold_in(key, t)``, independently per leaf; on
    a complex leaf the variance is that of the modulus.

    Args:
        eta: $\eta$ >= 0, a variance, in squared units of the updates.
        gamma: $\gamma$ >= 0.
        key: a typed key or an int.

    Raises:
        ValueError: if ``eta`` or ``gamma`` is negative.
        TypeError: if the key is neither.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> langevin = fg.chain(fg.add_noise(0.01, 0.55, key=0), fg.sgd(0.1))
        >>> state = langevin.init(jnp.zeros(3))

    References:
        Neelakantan et al., Adding gradient noise improves learning for very deep
        networks, 2015, section 2, https://arxiv.org/abs/1511.06807.
    """
    numerics.check_number("eta", eta, low=0.0)
    numerics.check_number("gamma", gamma, low=0.0)
    numerics.key(key)

    def init(params: Params) -> AddNoiseState:
        # A copy: donating the state must not delete the caller's key.
        return AddNoiseState(numerics.first_step(), tree.copied(numerics.key(key)))

    def update(
        updates: Updates, state: AddNoiseState, params: Params
    ) -> tuple[Updates, AddNoiseState]:
        variance, power = numerics.hypers(state.step, eta, gamma)
        t = state.step.astype(power.dtype) + 1
        stddev = jnp.sqrt(variance / t**power)
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(leaves))
        noisy = [
            u + numerics.scaled(stddev, jax.random.normal(k, u.shape, u.dtype))
            for k, u in zip(keys, leaves, strict=True)
        ]
        new_state = AddNoiseState(numerics.next_step(state.step), state.key)
        return jax.tree.unflatten(structure, noisy), new_state

    return chain(Transform(init, update, name="add_noise"))
