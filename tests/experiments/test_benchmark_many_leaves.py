"""The benchmark of many leaves: its cases agree, and its tables come out."""

import jax
import numpy as np

from experiments.benchmarks import many_leaves
from fngrad.transforms.stacking import stack


def test_all_cases_make_the_same_update():
    cases = many_leaves.make_cases(count=3, leaf_size=2)
    want = many_leaves.run(cases["tree"], 2)
    stacks, _ = stack(want)
    for name, leaves in {"stack_leaves": want, "stacks": stacks}.items():
        got = many_leaves.run(cases[name], 2)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, leaves
        )


def test_it_prints_a_table_and_ratios(capsys):
    config = many_leaves.Config(
        counts=(2,), leaf_size=2, repeats=1, steps=1, peers=False
    )
    assert many_leaves.main(config) == 0
    out = capsys.readouterr().out
    assert "2 leaves of 2 floats" in out
    assert "stacks over tree: compile" in out
