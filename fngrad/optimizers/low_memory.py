"""Rules whose second moments take less memory than the parameters: Adafactor, SM3."""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
from fngrad.transforms.blocks import clip_by_block_rms, scale_by_param_block_rms
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.factored import scale_by_factored_rms, scale_by_sm3
from fngrad.transforms.moments import ema
from fngrad.transforms.scaling import scale, scale_by_learning_rate
from fngrad.types import Hyper, Scalar, Schedule, Selector


def adafactor(
    learning_rate: Hyper | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Hyper = 0.8,
    decay_offset: Hyper = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Scalar | None = 1.0,
    momentum: Hyper | None = None,
    weight_decay_rate: Hyper | None = None,
    eps: Hyper = 1e-30,
    factored: bool = True,
    mask: Selector | None = None,
    *,
    min_scale: Scalar = 1e-3,
    relative_step: bool = False,
    factored_dims: str = "largest",
) -> Transform:
    r"""Adafactor: RMSProp with a factored moment, clipped, in units of the parameters.

    With the direction $u_t$ of `scale_by_factored_rms`, for each leaf

    $$\hat u_t = u_t / \max(1, \operatorname{rms}(u_t) / d)$$
    $$w_{t+1} = w_t - \alpha_t \max(\epsilon_2, \operatorname{rms}(w_t))\,\hat u_t
      - \lambda_t\,w_t$$

    With ``momentum`` $\beta$ all but the decay gives way to its exponential average. A
    matrix keeps its row and column means alone, other leaves a full moment.

    The learning rates of the field:

    - ``adafactor()`` is the paper's, $\alpha_t = \min(10^{-2}, 1 / \sqrt t)$;
    - ``adafactor(1e-2, relative_step=True, min_dim_size_to_factor=1)`` is PyTorch's
      and Keras's; for leaves of three and more axes add ``factored_dims="last"``.
      PyTorch's ``weight_decay`` is ``weight_decay_rate`` over the learning rate;
    - ``adafactor(lambda t: 1e-6 * (t + 1), relative_step=True)`` warms up as T5 does,
      $\alpha_t = \min(10^{-6}\,t, 1 / \sqrt t)$.

    Args:
        learning_rate: $\alpha$, a share of each leaf's root mean square: a number
            >= 0, a scalar array or tracer, or a schedule. ``None`` is ``1e-2`` with
            ``relative_step``.
        min_dim_size_to_factor: a leaf is factored if both axes are at least this long.
        decay_rate: $c$ >= 0; the moment's decay is $1 - t^{-c}$.
        decay_offset: t counts from this step on in the decay; earlier steps have t = 1.
        multiply_by_parameter_scale: whether $\operatorname{rms}(w_t)$ scales the step.
        clipping_threshold: $d$ > 0; ``None`` does not clip.
        momentum: $\beta$ in [0, 1]; ``None`` keeps no average.
        weight_decay_rate: $\lambda$, not times the learning rate; ``None`` does not
            decay.
        eps: $\epsilon_1$ >= 0, in squared gradient units.
        factored: whether any leaf is factored.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        min_scale: $\epsilon_2$ >= 0, in units of the parameters.
        relative_step: whether $\alpha_t$ is at most $1 / \sqrt t$.
        factored_dims: ``"largest"`` or ``"last"``, see `scale_by_factored_rms`.

    Raises:
        ValueError: a number out of range; a mask without a decay; at ``init``, a glob
            that selects no leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adafactor(0.5)
        >>> params, update = jnp.array([3.0, -3.0]), jax.jit(optimizer.update)
        >>> updates, _ = update(params, optimizer.init(params), params)
        >>> print(updates.round(1))  # half of the root mean square
        [-1.5  1.5]

    References:
        Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory
        cost, 2018, algorithm 6, https://arxiv.org/abs/1804.04235. Differs from it in:
        small matrices are not factored by default. Differs from optax in: no learning
        rate means the paper's, not 1.
    """
    if mask is not None and weight_decay_rate is None:
        raise ValueError(f"need a weight_decay_rate to mask, got {mask=}")
    if learning_rate is None:
        learning_rate, relative_step = 1e-2, True
    numerics.check_number("learning_rate", learning_rate, low=0.0)
    numerics.check_number("decay_offset", decay_offset, low=0.0)
    numerics.check_number("eps", eps, low=0.0)
    numerics.check_number("momentum", momentum, 0.0, 1.0)
    numerics.check_number("weight_decay_rate", weight_decay_rate)
    rate = _at_most_relative(learning_rate) if relative_step else learning_rate
    parts = [
        scale_by_factored_rms(
            factored,
            decay_rate,
            decay_offset,
            min_dim_size_to_factor,
            eps,
            factored_dims=factored_dims,
        )
    ]
    if clipping_threshold is not None:
        numerics.check_positive("clipping_threshold", clipping_threshold)
        parts.append(clip_by_block_rms(clipping_threshold))
    parts.append(scale_by_learning_rate(rate, flip_sign=False))
    if multiply_by_parameter_scale:
        parts.append(scale_by_param_block_rms(min_scale))
    if momentum is not None:
        parts.append(ema(momentum, debias=False))
    if weight_decay_rate is not None:
        parts.append(add_decayed_weights(weight_decay_rate, mask))
    return chain(*parts, scale(-1.0))


def sm3(
    learning_rate: Hyper,
    momentum: Hyper | None = 0.9,
    *,
    eps: Hyper = 1e-8,
    variant: str = "II",
) -> Transform:
    r"""SM3: Adagrad with one number for each slice along each axis.

    A matrix of m rows and n columns keeps m + n numbers $\mu(r)$, from which each
    entry $i$ takes the smaller of its row's and its column's:

    $$s_t(i) = \min_{r \ni i} \mu_{t-1}(r) + |g_t(i)|^2, \qquad
      \mu_t(r) = \max_{i \in r} s_t(i)$$
    $$b_t = \beta\,b_{t-1} + (1 - \beta)\,g_t / \sqrt{s_t + \epsilon}, \qquad
      w_{t+1} = w_t - \alpha_t\,b_t$$

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        momentum: $\beta$ in [0, 1]. ``None`` keeps no average; any number does, 0
            too, and it takes as much memory as the parameters.
        eps: $\epsilon$ >= 0, in squared gradient units; the authors' code has 1e-30.
        variant: ``"II"``, as above, or ``"I"``, see `scale_by_sm3`.

    Raises:
        ValueError: a number out of range, or another variant.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.sm3(0.1, momentum=None)
        >>> params = jnp.array([[3.0, -4.0]])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates)
        [[-0.1  0.1]]

    References:
        Anil et al., Memory-efficient adaptive optimization, 2019, algorithm SM3-II,
        https://arxiv.org/abs/1901.11150. Differs from it in: $\epsilon$, which is 0
        there.
    """
    numerics.check_number("momentum", momentum, 0.0, 1.0)
    parts = [scale_by_sm3(eps, variant=variant)]
    if momentum is not None:
        parts.append(ema(momentum, debias=False))
    return chain(*parts, scale_by_learning_rate(learning_rate))


def _at_most_relative(learning_rate: Hyper) -> Schedule:
    def schedule(step: jax.Array) -> jax.Array:
        rate = numerics.hyper(learning_rate, step)
        t = step.astype(rate.dtype) + 1  # step + 1 may not fit in int32
        return jnp.minimum(rate, 1 / jnp.sqrt(t))

    return schedule
