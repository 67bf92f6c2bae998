"""Lanczos against known spectra and those of dense Hessians."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import problems
import pytest
from float64_mode import x64

from fngrad import curvature

pytestmark = pytest.mark.usefixtures("x64")

N = 12
SPECTRA = {
    "generic": np.geomspace(1e-2, 1e2, N),
    "multiplicities": np.array([1.0] * 6 + [5.0] * 4 + [100.0] * 2),
    "identity": np.ones(N),
    "zero": np.zeros(N),
    "rank one": np.array([0.0] * 11 + [7.0]),
    "cluster": np.concatenate([3 + 1e-7 * np.arange(6), np.arange(6) * 10.0]),
    "near zero": np.concatenate([[1e-12, -1e-12, 1e-9], np.linspace(1, 2, N - 3)]),
    "negative": -np.geomspace(1e-2, 1e2, N),
    "both signs": np.concatenate([[-50.0, -49.0], np.linspace(-1, 1, 8), [60, 61.0]]),
    "tiny": 1e-30 * np.arange(1.0, N + 1),
    "huge": 1e30 * np.arange(1.0, N + 1),
}


def quadratic(x, A):
    return x @ A @ x / 2


def tridiagonal(krylov):
    beside = np.asarray(krylov.off_diagonal[:-1])
    return np.diag(krylov.diagonal) + np.diag(beside, 1) + np.diag(beside, -1)


@pytest.fixture(scope="module")
def whole():
    """Return `lanczos` with all steps for a quadratic, compiled once."""
    return jax.jit(lambda A: curvature.lanczos(quadratic, jnp.zeros(N), A, key=0))


@pytest.fixture(scope="module")
def net():
    params, batch = networks.parameters(), networks.batch()
    with x64():
        H = np.asarray(networks.dense_hessian(params, batch))
    return params, batch, *np.linalg.eigh(H)


@pytest.mark.parametrize("name", SPECTRA)
def test_all_steps_give_the_whole_spectrum(whole, name):
    spectrum = SPECTRA[name]
    A = problems.quadratic(spectrum)
    krylov = whole(A)
    Q, T = np.asarray(krylov.basis), tridiagonal(krylov)
    np.testing.assert_allclose(Q @ Q.T, np.eye(N), atol=1e-14)
    size = np.abs(spectrum).max()
    np.testing.assert_allclose(Q @ A @ Q.T, T, atol=1e-13 * size)
    found = np.linalg.eigvalsh(T)
    np.testing.assert_allclose(found, np.sort(spectrum), atol=1e-13 * size)


@pytest.mark.parametrize("name", ["multiplicities", "zero", "both signs"])
def test_single_precision_gives_the_whole_spectrum_to_its_rounding(name):
    spectrum, A = SPECTRA[name], problems.quadratic(SPECTRA[name])
    krylov = jax.jit(lambda x, A: curvature.lanczos(quadratic, x, A, key=0))(
        np.zeros(N, np.float32), A.astype(np.float32)
    )
    Q = np.asarray(krylov.basis)
    assert Q.dtype == np.float32
    np.testing.assert_allclose(Q @ Q.T, np.eye(N), atol=1e-5)
    size = np.abs(spectrum).max()
    found = np.linalg.eigvalsh(tridiagonal(krylov))
    np.testing.assert_allclose(found, np.sort(spectrum), atol=1e-5 * size)


def plain_lanczos(A, q, steps):
    """Return the tridiagonal matrix of the plain three-term recurrence."""
    T, before, beta = np.zeros((steps, steps)), np.zeros_like(q), 0.0
    for j in range(steps):
        w = A @ q - beta * before
        T[j, j] = q @ w
        w -= T[j, j] * q
        beta = np.linalg.norm(w)
        if j + 1 < steps:
            T[j, j + 1] = T[j + 1, j] = beta
        before, q = q, w / beta
    return T


def test_reorthogonalisation_leaves_no_ghosts():
    spectrum = np.concatenate([np.linspace(0, 1, 99), [50.0]])
    A = problems.quadratic(spectrum)
    krylov = jax.jit(
        lambda A: curvature.lanczos(quadratic, jnp.zeros(100), A, key=1, num_steps=60)
    )(A)
    ritz = np.linalg.eigvalsh(tridiagonal(krylov))
    assert (ritz > 2).sum() == 1
    T = plain_lanczos(A, np.asarray(krylov.basis[0]), 60)
    assert (np.linalg.eigvalsh(T) > 2).sum() > 1


def test_both_ends_have_eigenvectors_and_valid_error_bounds():
    spectrum = SPECTRA["both signs"]
    A = problems.quadratic(spectrum)
    ends = jax.jit(
        lambda A: curvature.extreme_eigenvalues(
            quadratic, jnp.zeros(N), A, key=3, count=2, num_steps=8
        )
    )(A)
    ends = jax.device_get(ends)
    low, high = np.sort(spectrum)[:2], np.sort(spectrum)[::-1][:2]
    assert (ends.smallest_error > 1e-8).any(), "a test with no error tests no bound"
    for found, error, true in [
        (ends.smallest, ends.smallest_error, low),
        (ends.largest, ends.largest_error, high),
    ]:
        distance = np.abs(np.asarray(found)[:, None] - spectrum).min(axis=1)
        assert (distance <= error + 1e-12).all()
        np.testing.assert_allclose(found, true, rtol=1e-2)
    for value, v, error in zip(
        ends.largest, ends.largest_vectors, ends.largest_error, strict=True
    ):
        np.testing.assert_allclose(np.linalg.norm(v), 1, rtol=1e-12)
        residual = np.linalg.norm(A @ v - value * v)
        np.testing.assert_allclose(residual, error, rtol=1e-6, atol=1e-11)


def test_the_ends_for_a_network_are_those_of_its_hessian(net):
    params, batch, values, vectors = net
    ends, sharpness = jax.jit(
        lambda p: (
            curvature.extreme_eigenvalues(networks.loss, p, batch, key=0, num_steps=20),
            curvature.sharpness(networks.loss, p, batch, key=1),
        )
    )(params)
    np.testing.assert_allclose(ends.smallest, values[:1], rtol=1e-9)
    np.testing.assert_allclose(ends.largest, values[-1:], rtol=1e-9)
    found = np.concatenate(
        [np.ravel(leaf) for leaf in jax.tree.leaves(ends.largest_vectors)]
    )
    np.testing.assert_allclose(abs(found @ vectors[:, -1]), 1, rtol=1e-9)
    np.testing.assert_allclose(sharpness, values[-1], rtol=1e-12)


def test_the_weights_are_those_of_gauss_quadrature():
    A, k = problems.quadratic(SPECTRA["both signs"] / 60), 4

    @jax.jit
    def measures(A, key):
        density = curvature.spectral_density(
            quadratic, jnp.zeros(N), A, key=key, num_steps=k, num_samples=1
        )
        start = jax.random.split(key, 1)[0]
        return density, curvature.lanczos(
            quadratic, jnp.zeros(N), A, key=start, num_steps=k
        )

    density, krylov = jax.device_get(measures(A, jax.random.key(5)))
    q, theta, weights = krylov.basis[0], density.eigenvalues[0], density.weights[0]
    moments = [weights @ theta**p for p in range(2 * k + 1)]
    exact = [q @ np.linalg.matrix_power(A, p) @ q for p in range(2 * k + 1)]
    np.testing.assert_allclose(moments[: 2 * k], exact[: 2 * k], atol=1e-14)
    assert abs(moments[2 * k] - exact[2 * k]) > 1e-6


def test_the_density_gives_each_eigenvalue_its_share():
    A = problems.quadratic(SPECTRA["multiplicities"])
    samples = 300
    density = jax.jit(
        lambda A: curvature.spectral_density(
            quadratic, jnp.zeros(N), A, key=0, num_steps=5, num_samples=samples
        )
    )(A)
    density = jax.device_get(density)
    assert np.isfinite(density.weights).all()
    np.testing.assert_allclose(density.weights.sum(), 1, rtol=1e-12)
    for value, count in [(1.0, 6), (5.0, 4), (100.0, 2)]:
        here = np.abs(density.eigenvalues - value) < 1e-6
        # |P q|**2 is a beta variable: its standard deviation is at most 0.14 at n = 12.
        share, error = density.weights[here].sum(), 0.14 / samples**0.5
        np.testing.assert_allclose(share, count / N, atol=4 * error)


def test_the_density_for_a_network_has_the_moments_of_its_hessian(net):
    params, batch, values, _ = net
    samples = 200
    density = jax.jit(
        lambda p: curvature.spectral_density(
            networks.loss, p, batch, key=2, num_steps=10, num_samples=samples
        )
    )(params)
    density = jax.device_get(density)
    for p in (1, 2):
        per_sample = samples * (density.weights * density.eigenvalues**p).sum(axis=1)
        error = per_sample.std(ddof=1) / samples**0.5
        assert abs(per_sample.mean() - (values**p).mean()) < 4 * error


def test_the_smoothed_density_integrates_to_one():
    density = curvature.SpectralDensity(
        jnp.array([[0.0, 1.0]]), jnp.array([[0.25, 0.75]])
    )
    points = np.linspace(-2, 3, 1001)
    curve = jax.jit(curvature.smoothed)(density, points, 0.1)
    np.testing.assert_allclose(jnp.trapezoid(curve, points), 1, rtol=1e-9)
    expected = 0.75 / (0.1 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(curve[600], expected, rtol=1e-9)


def test_the_largest_stable_learning_rate_is_two_over_sharpness():
    sharpness = jnp.array([4.0, 0.0, -1.0])
    rate = curvature.largest_stable_learning_rate
    np.testing.assert_allclose(rate(sharpness), [0.5, np.inf, np.inf])
    np.testing.assert_allclose(rate(sharpness[0], momentum=0.5), 0.75)
    np.testing.assert_allclose(rate(sharpness[0], 0.5, nesterov=True), 0.375)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r"need .*momentum .*got momentum="):
        curvature.largest_stable_learning_rate(jnp.ones(()), momentum)


def dot_precisions(jaxpr):
    """Return the precisions of all products in a program."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            found.append(eqn.params["precision"])
        for inner in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            found += dot_precisions(inner) if hasattr(inner, "eqns") else []
    return found


MEASURES = {
    "lanczos": lambda f, w: curvature.lanczos(f, w, key=0),
    "ends": lambda f, w: curvature.extreme_eigenvalues(f, w, key=0),
    "density": lambda f, w: curvature.smoothed(
        curvature.spectral_density(f, w, key=0, num_samples=2), w, 0.1
    ),
    "trace": lambda f, w: curvature.trace(f, w, key=0, num_samples=2),
    "point": lambda f, w: curvature.critical_point(f, w),
}


@pytest.mark.parametrize("name", MEASURES)
def test_all_products_are_in_full_precision(name):
    measure = MEASURES[name]
    jaxpr = jax.make_jaxpr(lambda w: measure(lambda x: jnp.sum(x**3), w))(jnp.ones(4))
    precisions = dot_precisions(jaxpr.jaxpr)
    highest = jax.lax.Precision.HIGHEST
    assert precisions
    assert all(p == (highest, highest) for p in precisions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "need 1 <= num_steps <= number of parameters.*num_steps=0"),
        ({"num_steps": 4}, "num_steps=4 size=3"),
        ({"count": 4}, "need 1 <= count <= num_steps, got count=4 num_steps=3"),
    ],
    ids=str,
)
def test_counts_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        curvature.extreme_eigenvalues(
            lambda w: jnp.sum(w**2), jnp.ones(3), key=0, **arguments
        )


def test_a_density_without_samples_or_width_is_refused():
    def f(w):
        return jnp.sum(w**2)

    with pytest.raises(ValueError, match="need an int num_samples >= 1"):
        curvature.spectral_density(f, jnp.ones(3), key=0, num_samples=0)
    density = curvature.SpectralDensity(jnp.ones((1, 3)), jnp.ones((1, 3)) / 3)
    with pytest.raises(ValueError, match="need width > 0, got width=0"):
        curvature.smoothed(density, jnp.ones(3), 0.0)
