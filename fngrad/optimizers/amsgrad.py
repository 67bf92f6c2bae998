"""AMSGrad: state, transform and recipe."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import optional_decay
from fngrad.transforms.moment_arithmetic import (
    average_square,
    check_moments,
    divide_by_root,
    remove_bias,
    squarable,
    zero_moment,
)
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Params, Selector, Updates

Debias: TypeAlias = Literal["before_max", "after_max", "never"]


class ScaleByAmsgradState(NamedTuple):
    """State of `scale_by_amsgrad`."""

    step: jax.Array  # int32, shape ()
    mu: Updates  # average of g
    nu: Updates  # average of |g|**2, real
    nu_max: Updates  # largest nu so far; of debiased nu with "before_max"

    signed = ("mu",)  # type: tuple[str, ...]
    non_negative = ("nu", "nu_max")  # type: tuple[str, ...]


def scale_by_amsgrad(
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    debias: Debias = "before_max",
) -> Transform:
    r"""Divide by the root of the largest second moment so far: AMSGrad's direction.

    Returns $u_t$ of `amsgrad`; see there for the equations and the reference. The state
    has the same structure for every ``debias``. Where the denominator is zero, the
    update is zero.

    Args:
        b1: $\beta_1$ in [0, 1); in [0, 1] if nothing is debiased.
        b2: $\beta_2$ in [0, 1); in [0, 1] if nothing is debiased.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        debias: which of the three rules.

    Raises:
        ValueError: if a number is out of range, or ``debias`` is not one of the three
            rules.
    """
    numerics.check_choice("debias", debias, get_args(Debias))
    corrected = debias != "never"
    check_moments(b1=b1, b2=b2, eps=eps, eps_root=eps_root, corrected=corrected)

    def init(params: Params) -> ScaleByAmsgradState:
        mu = tree.wide_zeros_like(params)
        nu, nu_max = zero_moment(params), zero_moment(params)
        return ScaleByAmsgradState(numerics.first_step(), mu, nu, nu_max)

    def update(
        updates: Updates, state: ScaleByAmsgradState, params: Params
    ) -> tuple[Updates, ScaleByAmsgradState]:
        beta_1, beta_2, inside, outside = numerics.hypers(
            state.step, b1, b2, eps_root, eps
        )
        updates = squarable(updates)
        mu = tree.average(beta_1, state.mu, updates)
        nu = average_square(beta_2, state.nu, updates)
        before = debias == "before_max"
        candidate = remove_bias(nu, beta_2, state.step, bounded=True) if before else nu
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, candidate)
        after = debias == "after_max"
        new_updates = divide_by_root(
            mu if debias == "never" else remove_bias(mu, beta_1, state.step),
            remove_bias(nu_max, beta_2, state.step) if after else nu_max,
            inside=inside,
            outside=outside,
        )
        step = numerics.next_step(state.step)
        return new_updates, ScaleByAmsgradState(step, mu, nu, nu_max)

    return chain(Transform(init, update, name="scale_by_amsgrad"))


def amsgrad(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    debias: Debias = "before_max",
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""AMSGrad: Adam whose denominator never shrinks.

    With Adam's averages $\mu_t$ and $\nu_t$

    $$u_t = \frac{\hat\mu_t}{\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon}, \qquad
      w_{t+1} = w_t - \alpha_t\,u_t$$

    and one of three rules (``debias``):

    - ``"before_max"``: $\hat\mu_t = \mu_t / (1 - \beta_1^t)$ and
      $\hat\nu_t = \max_{s \le t} \nu_s / (1 - \beta_2^s)$, as in optax;
    - ``"after_max"``: $\hat\mu_t$ likewise and
      $\hat\nu_t = \max_{s \le t} \nu_s \,/\, (1 - \beta_2^t)$, as in PyTorch, and
      in Keras except that Keras adds $\epsilon$ before bias correction;
    - ``"never"``: $\hat\mu_t = \mu_t$ and $\hat\nu_t = \max_{s \le t} \nu_s$, as in
      the paper but for $\epsilon$.

    The first keeps the full weight of one huge early gradient for ever; in the second
    it fades as the correction does.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1); in [0, 1] if nothing is debiased.
        b2: $\beta_2$ in [0, 1); in [0, 1] if nothing is debiased.
        eps: $\epsilon$ >= 0, in gradient units.
        eps_root: $\bar\epsilon$ >= 0, in squared gradient units.
        debias: which of the three rules.
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. PyTorch's is L2 regularization:
            ``chain(add_decayed_weights(l), amsgrad(a))``. ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range, or ``debias`` is not one of the three
            rules; or there is a mask but no decay; at ``init``, if a glob selects no
            leaf.

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
        2, https://arxiv.org/abs/1904.09237. Differs from it in: $\epsilon$, no
        projection, and bias correction unless ``debias="never"``.
    """
    return chain(
        scale_by_amsgrad(b1, b2, eps, eps_root, debias=debias),
        *optional_decay(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
