"""Adamax and AMSGrad."""

from typing import Literal

from fngrad.optimizers.weight_decay import decaying
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.maxima import scale_by_adamax, scale_by_amsgrad
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Selector


def adamax(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    eps_in_max: bool = True,
    decoupled_weight_decay: bool = True,
) -> Transform:
    r"""Adamax: averaged gradients over their largest size, which fades slowly.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \nu_t = \max(\beta_2\,\nu_{t-1},\ |g_t| + \epsilon)$$
    $$w_{t+1} = w_t - \alpha_t\left(
      \frac{\mu_t / (1 - \beta_1^t)}{\nu_t} + \lambda\,w_t\right)$$

    or, with ``eps_in_max=False``, $\nu_t = \max(\beta_2\,\nu_{t-1}, |g_t|)$ and the
    denominator $\nu_t + \epsilon$. The first is the place of $\epsilon$ in PyTorch and
    optax, the second in Keras. Decay is optax's adamaxw's.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        eps_in_max: the first or the second place of $\epsilon$.
        decoupled_weight_decay: whether decay is decoupled, as above, or $\lambda\,w_t$
            is added to the gradient, as in PyTorch.

    Raises:
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adamax(2e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))
        [-0.002  0.002]

    References:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015, algorithm 2,
        https://arxiv.org/abs/1412.6980. Differs from it in: $\epsilon$ and decay.
    """
    rule = scale_by_adamax(b1, b2, eps, eps_in_max=eps_in_max)
    return decaying(
        rule, learning_rate, weight_decay, mask, decoupled=decoupled_weight_decay
    )


def amsgrad(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    debias: Literal["before_max", "after_max", "never"] = "before_max",
) -> Transform:
    r"""AMSGrad: Adam whose denominator never shrinks.

    With Adam's averages $\mu_t$ and $\nu_t$

    $$w_{t+1} = w_t - \alpha_t\,
      \frac{\hat\mu_t}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}$$

    and one of three rules (``debias``):

    - ``"before_max"``: $\hat\mu_t = \mu_t / (1 - \beta_1^t)$ and
      $\hat\nu_t = \max_{s \le t} \nu_s / (1 - \beta_2^s)$, as in optax;
    - ``"after_max"``: $\hat\mu_t$ likewise and
      $\hat\nu_t = \max_{s \le t} \nu_s \,/\, (1 - \beta_2^t)$, as in PyTorch and, but
      for $\epsilon$, which it adds before bias correction, Keras;
    - ``"never"``: $\hat\mu_t = \mu_t$ and $\hat\nu_t = \max_{s \le t} \nu_s$, as in
      the paper.

    The first gives one huge early gradient its full weight for ever, the second lets
    it fade as the correction does.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1); in [0, 1] if nothing is debiased.
        b2: $\beta_2$ in [0, 1); in [0, 1] if nothing is debiased.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        debias: which rule.

    Raises:
        ValueError: a number out of range, or another rule.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.amsgrad(1e-3, debias="after_max")  # PyTorch's
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))
        [-0.001  0.001]

    References:
        Reddi, Kale and Kumar, On the convergence of Adam and beyond, 2018, algorithm
        2, https://arxiv.org/abs/1904.09237. Differs from it in: bias correction,
        unless ``debias="never"``.
    """
    return chain(
        scale_by_amsgrad(b1, b2, eps, eps_root, debias=debias),
        scale_by_learning_rate(learning_rate),
    )
