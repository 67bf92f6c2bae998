"""Descent by signs: signSGD, Signum, Lion, Rprop."""

from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.moments import ema
from fngrad.transforms.roots import check_decay
from fngrad.transforms.scaling import scale, scale_by_learning_rate
from fngrad.transforms.signs import scale_by_lion, scale_by_rprop, scale_by_sign
from fngrad.types import Hyper, Selector


def sign_sgd(learning_rate: Hyper) -> Transform:
    r"""Step by the learning rate along each coordinate, downhill: signSGD.

    $$w_{t+1} = w_t - \alpha_t \operatorname{sign}(g_t)$$

    Args:
        learning_rate: $\alpha$, in units of the parameters: a number >= 0, a scalar
            array or tracer, or a schedule.

    Raises:
        TypeError: at ``init``, complex parameters.
        ValueError: a negative number.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.sign_sgd(0.1)
        >>> params = jnp.array([3.0, 0.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates)
        [-0.1 -0.   0.1]

    References:
        Bernstein et al., signSGD: compressed optimisation for non-convex problems,
        2018, algorithm 1, https://arxiv.org/abs/1802.04434.
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


def signum(learning_rate: Hyper, beta: Hyper = 0.9) -> Transform:
    r"""Step along the signs of the averaged gradient: signSGD with momentum.

    $$m_t = \beta\,m_{t-1} + (1 - \beta)\,g_t, \qquad
      w_{t+1} = w_t - \alpha_t \operatorname{sign}(m_t)$$

    Args:
        learning_rate: $\alpha$, in units of the parameters: a number >= 0, a scalar
            array or tracer, or a schedule.
        beta: $\beta$ in [0, 1].

    Raises:
        TypeError: at ``init``, complex parameters.
        ValueError: a number out of range.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.signum(1e-4, beta=0.95)

    References:
        Bernstein et al., signSGD: compressed optimisation for non-convex problems,
        2018, algorithm 2, https://arxiv.org/abs/1802.04434. Differs from it in: weight
        decay, which `add_decayed_weights` gives.
    """
    check_decay("beta", beta, corrected=False)
    return chain(
        ema(beta, debias=False), scale_by_sign(), scale_by_learning_rate(learning_rate)
    )


def lion(
    learning_rate: Hyper,
    b1: Hyper = 0.9,
    b2: Hyper = 0.99,
    weight_decay: Hyper = 1e-3,
    mask: Selector | None = None,
) -> Transform:
    r"""Step along the signs of a momentum: Lion, with decoupled weight decay.

    $$u_t = \operatorname{sign}(\beta_1\,\mu_{t-1} + (1 - \beta_1)\,g_t), \qquad
      \mu_t = \beta_2\,\mu_{t-1} + (1 - \beta_2)\,g_t$$
    $$w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    It keeps one moment where Adam keeps two. Every coordinate moves by $\alpha$, so
    that a learning rate 3 to 10 times below Adam's, and a decay as much above, suit.

    Args:
        learning_rate: $\alpha$, in units of the parameters: a number >= 0, a scalar
            array or tracer, or a schedule.
        b1: $\beta_1$ in [0, 1], the weight of the past in the update.
        b2: $\beta_2$ in [0, 1], the weight of the past in what is kept.
        weight_decay: $\lambda$; Keras's default is none.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.

    Raises:
        TypeError: at ``init``, complex parameters.
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.lion(1e-4, weight_decay=0.0)
        >>> params = jnp.array([3.0, -4.0])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates)
        [-0.0001  0.0001]

    References:
        Chen et al., Symbolic discovery of optimization algorithms, 2023, algorithm 2,
        https://arxiv.org/abs/2302.06675.
    """
    return chain(
        scale_by_lion(b1, b2),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def rprop(
    learning_rate: Hyper,
    eta_minus: Hyper = 0.5,
    eta_plus: Hyper = 1.2,
    min_step_size: Hyper = 1e-6,
    max_step_size: Hyper = 50.0,
) -> Transform:
    r"""Resilient propagation: step sizes that grow until the gradient turns.

    Each coordinate has a step size $\Delta$, at first the learning rate, and goes by
    it downhill, however long the gradient is. While its sign stays, $\Delta$ grows by
    $\eta^+$; when it changes, $\Delta$ shrinks by $\eta^-$ and the coordinate rests
    for a step. $\Delta$ stays in $[\Delta_{\min}, \Delta_{\max}]$. `scale_by_rprop` has
    the equations. It is made for full-batch gradients: a sign that noise flips shrinks
    the steps.

    Args:
        learning_rate: the first step size, >= 0, in units of the parameters. It is
            read at the first update and never again; of a schedule the value at step
            0 counts.
        eta_minus: $\eta^-$ in [0, 1].
        eta_plus: $\eta^+$ >= 1.
        min_step_size: $\Delta_{\min}$ >= 0, in units of the parameters.
        max_step_size: $\Delta_{\max}$ >= 0, in units of the parameters.

    Raises:
        TypeError: at ``init``, complex parameters.
        ValueError: a number out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.rprop(0.5)
        >>> params, gradient = jnp.zeros(2), jnp.array([3.0, -0.1])
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(gradient, state, params)
        >>> print(updates)
        [-0.6  0.6]

    References:
        Riedmiller and Braun, A direct adaptive method for faster backpropagation
        learning: the RPROP algorithm, 1993, https://doi.org/10.1109/ICNN.1993.298623.
        Differs from it in: after a change of sign the last step is not taken back, as
        in PyTorch. Differs from optax in: an update is the present step, not the one
        before.
    """
    return chain(
        scale_by_rprop(
            learning_rate, eta_minus, eta_plus, min_step_size, max_step_size
        ),
        scale(-1.0),
    )
