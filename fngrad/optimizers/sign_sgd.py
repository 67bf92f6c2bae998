"""signSGD, and Signum: the signs of the gradient, or of its average.

A sign is -1, 0 or 1: an entry with zero gradient does not move.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import optional_decay
from fngrad.transforms.moment_arithmetic import check_decay
from fngrad.transforms.momentum_buffers import ema
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Selector, Updates


def scale_by_sign() -> Transform:
    r"""Keep the sign of each entry: $u \leftarrow \operatorname{sign} u$.

    Returns the direction of `sign_sgd`; see there for the reference.

    Raises:
        TypeError: at ``init``, if a parameter is complex.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> rule, params = fg.scale_by_sign(), jnp.zeros(3)
        >>> gradient = jnp.array([0.2, 0.0, -7.0])
        >>> print(rule.update(gradient, rule.init(params), params)[0])
        [ 1.  0. -1.]
    """

    def init(params: Params) -> tuple:
        tree.check_real("scale_by_sign", params)
        return ()

    def update(updates: Updates, state: tuple, params: Params) -> tuple[Updates, tuple]:
        return jax.tree.map(jnp.sign, updates), state

    return chain(Transform(init, update, name="scale_by_sign"))


def sign_sgd(
    learning_rate: Hyper,
    *,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""Step by the learning rate along each coordinate, downhill: signSGD.

    $$w_{t+1} = w_t - \alpha_t \operatorname{sign}(g_t)$$

    Args:
        learning_rate: $\alpha$, in units of the parameters: a number >= 0, a scalar
            array or tracer, or a schedule.
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is negative; or there is a mask but no decay; at
            ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.sign_sgd(0.1)
        >>> params = jnp.array([3.0, 0.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates)
        [-0.1 -0.   0.1]

    References:
        Bernstein et al., signSGD: compressed optimisation for non-convex problems,
        2018, algorithm 1, and for `signum` algorithm 2,
        https://arxiv.org/abs/1802.04434.
    """
    decay = optional_decay(weight_decay, mask)
    return chain(scale_by_sign(), *decay, scale_by_learning_rate(learning_rate))


def signum(
    learning_rate: Hyper,
    beta: Hyper = 0.9,
    *,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""Step along the signs of the averaged gradient: signSGD with momentum.

    $$m_t = \beta\,m_{t-1} + (1 - \beta)\,g_t, \qquad
      w_{t+1} = w_t - \alpha_t \operatorname{sign}(m_t)$$

    Args:
        learning_rate: $\alpha$, in units of the parameters: a number >= 0, a scalar
            array or tracer, or a schedule.
        beta: $\beta$ in [0, 1].
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``init``, if a
            parameter is complex.
        ValueError: if a number is out of range; or there is a mask but no decay; at
            ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.signum(1e-4, beta=0.95)

    References:
        Algorithm 2 of the paper cited in `sign_sgd`.
    """
    check_decay("beta", beta, corrected=False)
    return chain(
        ema(beta, debias=False),
        scale_by_sign(),
        *optional_decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
