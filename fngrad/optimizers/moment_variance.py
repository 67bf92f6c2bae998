"""RAdam and AdaBelief."""

from typing import Literal

from fngrad.optimizers.weight_decay import decaying
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.transforms.variance import scale_by_belief, scale_by_radam
from fngrad.types import Hyper, Selector


def radam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    threshold: Hyper = 5.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    nesterov: bool = False,
    unrectified: Literal["momentum", "skip"] = "momentum",
    decoupled_weight_decay: bool = True,
) -> Transform:
    r"""RAdam: Adam that steps as far as it can trust its denominator.

    With Adam's debiased averages $\hat\mu_t, \hat\nu_t$ and

    $$\rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \qquad
      \rho_\infty = \frac{2}{1 - \beta_2} - 1, \qquad
      r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\,\rho_\infty}
      {(\rho_\infty - 4)(\rho_\infty - 2)\,\rho_t}}$$
    $$w_{t+1} = w_t - \alpha_t\left(r_t\,
      \frac{\hat\mu_t}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}
      + \lambda\,w_t\right) \qquad \text{once } \rho_t \ge \text{threshold}$$

    and before that, for some five steps, $\hat\mu_t$ stands for the fraction and its
    factor: momentum with steps of the gradient's size (PyTorch, optax). With
    ``unrectified="skip"`` the gradient moves nothing then, as in the authors' code by
    default. It reports ``rectification``, $r_t$, 0 before.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1); up to 0.6 nothing is ever rectified.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        threshold: >= 4, the length of average that is trusted.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        nesterov: whether $\hat\mu_t$ looks ahead, as in `adam`.
        unrectified: what the first steps take.
        decoupled_weight_decay: whether decay is decoupled, as above, or $\lambda\,w_t$
            is added to the gradient, PyTorch's default.

    Raises:
        ValueError: a number out of range, or another kind of first step; at ``init``,
            a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.radam(1e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))  # of the gradient's size at first
        [-0.003  0.004]

    References:
        Liu et al., On the variance of the adaptive learning rate and beyond, 2020,
        algorithm 2, https://arxiv.org/abs/1908.03265. Differs from it in: the
        threshold, which is 4 there. PyTorch adds $\epsilon$ before bias correction;
        ``eps=lambda t: 1e-8 / jnp.sqrt(1 - b2 ** (t + 1.0))`` is the same.
    """
    rule = scale_by_radam(
        b1, b2, eps, eps_root, threshold, nesterov=nesterov, unrectified=unrectified
    )
    return decaying(
        rule, learning_rate, weight_decay, mask, decoupled=decoupled_weight_decay
    )


def adabelief(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    *,
    nesterov: bool = False,
    accumulate_eps: bool = True,
) -> Transform:
    r"""AdaBelief: long steps where the gradient is what its average expected.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t - \mu_t|^2 + \bar\epsilon$$
    $$w_{t+1} = w_t - \alpha_t\,\frac{\mu_t / (1 - \beta_1^t)}
      {\sqrt{\nu_t / (1 - \beta_2^t)} + \epsilon}$$

    The paper and optax add $\bar\epsilon$ within the recurrence, so that it builds up
    to $\bar\epsilon / (1 - \beta_2)$. With ``accumulate_eps=False`` it stays out of the
    average, and the root is that of $(\nu_t + \bar\epsilon) / (1 - \beta_2^t)$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        nesterov: whether the numerator looks ahead, as in `adam`.
        accumulate_eps: the first or the second place of $\bar\epsilon$.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adabelief(1e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))  # the first surprise is b1 times the gradient
        [-0.001111  0.001111]

    References:
        Zhuang et al., AdaBelief optimizer: adapting stepsizes by the belief in
        observed gradients, 2020, algorithm 2, https://arxiv.org/abs/2010.07468, where
        $\epsilon = \bar\epsilon$. Differs from the authors' later code in: no
        rectification.
    """
    return chain(
        scale_by_belief(
            b1, b2, eps, eps_root, nesterov=nesterov, accumulate_eps=accumulate_eps
        ),
        scale_by_learning_rate(learning_rate),
    )
