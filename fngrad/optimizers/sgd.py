"""Gradient descent, plain and with momentum."""

from __future__ import annotations

import fngrad.numerics as numerics
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.momentum_buffers import descending
from fngrad.types import Hyper, Selector


def sgd(
    learning_rate: Hyper,
    momentum: Hyper | None = None,
    nesterov: bool = False,
    *,
    learning_rate_first: bool = False,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""Gradient descent; with a momentum, heavy ball or Nesterov's method.

    $$w_{t+1} = w_t - \alpha_t\,g_t$$

    With ``momentum`` $\beta$ a buffer takes the place of the gradient:

    $$b_t = \beta\,b_{t-1} + g_t, \qquad w_{t+1} = w_t - \alpha_t\,b_t$$

    or, with ``nesterov``, $w_{t+1} = w_t - \alpha_t (\beta\,b_t + g_t)$. The batch
    alone makes this full-batch, mini-batch or single-sample descent.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        momentum: $\beta$ in [0, 1]. ``None`` keeps no buffer; any number, also 0, keeps
            one.
        nesterov: whether to look ahead; it needs a momentum.
        learning_rate_first: whether $\alpha_t$ enters the buffer,
            $b_t = \beta\,b_{t-1} + \alpha_t\,g_t$, as in TensorFlow and Keras, or
            scales what leaves it, as in PyTorch and optax. The two differ only if the
            learning rate changes.
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. PyTorch's is L2 regularization:
            ``chain(add_decayed_weights(l), sgd(a, 0.9))``. ``None`` adds no part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range, or ``nesterov`` has no momentum; or
            there is a mask but no decay; at ``init``, if a glob selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.sgd(0.1)
        >>> params = jnp.array([1.0, 2.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(fg.apply_updates(params, updates))
        [0.9 1.8]

    References:
        Robbins and Monro, A stochastic approximation method, 1951,
        https://doi.org/10.1214/aoms/1177729586. Sutskever et al., On the importance of
        initialization and momentum in deep learning, 2013,
        https://proceedings.mlr.press/v28/sutskever13.html. Differs from it in: the
        learning rate stays outside the buffer by default, and the look-ahead is written
        for the parameters at which the gradient was taken, as in PyTorch.
    """
    return chain(
        *descending(
            learning_rate, momentum, nesterov, learning_rate_first, weight_decay, mask
        )
    )


def momentum(
    learning_rate: Hyper,
    momentum: Hyper = 0.9,
    nesterov: bool = False,
    *,
    learning_rate_first: bool = False,
    weight_decay: Hyper | None = None,
    mask: Selector | None = None,
) -> Transform:
    r"""`sgd` with a momentum: heavy ball, or Nesterov's method.

    `sgd` has the equations. On a quadratic with eigenvalues between $\mu$ and $L$ heavy
    ball is fastest at $\alpha = (2 / (\sqrt L + \sqrt\mu))^2$ and
    $\beta = ((\sqrt\kappa - 1) / (\sqrt\kappa + 1))^2$, $\kappa = L / \mu$; it is
    stable there while $\alpha L < 2 + 2\beta$.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        momentum: $\beta$ in [0, 1].
        nesterov: whether to look ahead.
        learning_rate_first: whether $\alpha_t$ enters the buffer, see `sgd`.
        weight_decay: $\lambda$, decoupled: $\alpha_t \lambda\,w_t$ is subtracted too,
            as in `adamw` and Keras. PyTorch's differs, see `sgd`. ``None`` adds no
            part.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: if the learning rate is None or of another type.
        ValueError: if a number is out of range; or there is a mask but no decay; at
            ``init``, if a glob selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.momentum(1e-2, momentum=0.95, nesterov=True)

    References:
        Polyak, Some methods of speeding up the convergence of iteration methods,
        1964, https://doi.org/10.1016/0041-5553(64)90137-5. Nesterov, A method for
        solving the convex programming problem with convergence rate O(1/k^2), 1983.
    """
    numerics.check_number("momentum", momentum, 0.0, 1.0)
    return sgd(
        learning_rate,
        momentum,
        nesterov,
        learning_rate_first=learning_rate_first,
        weight_decay=weight_decay,
        mask=mask,
    )
