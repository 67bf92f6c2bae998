"""Zeros and copies stay where their arrays are, and compile nothing if they can."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import run

import fngrad.tree as tree
from fngrad.training import snapshot

CHILD = """
import jax, jax.numpy as jnp, numpy as np
import fngrad.tree as tree
from fngrad.training import snapshot
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()), ("d",))
x = jnp.arange(8.0)
cases = [
    x,
    jax.device_put(x, jax.devices()[3]),
    jax.device_put(x, NamedSharding(mesh, P("d"))),
    jax.device_put(x, NamedSharding(mesh, P())),
]
for case in cases:
    made = tree.wide_zeros_like(case)
    assert made.sharding == case.sharding, (made.sharding, case.sharding)
    assert not np.any(made)
    copy = snapshot(case)
    assert copy.sharding == case.sharding
    assert copy.committed == case.committed
    old, new = (
        {shard.data.unsafe_buffer_pointer() for shard in a.addressable_shards}
        for a in (case, copy)
    )
    assert not old & new
    np.testing.assert_array_equal(copy, case)
"""


def test_zeros_and_copies_are_on_the_devices_of_their_arrays():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = run(CHILD, variables=flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [3, 2**19])  # from the host, and by a program
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "complex64"])
def test_zeros_are_in_at_least_single_precision(size, dtype):
    x = jnp.ones((size, 2), dtype)
    made = tree.wide_zeros_like(x)
    expected = jnp.complex64 if dtype == "complex64" else jnp.float32
    assert (made.shape, made.dtype, made.weak_type) == (x.shape, expected, False)
    assert not np.any(made)


def test_zeros_are_made_for_shapes_and_inside_programs():
    shape = jax.ShapeDtypeStruct((2,), jnp.float16)
    assert tree.wide_zeros_like(shape).dtype == jnp.float32
    text = str(jax.make_jaxpr(tree.wide_zeros_like)(jnp.ones(3)))
    assert "broadcast_in_dim" in text
    assert "device_put" not in text
    both = jax.vmap(lambda x: x + tree.wide_zeros_like(x))(jnp.ones((2, 3)))
    np.testing.assert_array_equal(both, 1.0)


def test_a_copy_of_small_zeros_can_be_donated():
    zeros = tree.wide_zeros_like(jnp.ones(4))
    moved = jax.jit(lambda x: x + 1.0, donate_argnums=0)(zeros)
    np.testing.assert_array_equal(moved, 1.0)
    state = {"x": moved, "key": jax.random.key(3)}
    copy = snapshot(state)
    jax.jit(lambda s: jax.tree.map(lambda x: x, s), donate_argnums=0)(copy)
    np.testing.assert_array_equal(state["x"], 1.0)
    assert jax.random.key_data(state["key"]).tolist() == [0, 3]
