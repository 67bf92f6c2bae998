r"""A mean over what is not known before the batch is: a sum, and its weight apart."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

import fngrad.numerics as numerics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedSum:
    """A sum and the weight to divide it by; see `weighted_sum`.

    It is not a tuple, so that no function takes it for a pair (loss, metrics).
    """

    total: jax.Array  # sum of w x, a real float, shape ()
    weight: jax.Array  # sum of w, real, shape ()

    def mean(self) -> jax.Array:
        """Return the quotient; 0 if there was no weight, which is held constant."""
        weight = jax.lax.stop_gradient(jnp.asarray(self.weight))
        return numerics.divide(self.total, weight.astype(self.total.dtype))


def weighted_sum(total: Any, weight: Any) -> WeightedSum:
    r"""Return a mean in two parts, for a loss whose weight differs between batches.

    $$L = \frac{\sum_i w_i \ell_i}{\sum_i w_i}$$

    A loss returns it in place of a scalar, and a metric in place of a number: the
    masked mean over the tokens of a batch. Sums and weights are added over the
    micro-batches of `fngrad.make_step` and over the batches of `fngrad.evaluate`, and
    divided once, so that the mean, and its gradient, are those of the whole, where a
    mean of means counts a part with one token as much as one with a thousand. The
    weight has no gradient.

    `fngrad.accumulate` sees gradients alone and averages them with equal weights.

    Args:
        total: $\sum_i w_i \ell_i$, a real float scalar.
        weight: $\sum_i w_i$ >= 0, a real scalar, such as the number of tokens that
            count. Where it is 0 the loss and its gradient are 0. With 16 bits of
            precision count a mask of bools or integers: 257 ones are 256 in bfloat16.

    Raises:
        TypeError: if the total is not a real float, or the weight is complex.
        ValueError: if one of them is not a scalar, or a known weight is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> def loss_fn(w, batch):
        ...     errors = fg.losses.squared_error(w * batch["x"], batch["y"])
        ...     kept = batch["mask"]
        ...     return fg.losses.weighted_sum(jnp.sum(errors * kept), jnp.sum(kept))
        >>> batch = {"x": jnp.ones(4), "y": jnp.arange(4.0)}
        >>> batch["mask"] = jnp.array([1.0, 1.0, 1.0, 0.0])
        >>> step = fg.make_step(loss_fn, fg.sgd(0.1), micro_batches=2)
        >>> state = fg.init_state(jnp.array(0.0), fg.sgd(0.1), key=0)
        >>> state, metrics = step(state, batch)
        >>> print(f"{metrics['loss']:.4f}")  # (0 + 1 + 4) / 3
        1.6667
    """
    total, weight = jnp.asarray(total), jnp.asarray(weight)
    if total.shape != () or weight.shape != ():
        raise ValueError(
            "need a sum and a weight that are scalars, got shapes "
            f"{total.shape} and {weight.shape}: sum them over the batch"
        )
    if not jnp.issubdtype(total.dtype, jnp.floating):
        raise TypeError(f"need a real float sum, got dtype {total.dtype}")
    if jnp.iscomplexobj(weight):
        raise TypeError(f"need a real weight, got dtype {weight.dtype}")
    if not isinstance(weight, Tracer) and weight < 0:
        raise ValueError(f"need a weight >= 0, got {weight}")
    return WeightedSum(total, weight)
