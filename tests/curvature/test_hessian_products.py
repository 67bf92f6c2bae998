"""Products with the Hessian and Gauss-Newton's matrix, and means over batches."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fngrad as fg
from fngrad import curvature

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def net():
    return networks.parameters(), networks.batch()


def random_like(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.normal(size=p.shape), params)


def product(f, params, batches, v):
    """Return the Hessian's product as a vector."""
    apply = jax.jit(lambda p, b, v: curvature.hvp(f, p, b)(v))
    return ravel_pytree(apply(params, batches, v))[0]


def split(batch, *cuts):
    parts = {name: np.split(x, cuts) for name, x in batch.items()}
    return [
        dict(zip(parts, rows, strict=True))
        for rows in zip(*parts.values(), strict=True)
    ]


def test_a_product_equals_that_of_the_dense_hessian(net):
    params, batch = net
    v = random_like(params, 2)
    found = jax.jit(lambda v: curvature.hvp(networks.loss, params, batch)(v))(v)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    expected = networks.dense_hessian(params, batch) @ ravel_pytree(v)[0]
    np.testing.assert_allclose(ravel_pytree(found)[0], expected, rtol=1e-12)


def test_products_are_symmetric(net):
    params, batch = net
    u, v = random_like(params, 2), random_like(params, 3)
    H = curvature.flat_hessian(networks.loss, params, batch)
    u, v = ravel_pytree(u)[0], ravel_pytree(v)[0]
    apply = jax.jit(H.apply)
    np.testing.assert_allclose(u @ apply(v), v @ apply(u), rtol=1e-12)


def test_the_dense_hessian_equals_that_of_jax(net):
    params, batch = net
    found = jax.jit(lambda p, b: curvature.hessian(networks.loss, p, b))(params, batch)
    expected = networks.dense_hessian(params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_array_equal(found, found.T)


def test_gauss_newton_is_the_product_of_jacobians(net):
    params, batch = net
    flat, unravel = ravel_pytree(params)
    J = jax.jit(jax.jacobian(lambda w: networks.logits(unravel(w), batch).ravel()))(
        flat
    )
    outputs = jax.jit(networks.logits)(params, batch)
    inner = jax.jit(
        jax.hessian(lambda y: networks.cross_entropy(y.reshape(-1, 2), batch))
    )
    G = J.T @ inner(outputs.ravel()) @ J
    v = random_like(params, 2)

    @jax.jit
    def product(params):
        return curvature.ggn_vp(
            networks.logits, params, batch, loss_fn=networks.cross_entropy
        )(v)

    found = ravel_pytree(product(params))[0]
    np.testing.assert_allclose(found, G @ ravel_pytree(v)[0], rtol=1e-11, atol=1e-14)
    assert np.linalg.eigvalsh(G).min() > -1e-12
    assert np.linalg.eigvalsh(networks.dense_hessian(params, batch)).min() < -1e-3


def test_the_linearised_loss_has_the_same_value_and_gradient(net):
    f = curvature.gauss_newton(networks.logits, networks.cross_entropy)
    found = jax.jit(jax.value_and_grad(f))(*net)
    expected = jax.jit(jax.value_and_grad(networks.loss))(*net)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), found, expected
    )


@pytest.mark.parametrize("cuts", [(2, 4), (1, 2)], ids=str)
def test_the_mean_over_unequal_batches_is_that_of_all_examples(net, cuts):
    params, batch = net
    f, batches = curvature.over(networks.loss), split(batch, *cuts)
    assert sum(len(b["y"]) for b in batches) == 7
    value = jax.jit(f)(params, batches)
    np.testing.assert_allclose(value, networks.loss(params, batch), rtol=1e-14)
    v = random_like(params, 2)
    found = product(f, params, batches, v)
    expected = product(networks.loss, params, batch, v)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15)


def test_gauss_newton_over_batches_is_that_of_all_examples(net):
    params, batch = net
    f = curvature.gauss_newton(networks.logits, networks.cross_entropy)
    v = random_like(params, 2)
    found = product(curvature.over(f), params, split(batch, 2, 4), v)
    expected = product(f, params, batch, v)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15)


def test_batches_are_weighted_by_the_users_weight_fn():
    def f(w, batch):
        return w * jnp.sum(batch["x"] * batch["mask"]) / jnp.sum(batch["mask"])

    batches = [
        {"x": np.array([1.0, 2.0, 9.0]), "mask": np.array([1.0, 1.0, 0.0])},
        {"x": np.array([6.0, 9.0, 9.0]), "mask": np.array([1.0, 0.0, 0.0])},
    ]
    mean = curvature.over(f, weight_fn=lambda batch: jnp.sum(batch["mask"]))
    np.testing.assert_allclose(mean(jnp.array(1.0), batches), 3.0)
    np.testing.assert_allclose(curvature.over(f)(jnp.array(1.0), batches), 3.75)


def test_low_precision_parameters_are_widened(net):
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), net[0])
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), net[1])
    hessian = jax.jit(lambda p: curvature.hessian(networks.loss, p, batch))
    assert hessian(params).dtype == jnp.float32
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    np.testing.assert_array_equal(hessian(params), hessian(wide))


def test_a_function_with_a_vector_value_is_refused():
    with pytest.raises(TypeError, match="need a function whose value is one float"):
        curvature.hvp(lambda w: w, jnp.ones(2))
    with pytest.raises(TypeError, match="need a function whose value is one float"):
        curvature.hvp(lambda w: (jnp.sum(w), {}), jnp.ones(2))


def test_a_mean_over_one_batch_is_its_value():
    mean = curvature.over(lambda w, x: w * jnp.mean(x))
    assert mean(jnp.array(3.0), [jnp.array([1.0, 3.0])]) == 6


def test_a_mean_over_no_batches_is_refused():
    with pytest.raises(ValueError, match="need at least one batch"):
        curvature.over(networks.loss)(networks.parameters(), [])


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_mean_over_many_batches_keeps_its_digits(dtype):
    mean = curvature.over(lambda w, x: jnp.mean(w.astype(dtype) * x.astype(dtype)))
    batches = [np.full(1, 0.1, np.float32)] * 500
    value, slope = jax.jit(jax.value_and_grad(mean))(jnp.float32(1), batches)
    want = float(jnp.asarray(0.1, dtype))
    np.testing.assert_allclose(value, want, rtol=1e-7)
    # Each batch's slope is rounded to the dtype of the user's own arithmetic.
    rtol = 1e-4 if dtype is np.float32 else float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(slope, want, rtol=rtol)


def test_wrong_arguments_of_a_product_are_explained():
    def loss(w, batch):
        return jnp.sum(batch * w**2)

    w, batch = jnp.ones(2), jnp.ones(2)
    for args in ((), (batch, w)):
        with pytest.raises(TypeError, match=r"got [13]: .*hvp\(f, params, \*args\)"):
            curvature.hvp(loss, w, *args)
    with pytest.raises(TypeError, match="need a function, got"):
        curvature.hvp(w, loss, batch)
    with pytest.raises(ValueError, match=r"a vector like the parameters: .*shape"):
        curvature.hvp(loss, w, batch)(jnp.ones(3))
    with pytest.raises(ValueError, match="a vector like the parameters"):
        curvature.hvp(loss, w, batch)({"w": w})
    with pytest.raises(TypeError, match=r"one float, got a tuple of 2: leave out"):
        curvature.hvp(lambda w: (jnp.sum(w), {}), w)
    mean = functools.partial(fg.losses.weighted_sum, weight=3)
    with pytest.raises(TypeError, match=r"a WeightedSum: \.mean\(\)"):
        curvature.hvp(lambda w: mean(jnp.sum(w)), w)
