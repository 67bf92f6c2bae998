"""On CPU a max pool of a small window compares; it is XLA's pool in every respect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fngrad.layers as layers
from fngrad.layers.conv import MAX_CUTS

# (shape, window, stride, padding): adjoining, overlapping, with gaps, a sequence
CASES = {
    "adjoining": ((6, 5, 2), (2, 2), (2, 2), [(0, 0), (0, 0)]),
    "overlapping": ((6, 5, 2), (3, 3), (2, 2), [(1, 1), (1, 0)]),
    "gaps": ((7, 6, 1), (2, 1), (3, 2), [(0, 1), (0, 0)]),
    "sequence": ((9, 2), (3,), (1,), [(2, 0)]),
    "large": ((20, 1), (MAX_CUTS + 1,), (1,), [(0, 0)]),
}


def pools(name):
    """Return the layer's pool and XLA's."""
    _, window, stride, padding = CASES[name]
    layer = layers.max_pool(window, stride=stride, padding=padding)

    def native(x):
        pads = [*padding, (0, 0)]
        where = (*window, 1), (*stride, 1), pads
        return lax.reduce_window(x, -jnp.inf, lax.max, *where)

    return lambda x: layer.apply((), x), native


def value_and_gradient(pool):
    def both(x):
        y, pull = jax.vjp(pool, x)
        weights = jnp.arange(1, y.size + 1, dtype=y.dtype).reshape(y.shape)
        return y, *pull(weights)

    return jax.jit(jax.vmap(both))


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_xla(name):
    # Among small integers many are equal: the first of them has the gradient.
    x = np.random.default_rng(0).integers(-1, 2, (3, *CASES[name][0]))
    got, want = (value_and_gradient(f)(x.astype(np.float32)) for f in pools(name))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_passes_as_in_xla(bad):
    for position in np.ndindex(3, 3):
        x = np.ones((6, 5, 2), np.float32)
        x[position] = bad
        got, want = (jax.jit(pool)(x) for pool in pools("overlapping"))
        np.testing.assert_array_equal(got, want)


def test_gradients_of_shared_entries_add_up_in_float32():
    # In bfloat16 the sum of 16 times 1.0078125 would be rounded at every addition.
    layer = layers.max_pool((16,), stride=(1,))
    x = jnp.zeros((31, 1), jnp.bfloat16).at[15].set(1.0)
    weight = jnp.bfloat16(1.0078125)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(layer.apply((), x) * weight)))(x)
    assert slope.dtype == jnp.bfloat16
    assert slope[15, 0] == 16 * weight
