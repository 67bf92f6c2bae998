"""Logistic regression: a linear classifier whose loss is convex."""

import fngrad.layers as layers
import fngrad.layers.initializers as initializers
from fngrad.layers.core import Layer
from fngrad.programs.keywords_elsewhere import explains_keywords


@explains_keywords()
def logistic(in_size: int, classes: int) -> Layer:
    """Return a linear classifier, ``(in_size,) -> (classes,)`` logits.

    Its cross-entropy is convex, so the weights may start at zero. Parameters:
    ``weight`` and ``bias``.

    Args:
        in_size: size of x.
        classes: number of logits.

    Raises:
        ValueError: if a size is below 1; at ``apply``, if x has another size.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.logistic(4, 3)
        >>> params = model.init(jax.random.key(0))
        >>> print(jax.jit(jax.vmap(model.apply, (None, 0)))(params, jnp.ones((2, 4))))
        [[0. 0. 0.]
         [0. 0. 0.]]
    """
    return layers.linear(in_size, classes, weight_init=initializers.zeros())
