"""Gradients of losses that cannot be differentiated, from random perturbations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.training.estimated_gradients import Reals, with_estimate
from fngrad.types import Key, LossFn, Scalar


def evolution_strategy(
    loss_fn: LossFn,
    sigma: Scalar = 0.1,
    pairs: int = 32,
    *,
    ranks: bool = False,
    batch_size: int | None = None,
) -> LossFn:
    r"""Return a loss whose gradient is that of an antithetic evolution strategy.

    $$\hat g = \frac{1}{2 \sigma n} \sum_{i=1}^{n}
        \big(L(\theta + \sigma \epsilon_i) - L(\theta - \sigma \epsilon_i)\big)\,
        \epsilon_i, \qquad \epsilon_i \sim \mathcal N(0, I)$$

    It is an unbiased estimate of the gradient of $E_\epsilon L(\theta + \sigma
    \epsilon)$, which exists where that of $L$ does not: for steps, ranks, simulators
    behind `jax.pure_callback`. Of a quadratic this is the gradient of $L$, and entry j
    has the variance $(\|g\|^2 + g_j^2) / n$. One gradient takes $2 n + 1$ evaluations
    of the loss and none of its derivative. Only leaves that are trained are perturbed.

    Value, metrics and model state are those at $\theta$. The loss returned takes an
    argument named ``key``, so that the noise of a step is a function of its key. A loss
    with a key of its own gets the same one in all evaluations. With ``micro_batches``
    every part has its own noise. The noise has at least 32 bits; with a loss in 16 bits
    wrap the narrow loss: ``evolution_strategy(mixed_precision(loss_fn, "bfloat16"))``.

    Args:
        loss_fn: as for `fngrad.make_step`.
        sigma: $\sigma$ > 0, in units of the parameters; a number or an array.
        pairs: $n$ >= 1.
        ranks: whether each loss is replaced by its rank among the $2n$, from -1/2 to
            1/2, equal losses by the mean of their ranks. The estimate is then invariant
            to increasing functions of the loss; a NaN ranks as the largest loss. It is
            a direction of descent, and its length is not that of a gradient.
        batch_size: how many pairs are evaluated at once, an int >= 1; None means all. A
            callback that cannot be batched needs 1.

    Returns:
        A loss function with the arguments of ``loss_fn`` and ``key``.

    Raises:
        TypeError: if ``loss_fn`` has another signature.
        ValueError: if sigma is not positive, or ``pairs`` or ``batch_size`` is not an
            int >= 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> def errors(w, batch):  # its derivative is 0
        ...     return jnp.mean((batch["x"] @ w > 0) != batch["y"])
        >>> loss_fn = fg.evolution_strategy(errors, sigma=0.5, pairs=16)
        >>> optimizer = fg.adam(0.1)
        >>> step = fg.make_step(loss_fn, optimizer)
        >>> state = fg.init_state(jnp.ones(2), optimizer, key=0)
        >>> x = jnp.array([[1.0, 0.0], [0.5, -1.0], [-1.0, 1.0], [-0.3, 0.8]])
        >>> batch = {"x": x, "y": jnp.array([True, True, False, False])}
        >>> state, history = fg.run(step, state, lambda t: batch, 40)
        >>> print(history["loss"][0], history["loss"][-1])
        0.5 0.0

    References:
        Salimans et al., Evolution strategies as a scalable alternative to
        reinforcement learning, 2017, algorithm 1 and section 2.1,
        https://arxiv.org/abs/1703.03864. Differs from it in: no weight decay, which is
        the optimizer's, and a minimum is sought.
    """
    numerics.check_positive("sigma", sigma)
    pairs = numerics.check_count("pairs", pairs, 1)
    at_once = pairs if batch_size is None else batch_size
    at_once = numerics.check_count("batch_size", at_once, 1)

    def estimate(f: Callable[[Reals], jax.Array], x: Reals, key: Key) -> Reals:
        width = numerics.hyper(sigma)

        def values(k_pair: Key) -> jax.Array:
            offset = tree.scale(width, _noise(k_pair, x))
            return jnp.stack([f(tree.add(x, offset)), f(tree.sub(x, offset))])

        keys = jax.random.split(key, pairs)
        losses = _map(values, keys, at_once)
        losses = _ranks(losses) if ranks else losses
        rises = losses[:, 0] - losses[:, 1]
        shares = rises / (2 * pairs * width.astype(losses.dtype))

        def add(total: Reals, pair: tuple[Key, jax.Array]) -> tuple[Reals, None]:
            k_pair, share = pair  # the noise again, instead of all of it in memory
            return tree.add(total, tree.scale(share, _noise(k_pair, x))), None

        zeros = tree.zeros_like(x)
        return jax.lax.scan(add, zeros, (keys, shares))[0]

    return with_estimate(loss_fn, estimate, needs_key=True)


def _noise(key: Key, like: Reals) -> list[jax.Array]:
    return [
        jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        for i, x in enumerate(like)
    ]


def _map(values: Callable[[Key], jax.Array], keys: Key, at_once: int) -> jax.Array:
    if at_once == 1:
        return jax.lax.map(values, keys)
    return jax.lax.map(values, keys, batch_size=min(at_once, len(keys)))


def _ranks(losses: jax.Array) -> jax.Array:
    """Return the ranks of all losses, from -1/2 to 1/2; of equal ones their mean."""
    flat = jnp.where(jnp.isnan(losses), jnp.inf, losses).reshape(-1)
    below = jnp.sum(flat[None, :] < flat[:, None], axis=1)
    above = jnp.sum(flat[None, :] > flat[:, None], axis=1)
    centered = (below - above).astype(losses.dtype) / (2 * (flat.size - 1))
    return centered.reshape(losses.shape)
