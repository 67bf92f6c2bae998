"""L-BFGS: its direction, its memory, and the optima it reaches."""

import jax
import jax.flatten_util as flatten_util
import jax.numpy as jnp
import numpy as np
import oracles_steps as oracles
import problems
import pytest
import scipy.optimize
from float64_mode import x64

import fngrad.data as data
import fngrad.steps as steps
import fngrad.tree as tree
from fngrad.optimizers.lbfgs import lbfgs, scale_by_lbfgs
from fngrad.training import init_state

SIZE, STEPS = 6, 25
NEGATIVE = (4, 5, 13)  # steps whose gradients come from another function


def path():
    """Return parameters and gradients of shape (25, 6) of a noisy convex function."""
    rng = np.random.default_rng(0)
    A = problems.quadratic(np.array([0.1, 0.5, 1.0, 3.0, 10.0, 100.0]))
    params = rng.normal(size=(STEPS, SIZE)) * 0.9 ** np.arange(STEPS)[:, None]
    gradients = params @ A + params**3
    for t in NEGATIVE:
        gradients[t] = -gradients[t]
    return params, gradients


def as_tree(x):
    """Lay a vector of six entries out over three leaves."""
    return {"a": x[..., :1].reshape(x.shape[:-1]), "b": x[..., 1:].reshape(-1, 5)[0]}


def updates_of(optimizer, params, gradients, dtype=jnp.float64):
    cast = [jax.tree.map(lambda x: jnp.asarray(x, dtype), as_tree(x)) for x in params]
    given = [
        jax.tree.map(lambda x: jnp.asarray(x, dtype), as_tree(x)) for x in gradients
    ]
    update, visited = jax.jit(optimizer.update), []
    state = jax.jit(optimizer.init)(cast[0])
    for p, g in zip(cast, given, strict=True):
        updates, state = update(g, state, p)
        flat = [np.asarray(u, np.float64).ravel() for u in jax.tree.leaves(updates)]
        visited.append(np.concatenate(flat))
    return np.array(visited), state


@pytest.mark.parametrize(
    "arguments",
    [{}, {"memory_size": 1}, {"memory_size": 4}, {"scale_init_precond": False}],
)
def test_the_two_loops_are_the_matrix_of_the_last_pairs(arguments):
    params, gradients = path()
    rates = problems.decaying(0.1, STEPS)
    with x64():
        table = jnp.asarray(rates)
        optimizer = lbfgs(lambda step: table[step], **arguments)
        got, state = updates_of(optimizer, params, gradients)
        pairs = int(state["scale_by_lbfgs"].pairs)
    want = oracles.lbfgs(gradients, params, rates, **arguments)
    scale = np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=1e-10)
    assert 10 < pairs < STEPS - 1  # some were left out


def test_every_argument_changes_the_updates():
    variants = [
        lbfgs(0.1),
        lbfgs(0.2),
        lbfgs(0.1, memory_size=3),
        lbfgs(0.1, scale_init_precond=False),
    ]
    single = jnp.float32
    first, *others = [updates_of(v, *path(), single)[0] for v in variants]
    for other in others:
        assert not np.allclose(first, other, rtol=1e-3)


def test_low_precision_keeps_its_memory_wide():
    params, gradients = path()
    optimizer = lbfgs(0.1, memory_size=4)
    exact, _ = updates_of(optimizer, params, gradients, jnp.float32)
    got, state = updates_of(optimizer, params[:2], gradients[:2], jnp.bfloat16)
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
    assert dtypes == {"float32", "int32"}
    np.testing.assert_allclose(got[0], exact[0], rtol=2e-2)


def test_complex_parameters_are_pairs_of_real_ones():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(6, 4))
    g = w * np.array([1.0, 2.0, 3.0, 4.0]) + 0.1 * w**3
    optimizer = scale_by_lbfgs(3)

    def run(params, gradients):
        state, visited = optimizer.init(params[0]), []
        for p, gradient in zip(params, gradients, strict=True):
            updates, state = jax.jit(optimizer.update)(gradient, state, p)
            visited.append(updates)
        return np.array(visited)

    with x64():
        real = run(jnp.asarray(w), jnp.asarray(g))
        folded = [jnp.asarray(x[:, :2] + 1j * x[:, 2:]) for x in (w, g)]
        complex_ = run(*folded)
    np.testing.assert_allclose(np.real(complex_), real[:, :2], rtol=1e-12)
    np.testing.assert_allclose(np.imag(complex_), real[:, 2:], rtol=1e-12)


def test_a_nan_gradient_does_not_change_the_memory():
    params, gradients = path()
    gradients = gradients.copy()
    gradients[8] = np.nan
    updates, state = updates_of(lbfgs(0.1), params, gradients, jnp.float32)
    assert np.all(np.isnan(updates[8]))
    assert np.all(np.isfinite(updates[9:]))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


def test_donating_the_memory_does_not_delete_a_gradient():
    params, gradient = jnp.ones(2), jnp.ones(2)
    optimizer = scale_by_lbfgs()
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    jax.tree.map(lambda x: x.delete(), state)
    np.testing.assert_array_equal(params, gradient)


def minimize(loss_fn, start, batch, num_steps):
    optimizer = lbfgs()
    step = jax.jit(steps.line_search(loss_fn, optimizer, "strong_wolfe"))
    state, losses = init_state(start, optimizer, 0), []
    for _ in range(num_steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["next_loss"]))
    assert np.all(np.diff(losses) <= 1e-14)  # each step rounds its first loss anew
    return state.params, losses[-1]


def logistic(w, batch):
    logits = batch["x"] @ w["weight"] + w["bias"]
    margins = (2 * batch["y"].astype(logits.dtype) - 1) * logits
    ridge = 1e-3 * jnp.sum(w["weight"] ** 2)
    return jnp.mean(jnp.logaddexp(0.0, -margins)) + ridge


def test_it_reaches_scipys_optimum_on_the_tumours():
    train = data.breast_cancer().train
    with x64():
        batch = {"x": jnp.asarray(train["x"], float), "y": jnp.asarray(train["y"])}
        start = {"weight": jnp.zeros(30), "bias": jnp.zeros(())}
        params, loss = minimize(logistic, start, batch, 60)
        flat, unravel = flatten_util.ravel_pytree(start)
        value = jax.jit(jax.value_and_grad(lambda v: logistic(unravel(v), batch)))
        found = scipy.optimize.minimize(
            lambda v: tuple(np.asarray(x) for x in value(v)),
            np.asarray(flat),
            jac=True,
            method="L-BFGS-B",
            options={"gtol": 1e-9, "ftol": 1e-15, "maxiter": 500},
        )
        gradient = float(tree.norm(jax.grad(logistic)(params, batch)))
    print(f"fngrad {loss:.15f}, scipy {found.fun:.15f}, gradient {gradient:.1e}")
    np.testing.assert_allclose(loss, found.fun, rtol=1e-12)
    assert gradient < 1e-6


def test_it_reaches_scipys_optimum_on_rosenbrock():
    start = np.tile([-1.2, 1.0], 5)
    with x64():
        params, loss = minimize(
            lambda x, batch: problems.rosenbrock(x), jnp.asarray(start), None, 90
        )
    found = scipy.optimize.minimize(
        scipy.optimize.rosen,
        start,
        jac=scipy.optimize.rosen_der,
        method="L-BFGS-B",
        options={"gtol": 1e-10, "ftol": 1e-16},
    )
    print(f"fngrad {loss:.3e}, scipy {found.fun:.3e}")
    assert loss <= max(found.fun, 1e-18)
    np.testing.assert_allclose(params, found.x, atol=1e-7)


def test_bad_sizes_are_refused():
    with pytest.raises(
        ValueError, match="need an int memory_size >= 1, got memory_size=0"
    ):
        lbfgs(memory_size=0)
