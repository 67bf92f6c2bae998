"""Queries of states and reports: by class, by predicate, by the end of a path."""

import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.fitting.nonfinite as nonfinite
import fngrad.transforms.queries as queries
from fngrad.optimizers.adam import ScaleByAdamState
from fngrad.transforms.tunable_hyperparameters import TunableState, hyperparameters

PARAMS = {"a": jnp.ones(2), "b": jnp.zeros(3)}
GROUPS = [("a", fg.accumulate(fg.adam(0.1), 2)), ("**", fg.adam(0.2))]
STATE = fg.partition(GROUPS).init(PARAMS)


def test_nodes_are_found_by_class_with_their_paths():
    found = queries.find_with_paths(STATE, ScaleByAdamState)
    assert [path for path, _ in found] == [
        "partition/**/scale_by_adam",
        "partition/a/accumulate/inner/scale_by_adam",
    ]
    assert all(isinstance(node, ScaleByAdamState) for _, node in found)


def test_nodes_are_found_by_a_predicate():
    assert len(queries.find(STATE, lambda x: hasattr(x, "mu"))) == 2
    assert queries.find(STATE, TunableState) == []


def test_replacing_changes_the_nodes_of_a_class_alone():
    new = queries.replace(STATE, ScaleByAdamState, lambda node, other: other, STATE)
    assert fg.tree.mismatch(new, STATE) is None
    steps = [n._replace(step=n.step + 1) for n in queries.find(STATE, ScaleByAdamState)]
    made = iter(steps)
    new = queries.replace(STATE, ScaleByAdamState, lambda node: next(made))
    assert queries.find(new, ScaleByAdamState) == steps
    assert new["partition"]["a"]["accumulate"].mini_step == 0


def test_a_part_that_is_required_is_named():
    with pytest.raises(ValueError, match="need an optimizer with the part scale_by_x"):
        queries.replace((), ScaleByAdamState, lambda node: node, part="scale_by_x")


def test_reports_are_found_by_whole_names():
    reports = {"x": 1, "part/x": 2, "group/part/x": 3, "other_part/x": 4, "part/y": 5}
    assert list(queries.reported(reports, "part/x")) == ["part/x", "group/part/x"]
    assert len(queries.reported(reports, "x")) == 4


def test_hyperparameters_of_nested_tunables_have_their_paths():
    def outer(scale):
        inner = fg.tunable(fg.sgd, learning_rate=0.1)
        return fg.chain(inner, fg.scale(scale))

    state = fg.tunable(outer, scale=2.0).init(PARAMS)
    assert [(path, name) for path, name, _ in hyperparameters(state)] == [
        ("tunable", "scale"),
        ("tunable/inner/tunable", "learning_rate"),
    ]
    changed = fg.set_hyperparameters(state, learning_rate=0.5)
    np.testing.assert_allclose([x for _, _, x in hyperparameters(changed)], [2.0, 0.5])


def test_a_parameter_named_like_a_hyperparameter_is_not_lowered():
    params = {"hyperparameters": {"learning_rate": jnp.array(1.0)}}
    optimizer = fg.tunable(fg.sgd, learning_rate=0.5)
    state = fg.init_state(params, optimizer, key=0)
    lowered = nonfinite.lower_learning_rates(state, 0.5)
    assert lowered.params == params
    assert list(nonfinite.learning_rates(lowered).values()) == [0.25]
