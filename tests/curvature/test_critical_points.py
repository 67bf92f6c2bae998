"""Critical points, estimates by random vectors, and gradient noise."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from float64_mode import x64
from jax.flatten_util import ravel_pytree

from fngrad import curvature

pytestmark = pytest.mark.usefixtures("x64")


def monkey_saddle(w):
    return w[0] ** 3 - 3 * w[0] * w[1] ** 2


def diagonal_quadratic(w, eigenvalues):
    return jnp.sum(eigenvalues * w**2) / 2


@pytest.fixture(scope="module")
def net():
    params, batch = networks.parameters(), networks.batch()
    with x64():
        H = np.asarray(networks.dense_hessian(params, batch))
    return params, batch, H


@pytest.fixture(scope="module")
def at_zero():
    """Return `critical_point` for a diagonal quadratic at zero, compiled once."""
    return jax.jit(
        lambda eigenvalues: curvature.critical_point(
            diagonal_quadratic, jnp.zeros(3), eigenvalues
        )
    )


@pytest.mark.parametrize(
    ("eigenvalues", "kind", "morse_index"),
    [
        ([1.0, 2.0, 3.0], "minimum", 0),
        ([-1.0, -2.0, -3.0], "maximum", 3),
        ([-1.0, -2.0, 3.0], "saddle", 2),
        ([-1e-4, 1.0, 3.0], "saddle", 1),
        ([0.0, 1.0, 3.0], "degenerate", 0),
        ([1e-9, 1.0, 3.0], "degenerate", 0),
        ([0.0, -1.0, -3.0], "degenerate", 2),
        ([0.0, -1.0, 3.0], "saddle", 1),
        ([0.0, 0.0, 0.0], "degenerate", 0),
        ([np.nan, 1.0, 1.0], "undefined", 0),
    ],
    ids=str,
)
def test_the_signs_of_the_spectrum_determine_the_kind(
    at_zero, eigenvalues, kind, morse_index
):
    point = at_zero(np.array(eigenvalues))
    assert point.kind == kind
    assert point.morse_index == morse_index
    if kind != "undefined":
        counted = point.morse_index + point.nullity + point.positive
        assert counted == 3
        assert point.gradient_norm == 0
        assert point.flatness == 1
        assert (point.smallest, point.largest) == (min(eigenvalues), max(eigenvalues))


def test_the_monkey_saddle_is_degenerate():
    point = jax.jit(lambda w: curvature.critical_point(monkey_saddle, w))
    assert point(jnp.zeros(2)).kind == "degenerate"
    assert point(jnp.ones(2)).kind == "saddle"


def test_the_index_of_a_network_is_that_of_its_hessian(net):
    params, batch, H = net
    point = jax.jit(lambda p: curvature.critical_point(networks.loss, p, batch))(params)
    values = np.linalg.eigvalsh(H)
    # Softmax ignores a common shift of the logits: five directions are flat.
    assert point.nullity == 5
    below = int((values < -1e-5 * np.abs(values).max()).sum())
    assert int(point.morse_index) == below > 0
    assert point.kind == "saddle"
    g = ravel_pytree(jax.jit(jax.grad(networks.loss))(params, batch))[0]
    np.testing.assert_allclose(point.gradient_norm, np.linalg.norm(g), rtol=1e-12)
    flatness = np.linalg.norm(H @ g) / np.linalg.norm(g) / np.abs(values).max()
    np.testing.assert_allclose(point.flatness, flatness, rtol=1e-10)


def test_a_gradient_flat_point_is_distinguished_from_a_critical_point():
    def f(w):  # slope 1e-3 along w[0], without curvature
        return 1e-3 * w[0] + w[1] ** 2

    point = jax.jit(lambda w: curvature.critical_point(f, w))
    flat, steep = point(jnp.zeros(2)), point(jnp.array([0.0, 1.0]))
    assert flat.flatness == 0
    assert steep.flatness > 0.99


def test_estimates_agree_with_trace_and_diagonal(net):
    params, batch, H = net
    trace, diagonal = jax.jit(
        lambda p: (
            curvature.trace(networks.loss, p, batch, key=0, num_samples=400),
            curvature.diagonal(networks.loss, p, batch, key=1, num_samples=400),
        )
    )(params)
    # The variance of v'Hv is twice the sum of squares off the diagonal.
    off = H - np.diag(np.diag(H))
    assert abs(trace.value - np.trace(H)) < 4 * trace.standard_error
    expected = np.sqrt(2 * (off**2).sum() / 400)
    np.testing.assert_allclose(trace.standard_error, expected, rtol=0.2)
    value, error = (ravel_pytree(tree)[0] for tree in diagonal)
    assert jax.tree.structure(diagonal.value) == jax.tree.structure(params)
    np.testing.assert_array_less(abs(value - np.diag(H)), 4 * error + 1e-12)
    expected = np.sqrt((off**2).sum(axis=1) / 400)
    np.testing.assert_allclose(error, expected, rtol=0.2, atol=1e-12)


def test_estimates_are_exact_for_a_diagonal_hessian():
    eigenvalues = jnp.array([-3.0, 0.0, 5.0])
    found = curvature.trace(
        diagonal_quadratic, jnp.zeros(3), eigenvalues, key=0, num_samples=3
    )
    assert (found.value, found.standard_error) == (2, 0)
    found = curvature.diagonal(
        diagonal_quadratic, jnp.zeros(3), eigenvalues, key=0, num_samples=3
    )
    np.testing.assert_array_equal(found.value, eigenvalues)
    np.testing.assert_array_equal(found.standard_error, 0)


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match=r"need num_samples >= 2 .*num_samples=1"):
        curvature.trace(monkey_saddle, jnp.ones(2), key=0, num_samples=1)


def per_example_gradients(params, batch):
    def one(x, y):
        return jax.grad(networks.loss)(params, {"x": x[None], "y": y[None]})

    flat = jax.jit(jax.vmap(lambda x, y: ravel_pytree(one(x, y))[0]))
    return np.asarray(flat(batch["x"], batch["y"]))


@pytest.mark.parametrize("chunk_size", [3, 32])
def test_noise_scale_is_the_trace_of_the_covariance_over_the_squared_mean(
    net, chunk_size
):
    params, batch, _ = net
    G = per_example_gradients(params, batch)
    covariance = np.cov(G.T)
    signal = (G.mean(0) ** 2).sum() - np.trace(covariance) / len(G)
    found, found_covariance = jax.jit(
        lambda p: (
            curvature.gradient_noise_scale(
                networks.loss, p, batch, chunk_size=chunk_size
            ),
            curvature.gradient_covariance(
                networks.loss, p, batch, chunk_size=chunk_size
            ),
        )
    )(params)
    np.testing.assert_allclose(found.noise, np.trace(covariance), rtol=1e-12)
    np.testing.assert_allclose(found.signal, signal, rtol=1e-11)
    expected = np.trace(covariance) / signal if signal > 0 else np.inf
    np.testing.assert_allclose(found.scale, expected, rtol=1e-10)
    np.testing.assert_allclose(found_covariance, covariance, rtol=1e-10, atol=1e-15)


def test_noise_and_signal_are_unbiased():
    def loss_fn(w, x):  # gradients w - x: noise 3 * 4, signal |w|**2 = 3/4
        return jnp.mean(jnp.sum((w[None] - x) ** 2, axis=1)) / 2

    batches = 2 * jax.random.normal(jax.random.key(0), (4000, 5, 3))
    w = jnp.full(3, 0.5)
    found = jax.jit(jax.vmap(lambda x: curvature.gradient_noise_scale(loss_fn, w, x)))(
        batches
    )
    for samples, expected in [(found.noise, 12.0), (found.signal, 0.75)]:
        error = samples.std() / 4000**0.5
        assert abs(samples.mean() - expected) < 4 * error
        assert error < 0.1
    biased = found.signal + found.noise / 5
    assert biased.mean() > 3
    assert np.isinf(found.scale[found.signal <= 0]).all()


@pytest.mark.parametrize(
    "batch",
    [jnp.ones((1, 3)), {"x": jnp.ones((4, 3)), "y": jnp.ones(3)}, jnp.ones(()), {}],
    ids=["one", "ragged", "scalar", "empty"],
)
def test_batches_of_fewer_than_two_examples_are_refused(batch):
    with pytest.raises(ValueError, match="count the same examples, two or more, got"):
        curvature.gradient_noise_scale(lambda w, b: w, jnp.ones(()), batch)
