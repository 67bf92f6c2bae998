"""LAMB: Adam with one trust ratio per leaf."""

from __future__ import annotations

from fngrad.optimizers.adam import scale_by_adam
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.transforms.trust_ratio import scale_by_trust_ratio
from fngrad.types import Hyper, Selector


def lamb(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    decay_outside: bool = False,
    max_ratio: Hyper | None = None,
) -> Transform:
    r"""LAMB: Adam whose step in each leaf is proportional to the leaf's norm.

    With Adam's direction $r_t$ (see `adam`), for each leaf

    $$u_t = r_t + \lambda\,w_t, \qquad
      w_{t+1} = w_t - \alpha_t\,\frac{\|w_t\|}{\|u_t\|}\,u_t$$

    or, with ``decay_outside``,

    $$w_{t+1} = w_t -
      \alpha_t \Big(\frac{\|w_t\|}{\|r_t\|}\,r_t + \lambda\,w_t\Big)$$

    Where either norm is zero, their ratio counts as 1. Without decay a leaf's norm
    changes by at most the factor $1 \pm \alpha_t$ per step. Stacked layers
    (`fngrad.layers.repeat`, ``scan=True``) have one norm for all; `fngrad.layerwise`
    gives each its own.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        decay_outside: whether decay is added after the trust ratio. Keras does so, but
            decays before the step, which makes its $\|w_t\|$ smaller by the factor
            $1 - \alpha_t \lambda$.
        max_ratio: c >= 0, the largest ratio of the norms: where it is larger, c takes
            its place. 1 is LAMBC, timm's ``trust_clip``, whose step is at most Adam's.
            ``None`` sets no bound.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.lamb(0.01)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(4))  # a hundredth of the norm, 5
        [-0.0354  0.0354]

    References:
        You et al., Large batch optimization for deep learning: training BERT in 76
        minutes, 2020, algorithm 2, https://arxiv.org/abs/1904.00962. Differs from it
        in: the norm of the parameters is not clipped (their $\phi$ is the identity).
        ``max_ratio``: Fong, Chen and Chen, Improving layer-wise adaptive rate methods
        using trust ratio clipping, 2020, algorithm 1,
        https://arxiv.org/abs/2011.13584.
    """
    decay = add_decayed_weights(weight_decay, mask)
    adapt = scale_by_trust_ratio(max_ratio=max_ratio)
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        chain(adapt, decay) if decay_outside else chain(decay, adapt),
        scale_by_learning_rate(learning_rate),
    )
