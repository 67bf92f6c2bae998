"""What defines Muon's relatives: lengths, norms, balls, bases, coefficients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_muon
import pytest
from float64_mode import x64

import fngrad as fg
from fngrad.transforms.polar_factors import COEFFICIENTS

MATRIX = np.random.default_rng(0).normal(size=(4, 3))
SHAPES = {"tall": (4, 3), "wide": (2, 5), "kernel": (3, 2, 2)}


@functools.partial(jax.jit, static_argnums=0)
def first_update(rule, gradient, params=None):
    params = jnp.zeros_like(gradient) if params is None else params
    return rule.update(gradient, rule.init(params), params)[0]


def polar(x):
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    return u @ vt


def test_the_coefficients_of_polar_express_are_the_best_by_remez():
    *table, last = COEFFICIENTS["polar_express"]
    want = oracles_muon.polar_express(len(table))
    for got, (a, b, c) in zip(table, want, strict=True):
        np.testing.assert_allclose(got, (a / 1.01, b / 1.01**3, c / 1.01**5), rtol=1e-6)
    np.testing.assert_allclose(last, (15 / 8, -10 / 8, 3 / 8))


BANDS = [  # name, steps, the smallest singular value, the documented band
    ("original", 5, 0.006, (0.68, 1.135)),
    ("quintic", 5, 0.003, (0.97, 1.15)),
    ("polar_express", 5, 0.001, (0.84, 1.13)),
    ("polar_express", 8, 0.001, (0.9999, 1.0001)),
    ("polar_express", 10, 0.001, (1 - 1e-9, 1 + 1e-9)),  # with the last for the rest
    ("cubic", 20, 0.01, (0.9999, 1.0001)),
]


@pytest.mark.parametrize(("name", "steps", "least", "band"), BANDS)
def test_named_coefficients_end_in_their_band(name, steps, least, band):
    end = jax.jit(lambda x: fg.orthogonalize(x, name, steps, eps=0.0))
    with x64():
        for value in (least, 0.02, 0.3, 0.9):  # beside another one: the norm is one
            got = np.diag(end(np.diag([value, np.sqrt(1 - value**2)])))
            assert np.all((got > band[0]) & (got < band[1])), (value, got)


def test_an_unknown_name_of_coefficients_is_refused():
    with pytest.raises(ValueError, match=r"need ns_coeffs to be one of .*'express'"):
        fg.muon(0.1, "express")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rule", [fg.scale_by_normuon, fg.scale_by_adamuon])
def test_an_update_has_the_root_mean_square_that_is_asked_for(rule, shape):
    gradient = np.random.default_rng(1).normal(size=shape)
    got = first_update(rule(consistent_rms=0.3), gradient)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(got))), 0.3, rtol=1e-5)


def test_normuon_without_memory_gives_every_neuron_a_step_of_one_length():
    got = first_update(fg.scale_by_normuon(beta2=0.0), MATRIX)
    lengths = np.linalg.norm(got, axis=0)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)
    assert np.ptp(np.linalg.norm(got, axis=1)) > 0.01


def test_normuon_with_muons_length_is_as_long_as_muon():
    wide = MATRIX.T
    got = first_update(fg.scale_by_normuon(consistent_rms=None), wide)
    muon = first_update(fg.scale_by_muon(nesterov=False), wide)
    np.testing.assert_allclose(np.linalg.norm(got), np.linalg.norm(muon), rtol=1e-5)


def test_adamuon_does_not_depend_on_the_size_of_any_entry():
    sizes = np.random.default_rng(2).uniform(0.1, 9.0, MATRIX.shape)
    want, got = (
        first_update(fg.scale_by_adamuon(), x) for x in (MATRIX, sizes * MATRIX)
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("rule", [fg.muonh, fg.adamh], ids=lambda f: f.__name__)
def test_weights_stay_on_their_sphere_and_turn_by_the_learning_rate(rule):
    optimizer = rule(0.01)
    params = {"w": jnp.asarray(MATRIX), "b": jnp.ones(3)}
    target = np.roll(params["w"], 1)

    @jax.jit
    def step(params, state):
        gradient = {"w": params["w"] - target, "b": params["b"]}
        updates, state = optimizer.update(gradient, state, params)
        return fg.apply_updates(params, updates), state

    state, seen = jax.jit(optimizer.init)(params), []
    for _ in range(40):
        seen.append(np.asarray(params["w"]))
        params, state = step(params, state)
    radius = np.linalg.norm(MATRIX)
    np.testing.assert_allclose([np.linalg.norm(w) for w in seen], radius, rtol=1e-6)
    moved = [np.linalg.norm(b - a) for a, b in itertools.pairwise(seen)]
    assert max(moved) < 0.0102 * radius
    assert moved[0] > 0.005 * radius
    assert float(params["b"][0]) < 0.7  # the rest is Adam's


def test_a_sphere_of_radius_zero_does_not_freeze_a_leaf():
    rule = fg.scale_by_hyperball(0.5)
    got = first_update(rule, jnp.array([3.0, -4.0]))
    np.testing.assert_allclose(got, [-0.3, 0.4], rtol=1e-6)
    still = first_update(rule, jnp.zeros(2), jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(still, 0, atol=1e-6)


def test_a_hyperball_reports_its_learning_rate():
    optimizer, params = fg.muonh(lambda t: 0.25), {"w": jnp.ones((2, 2))}
    report = jax.jit(lambda p: fg.report(optimizer, p, optimizer.init(p), p))
    metrics = report(params)
    assert 0.25 in [float(value) for value in metrics.values()]


# The largest inner product with a point of the unit ball: the dual norm.
DUAL_NORMS = {
    "spectral": lambda g: np.sqrt(g.shape[1] / g.shape[0]) * np.linalg.norm(g, "nuc"),
    "image": lambda g: np.linalg.norm(g, "nuc") * max(1, np.sqrt(len(g.T) / len(g))),
    "column": lambda g: np.sqrt(g.shape[1]) * np.sum(np.linalg.norm(g, axis=1)),
    "one_hot_sign": lambda g: np.sum(np.abs(g)),
    "row": lambda g: np.sum(np.linalg.norm(g, axis=0)) / np.sqrt(len(g)),
    "sign": lambda g: np.sum(np.abs(g)) / len(g),
    "rms": lambda g: np.sqrt(g.size) * np.linalg.norm(g),
}


@pytest.mark.parametrize("norm", DUAL_NORMS)
def test_the_point_of_a_ball_is_the_farthest_along_the_gradient(norm):
    rule = fg.scale_by_lmo(norm, 2.0, "polar_express", 9)
    for gradient in (MATRIX, MATRIX.T):
        got = np.sum(gradient * np.asarray(first_update(rule, gradient)))
        np.testing.assert_allclose(got, 2 * DUAL_NORMS[norm](gradient), rtol=1e-5)


def test_constrained_scion_ends_inside_its_ball_and_the_other_leaves_it():
    norms = {}
    for constrained in (True, False):
        optimizer = fg.scion(0.2, ns_coeffs="cubic", constrained=constrained)
        params = jnp.asarray(3 * MATRIX)
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for _ in range(40):
            updates, state = update(jnp.asarray(-MATRIX), state, params)
            params = params + updates
        ball = np.sqrt(3 / 4)  # of the spectral norm
        norms[constrained] = np.linalg.norm(params, 2) / ball
    assert norms[True] < 1.01
    assert norms[False] > 5


def test_a_norm_of_matrices_refuses_a_vector():
    with pytest.raises(ValueError, match=r"need a matrix for the norm 'row', got .*3"):
        first_update(fg.scale_by_lmo("row"), jnp.ones(3))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_dion_converges_to_the_polar_factor_of_what_it_sees(shape):
    gradient = np.random.default_rng(3).normal(size=shape)
    rule = fg.scale_by_dion()
    params = jnp.zeros(shape)
    state = rule.init(params)
    update = jax.jit(rule.update)
    for _ in range(60):
        got, state = update(jnp.asarray(gradient, jnp.float32), state, params)
    want = np.sqrt(shape[1] / shape[0]) * polar(gradient)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_what_dion_leaves_out_stays_in_its_momentum():
    rule = fg.scale_by_dion(0.25, 0.5)
    params = jnp.zeros((4, 4))
    state = rule.init(params)["scale_by_dion"]
    gradient = jnp.diag(jnp.array([4.0, 3.0, 2.0, 1.0]))
    _, new = rule.update(gradient, {"scale_by_dion": state}, params)
    momentum = np.asarray(new["scale_by_dion"].mu)
    u, s, _ = np.linalg.svd(np.asarray(gradient) - momentum)
    assert np.sum(s > 1e-5) == 1  # half of one direction has left
    assert new["scale_by_dion"].basis.shape == (4, 1)
    kept = momentum @ np.linalg.svd(np.asarray(gradient) - momentum)[2][0]
    np.testing.assert_allclose(np.abs(kept @ u[:, 0]), s[0], rtol=1e-5)


def test_a_direction_without_gradients_takes_no_step_under_dion():
    rule, gradient = fg.scale_by_dion(), np.outer([1.0, 2.0, -1.0], [3.0, 4.0])
    got = first_update(rule, gradient)
    want = np.sqrt(2 / 3) * gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_array_equal(first_update(rule, np.zeros((3, 2))), 0)


def polar_of_rank_one(x):
    return np.asarray(x) / np.linalg.norm(x)


def test_a_rank_that_is_no_python_number_is_refused():
    for bad in (0.0, 1.5, jnp.float32(0.5)):
        with pytest.raises(ValueError, match="0 < rank_fraction <= 1"):
            fg.dion(0.1, bad)


def test_adamc_at_a_constant_rate_is_adamw_and_decays_by_its_square_elsewhere():
    params, gradient = jnp.array([2.0, -1.0]), jnp.zeros(2)
    adamw = first_update(fg.adamw(0.1, weight_decay=0.5), gradient, params)
    same = first_update(fg.adamc(0.1, weight_decay=0.5), gradient, params)
    np.testing.assert_array_equal(same, adamw)
    below = fg.adamc(0.1, weight_decay=0.5, max_learning_rate=0.4)
    np.testing.assert_allclose(
        first_update(below, gradient, params), adamw / 4, rtol=1e-6
    )


def test_adamc_decays_by_the_square_of_a_falling_rate_and_adamw_by_the_rate():
    rate = fg.schedules.linear(0.2, 0.0, 8)
    ends = []
    for rule in (fg.adamc(rate, weight_decay=1.0), fg.adamw(rate, weight_decay=1.0)):
        w, state = jnp.ones(1), rule.init(jnp.ones(1))
        for _ in range(8):
            updates, state = rule.update(jnp.zeros(1), state, w)
            w = w + updates
        ends.append(float(w[0]))
    rates = 0.2 * (1 - np.arange(8) / 8)
    np.testing.assert_allclose(ends[0], np.prod(1 - rates**2 / 0.2), rtol=1e-5)
    np.testing.assert_allclose(ends[1], np.prod(1 - rates), rtol=1e-5)


@pytest.mark.parametrize("name", ["normuon", "adamuon", "muonh", "adamh", "dion"])
def test_the_rest_has_a_rule_of_its_own(name):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    optimizer = getattr(fg, name)(0.1, rest=fg.sgd(0.25))
    updates = first_update(optimizer, params, params)
    np.testing.assert_array_equal(updates["b"], -0.25)
    frozen = getattr(fg, name)(0.1, rest=fg.freeze())
    assert first_update(frozen, params, params)["b"][0] == 0


@pytest.mark.parametrize("name", ["normuon", "adamuon", "muonh", "scion", "dion"])
def test_zero_gradients_move_no_matrix_and_have_finite_derivatives(name):
    rules = {
        "muonh": fg.scale_by_muon,
        "scion": fg.scale_by_lmo,
        "dion": fg.scale_by_dion,
    }
    rule = rules.get(name, getattr(fg, f"scale_by_{name}", None))()
    zero = jnp.zeros((3, 2))
    np.testing.assert_array_equal(first_update(rule, zero), 0)
    if name != "dion":  # the QR decomposition of a zero matrix has no derivative
        state = rule.init(zero)
        slope = jax.grad(lambda g: jnp.sum(rule.update(g, state, zero)[0]))
        for derivative in (slope, jax.jit(slope)):  # XLA merges divisions
            assert np.all(np.isfinite(derivative(zero)))
