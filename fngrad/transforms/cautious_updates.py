"""Updates without the entries whose sign contradicts the present gradient."""

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import (
    Transform,
    TransformLike,
    UpdateFn,
    chain,
    unwrap,
    wrapper,
)
from fngrad.types import OptState, Params, Reported, Scalar, Updates


def cautious(
    inner: TransformLike,
    *,
    min_share: Scalar | None = None,
    downhill: bool = True,
) -> Transform:
    r"""Drop the entries of an update that would raise the loss along the gradient.

    With the gradient $g$ and the direction $d$ that ``inner`` returns for it, a leaf
    with n entries, c of which have the sign of the gradient, is updated by

    $$u_i = \frac{n}{c + 1}\,d_i \quad\text{where}\quad d_i \cdot g_i > 0,
      \qquad\text{else}\quad u_i = 0$$

    which about keeps the length of the update. For complex leaves
    $d \cdot g = \mathrm{Re}(\bar d g)$.

    Args:
        inner: the transform whose updates are filtered, with momentum in it.
        min_share: ``None`` scales by n / (c + 1), as the paper's algorithm 1; a number
            $\sigma$ > 0 by $1 / \max(c / n, \sigma)$, as its authors' code does with
            $\sigma$ = 1e-3.
        downhill: whether the updates of ``inner`` point downhill, as an optimizer's
            do: there they agree with the gradient where signs differ. False is for a
            part in the middle of a chain, for instance with decay after the filter:
            ``chain(cautious(scale_by_adam(), downhill=False),
            add_decayed_weights(0.1), scale_by_learning_rate(1e-3))``.

    Raises:
        ValueError: if ``min_share`` is a number outside (0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.cautious(fg.momentum(1.0, 0.9))
        >>> params = jnp.zeros(2)
        >>> state = optimizer.init(params)
        >>> for gradient in jnp.array([[1.0, 1.0], [1.0, -0.5]]):
        ...     updates, state = optimizer.update(gradient, state, params)
        >>> print(updates)
        [-1.9  0. ]

    References:
        Liang et al., Cautious optimizers: improving training with one line of code,
        2024, algorithm 1, https://arxiv.org/abs/2411.16085. Differs from it in: an
        optimizer's weight decay is filtered too, unless it comes after the filter.
    """
    if min_share is not None:
        numerics.check_number("min_share", min_share, 0.0, 1.0)
        numerics.check_positive("min_share", min_share)
    within = unwrap(inner)
    sign = -1 if downhill else 1

    def filtered(u: jax.Array, g: jax.Array) -> jax.Array:
        agrees = sign * numerics.agreement(u, g) > 0
        count = jnp.sum(agrees).astype(jnp.result_type(float))
        if min_share is None:
            factor = u.size / (count + 1)
        else:
            factor = 1 / jnp.maximum(count / max(u.size, 1), numerics.hyper(min_share))
        return jnp.where(agrees, numerics.scaled(factor, u), jnp.zeros_like(u))

    def advance(
        update_fn: UpdateFn, updates: Updates, state: OptState, params: Params
    ) -> Reported:
        made, new_state, metrics = update_fn(within, updates, state, params)
        return tree.map_leaves(filtered, made, updates), new_state, metrics

    return chain(wrapper(within.init, advance, "cautious", within.trainable))
