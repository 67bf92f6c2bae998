"""Operations and bytes of a program, against counts by hand and XLA's own."""

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


def of_layer(layer, *shape, dtype=jnp.float32):
    """Return the products of a layer's ``apply`` on one example."""
    params = jax.eval_shape(layer.init, KEY)
    return products(layer.apply, params, jax.ShapeDtypeStruct(shape, dtype))


ATTENTION = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8  # projections of 5 positions; scores, sums
BLOCK = ATTENTION + 2 * 5 * 8 * 32

BY_HAND = {
    "linear": (layers.linear(4, 3), (7, 4), 7 * 4 * 3),
    "conv": (layers.conv(2, 3, 3, padding="VALID"), (6, 6, 2), 16 * 9 * 2 * 3),
    "conv, padded": (layers.conv(2, 3, 3), (4, 4, 2), 10 * 10 * 2 * 3),
    "conv over a sequence": (layers.conv(2, 3, (3,)), (5, 2), 13 * 2 * 3),
    "attention": (layers.multi_head_attention(8, 2), (5, 8), ATTENTION),
    "gru": (layers.gru(3, 4), (5, 3), 5 * 3 * 4 * (3 + 4)),
    "lstm": (layers.lstm(3, 4), (5, 3), 5 * 4 * 4 * (3 + 4)),
    "layer_norm": (layers.layer_norm(4), (3, 4), 0),
    "dropout": (layers.dropout(0.5), (4,), 0),
    "repeat": (layers.repeat(layers.linear(4, 4), 9), (4,), 9 * 16),
    "mlp": (models.mlp((4, 5, 3)), (4,), 4 * 5 + 5 * 3),
    "logistic": (models.logistic(4, 3), (4,), 12),
    "cnn": (
        models.cnn((4, 4, 1), 3, channels=(2,), hidden_size=4),
        (4, 4, 1),
        10 * 10 * 2 + 2 * 2 * 2 * 4 + 4 * 3,
    ),
}


@pytest.mark.parametrize("name", list(BY_HAND))
def test_the_products_of_a_layer_are_those_counted_by_hand(name):
    layer, shape, pairs = BY_HAND[name]
    assert of_layer(layer, *shape) == 2 * pairs


@pytest.mark.parametrize("scan", [False, True])
def test_the_products_of_a_transformer_are_those_counted_by_hand(scan):
    model = models.transformer(
        11, 6, features=8, num_heads=2, num_layers=4, scan=scan, remat=scan
    )
    assert of_layer(model, 5, dtype=jnp.int32) == 2 * (4 * BLOCK + 5 * 8 * 11)


def test_the_products_of_a_recurrent_model_are_those_counted_by_hand():
    model = models.rnn(3, (4,), 2)
    params = jax.eval_shape(model.init, KEY)
    x = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    pairs = 5 * 3 * 4 * (3 + 4) + 4 * 2
    assert products(model.apply, params, x) == 2 * pairs


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


def test_groups_divide_the_products_of_a_convolution():
    plain, grouped = layers.conv(4, 8, 3), layers.conv(4, 8, 3, groups=2)
    assert of_layer(plain, 5, 5, 4) == 2 * of_layer(grouped, 5, 5, 4)


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
    [(fg.sgd(0.1), 3), (fg.momentum(0.1), 5), (fg.adam(0.1), 7)],
    ids=["sgd", "momentum", "adam"],
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
