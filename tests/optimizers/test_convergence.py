"""Rates, stability thresholds, noise floors and regret are those of theory."""

import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from trajectories import case_id

import fngrad as fg
from fngrad import curvature
from fngrad.optimizers import REGISTRY


def quadratic(x, A):
    return x @ A @ x / 2


def spectrum(kappa, smallest=0.3):
    """Return eigenvalues from ``smallest`` to kappa times it, both ends double."""
    largest = kappa * smallest
    inside = smallest + (largest - smallest) * np.array([0.3, 0.31])
    return np.array([smallest, smallest, *inside, largest, largest])


def gradient_descent(mu, L):
    """Return the fastest gradient descent and its rate."""
    kappa = L / mu
    return fg.sgd(2 / (L + mu)), (kappa - 1) / (kappa + 1)


def heavy_ball(mu, L):
    """Return the fastest heavy ball and its rate: Polyak 1964, theorem 1."""
    root = (L / mu) ** 0.5
    rate = (root - 1) / (root + 1)
    learning_rate = (2 / (L**0.5 + mu**0.5)) ** 2
    return fg.momentum(learning_rate, momentum=rate**2), rate


def nesterov(mu, L):
    """Return Nesterov's method of learning rate 1/L and its rate."""
    root = (L / mu) ** 0.5
    momentum = (root - 1) / (root + 1)
    return fg.momentum(1 / L, momentum=momentum, nesterov=True), 1 - 1 / root


TUNED = [gradient_descent, heavy_ball, nesterov]


@pytest.mark.parametrize("kappa", [2.0, 10.0, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("method", TUNED, ids=lambda method: method.__name__)
def test_local_rates_are_the_closed_forms(method, kappa):
    values = spectrum(kappa)
    optimizer, rate = method(values.min(), values.max())
    A = problems.quadratic(values)
    found = curvature.local_rate(optimizer, quadratic, np.zeros(6), A)
    np.testing.assert_allclose(found, rate, rtol=1e-12)


def half_the_split(learning_rate, momentum, curvature):
    """Return half the distance between the roots of z**2 - (1 + b - a c) z + b.

    The discriminant is computed exactly, since it is a difference of nearly equal
    numbers.
    """
    a, b, c = map(fractions.Fraction, (learning_rate, momentum, curvature))
    return float((1 + b - a * c) ** 2 - 4 * b) ** 0.5 / 2


@pytest.mark.parametrize("kappa", [2.0, 1e2, 1e4])
def test_double_eigenvalues_that_rounding_splits_do_not_move_the_local_rate(kappa):
    # Processors differ in how far rounding splits a double eigenvalue. So the momentum
    # is changed by more than rounding: the two roots separate on the real line by the
    # root of the change, and their mean moves only by the change.
    values = spectrum(kappa)
    mu, L = values.min(), values.max()
    _, rate = heavy_ball(mu, L)
    learning_rate = (2 / (L**0.5 + mu**0.5)) ** 2
    momentum = rate**2 * (1 - 1e-14)
    assert half_the_split(learning_rate, momentum, mu) > 1e-9
    optimizer = fg.momentum(learning_rate, momentum)
    A = problems.quadratic(values)
    found = curvature.local_rate(optimizer, quadratic, np.zeros(6), A)
    np.testing.assert_allclose(found, rate, rtol=1e-12)


# (momentum, nesterov) and the largest stable product of learning rate and curvature.
THRESHOLDS = {
    "gradient descent": (0.0, False, 2.0),
    "heavy ball": (0.6, False, 3.2),
    "nesterov": (0.6, True, 3.2 / 2.2),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_stability_thresholds_are_sharp(name):
    momentum, looks_ahead, product = THRESHOLDS[name]
    values = np.array([0.5, 1.0, 4.0])
    edge = product / values.max()
    np.testing.assert_allclose(
        curvature.largest_stable_learning_rate(
            jnp.array(values.max()), momentum, looks_ahead
        ),
        edge,
        rtol=1e-6,
    )
    make = functools.partial(fg.momentum, momentum=momentum, nesterov=looks_ahead)
    A = problems.quadratic(values)
    rates = [
        curvature.local_rate(make(edge * factor), quadratic, np.zeros(3), A)
        for factor in (1 - 1e-6, 1 + 1e-6)
    ]
    assert rates[0] < 1 < rates[1]
    below, above = run_at(
        make, np.asarray(A, np.float32), edge * np.array([0.99, 1.01])
    )
    assert below < 1e-3
    assert above > 1e3


def run_at(make, A, learning_rates, steps=600):
    """Return the distance from the minimum at which each learning rate ends."""

    @jax.jit
    @jax.vmap
    def distance(learning_rate):
        optimizer = make(learning_rate)

        def body(carry, _):
            x, state = carry
            updates, state = optimizer.update(A @ x, state, x)
            return (x + updates, state), None

        x = jnp.ones(len(A))
        (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), length=steps)
        return jnp.linalg.norm(x)

    return distance(jnp.asarray(learning_rates, jnp.float32))


@pytest.mark.parametrize(
    "optimizer", [fg.sgd(0.2), fg.momentum(0.1, 0.8)], ids=["sgd", "heavy ball"]
)
def test_a_long_simulation_ends_on_the_noise_floor(optimizer):
    stiffness, variance, replicas = 3.0, 0.25, 1000

    @jax.jit
    def mean_squares(keys):
        def body(carry, key):
            x, state = carry
            noise = variance**0.5 * jax.random.normal(key, x.shape)
            updates, state = optimizer.update(stiffness * x + noise, state, x)
            return (x + updates, state), x**2

        x = jnp.zeros(replicas)
        _, squares = jax.lax.scan(body, (x, optimizer.init(x)), keys)
        return jnp.mean(squares[200:], axis=0)

    samples = np.asarray(mean_squares(jax.random.split(jax.random.key(0), 1200)))
    floor = curvature.noise_floor(
        optimizer,
        lambda x: stiffness * x**2 / 2,
        np.zeros(()),
        noise=variance,
    ).second_moment
    error = samples.std(ddof=1) / replicas**0.5
    assert error < 0.005 * floor
    assert abs(samples.mean() - floor) < 4 * error


DIMENSIONS, ROUNDS = 8, 4000


def opposing(x, sign):
    """Always oppose the player: the slope has the sign of the point played."""
    return jnp.where(x >= 0, 1.0, -1.0)


def random(x, sign):
    return sign


def steady(x, sign):
    """Keep one slope: the best point is a corner, far from the start."""
    return jnp.ones_like(x)


def play(optimizer, adversary, seed=0):
    """Play linear losses <g_t, x_t> on the box [-1, 1]**d; return all x_t and g_t.

    Each round touches one coordinate, the i-th with probability proportional to 1/i.
    """
    rng = np.random.default_rng(seed)
    odds = 1 / np.arange(1, DIMENSIONS + 1)
    touched = rng.choice(DIMENSIONS, size=ROUNDS, p=odds / odds.sum())
    signs = rng.choice([-1.0, 1.0], size=ROUNDS)

    @jax.jit
    def run(touched, signs):
        def body(carry, now):
            x, state = carry
            i, sign = now
            slope = jnp.zeros(DIMENSIONS).at[i].set(adversary(x[i], sign))
            updates, state = optimizer.update(slope, state, x)
            return (jnp.clip(x + updates, -1, 1), state), (x, slope)

        x = jnp.zeros(DIMENSIONS)
        _, visited = jax.lax.scan(body, (x, optimizer.init(x)), (touched, signs))
        return visited

    played = run(jnp.asarray(touched, jnp.int32), jnp.asarray(signs, jnp.float32))
    return [np.asarray(values, np.float64) for values in played]


def regret_and_bound(x, g, learning_rate):
    """Return the regret against the best fixed point, and Duchi et al.'s bound.

    R <= (D**2 / 2a + a) sum_i |g_{1:T, i}|, with D the largest distance from a played
    point to the best one in the maximum norm. On a box the best point is a corner, or
    0 where all points are equal.
    """
    best = -np.sign(g.sum(axis=0))
    regret = np.sum(g * (x - best))
    D = np.abs(x - best).max()
    a = learning_rate
    return regret, (D**2 / (2 * a) + a) * np.linalg.norm(g, axis=0).sum()


@pytest.mark.parametrize("learning_rate", [0.3, 1.0])
@pytest.mark.parametrize(
    "adversary", [opposing, random, steady], ids=lambda f: f.__name__
)
def test_adagrads_regret_is_below_its_bound(adversary, learning_rate):
    # Duchi, Hazan and Singer 2011, theorem 5; a box is projected onto by clipping,
    # in the norm of any diagonal matrix.
    adagrad = fg.adagrad(learning_rate, initial_accumulator_value=0.0, eps=0.0)
    x, g = play(adagrad, adversary)
    regret, bound = regret_and_bound(x, g, learning_rate)
    assert 0 < regret <= bound


def test_adagrads_regret_bound_is_nearly_reached_and_descent_breaks_it():
    x, g = play(fg.adagrad(3.0, initial_accumulator_value=0.0, eps=0.0), opposing)
    regret, bound = regret_and_bound(x, g, 3.0)
    assert regret > bound / 2
    x, g = play(fg.sgd(3.0), opposing)
    regret, bound = regret_and_bound(x, g, 3.0)
    assert regret > 2 * bound


def test_tuned_heavy_ball_converges_at_its_known_rate():
    A = jnp.asarray(problems.quadratic(np.array([1.0, 3.0, 10.0, 100.0])))
    kappa = 100.0
    rate = (kappa**0.5 - 1) / (kappa**0.5 + 1)
    optimizer = REGISTRY["momentum"]((2 / (100.0**0.5 + 1)) ** 2, momentum=rate**2)

    def body(carry, _):
        x, state = carry
        updates, state = optimizer.update(A @ x, state, x)
        x = x + updates
        return (x, state), jnp.linalg.norm(x)

    x = jnp.ones(4)
    norms = jax.lax.scan(body, (x, optimizer.init(x)), length=60)[1]
    # Twice-repeated eigenvalues at both ends give t rate**t; hence the window.
    np.testing.assert_allclose((norms[59] / norms[29]) ** (1 / 30), rate, rtol=0.03)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("adam", {"learning_rate": 0.02}), ("momentum", {"learning_rate": 1e-3})],
    ids=case_id,
)
def test_rosenbrocks_minimum_is_found(name, arguments):
    optimizer = REGISTRY[name](**arguments)

    def body(carry, _):
        x, state = carry
        gradient = jax.grad(problems.rosenbrock)(x)
        updates, state = optimizer.update(gradient, state, x)
        return (x + updates, state), None

    x = jnp.array([-1.0, 1.0])
    (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), length=5000)
    np.testing.assert_allclose(x, [1.0, 1.0], atol=1e-2)


def test_gradient_descent_under_noise_ends_on_its_noise_floor():
    optimizer = REGISTRY["sgd"](0.2)

    def body(carry, key):
        x, state = carry
        gradient = 3.0 * x + 0.5 * jax.random.normal(key, x.shape)
        updates, state = optimizer.update(gradient, state, x)
        return (x + updates, state), None

    x = jnp.zeros(20_000)
    keys = jax.random.split(jax.random.key(0), 50)
    (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), keys)
    floor = problems.noise_floor(3.0, 0.25, 0.2)
    # The relative error of a variance from n samples is sqrt(2 / n) = 1 %.
    np.testing.assert_allclose(jnp.mean(x**2), floor, rtol=0.04)
