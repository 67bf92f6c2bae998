"""Parameters stay in a set: the last part of a chain projects what would be added."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_projections as oracles
import pytest
import scipy.optimize

import fngrad as fg
from fngrad import projections
from fngrad.transforms.core import apply_updates, chain
from fngrad.transforms.laws import check_transform
from fngrad.transforms.projected_updates import project

RNG = np.random.default_rng(11)
SETS = {
    "non_negative": {},
    "box": {"lower": -0.4, "upper": 0.7},
    "linf_ball": {"radius": 0.6},
    "simplex": {"scale": 1.3, "axis": 1},
    "l1_ball": {"radius": 1.1, "axis": 1},
    "l2_ball": {"radius": 0.9, "axis": 1},
    "l2_sphere": {"radius": 0.9, "axis": 1},
}
START = RNG.normal(size=(3, 4)).astype(np.float32)
SLOPES = RNG.normal(size=(4, 3, 4)).astype(np.float32)


def falling(step):
    return 1.0 / (2.0 + step.astype(jnp.float32))


def walk(optimizer, params, gradients):
    """Return the parameters after each step, in one program."""

    @jax.jit
    def run(params, gradients):
        def advance(carry, gradient):
            params, state = carry
            updates, state = optimizer.update(gradient, state, params)
            params = apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(advance, (params, optimizer.init(params)), gradients)[1]

    return run(params, gradients)


@pytest.mark.parametrize("name", SETS)
def test_the_trajectory_is_that_of_the_projected_gradient_method(name):
    optimizer = chain(
        fg.sgd(falling), project(getattr(projections, name), **SETS[name])
    )
    got = walk(optimizer, START, SLOPES)
    arguments = {k: v for k, v in SETS[name].items() if k != "axis"}
    oracle = functools.partial(getattr(oracles, name), **arguments)
    point = START.astype(np.float64)
    for step, slope in enumerate(SLOPES):
        point = oracles.along(oracle, point - slope / (2.0 + step), 1)
        np.testing.assert_allclose(got[step], point, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_bounds_hold_exactly_after_every_step_from_anywhere(dtype):
    size = 4000
    params = jnp.asarray(2 * RNG.normal(size=size), jnp.float32).astype(dtype)
    scales = RNG.choice([1e-6, 1e-3, 1, 100], size=(3, size))
    gradients = jnp.asarray(scales * RNG.normal(size=(3, size)), jnp.float32)
    # Of the bounds none but 0 and -0.25 is a number of 16 bits.
    for lower, upper in ((0.7, 0.9), (1e-3, 5.1), (-0.3, 0.1), (1e-9, 1.1), (-0.25, 0)):
        rule = project(projections.box, lower=lower, upper=upper)
        points = np.asarray(walk(chain(fg.sgd(0.1), rule), params, gradients), float)
        assert np.float32(lower) <= np.min(points)
        assert np.max(points) <= np.float32(upper)
        assert np.ptp(points[-1]) > 0.9 * (upper - lower)  # also in between
    above = walk(
        chain(fg.sgd(0.1), project(projections.non_negative)), params, gradients
    )
    assert np.min(np.asarray(above, float)) == 0.0


def test_what_stays_in_the_set_moves_as_without_a_projection():
    small = 1e-3 * SLOPES
    inside = 0.1 * START
    rule = project(projections.l2_ball, radius=10.0)
    with_part = walk(chain(fg.sgd(falling), rule), inside, small)
    np.testing.assert_allclose(with_part, walk(fg.sgd(falling), inside, small), 1e-6)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.slow)]
)
def test_no_gradient_moves_no_point_of_the_set(dtype):
    zero = jnp.zeros((20, 3, 4))
    for name in ("box", "l2_ball", "l1_ball", "simplex", "l2_sphere"):
        projection = functools.partial(getattr(projections, name), **SETS[name])
        points = walk(
            chain(fg.sgd(0.1), project(projection)), START.astype(dtype), zero
        )
        last, before = np.asarray(points, float)[-1], np.asarray(points, float)[5]
        np.testing.assert_allclose(last, before, atol=float(jnp.finfo(dtype).eps))


def test_only_selected_leaves_are_projected_each_by_itself():
    params = {"a": {"weight": START}, "b": {"weight": 2 * START, "bias": START[0]}}
    rule = project(projections.l2_ball, "**/weight", radius=0.9)
    updates = jax.tree.map(jnp.zeros_like, params)
    updates, _ = rule.update(updates, rule.init(params), params)
    moved = apply_updates(params, updates)
    for name in ("a", "b"):
        norm = np.linalg.norm(moved[name]["weight"])
        np.testing.assert_allclose(norm, 0.9, rtol=1e-6)
    np.testing.assert_array_equal(moved["b"]["bias"], START[0])


def test_an_argument_that_is_a_function_is_a_schedule():
    rule = project(projections.l2_sphere, radius=lambda t: 1.0 + t.astype(float))
    points = walk(chain(fg.sgd(0.1), rule), START, SLOPES)
    norms = np.linalg.norm(points.reshape(4, -1), axis=1)
    np.testing.assert_allclose(norms, [1, 2, 3, 4], rtol=1e-6)


def test_the_radius_is_tunable():
    tuned = fg.tunable(project, projection=projections.l2_sphere, radius=2.0)

    @jax.jit
    def update(params):
        state = fg.set_hyperparameters(tuned.init(params), radius=3.0)
        return tuned.update(jnp.zeros_like(params), state, params)[0]

    np.testing.assert_allclose(np.linalg.norm(START + update(START)), 3.0, rtol=1e-6)


def test_it_comes_last_in_a_chain_before_averages_and_after_stochastic_rounding():
    part = project(projections.non_negative)
    with pytest.raises(ValueError, match="need 'project' last in a chain"):
        chain(part, fg.sgd(0.1)).init(START)
    optimizer = chain(fg.sgd(0.1), fg.stochastic_round(0), part, fg.ema_params(0.0))
    start = jnp.abs(START).astype(jnp.bfloat16)
    points = walk(optimizer, start, jnp.full((1, 3, 4), 50.0))
    np.testing.assert_array_equal(points, 0.0)


def test_stacked_leaves_are_projected_apart():
    params = {"a": START[0], "b": 3 * START[1]}
    optimizer = chain(fg.sgd(0.1), project(projections.l2_sphere))
    stacked = fg.stack_leaves(optimizer)
    expected, _ = optimizer.update(params, optimizer.init(params), params)
    got, _ = jax.jit(stacked.update)(params, stacked.init(params), params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), got, expected
    )


def test_leaves_of_integers_and_groups_without_gradients_pass():
    params = {"w": START, "table": jnp.arange(3)}
    inner = chain(fg.sgd(0.1), project(projections.non_negative))
    optimizer = fg.partition([("w", inner), ("**", fg.freeze())])
    gradients = {"w": START, "table": jnp.zeros(3, jnp.int32)}
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    assert np.min(START + np.asarray(updates["w"])) == 0.0
    np.testing.assert_array_equal(updates["table"], 0)


def test_derivatives_pass_through_the_update():
    for name in ("box", "l2_ball"):
        rule = project(getattr(projections, name), **SETS[name])
        state = rule.init(START)

        def landed(u, rule=rule, state=state):
            return START + rule.update(u, state, START)[0]

        _, got = jax.jvp(jax.jit(landed), (SLOPES[1],), (SLOPES[0],))
        nearest = functools.partial(getattr(projections, name), **SETS[name])
        _, expected = jax.jvp(nearest, (START + SLOPES[1],), (SLOPES[0],))
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.slow
def test_non_negative_least_squares_ends_where_scipy_does():
    a, b = RNG.normal(size=(12, 5)), RNG.normal(size=12)
    expected, _ = scipy.optimize.nnls(a, b)
    wide = [jnp.asarray(x, jnp.float32) for x in (a, b)]
    optimizer = chain(fg.sgd(0.03), project(projections.non_negative))
    step = fg.make_step(
        lambda w, _: 0.5 * jnp.sum((wide[0] @ w - wide[1]) ** 2), optimizer
    )
    state = fg.init_state(jnp.ones(5), optimizer, 0)
    state, _ = jax.jit(lambda s: fg.run(step, s, lambda t: None, 400))(state)
    assert np.sum(expected == 0) in range(1, 5)
    np.testing.assert_allclose(state.params, expected, atol=1e-5)
    np.testing.assert_array_equal(state.params[expected == 0], 0.0)


@pytest.mark.slow
def test_the_laws_hold():
    box = fg.named("box", project(projections.box, lower=-0.4, upper=0.7))
    check_transform(chain(box, project(projections.l1_ball, "layers/**", radius=0.9)))


def test_bad_projections_are_refused():
    with pytest.raises(TypeError, match="need a function of an array, got 3"):
        project(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"glob that selects a leaf, got 'v'"):
        project(projections.simplex, "v").init({"w": START})
    with pytest.raises(ValueError, match=r"float32\[3, 4\], got .*float32.* at 'w'"):
        project(jnp.sum).init({"w": START})
    with pytest.raises(TypeError, match="real floats for simplex") as caught:
        project(projections.simplex).init({"w": START.astype(np.complex64)})
    assert caught.value.__notes__[-1:] == ["project: at the parameter 'w'"]
    with pytest.raises(ValueError, match="different axes of an array of 1"):
        project(projections.simplex, axis=1).init({"b": START[0]})
