"""Finite differences agree with autodiff, and reveal where autodiff is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.gradcheck import (
    check_gradients,
    complex_step,
    finite_difference_gradient,
    taylor_test,
)

PARAMS = {
    "hidden": {"weight": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2), "bias": jnp.ones(2)},
    "out": jnp.array([0.5, -2.0]),
}
BATCH = {"x": jnp.linspace(0.0, 1.0, 12).reshape(4, 3), "label": jnp.arange(4)}


def loss_fn(params, batch):
    layer = params["hidden"]
    hidden = jnp.tanh(batch["x"] @ layer["weight"] + layer["bias"][None])
    target = jnp.where(batch["label"] > 1, 1.0, -1.0)
    return jnp.mean((hidden @ params["out"] - target.astype(hidden.dtype)) ** 2)


def test_one_coordinate_at_a_time_gives_the_gradient():
    naive = finite_difference_gradient(loss_fn, PARAMS, BATCH)
    want = jax.grad(loss_fn)(PARAMS, BATCH)
    assert naive["out"].dtype == np.float64
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), naive, want
    )


def test_selected_coordinates_equal_those_of_the_whole_gradient():
    whole = finite_difference_gradient(loss_fn, PARAMS, BATCH)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(whole)])
    some = finite_difference_gradient(loss_fn, PARAMS, BATCH, coordinates=[7, 0, 3])
    np.testing.assert_allclose(some, flat[[7, 0, 3]], rtol=1e-6)


def test_the_error_is_quadratic_in_the_step():
    cube = jnp.array([2.0])
    coarse, fine = (
        finite_difference_gradient(lambda w: jnp.sum(w**3), cube, step=h)[0] - 12.0
        for h in (1e-2, 1e-3)
    )
    np.testing.assert_allclose([coarse, fine], [1e-4, 1e-6], rtol=1e-3)


def test_a_correct_gradient_passes_with_order_two():
    report = check_gradients(loss_fn, PARAMS, BATCH)
    assert report.ok
    assert {leaf.path for leaf in report.leaves} == {
        "hidden/weight",
        "hidden/bias",
        "out",
    }
    for leaf in report.leaves:
        assert leaf.error < 1e-8
        if leaf.path != "out":  # the loss is quadratic in it: the error is zero
            np.testing.assert_allclose(leaf.order, 2.0, atol=0.1)
    assert np.isnan(next(leaf.order for leaf in report.leaves if leaf.path == "out"))


@jax.custom_vjp
def wrong_square(x):
    return x**2


wrong_square.defvjp(lambda x: (x**2, x), lambda x, g: (2.001 * x * g,))


def test_a_wrong_custom_vjp_is_caught_at_its_leaf_with_both_numbers():
    params = {"good": jnp.ones(3), "bad": jnp.array([1.0, 2.0])}

    def f(p):
        return jnp.sum(p["good"] ** 2) + jnp.sum(wrong_square(p["bad"]))

    with pytest.raises(ValueError, match=r"at 'bad': autodiff and central") as caught:
        check_gradients(f, params)
    numbers = str(caught.value).split("\n")[0].split()
    autodiff, central = float(numbers[-4].rstrip(",")), float(numbers[-1])
    np.testing.assert_allclose(autodiff / central, 2.001 / 2, rtol=1e-7)


def test_a_stopped_gradient_is_caught():
    def f(w):
        return jnp.sum(jax.lax.stop_gradient(w) * w)

    with pytest.raises(ValueError, match="autodiff and central differences disagree"):
        check_gradients(f, jnp.array([1.0, 2.0]))


def test_a_nan_gradient_is_caught_at_its_own_leaf_only():
    # The value is right; in reverse mode the unused branch gives 0 * inf.
    def root(x):
        return jnp.where(x > 1.0, jnp.sqrt(x - 1.0), 2.0 * (x - 1.0))

    params = {"good": jnp.ones(3), "masked": jnp.full(2, 0.5)}

    def f(p):
        return jnp.sum(p["good"] ** 2) + jnp.sum(root(p["masked"]))

    with pytest.raises(ValueError, match="at 'masked': the gradient is not") as caught:
        check_gradients(f, params)
    good = next(row for row in str(caught.value).split("\n") if row[:4] == "good")
    assert "nan" not in good.split()[1]
    with pytest.raises(ValueError, match="need a finite slope at the parameters"):
        taylor_test(f, params)


def test_steps_to_points_where_f_is_undefined_are_left_out():
    near_zero = {"w": jnp.array([1e-3, 1.0])}
    assert check_gradients(lambda p: jnp.sum(jnp.log(p["w"])), near_zero).ok

    def kinked(p):
        away = jnp.abs(p["w"][1] - 1.0)
        return jnp.where(away < 0.01, away, jnp.nan)

    with pytest.raises(ValueError, match="at 'w': a kink"):
        check_gradients(kinked, near_zero)
    with pytest.raises(ValueError, match="need f to be finite around 'w'"):
        check_gradients(
            lambda p: jnp.where(p["w"][1] == 1, jnp.sum(p["w"]), jnp.nan), near_zero
        )


def test_a_comparison_needs_four_step_sizes_at_which_f_is_finite():
    def within(radius):
        return lambda w: jnp.where(jnp.abs(w - 1.0) < radius, w, jnp.nan)

    w = jnp.array(1.0)
    assert check_gradients(within(2e-6), w).ok  # of 1e-6 to 10**-7.5
    with pytest.raises(ValueError, match="need f to be finite around"):
        check_gradients(within(5e-7), w)


def test_the_tolerance_decides_and_the_key_draws_the_directions():
    params = jnp.array([1.0, 2.0])

    def f(w):
        return jnp.sum(wrong_square(w))

    assert check_gradients(f, params, tolerance=1e-3).ok
    first, second = (
        check_gradients(f, params, tolerance=1e-3, key=key).leaves[0].numeric
        for key in (0, 1)
    )
    assert abs(first - second) > 1e-3


@pytest.mark.parametrize("kinked", [jnp.abs, jax.nn.relu])
def test_a_kink_is_caught_and_reported_as_such(kinked):
    params = {"smooth": jnp.ones(2), "kinked": jnp.zeros(2)}

    def f(p):
        return jnp.sum(p["smooth"] ** 3) + jnp.sum(kinked(p["kinked"]))

    with pytest.raises(ValueError, match="at 'kinked': a kink"):
        check_gradients(f, params)


def test_a_minimum_a_plateau_and_a_line_are_not_kinks():
    params = {"minimum": jnp.zeros(2), "plateau": jnp.ones(2), "line": jnp.ones(2)}

    def f(p):
        return jnp.sum(p["minimum"] ** 2) + 3.0 * jnp.sum(p["line"]) + 1e3

    assert check_gradients(f, params).ok


def test_complex_parameters_are_checked():
    w = jnp.array([1.0 + 2.0j, -0.5j])
    assert check_gradients(lambda w: jnp.sum(jnp.abs(w) ** 2 + jnp.real(w**3)), w).ok


def test_metrics_beside_the_loss_are_ignored():
    assert check_gradients(lambda w: (jnp.sum(w**2), {"a": w}), jnp.ones(2)).ok


def test_the_error_of_the_tangent_is_quadratic_in_the_distance():
    report = taylor_test(loss_fn, PARAMS, BATCH)
    np.testing.assert_allclose(report.constant_order, 1.0, atol=0.05)
    np.testing.assert_allclose(report.tangent_order, 2.0, atol=0.1)


def test_the_error_of_a_wrong_tangent_is_only_linear():
    @jax.custom_jvp
    def f(w):
        return jnp.sum(jnp.sin(w))

    f.defjvp(lambda w, v: (f(w[0]), 0.9 * jnp.sum(jnp.cos(w[0]) * v[0])))
    report = taylor_test(f, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(report.tangent_order, 1.0, atol=0.05)


def test_the_error_of_a_wrong_custom_vjp_is_only_linear():
    report = taylor_test(lambda w: jnp.sum(wrong_square(w)), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(report.tangent_order, 1.0, atol=0.2)


def test_complex_parameters_have_a_tangent():
    w = jnp.array([1.0 + 2.0j, -0.5j])
    report = taylor_test(lambda w: jnp.sum(jnp.abs(w) ** 2 + jnp.real(w**3)), w)
    np.testing.assert_allclose(report.tangent_order, 2.0, atol=0.1)


def test_the_complex_step_is_exact_to_rounding():
    def f(w):
        return jnp.exp(w[0]) * jnp.sin(w[1]) / (1 + w[0] ** 2)

    w, v = jnp.array([0.75, 1.5]), jnp.array([1.0, -2.0])
    x, y = 0.75, 1.5
    e, q = np.exp(x), 1 + x**2
    want = e * np.sin(y) * (1 / q - 2 * x / q**2) - 2 * e * np.cos(y) / q
    np.testing.assert_allclose(complex_step(f, w, v), want, rtol=1e-14)


def test_a_function_that_drops_imaginary_parts_is_refused():
    with pytest.raises(TypeError, match="need f to be analytic"):
        complex_step(lambda w: jnp.sum(jnp.abs(w)), jnp.ones(2), jnp.ones(2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check_gradients(lambda w: w, jnp.ones(2)), TypeError, "real scalar"),
        (
            lambda: check_gradients(lambda p: 0.0, {"n": jnp.arange(2)}),
            TypeError,
            "need float or complex parameters, got int32 at 'n'",
        ),
        (
            lambda: finite_difference_gradient(lambda w: 0.0, jnp.ones(2), step=0.0),
            ValueError,
            "need step > 0",
        ),
        (
            lambda: finite_difference_gradient(
                lambda w: jnp.sum(w), jnp.ones(2), coordinates=[2]
            ),
            ValueError,
            r"need coordinates of shape \(k,\) in \[0, 2\)",
        ),
        (
            lambda: check_gradients(lambda w: jnp.sum(jnp.log(w)), -jnp.ones(2)),
            ValueError,
            "need a finite f at the parameters, got nan",
        ),
        (
            lambda: complex_step(lambda w: jnp.sum(w), jnp.ones(2), jnp.ones(3)),
            ValueError,
            "need a direction shaped like params",
        ),
        (
            lambda: complex_step(lambda w: w**2, jnp.ones(2), jnp.ones(2)),
            TypeError,
            r"need f to return a scalar, got shape \(2,\)",
        ),
        (
            lambda: complex_step(jnp.sum, jnp.ones(2), jnp.ones(2), h=0.0),
            ValueError,
            "need h > 0",
        ),
        (
            lambda: finite_difference_gradient(
                jnp.sum, jnp.ones(2), coordinates=[True, False]
            ),
            TypeError,
            "need integer coordinates",
        ),
        (
            lambda: taylor_test(jnp.sum, jnp.arange(2)),
            TypeError,
            r"got int32 at '\(root\)'",
        ),
    ],
)
def test_invalid_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
