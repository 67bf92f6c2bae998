"""Schedule-free gradient descent and AdamW."""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.optimizers.gradient_descent import sgd
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.interpolation import schedule_free
from fngrad.transforms.moments import scale_by_rms
from fngrad.transforms.roots import check_decay
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Selector


def schedule_free_sgd(
    learning_rate: Hyper = 1.0,
    warmup_steps: int | None = None,
    b1: Hyper = 0.9,
    weight_decay: Hyper = 0.0,
    weight_lr_power: Hyper = 2.0,
    *,
    mask: Selector | None = None,
) -> Transform:
    r"""Gradient descent without a schedule: gradients between iterate and average.

    $$z_{t+1} = z_t - \gamma_t\,(g_t + \lambda\,y_t), \qquad
      x_{t+1} = (1 - c_t)\,x_t + c_t\,z_{t+1}$$
    $$y_{t+1} = (1 - \beta_1)\,z_{t+1} + \beta_1\,x_{t+1}, \qquad
      c_t = \gamma_t^p \Big/ \sum_{s \le t} \gamma_s^p$$

    $g_t$ is the gradient at the parameters, $y_t$; evaluate at $x$:
    `fngrad.eval_params`, which `fngrad.fit` and `fngrad.evaluate` use. The end of the
    run need not be known.

    Args:
        learning_rate: $\gamma$, a number >= 0, a scalar array or tracer, or a
            schedule; 1 to 10 times what SGD with a schedule wants. In $c_t$ it counts
            with the largest value so far.
        warmup_steps: n in the factor $\min(1, t / n)$, t = 1, 2, ... on the learning
            rate; ``None`` means no warmup.
        b1: $\beta_1$ in [0, 1]; 0.9 to 0.98 are useful.
        weight_decay: $\lambda$, taken at $y$.
        weight_lr_power: $p$ >= 0.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.schedule_free_sgd(0.5, warmup_steps=10)

    References:
        Defazio et al., The road less scheduled, 2024, equations 2 to 4,
        https://arxiv.org/abs/2405.15682. Differs from it in: see
        `fngrad.schedule_free`. optax's warmup begins at zero, $(t - 1) / n$, and lets
        $c_t$ run one step ahead of it.
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    inner = chain(add_decayed_weights(weight_decay, mask), sgd(rate))
    return schedule_free(inner, rate, b1, weight_lr_power)


def schedule_free_adamw(
    learning_rate: Hyper = 0.0025,
    warmup_steps: int | None = None,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_lr_power: Hyper = 2.0,
    *,
    mask: Selector | None = None,
) -> Transform:
    r"""AdamW without a schedule, an average of iterates in place of its momentum.

    $$\nu_t = \beta_2\,\nu_{t-1} + (1 - \beta_2)\,|g_t|^2, \qquad
      z_{t+1} = z_t - \gamma_t \left(
      \frac{g_t}{\sqrt{\nu_t / (1 - \beta_2^t)} + \epsilon} + \lambda\,y_t \right)$$

    and $x$ and $y$ as in `schedule_free_sgd`: the parameters are $y$, evaluation is at
    $x$.

    Args:
        learning_rate: $\gamma$, a number >= 0, a scalar array or tracer, or a
            schedule. In $c_t$ it counts with the largest value so far.
        warmup_steps: n in the factor $\min(1, t / n)$, t = 1, 2, ... on the learning
            rate; ``None`` means no warmup.
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1).
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$, taken at $y$.
        weight_lr_power: $p$ >= 0.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.schedule_free_adamw(warmup_steps=100, weight_decay=0.1)

    References:
        Defazio et al., The road less scheduled, 2024, algorithm 1,
        https://arxiv.org/abs/2405.15682. Differs from it in: $\sqrt{1 - \beta_2^t}$
        corrects the second moment, not the learning rate, and so stays out of $c_t$
        (as in optax and Keras). Keras weighs all iterates alike
        (``weight_lr_power=0.0``).
    """
    check_decay("b2", b2, corrected=True)
    rate = _warmed_up(learning_rate, warmup_steps)
    inner = chain(
        scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(rate),
    )
    return schedule_free(inner, rate, b1, weight_lr_power)


def _warmed_up(learning_rate: Hyper, warmup_steps: int | None) -> Hyper:
    if warmup_steps is None:
        return learning_rate
    warmup_steps = numerics.check_count("warmup_steps", warmup_steps, 1)
    numerics.check_number("learning_rate", learning_rate, low=0.0)

    def rate(step: jax.Array) -> jax.Array:
        peak = numerics.hyper(learning_rate, step)
        begun = (step.astype(peak.dtype) + 1) / warmup_steps
        return peak * jnp.minimum(begun, 1)

    return rate
