"""Normalisation against its formulas in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fngrad.layers as layers

X = np.random.default_rng(0).normal(2.0, 3.0, (4, 3, 6))
EPS = 0.5


def standardized(x, axes, eps=EPS):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def group_oracle(x):
    grouped = x.reshape(4, 3, 2, 3)
    return standardized(grouped, (0, 1, 3)).reshape(x.shape)


def rms_oracle(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)


NORMS = {
    "layer_norm": (
        lambda **options: layers.layer_norm(6, eps=EPS, **options),
        lambda x: standardized(x, -1),
    ),
    "rms_norm": (lambda **o: layers.rms_norm(6, eps=EPS, **o), rms_oracle),
    "group_norm": (lambda **o: layers.group_norm(6, 2, eps=EPS, **o), group_oracle),
}
SCALE, BIAS = np.arange(1.0, 7.0), np.arange(6.0) - 2.0


def as_params(options):
    values = {"scale": SCALE, "bias": BIAS}
    kept = {n: jnp.asarray(v, jnp.float32) for n, v in values.items() if options[n]}
    return kept or ()


@pytest.mark.parametrize("name", list(NORMS))
@pytest.mark.parametrize(
    "options",
    [
        {"scale": True, "bias": True},
        {"scale": True, "bias": False},
        {"scale": False, "bias": True},
        {"scale": False, "bias": False},
    ],
)
def test_norms_equal_their_formulas(name, options):
    make, oracle = NORMS[name]
    if name == "rms_norm":
        options = {**options, "bias": False}
        layer = make(scale=options["scale"])
    else:
        layer = make(**options)
    params = as_params(options)
    begin, got = jax.jit(lambda p, x: (layer.init(0), layer.apply(p, x)))(
        params, X.astype(np.float32)
    )
    assert jax.tree.structure(begin) == jax.tree.structure(params)
    expected = oracle(X)
    if options["scale"]:
        np.testing.assert_array_equal(begin["scale"], np.ones(6))
        expected = expected * SCALE
    if options["bias"]:
        np.testing.assert_array_equal(begin["bias"], np.zeros(6))
        expected = expected + BIAS
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(NORMS))
def test_a_constant_vector_has_finite_gradients(name):
    layer = NORMS[name][0]()
    slope = jax.jit(jax.grad(lambda x, p: jnp.sum(layer.apply(p, x)[0])))
    params = jax.jit(layer.init)(0)
    for value in 0.0, 7.0:
        assert np.all(np.isfinite(slope(np.full((2, 6), value, np.float32), params)))


@pytest.mark.parametrize("name", list(NORMS))
def test_statistics_of_bfloat16_are_float32(name):
    # 1000 + [0, 8): bfloat16 is exact here in steps of 4, its squares are not.
    make, oracle = NORMS[name]
    x = 1000.0 + 4.0 * (X > 2.0)
    layer = make()
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), layer.init(jax.random.key(0))
    )
    got = jax.jit(layer.apply)(params, jnp.asarray(x, jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float64), oracle(x), rtol=8e-3)


def test_batch_norm_trains_on_the_batch_and_keeps_running_statistics():
    layer = layers.batch_norm(6, momentum=0.8, eps=EPS)
    _, state = layer.init(jax.random.key(0))
    params = as_params({"scale": True, "bias": True})
    apply = jax.jit(layers.batched(layer))
    mean, var = np.zeros(6), np.ones(6)
    for step in range(3):
        x = X + step
        y, state = apply(params, state, jnp.asarray(x, jnp.float32), key=0)
        expected = standardized(x, (0, 1)) * SCALE + BIAS
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
        mean = 0.8 * mean + 0.2 * x.mean((0, 1))
        var = 0.8 * var + 0.2 * x.var((0, 1))
        np.testing.assert_allclose(state["mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(state["var"], var, rtol=1e-5)
    y, same = jax.jit(layer.apply)(params, state, jnp.asarray(X[0], jnp.float32))
    expected = (X[0] - mean) / np.sqrt(var + EPS) * SCALE + BIAS
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(same["mean"], state["mean"])


def test_batch_norm_differentiates_through_the_statistics():
    layer = layers.batch_norm(1, eps=1e-6)
    params, state = layer.init(jax.random.key(0))

    def first(x):
        return layers.batched(layer)(params, state, x, key=0)[0][0, 0]

    # Two examples normalise to -1 and 1 whatever they are.
    gradient = jax.jit(jax.grad(first))(jnp.array([[1.0], [5.0]]))
    np.testing.assert_allclose(gradient, np.zeros((2, 1)), atol=1e-6)


def test_the_batch_of_a_batch_norm_can_be_rematerialized():
    layer = layers.batch_norm(3)
    params, model_state = layer.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 3))

    def loss(x):
        y, _ = layers.batched(layer)(params, model_state, x, key=jax.random.key(2))
        return jnp.sum(y**3)

    grads = jax.jit(jax.grad(loss))(x), jax.jit(jax.grad(jax.checkpoint(loss)))(x)
    np.testing.assert_allclose(*grads, rtol=1e-5, atol=1e-6)


NORMS_OF_AN_EXAMPLE = {
    "layer": layers.layer_norm(6),
    "rms": layers.rms_norm(6),
    "group": layers.group_norm(6, 2),
}


@pytest.mark.parametrize("name", NORMS_OF_AN_EXAMPLE)
def test_derivatives_of_norms_are_those_of_finite_differences(name, x64):
    layer = NORMS_OF_AN_EXAMPLE[name]
    params = jax.tree.map(lambda p: p.astype(float), layer.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (2, 6), float)

    def cubed(x):
        return jnp.sum(layer.apply(params, x) ** 3)

    check_grads(cubed, (x,), order=2, rtol=1e-5, atol=1e-5)


def test_batch_norm_of_bfloat16_keeps_float32_statistics():
    layer = layers.batch_norm(1, scale=False, bias=False)
    params, state = layer.init(jax.random.key(0))
    # The true mean 100.25 is not representable in bfloat16.
    x = jnp.array([[100.0], [100.5]], jnp.bfloat16)
    y, state = jax.jit(layers.batched(layer))(params, state, x, key=0)
    assert y.dtype == jnp.bfloat16
    assert state["mean"].dtype == jnp.float32
    np.testing.assert_allclose(state["mean"], [10.025], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(y, np.float32), [[-1.0], [1.0]], rtol=8e-3)


def test_momentum_can_be_swept():
    x = jnp.asarray(X, jnp.float32)

    def running_mean(momentum):
        layer = layers.batch_norm(6, momentum=momentum)
        params, state = layer.init(0)
        return layers.batched(layer)(params, state, x, key=0)[1]["mean"]

    swept = jax.jit(jax.vmap(running_mean))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(swept[0], X.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(swept[1], X.mean((0, 1)) / 2, rtol=1e-5)


def test_batch_norm_takes_another_axis_or_none():
    x = jnp.array([[[1.0], [3.0]], [[5.0], [9.0]]])
    named = layers.batch_norm(1, axis_name="rows")
    params, state = named.init(0)
    together = jax.jit(layers.batched(named, axis_name="rows"))
    _, moved = together(params, state, x, key=0)
    np.testing.assert_allclose(moved["mean"], [0.45], rtol=1e-6)
    alone = layers.batch_norm(1, axis_name=None)
    y, moved = jax.jit(alone.apply)(params, state, x[0], key=0)
    np.testing.assert_allclose(y, [[-1.0], [1.0]], rtol=1e-4)
    np.testing.assert_allclose(moved["mean"], [0.2], rtol=1e-6)


def test_batch_norm_needs_its_axis_in_training():
    layer = layers.batch_norm(2)
    params, state = jax.eval_shape(layer.init, 0)
    train = functools.partial(layer.apply, key=0)
    with pytest.raises(ValueError, match=r"need an axis called 'batch'.*batched"):
        jax.eval_shape(train, params, state, jnp.ones(2))
    jax.eval_shape(layer.apply, params, state, jnp.ones(2))


def test_batch_norm_composes_and_its_state_keeps_its_structure():
    model = layers.serial(layers.linear(3, 2), layers.batch_norm(2), jax.nn.relu)
    params, state = model.init(0)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    _, moved = jax.jit(layers.batched(model))(params, state, x, key=0)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, state)
    assert np.all(moved["layers"][1]["mean"] != 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.layer_norm(0), "need an int size >= 1"),
        (lambda: layers.rms_norm(0), "need an int size >= 1"),
        (lambda: layers.layer_norm(2, eps=-1.0), "<= eps <="),
        (lambda: layers.rms_norm(2, eps=-1.0), "<= eps <="),
        (lambda: layers.group_norm(2, 1, eps=-1.0), "<= eps <="),
        (lambda: layers.batch_norm(2, eps=-1.0), "<= eps <="),
        (lambda: layers.batch_norm(2, momentum=1.5), "momentum=1.5"),
        (lambda: layers.group_norm(4, 3), "groups=3 channels=4"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [layers.layer_norm, layers.rms_norm, layers.batch_norm, layers.group_norm],
)
def test_eps_is_a_number(make):
    options = {"groups": 2} if make is layers.group_norm else {}

    def apply(eps):
        layer = make(4, eps=eps, **options)
        return jax.tree.leaves(layer.init(jax.random.key(0)))

    with pytest.raises(TypeError, match=r"need eps as a number, got a traced float32"):
        jax.jit(apply)(1e-5)
    np.testing.assert_array_equal(apply(jnp.float32(1e-5))[0], apply(1e-5)[0])


@pytest.mark.parametrize(
    "layer",
    [layers.layer_norm(4), layers.rms_norm(4), layers.group_norm(4, 2)],
)
def test_norms_need_their_last_axis(layer):
    with pytest.raises(ValueError, match=r"need x with last axis 4, got shape \(3,\)"):
        layer.apply(layer.init(0), jnp.ones(3))


def test_batch_norm_explains_how_to_carry_its_state():
    layer = layers.batch_norm(2)
    made = layer.init(0)
    with pytest.raises(ValueError, match=r"need parameters .* model.init"):
        layer.apply(made, made[1], jnp.ones(2))
    with pytest.raises(ValueError, match=r"need model state .* got {}; .* model.init"):
        layer.apply(made[0], (), jnp.ones(2))
