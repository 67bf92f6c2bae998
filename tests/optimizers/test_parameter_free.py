"""Schedule-free and learning-rate-free rules: what they do, tell and refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from trajectories import case_id

from fngrad.optimizers.dadapt import dadapt_adamw, dadapt_sgd
from fngrad.optimizers.dog import dog
from fngrad.optimizers.prodigy import prodigy
from fngrad.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd
from fngrad.transforms.averages import average_params
from fngrad.transforms.core import apply_updates, chain, report
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.tree import Stacked

RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        *(schedule_free_sgd, schedule_free_adamw),
        *(prodigy, dadapt_adamw, dadapt_sgd, dog),
    )
}


@pytest.mark.parametrize(
    ("name", "steps"),
    [("prodigy", 300), ("dadapt_adamw", 300), ("dadapt_sgd", 600), ("dog", 2000)],
)
def test_a_quadratic_is_minimised_without_a_learning_rate(name, steps):
    A = jnp.asarray(problems.quadratic(np.array([1.0, 2.0, 4.0])), jnp.float32)
    optimizer = RECIPES[name]()

    def body(carry, _):
        x, state = carry
        updates, state = optimizer.update(A @ x, state, x)
        return (x + updates, state), None

    x = jnp.full(3, 5.0)
    (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), length=steps)
    assert x @ A @ x < 1e-2 * (jnp.full(3, 5.0) @ A @ jnp.full(3, 5.0))


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd"])
def test_a_report_tells_the_distance_and_the_step_size(name):
    optimizer, params = RECIPES[name](0.5), jnp.array([3.0, 4.0])
    told = report(optimizer, params, optimizer.init(params), params)
    kinds = {key.rpartition("/")[2]: float(value) for key, value in told.items()}
    factor = {"prodigy": 0.5, "dadapt_adamw": 0.5, "dadapt_sgd": 0.5 / 5.0}[name]
    if name != "dadapt_sgd":
        factor *= 0.001**0.5 / 0.1  # Adam's correction of the first step
    assert kinds["d"] == pytest.approx(1e-6)
    assert kinds["learning_rate"] == pytest.approx(1e-6 * factor, rel=1e-4)


def test_dog_reports_the_distance_and_the_largest_step_size():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
    optimizer = dog(init_step=("heuristic", 0.1), layerwise=True, eps=0.0)
    told = report(optimizer, params, optimizer.init(params), params)
    assert told["scale_by_dog/distance"] == pytest.approx(0.1 * (1 + 5))
    assert told["scale_by_dog/step_size"] == pytest.approx(0.1 * (1 + 1) / 1)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd"])
def test_a_learning_rate_that_begins_at_zero_leaves_the_estimate_alone(name):
    optimizer = RECIPES[name](lambda t: jnp.where(t < 2, 0.0, 1.0))
    params = jnp.array([1.0, -2.0])
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for t in range(3):
        updates, state = update(params, state, params)
        assert bool(np.all(np.asarray(updates) == 0)) == (t < 2)
        assert np.all(np.isfinite(updates))


def test_dadapt_sgd_takes_its_scale_from_the_first_gradient_that_is_not_zero():
    optimizer, params = dadapt_sgd(estim_lr0=0.1), jnp.array([1.0, 1.0])
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    updates, state = update(jnp.zeros(2), state, params)
    np.testing.assert_array_equal(updates, [0.0, 0.0])
    updates, state = update(jnp.array([3.0, 4.0]), state, params)
    np.testing.assert_allclose(updates, [-0.06, -0.08], rtol=1e-5)


def test_a_derivative_through_the_estimate_is_finite():
    def end(coefficient):
        optimizer, x = prodigy(estim_lr_coef=coefficient), jnp.array([1.0, 0.0])

        def body(carry, _):
            x, state = carry
            updates, state = optimizer.update(2 * x, state, x)
            return (x + updates, state), None

        return jnp.sum(jax.lax.scan(body, (x, optimizer.init(x)), length=4)[0][0])

    assert np.isfinite(jax.jit(jax.grad(end))(1.0))


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd"])
def test_complex_parameters_are_refused(name):
    with pytest.raises(TypeError, match=f"need real parameters for {name}.*complex64"):
        RECIPES[name]().init(jnp.ones(2, jnp.complex64))


def test_dog_takes_complex_parameters():
    z, w = jnp.array([1 + 2j]), jnp.array([1.0, 2.0])
    steps = []
    for params in (z, w):
        optimizer = dog(init_step=("distance", 0.5))
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        steps.append(np.asarray(updates))
    np.testing.assert_allclose(steps[0].view(np.float32), steps[1], rtol=1e-6)


def test_stacked_leaves_move_like_single_ones():
    rows = jnp.array([[1.0, -2.0], [30.0, 0.5]])
    for name, arguments in (
        ("prodigy", {}),
        ("dadapt_adamw", {}),
        ("dadapt_sgd", {}),
        ("schedule_free_sgd", {}),
        ("dog", {"averaging": 8.0}),
        ("dog", {"layerwise": True}),
    ):
        optimizer = RECIPES[name](**arguments)
        got = []
        for params in ({"stack": Stacked(rows)}, {"a": rows[0], "b": rows[1]}):
            state = optimizer.init(params)
            for _ in range(2):
                updates, state = optimizer.update(params, state, params)
            got.append(np.concatenate([x.ravel() for x in jax.tree.leaves(updates)]))
        np.testing.assert_allclose(got[0], got[1], rtol=1e-5)


def test_average_params_with_gamma_zero_is_the_mean():
    optimizer = chain(scale_by_learning_rate(0.5), average_params(0.0))
    params = jnp.array([4.0])
    state, seen = optimizer.init(params), []
    for _ in range(5):
        updates, state = optimizer.update(params, state, params)
        params = apply_updates(params, updates)
        seen.append(params)
    average = state["average_params"].eval_params(params)
    np.testing.assert_allclose(average, np.mean(seen, axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("schedule_free_sgd", {"warmup_steps": 0}, "need an int warmup_steps >= 1"),
        ("schedule_free_sgd", {"b1": 1.5}, "need 0.0 <= b1 <= 1.0"),
        ("schedule_free_sgd", {"learning_rate": -1.0, "warmup_steps": 2}, "-1.0"),
        ("schedule_free_adamw", {"b2": 1.0}, "need b2 < 1 to correct for bias"),
        ("schedule_free_adamw", {"weight_lr_power": -1.0}, "<= weight_lr_power"),
        ("prodigy", {"estim_lr0": 0.0}, "need estim_lr0 > 0"),
        ("prodigy", {"estim_lr_coef": -1.0}, "need estim_lr_coef > 0"),
        ("prodigy", {"betas": (0.9, 1.0)}, r"need betas\[1\] < 1"),
        ("prodigy", {"betas": (0.9,)}, r"need betas=\(b1, b2\), got betas=\(0.9,\)"),
        ("prodigy", {"beta3": 1.5}, "need 0.0 <= beta3 <= 1.0"),
        ("dadapt_adamw", {"growth_rate": 0.9}, "need 1.0 <= growth_rate"),
        ("dadapt_adamw", {"learning_rate": -0.1}, "need 0.0 <= learning_rate"),
        ("dadapt_sgd", {"momentum": 1.5}, "need 0.0 <= momentum <= 1.0"),
        ("dog", {"init_step": ("reps_rel", 1e-6)}, r"need init_step=\(kind, value\)"),
        ("dog", {"init_step": ("distance", 0.0)}, "distance of init_step > 0"),
        ("dog", {"eps": -1.0}, "need 0.0 <= eps"),
        ("dog", {"averaging": -1.0}, "need 0.0 <= averaging"),
    ],
    ids=case_id,
)
def test_a_hyperparameter_out_of_range_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        RECIPES[name](**arguments)


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adamw", "dadapt_sgd", "dog"])
def test_a_mask_that_selects_nothing_is_refused(name):
    optimizer = RECIPES[name](weight_decay=0.1, mask="weights")
    with pytest.raises(ValueError, match="need a glob that selects a leaf, got 'weig"):
        optimizer.init({"weight": jnp.ones(2)})
