"""Parameters in two groups, and what a transform makes of them."""

import jax
import jax.numpy as jnp

import fngrad.tree as tree

PARAMS = {
    "embed": {"weight": jnp.full((2, 2), 2.0)},
    "head": {"bias": jnp.array([1.0]), "weight": jnp.array([[1.0], [2.0]])},
}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def apply(transform, grads=GRADS, params=PARAMS):
    return transform.update(grads, transform.init(params), params)[0]


def paths(transform, params=PARAMS):
    return list(tree.leaf_paths(transform.init(params)))
