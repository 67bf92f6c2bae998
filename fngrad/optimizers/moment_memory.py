"""ADOPT, AdEMAMix and Yogi: adaptive rules that remember otherwise than Adam."""

from fngrad.optimizers.weight_decay import decaying
from fngrad.transforms.additive_moments import scale_by_yogi
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.mixtures import scale_by_ademamix
from fngrad.transforms.past_moments import fourth_root, scale_by_adopt
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Scalar, Selector


def adopt(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.9999,
    eps: Hyper = 1e-6,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Hyper = fourth_root,
) -> Transform:
    r"""ADOPT: normalise by what was known before the gradient came, then average.

    The first gradient only starts $\nu_0 = |g_0|^2$; its update is zero. Then, for
    $t = 1, 2, \dots$, with $c_t = t^{1/4}$

    $$n_t = \operatorname{clip}\!\left(
      \frac{g_t}{\max(\sqrt{\nu_{t-1}}, \epsilon)},\ -c_t,\ c_t\right)$$
    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,n_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t|^2$$
    $$w_{t+1} = w_t - \alpha_t\,\mu_t$$

    With ``nesterov`` $\beta_1\,\mu_t + (1 - \beta_1)\,n_t$ takes the place of $\mu_t$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule; the zero update counts.
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1].
        eps: $\epsilon$ >= 0, in gradient units.
        nesterov: whether to look ahead.
        use_clipping: whether to clip.
        clip_value_fn: $c$ >= 0, a schedule (or a number); step 0 is the first gradient.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adopt(1e-3)
        >>> params = jnp.array([3.0, -4.0])
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(params, state, params)
        >>> print(updates.round(6))  # of the second gradient
        [-0.0001  0.0001]

    References:
        Taniguchi et al., ADOPT: modified Adam can converge with any beta2 with the
        optimal rate, 2024, https://arxiv.org/abs/2411.02853. Weights decay in
        ``chain(scale_by_adopt(), add_decayed_weights(l), scale_by_learning_rate(a))``.
    """
    rule = scale_by_adopt(
        b1,
        b2,
        eps,
        nesterov=nesterov,
        use_clipping=use_clipping,
        clip_value_fn=clip_value_fn,
    )
    return chain(rule, scale_by_learning_rate(learning_rate))


def ademamix(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    b3: Hyper = 0.9999,
    alpha: Hyper = 5.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
) -> Transform:
    r"""AdEMAMix: AdamW with a second, very slow average of gradients.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      s_t = \beta_3\,s_{t-1} + (1 - \beta_3)\,g_t, \qquad
      \nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t|^2$$
    $$w_{t+1} = w_t - \alpha_t\left(
      \frac{\mu_t / (1 - \beta_1^t) + a_t\,s_t}
      {\sqrt{\nu_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}
      + \lambda\,w_t\right)$$

    The slow average reaches back over $1 / (1 - \beta_3)$ steps, is not corrected for
    bias, and can make early training unstable: the paper raises $a$ and $\beta_3$ over
    most of the run.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        b3: $\beta_3$ in [0, 1]; `fngrad.half_life_warmup` raises it.
        alpha: $a$, a ratio; ``schedules.linear(0.0, alpha, steps)`` raises it.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.ademamix(
        ...     1e-3,
        ...     b3=fg.half_life_warmup(0.9, 0.9999, steps=10_000),
        ...     alpha=fg.schedules.linear(0.0, 5.0, 10_000),
        ...     weight_decay=0.1,
        ... )

    References:
        Pagliardini, Ablin and Grangier, The AdEMAMix optimizer: better, faster, older,
        2024, algorithm 1, https://arxiv.org/abs/2409.03137.
    """
    rule = scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root)
    return decaying(rule, learning_rate, weight_decay, mask)


def yogi(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-3,
    eps_root: Hyper = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
    *,
    debias: bool = True,
) -> Transform:
    r"""Yogi: Adam whose denominator forgets a large gradient slowly.

    $$\mu_t = \beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t, \qquad
      \nu_t = \nu_{t-1} - (1 - \beta_2)\,
      \operatorname{sign}(\nu_{t-1} - |g_t|^2)\,|g_t|^2$$
    $$w_{t+1} = w_t - \alpha_t\,
      \frac{\hat\mu_t}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}, \qquad
      \mu_0 = \nu_0 = \text{initial value}$$

    with $\hat\mu_t = \mu_t / (1 - \beta_1^t)$ and $\hat\nu_t = \nu_t / (1 - \beta_2^t)$
    if ``debias`` (the authors' code, optax), else $\mu_t$ and $\nu_t$ (the paper).

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1); in [0, 1] without ``debias``.
        b2: $\beta_2$ in [0, 1); in [0, 1] without ``debias``.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        initial_accumulator_value: what both averages begin at, >= 0.
        debias: whether both averages are corrected as if they began at zero.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.yogi(1e-2)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(4))
        [-0.01  0.01]

    References:
        Zaheer et al., Adaptive methods for nonconvex optimization, 2018, algorithm 2,
        https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization.
        Differs from it in: bias correction, and the start of $\mu$.
    """
    rule = scale_by_yogi(
        b1, b2, eps, eps_root, initial_accumulator_value, debias=debias
    )
    return chain(rule, scale_by_learning_rate(learning_rate))
