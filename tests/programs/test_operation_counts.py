"""Operations and bytes of a program: its equations one by one, and XLA's count."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fngrad as fg
import fngrad.layers as layers
import fngrad.models as models

KEY = jax.random.key(0)


def products(fn, *args):
    return fg.costs(fn, *args).products


def meetings_one_by_one(size, kernel, stride, padding, dilation, kernel_dilation):
    """Walk every output of a convolution over one axis."""
    padded = [None] * padding[0]
    for i in range(size):
        padded += [i] + [None] * (dilation - 1) * (i < size - 1)
    padded += [None] * padding[1]
    reach = (kernel - 1) * kernel_dilation + 1
    starts = range(0, len(padded) - reach + 1, stride)
    return sum(
        padded[s + k * kernel_dilation] is not None
        for s, k in itertools.product(starts, range(kernel))
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel_dilation", [1, 2])
def test_a_convolution_counts_what_meets(stride, padding, dilation, kernel_dilation):
    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride,), [padding], (dilation,), (kernel_dilation,)
        )

    x, kernel = jnp.ones((2, 3, 7)), jnp.ones((5, 3, 3))
    pairs = meetings_one_by_one(7, 3, stride, padding, dilation, kernel_dilation)
    assert products(convolve, x, kernel) == 2 * 2 * 5 * 3 * pairs


def test_a_gradient_takes_twice_the_products_more():
    layer = layers.conv(2, 3, 3, stride=2)
    params = jax.eval_shape(layer.init, KEY)
    x = jax.ShapeDtypeStruct((6, 6, 2), jnp.float32)

    def loss(params, x):
        return jnp.sum(jnp.sin(layer.apply(params, x)))

    forward = products(loss, params, x)
    assert products(jax.grad(loss, (0, 1)), params, x) == 3 * forward


def test_loops_count_by_their_lengths():
    w, x = jnp.ones((4, 4)), jnp.ones(4)

    def scanned(w, x):
        return lax.scan(lambda x, _: (w @ x, None), x, length=7)[0]

    def nested(w, x):
        return lax.fori_loop(0, 3, lambda _, x: scanned(w, x), x)

    assert products(scanned, w, x) == 7 * 32
    assert products(nested, w, x) == 21 * 32


def test_what_is_rematerialized_counts_again():
    w = jnp.ones((4, 4))

    def loss(w, x):
        return jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))

    again = jax.checkpoint(loss)
    x = jnp.ones((2, 4))
    assert products(jax.grad(loss, (0, 1)), w, x) == 6 * 64
    assert products(jax.grad(again, (0, 1)), w, x) in (7 * 64, 8 * 64)


def test_a_branch_counts_once():
    w = jnp.ones((4, 4))

    def choose(flag, w):
        return lax.cond(flag, lambda w: w @ w, lambda w: w @ w @ w, w)

    assert products(choose, True, w) == 2 * 128
    by_platform = functools.partial(
        lax.platform_dependent, cpu=lambda w: w @ w, default=lambda w: w @ w
    )
    assert products(by_platform, w) == 128


def test_derivative_rules_and_calls_count_their_program_once():
    @jax.custom_vjp
    def square(w):
        return w @ w

    square.defvjp(lambda w: (w @ w, w), lambda w, g: (g @ w,))
    w = jnp.ones((4, 4))
    assert products(jax.jit(square), w) == 128
    assert products(lambda w: jax.nn.silu(w @ w), w) == 128


def test_a_map_over_a_mesh_counts_every_device():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    fn = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert products(fn, jnp.ones((4, 3))) == 2 * 4 * 4 * 3


def test_complex_products_take_four_times_as_many():
    real, complex_ = jnp.ones((4, 4)), jnp.ones((4, 4), complex)
    assert products(jnp.matmul, complex_, complex_) == 4 * products(
        jnp.matmul, real, real
    )


def test_what_has_no_count_is_named():
    def loop(x, n):
        return lax.while_loop(
            lambda c: c[1] < n, lambda c: (c[0] @ x, c[1] + 1), (x, 0)
        )

    x = jnp.ones((4, 4))
    found = fg.costs(lambda x, n: (loop(x, n), jnp.linalg.eigh(x)), x, 3)
    assert found.products == 128
    assert found.uncounted == {"while": 1, "eigh": 1}


def tridiagonal_solve(x):
    return lax.linalg.tridiagonal_solve(x[0], x[1], x[2], x[3][:, None])


def ragged(x):
    return lax.ragged_dot(x, jnp.ones((2, 4, 5)), jnp.array([1, 3]))


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (jnp.fft.fft, "fft"),
        (lax.linalg.hessenberg, "hessenberg"),
        (lax.linalg.tridiagonal, "tridiagonal"),
        (tridiagonal_solve, "tridiagonal_solve"),
        (lambda x: lax.linalg.symmetric_product(x, x), "symmetric_product"),
        (ragged, "ragged_dot_general"),
    ],
)
def test_what_takes_more_than_one_operation_per_entry_is_named(fn, name):
    assert fg.costs(fn, jnp.ones((4, 4))).uncounted == {name: 1}


def test_something_else_than_a_function_is_refused():
    with pytest.raises(TypeError, match="need a function, got ArrayImpl"):
        fg.costs(jnp.ones(2))  # type: ignore[arg-type]


def test_moving_data_takes_no_operations():
    def move(x):
        y = jnp.concatenate([x.T, x[::-1].reshape(4, 4)]).astype(jnp.bfloat16)
        return jnp.where(x[0, 0] > 0, y[:4], y[4:])[jnp.array([2, 0])]

    assert fg.costs(move, jnp.ones((4, 4))).flops == 0
    assert fg.costs(lambda x: lax.top_k(x, 2), jnp.ones((4, 4))).flops == 0
    assert fg.costs(lax.complex, jnp.ones(4), jnp.ones(4)).flops == 0


def test_a_reduction_counts_what_it_reads():
    x = jnp.ones((4, 6))
    assert fg.costs(lambda x: jnp.sum(x, 0), x).others == 24
    assert fg.costs(lambda x: jnp.argmax(x), x).others == 0
    assert fg.costs(lambda x: x.at[jnp.array([1, 1])].add(1.0), x).others == 12


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (fg.sgd(0.1), 3),
        (fg.momentum(0.1), 5),
        (fg.rmsprop(0.1), 5),
        (fg.adagrad(0.1), 5),
        (fg.adam(0.1), 7),
    ],
    ids=["sgd", "momentum", "rmsprop", "adagrad", "adam"],
)
def test_an_update_reads_and_writes_what_it_must(optimizer, words):
    params = {"w": jnp.ones((100, 100))}
    state = optimizer.init(params)

    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return fg.apply_updates(params, updates), state

    found = fg.costs(update, params, state, params)
    assert words * 40_000 <= found.bytes <= words * 40_000 + 100


def test_xla_counts_the_same_where_nothing_loops():
    model = models.mlp((16, 32, 8))
    params = model.init(KEY)
    x = jnp.ones((64, 16))

    def loss(params, x):
        return jnp.sum(layers.batched(model)(params, x))

    compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
    by_xla = (compiled.cost_analysis() or {})["flops"]
    found = fg.costs(jax.grad(loss), params, x)
    assert found.products == pytest.approx(by_xla, rel=0.1)


def test_abstract_arrays_will_do():
    x = jax.ShapeDtypeStruct((1_000_000, 1_000_000), jnp.bfloat16)
    assert fg.costs(jnp.matmul, x, x) == fg.Costs(2 * 10**18, 0, 12 * 10**12, {})
