"""Second moments and sums of squares, of entries and of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from fngrad.optimizers.adafactor import scale_by_factored_rms
from fngrad.optimizers.adagrad import scale_by_rss
from fngrad.optimizers.adam import scale_by_adam
from fngrad.optimizers.novograd import scale_by_block_norm
from fngrad.optimizers.rmsprop import scale_by_rms, scale_by_stddev
from fngrad.optimizers.sm3 import scale_by_sm3
from fngrad.optimizers.yogi import scale_by_yogi
from fngrad.transforms.blocks import clip_by_block_rms
from fngrad.transforms.core import chain

GRADIENTS = problems.hard_gradients()


def updates_of(transform, gradients=GRADIENTS):
    """Return the updates for a sequence of gradients, in the same shape."""

    def body(state, gradient):
        updates, state = transform.update(gradient, state, params)
        return state, updates

    params = jnp.zeros_like(gradients[0])
    scan = jax.jit(lambda s, g: jax.lax.scan(body, s, g))
    return np.asarray(scan(transform.init(params), jnp.asarray(gradients))[1])


@pytest.mark.parametrize("gradient", [1.0, 300.0, 1e-3])
def test_the_centered_moment_of_a_constant_gradient_is_finite(gradient):
    constant = np.full((400, 1), gradient)
    updates = updates_of(scale_by_stddev(eps=1e-12, decay=0.9), constant)
    assert np.all(np.isfinite(updates))
    # The variance falls as decay**t, until epsilon takes over.
    t = np.arange(1, 101)
    want = gradient / np.sqrt(gradient**2 * 0.9**t * (1 - 0.9**t) + 1e-12)
    np.testing.assert_allclose(updates[:100, 0], want, rtol=3e-4)


@pytest.mark.parametrize(
    "transform",
    [scale_by_rms(eps=0.0), scale_by_adam(eps=0.0), scale_by_stddev(eps=0.0)],
    ids=["rms", "adam", "stddev"],
)
def test_without_epsilon_a_coordinate_without_gradients_does_not_move(transform):
    assert np.all(updates_of(transform)[:, 1] == 0)


@pytest.mark.parametrize(
    "transform",
    [
        *(scale_by_rms(), scale_by_rms(eps_in_sqrt=False), scale_by_adam()),
        scale_by_rss(0.0, 0.0),
    ],
    ids=["rms", "rms outside", "adam", "rss"],
)
def test_the_derivative_of_an_update_at_a_zero_gradient_is_finite(transform):
    params = jnp.ones(2)

    def total(gradient):
        return jnp.sum(transform.update(gradient, transform.init(params), params)[0])

    assert np.all(np.isfinite(jax.grad(total)(jnp.array([0.0, 1.0]))))


@pytest.mark.parametrize(
    "transform",
    [scale_by_rms(), scale_by_stddev(eps=1e-2), scale_by_adam()],
    ids=["rms", "stddev", "adam"],
)
def test_complex_parameters_have_real_second_moments(transform):
    params = jnp.ones(2, jnp.complex64)
    state = transform.init(params)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
    assert dtypes <= {"float32", "int32", "complex64"}
    (part,) = state.values()
    real = part.nu if hasattr(part, "nu") else part.variance
    assert real.dtype == jnp.float32
    phase = jnp.asarray(np.exp(1j * np.array([0.4, 2.0])), jnp.complex64)
    turned, _ = transform.update(phase, state, params)
    plain, _ = transform.update(jnp.ones_like(phase), state, params)
    np.testing.assert_allclose(turned, plain * phase, rtol=1e-5)


def first_update(transform, gradient, params=None):
    params = jnp.zeros_like(gradient) if params is None else params
    return transform.update(gradient, transform.init(params), params)


@pytest.mark.parametrize("eps_in_sqrt", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_a_coordinate_without_gradients_does_not_move_under_adagrad(eps_in_sqrt, eps):
    transform = scale_by_rss(0.0, eps, eps_in_sqrt)
    updates, _ = first_update(transform, jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(updates, [0.0, 1.0], rtol=1e-6)


def test_yogi_stays_finite_where_its_mean_begins_near_the_largest_float():
    """Such a mean is none of `squarable` updates: its bias correction needs a bound."""
    transform = scale_by_yogi(initial_accumulator_value=1e38)
    updates, _ = first_update(transform, jnp.array([1.0]))
    assert np.all(np.isfinite(updates))


def test_epsilon_is_inside_or_outside_the_root():
    gradient = jnp.array([3.0])
    inside, _ = first_update(scale_by_rss(7.0, 9.0), gradient)
    outside, _ = first_update(scale_by_rss(7.0, 9.0, eps_in_sqrt=False), gradient)
    np.testing.assert_allclose(inside, 3 / 5, rtol=1e-6)
    np.testing.assert_allclose(outside, 3 / 13, rtol=1e-6)


def test_complex_parameters_have_real_sums():
    updates, state = first_update(scale_by_rss(0.0), jnp.array([3 + 4j]))
    assert state["scale_by_rss"].sum_of_squares.dtype == jnp.float32
    np.testing.assert_allclose(updates, [0.6 + 0.8j], rtol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-30])
@pytest.mark.parametrize("name", ["factored", "full", "sm3", "block"])
def test_zero_gradients_and_zero_rows_give_finite_updates_and_derivatives(name, eps):
    rule = {
        "factored": scale_by_factored_rms(min_dim_size_to_factor=1, epsilon=eps),
        "full": scale_by_factored_rms(epsilon=eps),
        "sm3": chain(scale_by_sm3(eps), clip_by_block_rms(1.0)),
        "block": scale_by_block_norm(eps=eps),
    }[name]
    params = jnp.ones((2, 3))

    def step(gradient):
        return first_update(rule, gradient, params)[0]

    slopes_at = jax.jit(jax.jacobian(step))
    for gradient in (jnp.zeros((2, 3)), jnp.ones((2, 3)).at[1].set(0.0)):
        updates = step(gradient)
        assert np.all(np.isfinite(updates))
        np.testing.assert_array_equal(updates[gradient == 0], 0.0)
        assert np.all(np.isfinite(slopes_at(gradient)))


def test_sm3_bounds_the_sum_of_squares_from_above_and_the_second_bound_is_tighter():
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(rng.normal(size=(6, 4, 3)), jnp.float32)
    sums = jnp.sum(gradients**2, axis=0)
    bounds = []
    for variant in ("II", "I"):
        rule = scale_by_sm3(0.0, variant=variant)
        state = rule.init(gradients[0])
        for gradient in gradients:
            updates, state = rule.update(gradient, state, gradient)
        bounds.append((gradients[-1] / updates) ** 2)
    assert np.all(sums <= bounds[0] * (1 + 1e-5))
    assert np.all(bounds[0] <= bounds[1] * (1 + 1e-5))
    assert np.any(bounds[0] < 0.9 * bounds[1])
