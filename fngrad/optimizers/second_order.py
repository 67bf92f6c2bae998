"""L-BFGS and Sophia."""

from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.quasi_newton import scale_by_lbfgs
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.transforms.sophia import scale_by_sophia
from fngrad.types import Hyper, Selector


def lbfgs(
    learning_rate: Hyper = 1.0,
    memory_size: int = 10,
    scale_init_precond: bool = True,
) -> Transform:
    r"""L-BFGS: the gradient times an inverse Hessian built from the last m steps.

    $$w_{t+1} = w_t - \alpha_t\,P_t\,g_t$$

    with $P_t$ from the differences of parameters and gradients between the last
    m + 1 updates, see `scale_by_lbfgs`. It wants the same batch in every step, and a
    line search: ``steps.line_search(loss_fn, lbfgs(), "strong_wolfe")``.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule; 1 is right with a line search.
        memory_size: m >= 1; the state holds 2 m + 2 copies of the parameters.
        scale_init_precond: whether the recursion begins at a multiple of the identity
            that fits the newest pair, or at the identity.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.lbfgs(0.5)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates)  # at first along the gradient, no longer than alpha
        [-0.3  0.4]

    References:
        Liu and Nocedal, On the limited memory BFGS method for large scale
        optimization, 1989, https://doi.org/10.1007/BF01589116. Differs from it in:
        pairs without positive curvature are skipped; the first step is no longer than
        one.
    """
    return chain(
        scale_by_lbfgs(memory_size, scale_init_precond),
        scale_by_learning_rate(learning_rate),
    )


def sophia(
    learning_rate: Hyper,
    b1: Hyper = 0.965,
    b2: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-4,
    mask: Selector | None = None,
    gamma: Hyper = 0.01,
    clip_threshold: Hyper = 1.0,
) -> Transform:
    r"""Sophia: averaged gradients over an estimated Hessian diagonal, clipped.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      h_t = \beta_2\,h_{t-k} + (1 - \beta_2)\,\hat h_t$$
    $$w_{t+1} = w_t - \alpha_t \left(\mathrm{clip}\!\left(
      \frac{\mu_t}{\max(\gamma\,h_t, \epsilon)}, \rho\right) + \lambda\,w_t\right)$$

    The estimates $\hat h$ need the loss: train with
    ``steps.sophia(loss_fn, sophia(...))``. In a plain `fngrad.make_step` there are
    none, and every entry moves by $\alpha_t\,\rho$, by the sign of $\mu_t$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ > 0, in units of curvature.
        weight_decay: $\lambda$; the paper has 0.2.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        gamma: $\gamma$ > 0; the paper tunes it so that 10 to 50 % of the entries are
            not clipped.
        clip_threshold: $\rho$ > 0, the largest entry of an update, before $\alpha$.

    Raises:
        TypeError: at ``init``, complex parameters.
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.sophia(1e-3, weight_decay=0.2, mask="**/weight")

    References:
        Liu et al., Sophia: a scalable stochastic second-order optimizer for language
        model pre-training, 2023, algorithm 3, https://arxiv.org/abs/2305.14342.
        Differs from optax in: no bias correction, as in the paper.
    """
    return chain(
        scale_by_sophia(b1, b2, eps, gamma, clip_threshold),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
