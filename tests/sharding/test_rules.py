"""Which leaves rules split, by hand."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import fngrad as fg
import fngrad.models as models
import fngrad.sharding as sharding
from fngrad.sharding.rules import checked_spec

DATA = sharding.abstract_mesh(data=4)
BOTH = sharding.abstract_mesh(data=4, model=2)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), P()),
        ((64,), P("data")),
        ((63,), P()),
        ((8, 16), P(None, "data")),
        ((16, 8), P("data", None)),
        ((16, 16), P(None, "data")),  # the last of equal axes
        ((6, 8, 10), P(None, "data", None)),
        ((2, 3, 11), P()),
        ((0, 64), P()),
        ((4, 4), P()),  # below min_size
    ],
)
def test_fsdp_splits_the_largest_axis_that_the_devices_divide(shape, spec):
    rule = sharding.fsdp(min_size=32)
    assert rule("w", np.zeros(shape), DATA) == spec


def test_fsdp_splits_further_what_another_rule_splits():
    within = sharding.by_path([("w", P("model")), ("v", P(None, "model"))])
    rule = sharding.fsdp(min_size=1, within=within)
    assert rule("w", np.zeros((16, 8)), BOTH) == P("model", "data")
    assert rule("v", np.zeros((8, 16)), BOTH) == P("data", "model")
    assert rule("v", np.zeros((7, 16)), BOTH) == P(None, "model")


def test_the_first_glob_that_selects_a_leaf_decides():
    entries = [
        ("**/b", P()),
        ("a/**", P("data")),
        (lambda path, x: x.ndim == 2, P(None)),
    ]
    rule = sharding.by_path(entries, otherwise=sharding.fsdp(min_size=1))
    leaf = np.zeros((4, 8))
    assert rule("a/b", leaf, DATA) == P()
    assert rule("a/c", leaf, DATA) == P("data")
    assert rule("c", leaf, DATA) == P(None)
    assert rule("c", np.zeros(()), DATA) == P()


@pytest.mark.parametrize("scan", [False, True])
def test_the_transformers_matrices_are_split_by_columns_then_by_rows(scan):
    model = models.transformer(12, 8, features=8, num_heads=2, scan=scan, remat=scan)
    params = jax.eval_shape(model.init, jax.random.key(0))
    where = sharding.shardings(params, BOTH, models.transformer_rule())
    block = where["blocks"] if scan else where["blocks"]["layers"][0]
    lead = (None,) if scan else ()
    attend, mlp = block["attention"]["attend"], block["mlp"]
    for into in (attend["query"], attend["key"], attend["value"], mlp["expand"]):
        assert into["weight"].spec == P(*lead, None, "model")
        assert into["bias"].spec == P(*lead, "model")
    for out in (attend["output"], mlp["shrink"]):
        assert out["weight"].spec == P(*lead, "model", None)
        assert out["bias"].spec == P()
    assert where["head"]["weight"].spec == P(None, "model")
    assert where["tokens"]["weight"].spec == mlp["norm"]["scale"].spec == P()


def test_the_transformers_rule_leaves_to_another_what_does_not_divide():
    rule = models.transformer_rule(otherwise=sharding.fsdp(min_size=1))
    assert rule("head/weight", np.zeros((8, 5)), BOTH) == P("data", None)
    assert rule("head/weight", np.zeros((8, 6)), DATA) == P("data", None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (P(None, None, "data"), "the leaf has 2 axes"),
        (P("model"), r"the mesh has the axes \('data',\)"),
        (P("data"), r"4 devices do not divide an axis of shape \(6, 8\)"),
        (P("data", "data"), "an axis of the mesh splits two axes"),
        (P(P.UNCONSTRAINED), r"has no unconstrained axis"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused_with_the_path(spec, message):
    rule = sharding.by_path([("**", spec)])
    with pytest.raises(ValueError, match=f"fits 'a/w', got .*: .*{message}"):
        checked_spec(rule, "a/w", np.zeros((6, 8)), DATA)


def test_wrong_rules_are_refused():
    with pytest.raises(TypeError, match="pairs \\(glob, PartitionSpec\\), got"):
        sharding.by_path([("**", "data")])
    with pytest.raises(TypeError, match=r"got a dict: pass \[\*entries.items\(\)\]"):
        sharding.by_path({"**": P("data")})
    with pytest.raises(TypeError, match="need a PartitionSpec from a rule, got None"):
        sharding.shardings({"w": np.zeros(4)}, DATA, lambda *_: None)
    with pytest.raises(TypeError, match=r"fsdp\(\) returns, got 'fsdp'"):
        sharding.shardings({"w": np.zeros(4)}, DATA, "fsdp")
    with pytest.raises(ValueError, match="need a mesh with the axis 'model'"):
        sharding.shardings({"w": np.zeros(4)}, DATA, sharding.fsdp("model"))
    for rule in (sharding.fsdp, sharding.by_path, models.transformer_rule):
        with pytest.raises(TypeError, match=f"need a rule .* got {rule.__name__}$"):
            sharding.shardings({"w": np.zeros(4)}, DATA, rule)
        with pytest.raises(TypeError, match="need a rule"):
            sharding.fsdp(within=rule)
        with pytest.raises(TypeError, match="need a rule"):
            sharding.by_path([], otherwise=rule)
        with pytest.raises(TypeError, match="need a rule"):
            models.transformer_rule(otherwise=rule)


def test_a_spec_that_fsdp_would_split_further_is_refused_if_it_does_not_fit():
    within = sharding.by_path([("w", P(None, None, "model"))])
    with pytest.raises(ValueError, match=r"fits 'w', got .*: the leaf has 2 axes"):
        sharding.shardings({"w": np.zeros((8, 8))}, BOTH, sharding.fsdp(within=within))


def test_fsdp_splits_no_leaf_twice_over_its_axis():
    within = sharding.by_path([("w", P("data"))])
    rule = sharding.fsdp(min_size=1, within=within)
    assert checked_spec(rule, "w", np.zeros((4, 8)), DATA) == P("data")


def test_globs_see_the_leaves_of_the_optimizer_too():
    optimizer = fg.adafactor(0.1, min_dim_size_to_factor=1)
    state = fg.init_state({"w": np.zeros((8, 8), np.float32)}, optimizer, 0)
    with pytest.raises(ValueError, match="glob that selects a leaf"):
        sharding.shardings(state, DATA, sharding.by_path([("opt_state/rwo", P())]))
    paths = fg.tree.leaf_paths(state)
    glob = next(path for path in paths if path.startswith("opt_state") and "w" in path)
    rule = sharding.by_path([(glob, P())], otherwise=sharding.fsdp(min_size=1))
    assert sharding.shardings(state, DATA, rule).params["w"].spec == P(None, "data")


def test_a_glob_that_selects_no_parameter_is_refused():
    typo = sharding.by_path([("wieght", P("data"))])
    params = {"layer": {"weight": np.zeros((4, 8))}}
    for rule in (
        typo,
        sharding.fsdp(within=typo),
        models.transformer_rule(otherwise=typo),
        sharding.by_path([("**/weight", P("data"))], otherwise=typo),
    ):
        with pytest.raises(ValueError, match="glob that selects a leaf, got 'wieght'"):
            sharding.shardings(params, DATA, rule)


def test_equal_rules_are_equal():
    entries = [("**/weight", P("data"))]
    assert sharding.fsdp() == sharding.fsdp() != sharding.fsdp("model")
    assert sharding.by_path(entries) == sharding.by_path(entries)
    assert models.transformer_rule() == models.transformer_rule()
    assert hash(sharding.by_path(entries)) == hash(sharding.by_path(entries))
