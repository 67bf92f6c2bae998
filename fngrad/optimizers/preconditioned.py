"""Shampoo and SOAP."""

import fngrad.numerics as numerics
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.eigenbasis import scale_by_soap
from fngrad.transforms.matrix import scale_by_shampoo
from fngrad.transforms.moments import trace
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Selector


def shampoo(
    learning_rate: Hyper,
    b2: Hyper = 1.0,
    eps: Hyper = 1e-12,
    weight_decay: Hyper = 0.0,
    mask: Selector | None = None,
    update_every: int = 1,
    max_size: int = 1024,
    *,
    momentum: Hyper | None = None,
    nesterov: bool = False,
    full_vectors: bool = False,
    exponent: Hyper | None = None,
    bias_correction: bool = True,
    graft: str | None = None,
) -> Transform:
    r"""Shampoo: a matrix of Adagrad's kind for each axis of each leaf.

    For a matrix

    $$L_t = L_{t-1} + G_t G_t^\top, \qquad R_t = R_{t-1} + G_t^\top G_t$$
    $$w_{t+1} = w_t - \alpha_t\,\big(
      (L_t + \epsilon I)^{-1/4}\,G_t\,(R_t + \epsilon I)^{-1/4} + \lambda\,w_t\big)$$

    and for a leaf of k axes a statistic along each, to the power $-1/2k$. With ``b2``
    below 1 the statistics are debiased averages. With ``momentum`` $\beta$ the
    preconditioned gradient $u_t$ gives way to $b_t = \beta\,b_{t-1} + u_t$, or with
    ``nesterov`` to $\beta\,b_t + u_t$.

    The defaults are the paper's rule. Networks are mostly trained with
    ``b2=0.99, momentum=0.9, graft="diagonal", update_every=10``, and Adam's learning
    rates.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b2: $\beta_2$ in [0, 1]: 1 sums, less averages.
        eps: $\epsilon$ >= 0, in squared gradient units.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        update_every: after how many steps the inverse roots are computed again; the
            first step does.
        max_size: the longest axis to get a matrix; of a longer one the diagonal is
            kept alone.
        momentum: $\beta$ in [0, 1]. ``None`` keeps no buffer; any number does, 0 too.
        nesterov: whether to look ahead; it needs a momentum.
        full_vectors: whether a vector gets a matrix too, instead of its diagonal.
        exponent: in place of $1/2k$, >= 0.
        bias_correction: whether averages are divided by $1 - \beta_2^t$.
        graft: which rule gives the norm of a leaf's update: ``None``, ``"sgd"`` or
            ``"diagonal"``, see `scale_by_shampoo`.

    Raises:
        TypeError: at ``init``, a complex leaf.
        ValueError: a number out of range, another ``graft``, or ``nesterov`` without
            a momentum; at ``init``, a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.shampoo(1.0)
        >>> params = jnp.array([[3.0, 0.0], [0.0, -4.0]])
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates.round(3) + 0.0)  # the first update is -U V' of the gradient
        [[-1.  0.]
         [ 0.  1.]]

    References:
        Gupta, Koren and Singer, Shampoo: preconditioned stochastic tensor
        optimization, 2018, algorithms 1 and 2, https://arxiv.org/abs/1802.09568.
        Anil et al., Scalable second order optimization for deep learning, 2020,
        https://arxiv.org/abs/2002.09018. Differs from it in: momentum comes after
        grafting and debiasing is the default, see `scale_by_shampoo` for the rest.
    """
    parts = [
        scale_by_shampoo(
            b2,
            eps,
            update_every,
            max_size,
            full_vectors=full_vectors,
            exponent=exponent,
            bias_correction=bias_correction,
            graft=graft,
        )
    ]
    if momentum is not None:
        numerics.check_number("momentum", momentum, 0.0, 1.0)
        parts.append(trace(momentum, nesterov))
    elif nesterov:
        raise ValueError(f"need a momentum to look ahead, got {momentum=}")
    return chain(
        *parts,
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def soap(
    learning_rate: Hyper,
    b1: Hyper = 0.95,
    b2: Hyper = 0.95,
    shampoo_beta: Hyper | None = None,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.01,
    mask: Selector | None = None,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    precondition_1d: bool = False,
    skip_first: bool = True,
) -> Transform:
    r"""SOAP: Adam in the eigenvectors of Shampoo's statistics, with weight decay.

    For a matrix, with $Q_L$ and $Q_R$ the slowly renewed eigenvectors of averages of
    $G G^\top$ and $G^\top G$,

    $$u_t = Q_L\,\mathrm{Adam}(Q_L^\top G_t\,Q_R)\,Q_R^\top, \qquad
      w_{t+1} = w_t - \alpha_t\,(u_t + \lambda\,w_t)$$

    where Adam's average of the gradient turns with the bases, and its average of
    squares does not: see `scale_by_soap`. Vectors get Adam. The first gradient moves
    nothing but what decays.

    Args:
        learning_rate: $\alpha$, a number >= 0, a scalar array or tracer, or a
            schedule.
        b1: $\beta_1$ in [0, 1).
        b2: $\beta_2$ in [0, 1).
        shampoo_beta: decay of the averages of $G G^\top$ in [0, 1); ``None`` takes
            $\beta_2$.
        eps: $\epsilon$ >= 0, in gradient units.
        weight_decay: $\lambda$, decoupled.
        mask: which leaves decay, see `fngrad.tree.select`; ``None`` means all.
        precondition_frequency: after how many steps of Adam a basis is renewed.
        max_precond_dim: the longest axis to be rotated.
        precondition_1d: whether leaves of one axis are rotated too.
        skip_first: whether the first gradient makes the bases only, or the first step
            of Adam too.

    Raises:
        TypeError: at ``init``, a complex leaf.
        ValueError: a number out of range; at ``init``, a glob that selects no leaf.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.soap(3e-3, precondition_frequency=10, mask="**/weight")

    References:
        Vyas et al., SOAP: improving and stabilizing Shampoo using Adam, 2024,
        algorithm 3, https://arxiv.org/abs/2409.11321; the official code,
        https://github.com/nikhilvyas/SOAP. Differs from the code in: weights decay as
        in `adamw`, before the step and also on the skipped one; see `scale_by_soap`
        for the rest.
    """
    return chain(
        scale_by_soap(
            b1,
            b2,
            shampoo_beta,
            eps,
            precondition_frequency,
            max_precond_dim,
            precondition_1d=precondition_1d,
            skip_first=skip_first,
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
