"""Meshes, and how a program finds its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fngrad.sharding as sharding
from fngrad.sharding.meshes import check_mesh, mesh_of

DEVICES = jax.devices()[:1] * 8  # enough to count with
MESH = sharding.make_mesh(jax.devices()[:1])


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({}, {"data": 8}),
        ({"data": 8}, {"data": 8}),
        ({"data": 2, "model": 4}, {"data": 2, "model": 4}),
        ({"data": -1, "model": 2}, {"data": 4, "model": 2}),
        ({"model": np.int32(8)}, {"model": 8}),
    ],
)
def test_devices_are_arranged_along_auto_axes(axes, shape):
    mesh = sharding.make_mesh(DEVICES, **axes)
    assert dict(mesh.shape) == shape
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ({"data": 3}, ValueError, "multiply to the 8 devices, got {'data': 3}"),
        ({"data": 3, "model": -1}, ValueError, "multiply to the 8 devices"),
        ({"data": -1, "model": -1}, ValueError, "at most one axis of size -1"),
        ({"data": 0}, ValueError, "axis 'data' of size >= 1 or -1, got 0"),
        ({"data": 2.0}, TypeError, "an int as the size of axis 'data', got 2.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(axes, error, message):
    with pytest.raises(error, match=message):
        sharding.make_mesh(DEVICES, **axes)


@pytest.mark.parametrize("devices", [8, {"data": 8}, ["cpu"], "data=8", []])
def test_what_is_not_a_sequence_of_devices_is_refused(devices):
    message = r"need a sequence of devices, .* by name: make_mesh\(data=8\)"
    with pytest.raises(TypeError, match=message):
        sharding.make_mesh(devices)


def test_messages_say_how_to_take_fewer_devices_or_to_make_more():
    with pytest.raises(ValueError, match=r"got {'data': 4}; make_mesh\(.*\[:4\], "):
        sharding.make_mesh(DEVICES, data=4)
    with pytest.raises(ValueError, match=r"device_count=32"):
        sharding.make_mesh(DEVICES, data=-1, model=32)
    with pytest.raises(ValueError, match=r"device_count=16.* makes more"):
        sharding.make_mesh(DEVICES, data=16)


@pytest.mark.parametrize(
    "place",
    [
        lambda mesh: sharding.shard_state({"w": jnp.ones(4)}, mesh),
        lambda mesh: sharding.shard_batch({"x": jnp.ones(4)}, mesh),
        lambda mesh: sharding.init_sharded(lambda: {"w": jnp.ones(4)}, mesh),
    ],
)
def test_arrays_need_a_mesh_of_devices(place):
    with pytest.raises(TypeError, match=r"need a mesh of devices, .* AbstractMesh"):
        place(sharding.abstract_mesh(data=4))


def test_arrays_say_on_which_mesh_they_are():
    x = jax.device_put(jnp.ones(4), NamedSharding(MESH, P()))
    assert mesh_of({"a": np.ones(2), "b": x}) == MESH
    assert mesh_of({"a": jnp.ones(2)}) is None
    seen = []

    @jax.jit
    def trace(a):
        seen.append(mesh_of(a))
        return a

    trace(x)
    trace(jnp.ones(4))
    assert seen == [MESH.abstract_mesh, None]


def test_without_arrays_on_a_mesh_the_one_in_force_counts():
    with jax.set_mesh(MESH):
        assert mesh_of(np.ones(2)) == MESH.abstract_mesh
    assert mesh_of(np.ones(2)) is None


def test_a_program_of_one_device_has_no_mesh():
    seen = []

    def inside(x):
        seen.append(mesh_of(x))
        return x

    jax.jit(jax.shard_map(inside, mesh=MESH, in_specs=P(), out_specs=P()))(jnp.ones(2))
    assert seen == [None] * len(seen) != []


def test_explicit_axes_are_refused():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    x = jax.device_put(jnp.ones(4), NamedSharding(mesh, P()))
    with pytest.raises(ValueError, match="Auto axes, got Explicit for"):
        sharding.shard_state({"w": jnp.ones(4)}, mesh)
    with pytest.raises(ValueError, match="Auto axes, got Explicit for"):
        mesh_of(x)
    with pytest.raises(TypeError, match="need a mesh, got int: "):
        check_mesh(8)
    assert check_mesh(sharding.abstract_mesh(data=4)) is None


def test_a_mesh_without_devices_has_auto_axes_of_any_size():
    mesh = sharding.abstract_mesh(data=4, model=2)
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert check_mesh(mesh) is None
    for axes in ({}, {"data": -1}, {"data": 0}):
        with pytest.raises(ValueError, match="size"):
            sharding.abstract_mesh(**axes)
    with pytest.raises(TypeError, match="need an int as the size of axis 'data'"):
        sharding.abstract_mesh(data=2.0)  # type: ignore[arg-type]
