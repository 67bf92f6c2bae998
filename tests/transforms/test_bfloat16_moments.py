"""Moments in bfloat16, rounded stochastically: which, how exactly, how they train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import run
from update_memory import ENTRIES, temporary_bytes

import fngrad as fg
import fngrad.numerics.stochastic_rounding as stochastic_rounding
import fngrad.transforms.quantized_update as quantized_update
import fngrad.tree as tree
from fngrad.numerics.stochastic_rounding import Rounded
from fngrad.optimizers import REGISTRY, adam, momentum, rmsprop
from fngrad.optimizers.rmsprop import scale_by_rms
from fngrad.transforms.clipping import clip_by_global_norm
from fngrad.transforms.core import apply_updates, chain
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import freeze, partition
from fngrad.transforms.quantize import describe_quantization, quantize_state
from fngrad.transforms.tunable_hyperparameters import tunable

short = functools.partial(quantize_state, bits=16)
LAWFUL = {
    "adam": short(adam(0.1)),
    "clip and momentum": short(chain(clip_by_global_norm(1.0), momentum(0.1))),
    "in a partition": partition(
        [("layers/**", chain(short(rmsprop(0.1)))), ("**", freeze())]
    ),
    "tunable": tunable(lambda **h: short(adam(**h)), learning_rate=0.1, b2=0.99),
}


@pytest.mark.parametrize("name", LAWFUL)
def test_the_laws_hold(name):
    check_transform(LAWFUL[name])


PARAMS = {"w": jnp.ones((8, 16)), "b": jnp.ones(3), "s": jnp.ones(())}


def moments_of(state):
    """Return the paths and arrays of the moments that are in bfloat16."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        state, is_leaf=lambda x: isinstance(x, Rounded)
    )
    return {
        tree.path_string(path): leaf
        for path, leaf in leaves
        if isinstance(leaf, Rounded)
    }


@pytest.mark.parametrize("name", REGISTRY)
def test_every_declared_moment_is_in_bfloat16_and_nothing_else(name):
    coded = quantize_state(REGISTRY[name](0.1), 8, 2, min_size=0)
    optimizer = short(REGISTRY[name](0.1))
    want = jax.eval_shape(coded.init, PARAMS)["quantize_state"].inner
    state = jax.eval_shape(optimizer.init, PARAMS)["quantize_state"].inner
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        want, is_leaf=quantized_update.is_short
    )
    kept = moments_of(state)
    assert set(kept) == {
        tree.path_string(path) for path, x in leaves if quantized_update.is_short(x)
    }
    for moment in kept.values():
        assert (moment.values.dtype, moment.dtype) == (jnp.bfloat16, jnp.float32)
    updates, new = jax.eval_shape(
        optimizer.update, PARAMS, optimizer.init(PARAMS), PARAMS
    )
    assert tree.mismatch(updates, PARAMS) is None
    assert tree.mismatch(new["quantize_state"].inner, state) is None


def gradients(step, shape=(64, 64)):
    rng = np.random.default_rng(step)
    size = np.exp(rng.normal(size=shape) * 3)
    return (size * (1 + rng.normal(size=shape))).astype(np.float32)


def adam_in_float64(steps, rate, b1=0.9, b2=0.999, eps=1e-8):
    """Return the parameters after each step, in NumPy."""
    w, mu, nu, path = 1.0, 0.0, 0.0, []
    for t in range(1, steps + 1):
        g = gradients(t - 1).astype(np.float64)
        mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
        root = np.sqrt(nu / (1 - b2**t)) + eps
        w = w - rate * (mu / (1 - b1**t)) / root
        path.append(w)
    return path


def test_trajectories_are_those_of_float32_within_the_width_of_bfloat16():
    steps, optimizer = 30, short(adam(0.1))
    want = adam_in_float64(steps, 0.1)
    params = jnp.ones((64, 64))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(jnp.asarray(gradients(step)), state, params)
        params = apply_updates(params, updates)
        moved = np.asarray(params, np.float64) - 1
        error = np.linalg.norm(moved - (want[step] - 1)) / np.linalg.norm(
            want[step] - 1
        )
        # An error of 2**-9 (root mean square of the rounding) per moment and step,
        # averaged over about ten steps by each moment.
        assert error < 4e-3, step
    assert abs(np.mean(moved - (want[-1] - 1))) < 1e-3


def test_the_updates_are_made_of_the_rounded_moments():
    optimizer, params = short(momentum(0.5)), jnp.zeros((64, 64))
    updates, state = optimizer.update(
        jnp.asarray(gradients(0)), optimizer.init(params), params
    )
    (moment,) = moments_of(state).values()
    np.testing.assert_array_equal(updates, -0.5 * moment.values.astype(jnp.float32))
    error = np.abs(np.asarray(updates) / (-0.5 * gradients(0)) - 1)
    assert 2**-9 < np.max(error) <= 2**-7


def decayed(steps):
    """Return second moments, from 1, after so many steps without gradients."""
    rule = short(scale_by_rms(0.999, initial_scale=1.0))
    params = jnp.zeros(4096)

    def advance(state, _):
        return rule.update(jnp.zeros(4096), state, params)[1], None

    end, _ = jax.jit(lambda s: jax.lax.scan(advance, s, None, steps))(rule.init(params))
    (moment,) = moments_of(end).values()
    return np.asarray(moment.widened(), np.float64)


def test_a_second_moment_decays_where_rounding_to_nearest_leaves_it(monkeypatch):
    steps = 1500
    exact = 0.999**steps
    moments = decayed(steps)
    # Each step adds a relative variance of at most 2**-16 / 4; entries are averaged.
    spread = np.sqrt(steps * 2.0**-18)
    assert abs(np.mean(moments) / exact - 1) < 4 * spread / np.sqrt(moments.size)
    assert np.std(moments) / exact < spread
    monkeypatch.setattr(
        stochastic_rounding,
        "spread_dither",
        lambda shape, step, stream: stochastic_rounding.NEAREST,
    )
    np.testing.assert_array_equal(decayed(steps), 1.0)


def test_a_run_repeats_to_the_bit_in_a_scan_and_in_lanes():
    optimizer = short(adam(0.1))
    params = {"w": jnp.ones((8, 16)), "b": jnp.ones(3)}
    slopes = {"w": jnp.linspace(0.1, 1.0, 128).reshape(8, 16), "b": jnp.ones(3)}

    def step(carry, scale):
        params, state = carry
        updates, state = optimizer.update(tree.scale(scale, slopes), state, params)
        return (apply_updates(params, updates), state), None

    scales = jnp.linspace(1.0, 2.0, 7)
    start = params, optimizer.init(params)
    looped, one = start, jax.jit(step)
    for scale in scales:
        looped, _ = one(looped, scale)
    scanned, _ = jax.jit(lambda s: jax.lax.scan(step, s, scales))(start)
    jax.tree.map(np.testing.assert_array_equal, scanned, looped)
    lanes = jax.tree.map(lambda x: jnp.stack([x, x]), start)
    batched = jax.jit(jax.vmap(lambda s: jax.lax.scan(step, s, scales)[0]))(lanes)
    # The moments; parameters differ in the last place in float32 too.
    for lane in (0, 1):
        state = jax.tree.map(lambda x, lane=lane: x[lane], batched[1])
        jax.tree.map(np.testing.assert_array_equal, state, looped[1])


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import fngrad as fg

optimizer = fg.quantize_state(fg.adam(0.1), bits=16)
update = jax.jit(optimizer.update)
gradients = jnp.linspace(-1.0, 2.0, 64).reshape(8, 8)
mesh = Mesh(np.array(jax.devices()), "x")
ends = []
for placement in (None, NamedSharding(mesh, P("x"))):
    params = jnp.ones((8, 8))
    if placement is not None:
        params, gradients = jax.device_put((params, gradients), placement)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = update(gradients, state, params)
        params = params + updates
    ends.append((params, state))
moment = ends[1][1]["quantize_state"].inner["scale_by_adam"].mu.values
assert moment.addressable_shards[0].data.shape == (1, 8), moment.sharding
jax.tree.map(np.testing.assert_array_equal, *ends)
"""


@pytest.mark.slow
def test_sharded_moments_have_the_same_bits():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = run(SHARDED, variables=flags)
    assert done.returncode == 0, done.stderr


def test_the_table_says_bfloat16():
    got = describe_quantization(short(adam(0.1)), {"w": PARAMS["w"]}).split("\n")
    assert [line.split() for line in got[1:]] == [
        ["scale_by_adam/mu/w", "float32", "bfloat16", "512", "256"],
        ["scale_by_adam/nu/w", "float32", "bfloat16", "512", "256"],
        ["total", "1024", "512"],
    ]


def test_min_size_leaves_small_moments_in_float32():
    state = jax.eval_shape(short(adam(0.1), min_size=10).init, PARAMS)
    assert {path.split("/")[-1] for path in moments_of(state)} == {"w"}


@pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="JAX 0.7 fuses less of an update"
)
def test_an_update_holds_no_temporary_arrays():
    assert temporary_bytes(short(adam(0.1))) < ENTRIES * 2


def test_moments_of_double_precision_keep_their_dtype(x64):
    optimizer, params = short(adam(0.1)), jnp.ones((4, 4), jnp.float64)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert updates.dtype == jnp.float64
    assert all(m.dtype == jnp.float64 for m in moments_of(state).values())
    np.testing.assert_allclose(updates, -0.1, rtol=2**-6)


def test_moments_of_complex_parameters_stay_and_their_squares_do_not():
    state = jax.eval_shape(short(adam(0.1)).init, {"z": jnp.ones(4, jnp.complex64)})
    assert set(moments_of(state)) == {"quantize_state/inner/scale_by_adam/nu/z"}


class Foreign:
    """A transform of another library; it passes the gradient on as its state."""

    def init(self, params):
        return {"m": params * 0, "last": params * 0}

    def update(self, updates, state, params=None):
        return updates, {"m": state["m"], "last": updates}


def test_an_array_that_an_update_passes_on_is_rounded_once():
    optimizer = short(Foreign(), signed=("**/m", "**/last"))
    params = jnp.linspace(1.0, 2.0, 64)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_array_equal(updates, params)
    kept = state["quantize_state"].inner["Foreign"]
    np.testing.assert_array_equal(kept["m"].values, jnp.zeros(64, jnp.bfloat16))
    np.testing.assert_allclose(kept["last"].widened(), params, rtol=2**-7)


def test_an_autopsy_finds_the_operation_behind_rounded_moments():
    def loss_fn(params, batch):
        return jnp.sum(jnp.log(params["w"]) * batch)

    optimizer = short(momentum(0.5))
    step = fg.make_step(loss_fn, optimizer)
    state = fg.init_state({"w": jnp.array([1.0, 0.5])}, optimizer, 0)
    found = fg.autopsy(step, state, lambda step: jnp.ones(2))
    assert found.operation == "log"
