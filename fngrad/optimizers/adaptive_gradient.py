"""Adagrad."""

from fngrad.transforms.core import Transform, chain
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.transforms.sums import scale_by_rss
from fngrad.types import Hyper, Scalar


def adagrad(
    learning_rate: Hyper,
    initial_accumulator_value: Scalar = 0.1,
    eps: Hyper = 1e-7,
    eps_in_sqrt: bool = True,
) -> Transform:
    r"""Adagrad: each coordinate's step divided by the root of its summed squares.

    $$s_t = s_{t-1} + |g_t|^2, \qquad w_{t+1} = w_t - \alpha_t\,u_t$$
    $$u_t = g_t / \sqrt{s_t + \epsilon}
      \quad\text{or}\quad u_t = g_t / (\sqrt{s_t} + \epsilon)$$

    A constant gradient gives steps of $\alpha / \sqrt t$ (with $s_0 = \epsilon = 0$). A
    coordinate that has seen no gradient yet does not move.

    PyTorch's convention is ``initial_accumulator_value=0.0, eps=1e-10,
    eps_in_sqrt=False``; the defaults are those of Keras and optax.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        initial_accumulator_value: $s_0$ >= 0, in squared gradient units.
        eps: $\epsilon$ >= 0, in squared gradient units if ``eps_in_sqrt``, else in
            gradient units.
        eps_in_sqrt: the first or the second form of $u_t$.

    Raises:
        ValueError: a negative number.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.adagrad(1.0, initial_accumulator_value=0.0)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(4))
        [-1.  1.]

    References:
        Duchi, Hazan and Singer, Adaptive subgradient methods for online learning and
        stochastic optimization, 2011, https://jmlr.org/papers/v12/duchi11a.html.
        Differs from it in: the diagonal rule alone, and a sum that begins above zero
        by default.
    """
    return chain(
        scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt),
        scale_by_learning_rate(learning_rate),
    )
