"""NAdam and Adan: adaptive rules that look ahead."""

from fngrad.optimizers.weight_decay import decaying
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.differences import scale_by_adan
from fngrad.transforms.momentum_schedule import scale_by_nadam
from fngrad.transforms.proximal import proximal_decay
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Selector


def nadam(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    momentum_decay: Hyper | None = None,
    debias_ahead: bool = True,
    decoupled_weight_decay: bool = True,
) -> Transform:
    r"""NAdam: Adam with Nesterov's look-ahead, and a momentum that may warm up.

    With Adam's averages $\mu_t$ and $\hat\nu_t$, a momentum that rises from about half
    of $\beta_1$ to $\beta_1$, and its products $\pi_t = \beta(1) \cdots \beta(t)$

    $$\beta(t) = \beta_1\,(1 - \tfrac12\,0.96^{t \psi})$$
    $$w_{t+1} = w_t - \alpha_t \left(
      \frac{1}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}
      \left[\frac{\beta(t+1)\,\mu_t}{1 - \pi_{t+1}}
      + \frac{(1 - \beta(t))\,g_t}{1 - \pi_t}\right] + \lambda\,w_t\right)$$

    Four rules are in use:

    - ``momentum_decay=None``: $\beta(t) = \beta_1$ from the start, as in optax, where
      it is ``adam(..., nesterov=True)`` here and there;
    - ``momentum_decay=4e-3, decoupled_weight_decay=False``: PyTorch's defaults, a rise
      over hundreds of steps;
    - ``momentum_decay=1.0, eps=1e-7``: Keras's and the paper's, over tens of steps;
    - ``debias_ahead=False``: AlgoPerf's NAdamW, where $\pi_t$ stands in both
      denominators.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        momentum_decay: $\psi$ >= 0, a rate per step; ``None`` is its limit of infinity.
        debias_ahead: whether the average is corrected for the weight it will have.
        decoupled_weight_decay: whether decay is decoupled, as above, or $\lambda\,w_t$
            is added to the gradient.

    Raises:
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.nadam(1e-3, momentum_decay=4e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))
        [-0.001056  0.001056]

    References:
        Dozat, Incorporating Nesterov momentum into Adam, 2016, algorithm 2,
        https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ. Differs from it in:
        $\hat\nu$ lacks its factor $\beta_2$, and $\mu$ decays by $\beta_1$, not by
        $\beta(t)$, as in PyTorch and Keras. NAdamW: Choi et al., On empirical
        comparisons of optimizers for deep learning, 2019, table 1,
        https://arxiv.org/abs/1910.05446.
    """
    rule = scale_by_nadam(
        b1, b2, eps, eps_root, momentum_decay=momentum_decay, debias_ahead=debias_ahead
    )
    return decaying(
        rule, learning_rate, weight_decay, mask, decoupled=decoupled_weight_decay
    )


def adan(
    learning_rate: Hyper,
    b1: Hyper = 0.98,
    b2: Hyper = 0.92,
    b3: Hyper = 0.99,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    *,
    proximal: bool = True,
) -> Transform:
    r"""Adan: look ahead along the average change of the gradient.

    With $d_t = g_t - g_{t-1}$ and $d_1 = 0$

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \delta_t = \beta_2\,\delta_{t-1} + (1 - \beta_2)\,d_t, \qquad
      \nu_t = \beta_3\,\nu_{t-1} + (1 - \beta_3)\,|g_t + \beta_2\,d_t|^2$$
    $$w_{t+1} = \frac{1}{1 + \alpha_t \lambda} \left[ w_t - \alpha_t\,
      \frac{\hat\mu_t + \beta_2\,\hat\delta_t}
      {\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon} \right]$$

    where a hat divides by $1 - \beta^t$. With ``proximal=False`` decay is AdamW's,
    $-\alpha_t \lambda\,w_t$ beside the step.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        b3: $\beta_3$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units; optax's default is
            1e-8.
        weight_decay: $\lambda$, >= 0 if ``proximal``.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        proximal: which decay.

    Raises:
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adan(1e-3, weight_decay=0.02)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(6))
        [-0.00106  0.00108]

    References:
        Xie et al., Adan: adaptive Nesterov momentum algorithm for faster optimizing
        deep models, 2022, algorithm 1, https://arxiv.org/abs/2208.06677. Differs from
        it in: decays are one minus the paper's, and averages begin at zero and are
        corrected for it, as in the authors' code; there are no restarts. optax has
        $1 - \beta_2$ where the paper has $\beta_2$ (in these decays) before $d_t$ and
        $\hat\delta_t$, which the first step does not show.
    """
    rule = scale_by_adan(b1, b2, b3, eps, eps_root)
    if not proximal:
        return decaying(rule, learning_rate, weight_decay, mask)
    return chain(
        rule,
        scale_by_learning_rate(learning_rate),
        proximal_decay(learning_rate, weight_decay, mask),
    )
