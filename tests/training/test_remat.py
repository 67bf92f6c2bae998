"""A policy of rematerialization says what a step keeps for its backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_products import residual_bytes

import fngrad as fg

POLICIES = jax.checkpoint_policies
PARAMS = {
    f"{i}": jax.random.normal(jax.random.key(i), (8, 8)) / jnp.sqrt(8.0)
    for i in range(6)
}
X = jax.random.normal(jax.random.key(9), (100, 8))
ONE_ARRAY = X.nbytes


def loss_fn(params, batch):
    for weight in params.values():
        batch = jnp.sin(jnp.cos(batch @ weight))
    return jnp.mean(batch**2)


def kept_bytes(policy):
    """Return the bytes that the forward pass keeps for the backward pass."""
    loss = loss_fn if policy is None else jax.checkpoint(loss_fn, policy=policy)
    return residual_bytes(lambda params: loss(params, X), PARAMS)


def test_a_policy_keeps_products_and_computes_the_rest_again():
    assert kept_bytes(None) > kept_bytes(POLICIES.dots_saveable) + 5 * ONE_ARRAY


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("policy", ["dots_saveable", "nothing_saveable"])
def test_a_step_has_the_same_result_with_a_policy(policy, micro_batches):
    optimizer = fg.momentum(0.1)
    state = fg.init_state(PARAMS, optimizer, key=0)

    def after_two(remat):
        step = fg.make_step(
            loss_fn, optimizer, micro_batches=micro_batches, remat=remat
        )
        step = jax.jit(step)
        return step(step(state, X)[0], X)

    (got, metrics), (want, expected) = (
        after_two(getattr(POLICIES, policy)),
        after_two(None),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (got.params, got.opt_state, metrics),
        (want.params, want.opt_state, expected),
    )


def test_a_policy_computes_again():
    def costs(remat):
        optimizer = fg.sgd(0.1)
        step = fg.make_step(loss_fn, optimizer, remat=remat)
        state = fg.init_state(PARAMS, optimizer, key=0)
        return fg.costs(step, state, X)

    plain = costs(None)
    assert costs(POLICIES.nothing_saveable).products > plain.products
    assert costs(POLICIES.dots_saveable).products == plain.products
    assert costs(POLICIES.dots_saveable).others > plain.others


def test_keys_and_model_states_pass_through_a_policy():
    def noisy(params, model_state, batch, key):
        loss = loss_fn(params, batch + jax.random.normal(key, batch.shape))
        return loss, ({"double": 2 * loss}, model_state + 1)

    optimizer = fg.sgd(0.1)
    state = fg.init_state(PARAMS, optimizer, key=0, model_state=jnp.int32(3))
    plain, kept = (
        jax.jit(fg.make_step(noisy, optimizer, remat=remat))(state, X)
        for remat in (None, POLICIES.dots_saveable)
    )
    assert kept[0].model_state == plain[0].model_state == 4
    np.testing.assert_allclose(kept[1]["double"], plain[1]["double"], rtol=1e-6)


@pytest.mark.parametrize(
    ("remat", "got"),
    [
        (True, "got True"),
        ("dots", "got 'dots'"),
        (POLICIES.save_only_these_names, "got save_only_these_names, a function"),
        (POLICIES.save_from_both_policies, "got save_from_both_policies, a function"),
        (loss_fn, "got loss_fn, a function"),
    ],
)
def test_what_is_not_a_policy_is_refused(remat, got):
    with pytest.raises(TypeError, match=rf"jax\.checkpoint_policies.*{got}"):
        fg.make_step(loss_fn, fg.sgd(0.1), remat=remat)


def test_every_policy_of_jax_and_what_its_makers_return_are_taken():
    made = [
        POLICIES.save_only_these_names("x"),
        POLICIES.save_any_names_but_these("x"),
        POLICIES.save_anything_except_these_names("x"),
        POLICIES.offload_dot_with_no_batch_dims("device", "pinned_host"),
        POLICIES.save_from_both_policies(
            POLICIES.dots_saveable, POLICIES.nothing_saveable
        ),
    ]
    plain = [
        POLICIES.everything_saveable,
        POLICIES.nothing_saveable,
        POLICIES.dots_saveable,
        POLICIES.checkpoint_dots,
        POLICIES.dots_with_no_batch_dims_saveable,
        POLICIES.checkpoint_dots_with_no_batch_dims,
    ]
    for policy in (*plain, *made):
        fg.make_step(loss_fn, fg.sgd(0.1), remat=policy)
