"""Trust ratios, alone and in LARS, and the norms of single leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.optimizers as optimizers
from fngrad.optimizers.lars import scale_by_lars
from fngrad.optimizers.novograd import scale_by_block_norm
from fngrad.transforms.blocks import clip_by_block_rms
from fngrad.transforms.core import report
from fngrad.transforms.trust_ratio import scale_by_trust_ratio


def nowhere(path, leaf):
    return False


def first_update(transform, gradient, params):
    return transform.update(gradient, transform.init(params), params)[0]


@functools.cache
def slopes_of(rule):
    return jax.jit(jax.jacobian(functools.partial(first_update, rule())))


@pytest.mark.parametrize("rule", [scale_by_trust_ratio, scale_by_lars])
@pytest.mark.parametrize(("gradient", "param"), [(2.0, 0.0), (0.0, 3.0), (0.0, 0.0)])
def test_the_trust_ratio_is_one_where_a_norm_is_zero(rule, gradient, param):
    gradients, params = jnp.full(2, gradient), jnp.full(2, param)
    np.testing.assert_array_equal(first_update(rule(), gradients, params), gradients)
    assert np.all(np.isfinite(slopes_of(rule)(gradients, params)))


def test_larss_two_forms_differ_where_gradient_and_parameters_do_not_align():
    params, gradient = jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])
    for separate, length in ((False, 5.0), (True, 7.0)):
        rule = scale_by_lars(1.0, trust_coefficient=1.0, separate_norms=separate)
        want = 3.0 / length * jnp.array([3.0, 4.0])
        got = first_update(rule, gradient, params)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_norms_are_of_each_leaf_not_of_all():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([100.0])}
    gradients = {"a": jnp.array([0.0, 2.0]), "b": jnp.array([-4.0])}
    updates = first_update(scale_by_trust_ratio(), gradients, params)
    np.testing.assert_allclose(updates["a"], [0.0, 5.0])
    np.testing.assert_allclose(updates["b"], [-100.0])
    updates = first_update(scale_by_block_norm(eps=0.0), gradients, params)
    np.testing.assert_allclose(updates["a"], [0.0, 1.0])
    np.testing.assert_allclose(updates["b"], [-1.0])


@pytest.mark.parametrize(
    ("rule", "argument"),
    [(scale_by_trust_ratio, "mask"), (scale_by_lars, "trust_ratio_mask")],
)
def test_a_leaf_outside_the_trust_mask_passes_unchanged(rule, argument):
    params = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([100.0])}
    gradients = {"w": jnp.array([0.0, 2.0]), "b": jnp.array([-4.0])}
    transform = rule(trust_coefficient=0.5, **{argument: "w"})
    updates = first_update(transform, gradients, params)
    np.testing.assert_allclose(updates["w"], [0.0, 2.5])
    np.testing.assert_array_equal(updates["b"], gradients["b"])
    told = report(transform, gradients, transform.init(params), params)
    assert [float(ratio) for ratio in told.values()] == [1.25, 1.25]


def test_the_extreme_trust_ratios_are_reported():
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([8.0]), "c": jnp.zeros(2)}
    gradients = {"a": jnp.array([0.0, 2.0]), "b": jnp.array([-4.0]), "c": jnp.ones(2)}
    for rule in (scale_by_trust_ratio(), scale_by_lars(0.0, trust_coefficient=1.0)):
        told = report(rule, gradients, rule.init(params), params)
        assert sorted(map(float, told.values())) == [1.0, 2.5]
    nothing = scale_by_trust_ratio(mask=nowhere)
    told = report(nothing, gradients, nothing.init(params), params)
    assert set(map(float, told.values())) == {1.0}


def test_a_smallest_norm_lets_zero_parameters_move_in_proportion():
    rule = scale_by_trust_ratio(min_norm=0.1)
    got = first_update(rule, jnp.array([0.0, 2.0]), jnp.zeros(2))
    np.testing.assert_allclose(got, [0.0, 0.1], rtol=1e-6)


MISSING = {"w": jnp.ones(2)}
BAD = [
    (lambda: scale_by_trust_ratio(min_norm=-1.0), r"0.0 <= min_norm"),
    (lambda: scale_by_trust_ratio(trust_coefficient=-1.0), r"0.0 <= trust_coeff"),
    (lambda: scale_by_trust_ratio(eps=-1.0), r"0.0 <= eps"),
    (lambda: scale_by_trust_ratio(mask="x").init(MISSING), r"selects.*'x'.*\['w'\]"),
    (lambda: optimizers.lars(0.1, 0.1, "x").init(MISSING), r"selects.*'x'.*\['w'\]"),
    (
        lambda: optimizers.lars(0.1, trust_ratio_mask="x").init(MISSING),
        r"selects.*'x'.*\['w'\]",
    ),
    (lambda: clip_by_block_rms(0.0), r"threshold > 0, got threshold=0.0"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=f"need .*{message}"):
        make()
