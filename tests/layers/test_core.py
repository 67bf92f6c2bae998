"""batched, dropout's mask, and the path in front of a message."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
from fngrad.layers.core import at


def test_batched_gives_each_example_a_key_of_its_own():
    drop = layers.dropout(0.5)
    x = jnp.ones((3, 64))
    y = layers.batched(drop)((), x, key=jax.random.key(0))
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(y[1], y[2])


def test_an_examples_key_does_not_depend_on_the_batch_size():
    apply = layers.batched(layers.dropout(0.5))
    many = apply((), jnp.ones((4, 8)), key=jax.random.key(0))
    few = apply((), jnp.ones((2, 8)), key=jax.random.key(0))
    np.testing.assert_array_equal(many[:2], few)


def test_batched_takes_an_int_key_and_maps_further_arguments():
    layer = layers.gru(2, 3)
    params = layer.init(0)
    x = jnp.ones((2, 4, 2))
    y = layers.batched(layer)(params, x, key=0, length=jnp.array([1, 3]))
    is_zero = [[False, True, True, True], [False, False, False, True]]
    np.testing.assert_array_equal(np.all(y == 0, axis=-1), is_zero)


def test_batched_names_the_axis():
    center = layers.Layer(
        layers.no_params, lambda params, x, *, key=None: x - jax.lax.pmean(x, "rows")
    )
    y = layers.batched(center, axis_name="rows")((), jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(y, [-1.0, 1.0])


def test_an_inner_path_is_put_behind_the_outer_one():
    with pytest.raises(layers.LayerError) as caught, at("a/b"), at("c"):
        raise ValueError("need more")
    assert str(caught.value) == "a/b/c: need more"
    assert isinstance(caught.value.__cause__, ValueError)


def test_errors_of_other_types_pass_with_a_note():
    with pytest.raises(KeyError) as caught, at("head"):
        raise KeyError("weight")
    assert caught.value.__notes__ == ["in the layer head"]


def test_a_subclass_of_value_error_keeps_its_type():
    with pytest.raises(UnicodeError, match="odd"), at("head"):
        raise UnicodeError("odd")


@pytest.mark.parametrize("size", [0, -1, 2.0, None])
def test_sizes_are_ints_above_zero(size):
    message = re.escape(f"need an int in_size >= 1, got in_size={size!r}")
    with pytest.raises(ValueError, match=message):
        layers.linear(size, 2)
