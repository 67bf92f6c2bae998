"""The table of leaves that `describe` prints."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from fngrad.optimizers import REGISTRY, adam, adamw, lbfgs, muon, sgd, shampoo
from fngrad.schedules import warmup_cosine
from fngrad.transforms.accumulation import accumulate
from fngrad.transforms.core import (
    Transform,
    chain,
    named,
)
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.description import describe
from fngrad.transforms.layer_stacks import layerwise
from fngrad.transforms.leaf_states import num_bytes, state_by_leaf
from fngrad.transforms.masking import freeze, partition
from fngrad.transforms.momentum_buffers import trace
from fngrad.transforms.nonfinite_updates import skip_nonfinite
from fngrad.transforms.quantize import quantize_state
from fngrad.transforms.scaling import scale
from fngrad.transforms.stacking import stack_leaves


@pytest.mark.parametrize("shallow_first", [True, False])
def test_the_table_distinguishes_leaves_whose_paths_end_alike(shallow_first):
    inner = "a" if not shallow_first else "z"  # trees are sorted by name
    params = {"weight": jnp.ones(3), inner: {"weight": jnp.ones(3)}}
    table = describe(partition([("weight", freeze()), ("**", trace(0.9))]), params)
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert "none" in lines["weight"]
    assert "no " in lines["weight"]
    assert "12 bytes" in lines[f"{inner}/weight"]
    assert "6 parameters, 3 trainable" in lines["total"]


def test_the_table_counts_every_state_of_a_leaf():
    optimizer = chain(named("fast", trace(0.9)), named("slow", trace(0.99)), sgd(0.1))
    assert "fast/trace, slow/trace: 24 bytes" in describe(optimizer, jnp.ones(3))
    assert "fast/trace, slow/trace: 24 bytes" in describe(
        optimizer, {"step": jnp.ones(3)}
    )
    groups = [named(name, chain(trace(0.9), scale(1.0))) for name in ("a", "b")]
    assert "trace/trace, trace/trace: 24 bytes" in describe(
        chain(*groups), {"w": jnp.ones(3)}
    )


@pytest.mark.parametrize(("bits", "size"), [(16, 16384), (8, 8320), (4, 4224)])
def test_the_table_shows_moments_in_few_bits(bits, size):
    optimizer = quantize_state(adam(0.1), bits=bits)
    table = describe(optimizer, {"w": jnp.ones((64, 64))})
    assert f"scale_by_adam/mu, scale_by_adam/nu: {size} bytes" in table


GROUPS = """\
leaf    shape   dtype    group  learning rate  decay  trainable  state
embed   (5, 2)  float32  embed  none           none   no         none
head/b  (3,)    float32  **     warmup_cosine  none   yes        trace/trace: 12 bytes
head/w  (2, 3)  float32  **     warmup_cosine  0.1    yes        trace/trace: 24 bytes
total   19 parameters, 9 trainable, 48 bytes of state"""

LEAVES = {
    "embed": jnp.ones((5, 2)),
    "head": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)},
}


def cell(table, leaf, column):
    """Return what stands in a column of the line of a leaf."""
    lines = table.splitlines()
    at = lines[0].index(column)
    (line,) = [line for line in lines if line.split()[0] == leaf]
    return line[at:].split("  ")[0]


def test_the_table_tells_groups_learning_rates_and_decay():
    rate = warmup_cosine(0.0, 0.1, 2, 8)
    rule = chain(trace(0.9), add_decayed_weights(0.1, "**/w"), sgd(rate))
    table = describe(partition([("embed", freeze()), ("**", rule)]), LEAVES)
    assert table == GROUPS


@pytest.mark.parametrize("name", REGISTRY)
def test_every_optimizer_tells_its_learning_rate(name):
    table = describe(REGISTRY[name](0.125), LEAVES)
    for leaf in ("embed", "head/b", "head/w"):
        assert cell(table, leaf, "learning rate") == "0.125"


DECAYING = [
    name
    for name, factory in REGISTRY.items()
    if "weight_decay" in inspect.signature(factory).parameters
]


@pytest.mark.parametrize("name", DECAYING)
def test_every_optimizer_tells_its_decay(name):
    factory = REGISTRY[name]
    decays = describe(factory(0.125, weight_decay=0.25), LEAVES)
    assert cell(decays, "head/w", "decay") == "0.25"
    assert cell(decays, "embed", "decay") == "0.25"
    plain = describe(factory(0.125, weight_decay=0.0), LEAVES)
    assert cell(plain, "head/w", "decay") == "none"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda rule: rule,
        stack_leaves,
        skip_nonfinite,
        lambda rule: accumulate(rule, 2),
        lambda rule: named("all", rule),
        lambda rule: chain(sgd(1.0), named("all", chain(rule, scale(1.0)))),
        quantize_state,
    ],
    ids=["bare", "stacked", "skipping", "accumulated", "named", "nested", "coded"],
)
def test_wrappers_do_not_hide_what_is_inside(wrap):
    rule = adamw(0.5, weight_decay=0.25, mask=lambda path, leaf: leaf.ndim > 1)
    table = describe(wrap(rule), LEAVES)
    assert cell(table, "head/w", "decay") == "0.25"
    assert cell(table, "head/b", "decay") == "none"
    assert cell(table, "head/w", "learning rate").endswith("0.5")


def test_groups_of_stacks_are_chosen_as_in_training():
    table = describe(stack_leaves(muon(0.5)), LEAVES)
    assert cell(table, "head/w", "group") == "selected"
    assert cell(table, "head/b", "group") == "rest"


def test_hyperparameters_without_a_value_show_their_dtype():
    texts = []
    jax.eval_shape(lambda r: texts.append(describe(sgd(r), LEAVES)), jnp.float32(1))
    assert cell(texts[0], "head/w", "learning rate") == "float32[]"


def test_foreign_transforms_are_described_without_numbers():
    class Foreign:
        def init(self, params):
            return ()

        def update(self, updates, state, params):
            return updates, state

    assert cell(describe(Foreign(), LEAVES), "embed", "learning rate") == "none"


STACKED = {
    "head": jnp.ones((3, 2)),
    "layers": {"b": jnp.ones((6, 3)), "w": jnp.ones((6, 3, 3))},
}


@pytest.mark.parametrize("wrap", [lambda rule: rule, lambda rule: named("own", rule)])
def test_groups_of_layers_are_chosen_as_in_training(wrap):
    rule = muon(0.5, weight_decay=0.25, adam_learning_rate=0.125)
    table = describe(wrap(layerwise(rule, "layers/**")), STACKED)
    for leaf, group, rate, decay, state in (
        ("head", "selected", "0.5", "0.25", "scale_by_muon/mu: 24 bytes"),
        ("layers/w", "selected", "0.5", "0.25", "scale_by_muon/mu: 216 bytes"),
        (
            *("layers/b", "rest", "0.125", "none"),
            "scale_by_adam/mu, scale_by_adam/nu: 144 bytes",
        ),
    ):
        columns = ("group", "learning rate", "decay", "state")
        assert [cell(table, leaf, c) for c in columns] == [group, rate, decay, state]


def test_what_follows_stacks_sees_the_paths_of_leaves():
    optimizer = chain(stack_leaves(trace(0.9)), add_decayed_weights(0.1, "head/w"))
    assert cell(describe(optimizer, LEAVES), "head/w", "decay") == "0.1"
    assert cell(describe(optimizer, LEAVES), "head/b", "decay") == "none"


def test_state_of_other_shapes_is_told():
    both = "scale_by_shampoo/statistics, scale_by_shampoo/roots"
    table = describe(shampoo(0.5), LEAVES)
    assert cell(table, "head/w", "state") == f"{both}: {2 * (4 + 9) * 4} bytes"
    assert cell(table, "head/b", "state") == f"{both}: 24 bytes"
    assert "statistics/0, statistics/1" in describe(shampoo(0.5), jnp.ones((2, 3)))


def test_leaves_have_their_share_of_stacks():
    params = {"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.ones((2, 2))}
    table = describe(stack_leaves(adam(0.5)), params)
    moments = "scale_by_adam/mu, scale_by_adam/nu"
    for leaf, size in (("a", 24), ("b", 24), ("c", 32)):
        assert cell(table, leaf, "state") == f"{moments}: {size} bytes"


def test_arrays_of_no_leaf_are_told():
    history = Transform(
        init=lambda params: {"norms": jnp.zeros(5), "step": jnp.zeros((), jnp.int32)},
        update=lambda updates, state, params: (updates, state),
        name="history",
    )
    table = describe(chain(history, sgd(0.5)), LEAVES)
    assert table.splitlines()[-2].split("  ") == ["(shared)", "history/norms: 20 bytes"]
    assert "(shared)" not in describe(adam(0.5), LEAVES)


@pytest.mark.parametrize("name", [*REGISTRY, "lbfgs"])
def test_every_array_is_told_once(name):
    state = (REGISTRY | {"lbfgs": lbfgs})[name](0.125).init(LEAVES)
    of_leaves, shared = state_by_leaf(state, LEAVES)
    told = [*shared.values(), *(n for own in of_leaves.values() for n in own.values())]
    scalars = [x for x in jax.tree.leaves(state) if x.ndim == 0]
    assert num_bytes(state) - num_bytes(scalars) <= sum(told) <= num_bytes(state)
