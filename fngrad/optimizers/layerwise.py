"""Rules with one number for each leaf: LARS, LAMB, NovoGrad."""

import fngrad.numerics as numerics
from fngrad.transforms.blocks import scale_by_block_norm
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.moments import scale_by_adam, trace
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.transforms.trust import scale_by_lars, scale_by_trust_ratio
from fngrad.types import Hyper, Selector


def lars(
    learning_rate: Hyper,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    trust_coefficient: Hyper = 0.001,
    eps: Hyper = 0.0,
    trust_ratio_mask: Selector | None = None,
    momentum: Hyper = 0.9,
    nesterov: bool = False,
    *,
    separate_norms: bool = False,
) -> Transform:
    r"""Momentum with steps in proportion to each layer's parameters: LARS.

    For each leaf

    $$\rho_t = \eta\,\frac{\|w_t\|}{\|g_t + \lambda\,w_t\| + \epsilon}
      \quad\text{or}\quad
      \rho_t = \eta\,\frac{\|w_t\|}{\|g_t\| + \lambda\,\|w_t\| + \epsilon}$$
    $$b_t = \beta\,b_{t-1} + \alpha_t\,\rho_t\,(g_t + \lambda\,w_t), \qquad
      w_{t+1} = w_t - b_t$$

    or, with ``nesterov``,
    $w_{t+1} = w_t - \beta\,b_t - \alpha_t\,\rho_t\,(g_t + \lambda\,w_t)$. Where either
    of the compared norms is zero, $\rho_t = 1$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        trust_coefficient: $\eta$ >= 0.
        eps: $\epsilon$ >= 0, in gradient units.
        trust_ratio_mask: which leaves have a trust ratio; ``None`` means all. Biases
            and the parameters of norms are often left out of both masks.
        momentum: $\beta$ in [0, 1].
        nesterov: whether to look ahead.
        separate_norms: the first (optax) or the second form (the paper) of $\rho_t$.

    Raises:
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.lars(1.0, trust_coefficient=0.1)
        >>> params, gradient = jnp.array([3.0, 4.0]), jnp.array([0.0, 200.0])
        >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        >>> print(updates.round(4))  # a tenth of the norm, 5
        [ 0.  -0.5]

    References:
        You, Gitman and Ginsburg, Large batch training of convolutional networks, 2017,
        algorithm 1, https://arxiv.org/abs/1708.03888. Differs from it in:
        ``separate_norms`` is off, as in optax; without decay it makes no difference.
    """
    numerics.check_number("momentum", momentum, 0.0, 1.0)
    return chain(
        scale_by_lars(
            weight_decay,
            mask,
            trust_coefficient,
            eps,
            trust_ratio_mask,
            separate_norms=separate_norms,
        ),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


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
) -> Transform:
    r"""Adam with steps in proportion to each layer's parameters: LAMB.

    With Adam's direction $r_t$ (see `adam`), for each leaf

    $$u_t = r_t + \lambda\,w_t, \qquad
      w_{t+1} = w_t - \alpha_t\,\frac{\|w_t\|}{\|u_t\|}\,u_t$$

    or, with ``decay_outside``,

    $$w_{t+1} = w_t
      - \alpha_t \Big(\frac{\|w_t\|}{\|r_t\|}\,r_t + \lambda\,w_t\Big)$$

    Where either of the compared norms is zero, their ratio counts as 1. Without decay a
    leaf's norm changes by at most the factor $1 \pm \alpha_t$ a step.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        decay_outside: whether the decay is added after the trust ratio. Keras does
            that, and decays first, so that its $\|w_t\|$ is smaller by the factor
            $1 - \alpha_t \lambda$.

    Raises:
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

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
    """
    decay = add_decayed_weights(weight_decay, mask)
    adapt = scale_by_trust_ratio()
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        *((adapt, decay) if decay_outside else (decay, adapt)),
        scale_by_learning_rate(learning_rate),
    )


def novograd(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.25,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
) -> Transform:
    r"""NovoGrad: gradients normalised layer by layer, then momentum and decay.

    For each leaf

    $$\nu_1 = \|g_1\|^2, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,\|g_t\|^2$$
    $$\mu_t = \beta_1\,\mu_{t-1} + \frac{g_t}{\sqrt{\nu_t + \bar\epsilon} + \epsilon}
      + \lambda\,w_t, \qquad w_{t+1} = w_t - \alpha_t\,\mu_t$$

    It keeps one moment in the size of the parameters where Adam keeps two.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1]; the paper has 0.25 and 0.98.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$, inside the momentum.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.novograd(0.1)
        >>> params, gradient = jnp.zeros(2), jnp.array([3.0, 4.0])
        >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        >>> print(updates.round(4))
        [-0.06 -0.08]

    References:
        Ginsburg et al., Stochastic gradient methods with layer-wise adaptive moments
        for training of deep networks, 2019, algorithm 1,
        https://arxiv.org/abs/1905.11286. Differs from it in: $\epsilon$ counts at the
        first step too.
    """
    numerics.check_number("b1", b1, 0.0, 1.0)
    return chain(
        scale_by_block_norm(b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        trace(b1),
        scale_by_learning_rate(learning_rate),
    )
