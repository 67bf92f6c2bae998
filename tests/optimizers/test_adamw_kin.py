"""What defines AdamW's kin since 2020, and Kron: closed forms and edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad.transforms.evaluation_point import evaluation_point

ROWS = np.random.default_rng(5).normal(size=(6, 4, 3)).astype(np.float32)


def run(optimizer, gradients, params=None):
    """Return the updates along these gradients, from one start, and the last state."""
    params = jnp.full(gradients.shape[1:], 0.5) if params is None else params

    def body(state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return state, updates

    state, updates = jax.lax.scan(body, optimizer.init(params), jnp.asarray(gradients))
    return np.asarray(updates), state


ADAMW = {
    "laprop": fg.laprop(0.1, 0.0, 0.99, 1e-8, weight_decay=0.1),
    "mars": fg.mars(0.1, 0.9, 0.99, 0.0, 1e-8, weight_decay=0.1, max_norm=float("inf")),
    "stable_adamw": fg.stable_adamw(
        0.1, 0.9, 0.99, 1e-8, 0.1, clipping_threshold=float("inf")
    ),
    "adam_mini": fg.adam_mini(
        0.1, 0.9, 0.99, weight_decay=0.1, blocks=[("**", "entry")]
    ),
}


@pytest.mark.parametrize("name", ADAMW)
def test_without_what_defines_it_a_rule_is_adamw(name):
    b1 = 0.0 if name == "laprop" else 0.9
    want, _ = run(fg.adamw(0.1, b1, 0.99, weight_decay=0.1), ROWS)
    np.testing.assert_allclose(run(ADAMW[name], ROWS)[0], want, rtol=2e-5, atol=1e-7)


def test_laprop_gives_every_gradient_the_weight_of_its_time():
    """With beta_2 = 0 each one counts as its sign, however large the others are."""
    gradients = np.array([[1e6], [1.0], [-1e-3], [1.0]])
    got, _ = run(fg.laprop(1.0, 0.5, 0.0, eps=0.0), gradients)
    sums = [1.0, 1.5 / 1.5, (0.25 + 0.5 - 1) / 1.75, (0.125 + 0.25 - 0.5 + 1) / 1.875]
    np.testing.assert_allclose(-got[:, 0], sums, rtol=1e-5, atol=1e-6)


def test_simplified_ademamix_sums_equal_gradients():
    got, _ = run(fg.simplified_ademamix(1.0, 0.5, alpha=3.0, eps=0.0), np.ones((4, 1)))
    np.testing.assert_allclose(-got[:, 0], [4.0, 4.5, 4.75, 4.875], rtol=1e-5)


def test_mars_corrects_by_the_change_and_clips():
    gradients = np.array([[3.0, 4.0], [3.5, 4.0]])
    rule = fg.scale_by_mars(0.5, 0.0, 0.2, max_norm=10.0)
    _, state = run(rule, gradients)
    np.testing.assert_allclose(  # mu: 0.25 g_1 + 0.5 (g_2 + 0.2 (g_2 - g_1))
        state["scale_by_mars"].mu, [0.25 * 3 + 0.5 * 3.6, 3.0], rtol=1e-6
    )
    _, state = run(fg.scale_by_mars(0.0, 0.0), gradients[:1])
    np.testing.assert_allclose(state["scale_by_mars"].mu, [0.6, 0.8], rtol=1e-6)


def test_stable_adamw_divides_step_and_decay_where_a_gradient_grows():
    gradients, params = np.array([[1.0], [3.0]]), jnp.array([2.0])
    got, _ = run(fg.stable_adamw(1.0, 0.0, 0.5, 0.0, 0.1), gradients, params)
    square = (0.25 * 1 + 0.5 * 9) / 0.75
    direction = 3 / square**0.5
    np.testing.assert_allclose(got[0], -1.2, rtol=1e-6)
    np.testing.assert_allclose(got[1], -(direction + 0.2) / direction, rtol=1e-6)


def test_schedule_free_radam_waits_for_four_steps_and_leaves_them_out():
    gradients, params = ROWS[:, 0], jnp.ones(3)
    got, state = run(fg.schedule_free_radam(0.1, weight_decay=0.1), gradients, params)
    assert np.all(got[:4] == 0)
    assert np.all(got[4:] != 0)
    (inner,) = state.values()
    assert 0 < inner.max_learning_rate < 0.1 * 0.1  # the rectification is small yet
    assert np.all(evaluation_point(state, params) != params)


def test_came_divides_by_how_far_the_momentum_is_from_the_update():
    """Of a row that repeats its gradient the residual falls, and the step grows."""
    flips = np.where(np.arange(8) % 2, 1.0, -1.0)[:, None]
    gradients = np.stack([np.ones((8, 2)), flips * np.ones((1, 2))], axis=1)
    got, state = run(fg.came(1.0, b2=0.9, b3=0.9), gradients)
    assert np.all(np.abs(got[-1, 0]) > 5 * np.abs(got[-1, 1]))
    state = state["scale_by_came"]
    assert [x.shape for x in (*state.factors, *state.residuals)] == [(2,)] * 4
    assert state.nu is None


BLOCKS = [(["tokens", "rows"], "input"), ("**/query", 2), ("**", "output")]


def test_the_first_selector_tells_the_blocks_of_adam_mini():
    params = {"tokens": jnp.ones((5, 4)), "attention": {"query": jnp.ones((3, 4))}}
    params |= {"rows": jnp.ones(3), "kernel": jnp.ones((2, 3, 6)), "b": jnp.ones(())}
    state = fg.scale_by_adam_mini(blocks=BLOCKS).init(params)["scale_by_adam_mini"]
    shapes = {path: x.shape for path, x in fg.tree.leaf_paths(state.nu).items()}
    assert shapes == {
        **{"tokens": (5,), "attention/query": (2,), "rows": (3,)},
        **{"kernel": (6,), "b": ()},
    }
    default = fg.scale_by_adam_mini().init(params)["scale_by_adam_mini"].nu
    assert default["rows"].shape == ()
    assert default["tokens"].shape == (4,)


def test_a_number_of_heads_that_does_not_divide_is_refused_by_path():
    optimizer = fg.adam_mini(0.1, blocks=[("*/query", 4)])
    with pytest.raises(ValueError, match=r"divides the last axis of 'a/query', got 4"):
        optimizer.init({"a": {"query": jnp.ones((4, 6))}})
    with pytest.raises(ValueError, match="need a glob that selects a leaf"):
        optimizer.init({"query": jnp.ones((4, 8))})


def test_kron_whitens_gradients():
    """Columns of P G have about unit covariance, whatever that of G is."""
    rng = np.random.default_rng(0)
    mixing = np.diag([0.3, 1.0, 4.0]) @ rng.normal(size=(3, 3))
    gradients = np.einsum("ij,tjk->tik", mixing, rng.normal(size=(900, 3, 3)))
    rule = fg.scale_by_kron(0.0, 1.0)
    updates, _ = run(rule, gradients.astype(np.float32))
    late = updates[500:]
    covariance = np.einsum("tij,tkj->ik", late, late) / (len(late) * 3)
    before = np.linalg.cond(np.einsum("tij,tkj->ik", gradients, gradients))
    assert before > 100
    assert np.linalg.cond(covariance) < 2
    assert 0.6 < np.trace(covariance) / 3 < 1.2


def test_kron_updates_its_factors_as_often_as_asked_and_balances_them():
    rule = fg.scale_by_kron(0.9, 0.4)  # every third step
    params, update = jnp.zeros((4, 3)), jax.jit(rule.update)
    state, seen = rule.init(params), []
    for gradient in ROWS:
        _, state = update(gradient, state, params)
        seen.append(state["scale_by_kron"])
    assert [int(s.waited) for s in seen] == [1, 2, 0, 1, 2, 0]
    factors = [np.asarray(s.factors[0]) for s in seen]
    np.testing.assert_array_equal(factors[1], np.eye(4))
    np.testing.assert_array_equal(factors[4], factors[2])
    assert np.any(factors[2] != factors[1])
    assert np.any(factors[5] != factors[4])

    uneven = (1000.0 * jnp.eye(4), 0.001 * jnp.eye(3))
    late = seen[1]._replace(step=jnp.int32(100), factors=uneven)
    _, state = update(ROWS[0], {"scale_by_kron": late}, params)
    for q in state["scale_by_kron"].factors:
        assert 0.5 < np.max(np.abs(q)) < 2


def test_lamb_is_bounded_by_its_largest_ratio():
    params = {"large": jnp.full(4, 100.0), "small": jnp.full(4, 0.01)}
    grads = jax.tree.map(jnp.ones_like, params)
    optimizer = fg.lamb(0.1, eps=0.0, max_ratio=1.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["large"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["small"], -0.001, rtol=1e-5)
