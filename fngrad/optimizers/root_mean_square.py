"""RMSProp."""

import fngrad.numerics as numerics
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.moments import scale_by_rms, scale_by_stddev, trace
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Scalar


def rmsprop(
    learning_rate: Hyper,
    decay: Hyper = 0.9,
    eps: Hyper = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Hyper | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    learning_rate_first: bool = True,
) -> Transform:
    r"""RMSProp: each coordinate's step over its gradient's recent root mean square.

    $$\nu_t = \rho\,\nu_{t-1} + (1 - \rho)\,|g_t|^2, \qquad \nu_0 = \text{scale}$$
    $$u_t = g_t / \sqrt{\nu_t + \epsilon}
      \quad\text{or}\quad u_t = g_t / (\sqrt{\nu_t} + \epsilon)$$
    $$w_{t+1} = w_t - \alpha_t\,u_t$$

    ``centered`` subtracts from $\nu_t$ the squared average of the gradient. With
    ``momentum`` $\beta$, $\alpha_t u_t$ gives way to
    $b_t = \beta\,b_{t-1} + \alpha_t\,u_t$, or with ``nesterov`` to
    $\beta\,b_t + \alpha_t\,u_t$.

    The defaults are optax's. Other conventions: PyTorch is ``decay=0.99,
    eps_in_sqrt=False, learning_rate_first=False``, Keras ``eps=1e-7``, TensorFlow 1
    ``eps=1e-10, initial_scale=1.0``.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        decay: $\rho$ in [0, 1]; in [0, 1) with ``bias_correction``.
        eps: $\epsilon$ >= 0, in squared gradient units if ``eps_in_sqrt``, else in
            gradient units.
        initial_scale: $\nu_0$ >= 0.
        eps_in_sqrt: the first or the second form of $u_t$.
        centered: whether to divide by the standard deviation.
        momentum: $\beta$ in [0, 1]. ``None`` keeps no buffer; any number does, 0 too.
        nesterov: whether to look ahead; it needs a momentum.
        bias_correction: whether the averages are divided by $1 - \rho^t$.
        learning_rate_first: whether $\alpha_t$ enters the buffer, as above, or scales
            what leaves it: $b_t = \beta\,b_{t-1} + u_t$,
            $w_{t+1} = w_t - \alpha_t\,b_t$. Only a learning rate that changes shows
            the difference.

    Raises:
        ValueError: a number out of range, or ``nesterov`` without a momentum.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.rmsprop(1e-2, decay=0.75)
        >>> params = jnp.array([1.0, -2.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(4))  # the first step is learning_rate / sqrt(1 - decay)
        [-0.02  0.02]

    References:
        Tieleman and Hinton, Lecture 6.5 - RMSProp, 2012,
        https://www.cs.toronto.edu/~hinton/coursera/lecture6/lec6.pdf. Centered, with
        momentum: Graves, Generating sequences with recurrent neural networks, 2013,
        equations 38 to 41, https://arxiv.org/abs/1308.0850.
    """
    rule = scale_by_stddev if centered else scale_by_rms
    normalize = rule(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    descend = scale_by_learning_rate(learning_rate)
    if momentum is None:
        if nesterov:
            raise ValueError(f"need a momentum to look ahead, got {momentum=}")
        return chain(normalize, descend)
    numerics.check_number("momentum", momentum, 0.0, 1.0)
    accumulate = trace(momentum, nesterov)
    parts = (descend, accumulate) if learning_rate_first else (accumulate, descend)
    return chain(normalize, *parts)
