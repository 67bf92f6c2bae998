"""MADGRAD."""

from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.madgrad import scale_by_madgrad
from fngrad.types import Hyper, Selector


def madgrad(
    learning_rate: Hyper,
    momentum: Hyper = 0.9,
    weight_decay: Hyper = 0.0,
    eps: Hyper = 1e-6,
    mask: Selector | None = None,
) -> Transform:
    r"""MADGRAD: dual averaging from the first parameters, with momentum.

    With $g_t \leftarrow g_t + \lambda\,w_t$ and
    $\lambda_t = (\alpha_t + \epsilon) \sqrt t$

    $$s_t = s_{t-1} + \lambda_t\,g_t, \qquad
      \nu_t = \nu_{t-1} + \lambda_t\,|g_t|^2, \qquad
      z_t = w_1 - \frac{s_t}{\sqrt[3]{\nu_t} + \epsilon}$$
    $$w_{t+1} = \beta\,w_t + (1 - \beta)\,z_t$$

    The learning rate compares with no other rule's: the first step is
    $(1 - \beta)\,\alpha^{2/3}\,|g|^{1/3}$ (with $\epsilon = 0$).

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        momentum: $\beta$ in [0, 1]; with 0, $w_{t+1} = z_t$.
        weight_decay: $\lambda$ of the L2 regularisation; often 0 is best.
        eps: $\epsilon$ >= 0, in units of the cube root of $\nu$.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.madgrad(1e-3, momentum=0.0, eps=0.0)
        >>> params = jnp.array([8.0, -1.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(4))
        [-0.02  0.01]

    References:
        Defazio and Jelassi, Adaptivity without compromise: a momentumized, adaptive,
        dual averaged gradient method for stochastic optimization, 2021, algorithm 1,
        https://arxiv.org/abs/2101.11075. Differs from it in: $\epsilon$ is added to
        the learning rate too, as in the authors' code.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_madgrad(learning_rate, momentum, eps),
    )
