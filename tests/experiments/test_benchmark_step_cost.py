"""The benchmark of an update's cost: its words, its table, its formulations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.benchmarks.step_cost as step_cost


def test_the_minimum_counts_parameters_gradients_and_moments():
    params = [jnp.ones(8), jnp.ones(8)]
    for name, (make, minimum) in step_cost.RULES.items():
        state = make().init(params)
        moments = sum(x.nbytes for x in jax.tree.leaves(state) if x.size == 8)
        # Reads of parameters, gradients and moments; writes of parameters and moments.
        assert minimum == 3 + 2 * moments / sum(p.nbytes for p in params), name


@pytest.mark.parametrize("name", step_cost.FORMULATIONS)
def test_every_formulation_is_the_same_update(name):
    rng = np.random.default_rng(0)
    p, m, v, g = (jnp.asarray(rng.uniform(0.1, 1, 96), jnp.float32) for _ in range(4))
    want = step_cost.adam_by_hand(p, m, v, g)
    options = {"size": 32} if "blocks" in name else {}
    got = step_cost.FORMULATIONS[name](p, m, v, g, **options)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.slow
def test_the_table_holds_the_claims_about_memory(capsys):
    config = step_cost.Config(leaves=2, size=4096, repeats=0, peers=False)
    costs = step_cost.main(config)
    shown = capsys.readouterr().out
    for name, cost in costs.items():
        assert cost.held < 0.1
        assert cost.minimum <= cost.compiled + 0.1
        assert name in shown
    assert "moments in bfloat16 over float32" in shown
    assert "reduce_window" in shown
