"""Stacked leaves get the same updates from a program of constant size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.tree as tree
from fngrad.optimizers import REGISTRY, adam, adamw, momentum, rmsprop, sgd
from fngrad.training import init_state, make_step
from fngrad.transforms.averages import ema_params
from fngrad.transforms.clipping import (
    adaptive_clip,
    centralize,
    clip_by_global_norm,
    clip_by_norm,
)
from fngrad.transforms.core import apply_updates, chain, report
from fngrad.transforms.evaluation_point import evaluation_point
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import freeze, masked, partition
from fngrad.transforms.stacking import stack, stack_leaves
from fngrad.tree import Stacked

CLIPPED = chain(clip_by_norm(0.5), sgd(0.1))
RULES = {
    "clip_by_norm": CLIPPED,
    "clip_by_global_norm": chain(clip_by_global_norm(0.5), sgd(0.1)),
    "adaptive_clip": chain(adaptive_clip(0.1), sgd(0.1)),
    "centralize": chain(centralize(), adam(0.1)),
    "adamw": adamw(0.1, mask=lambda path, leaf: leaf.ndim > 1),
    "by axes": masked(
        CLIPPED, lambda path, leaf: leaf.ndim == 2, otherwise=rmsprop(0.1)
    ),
}


def shaped(fill):
    """Return a tree in which several leaves share a shape, and some do not."""
    shapes = {
        "layers": [{"weight": (3, 2), "bias": (2,)} for _ in range(3)],
        "scale": (),
        "head": (3, 2),
        "vector": (5,),
    }
    return jax.tree.map(fill, shapes, is_leaf=lambda x: isinstance(x, tuple))


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(jnp.asarray, shaped(lambda shape: rng.normal(size=shape)))


def three_steps(optimizer):
    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (apply_updates(params, updates), state), None

    start = random_tree(0), optimizer.init(random_tree(0))
    gradients = jax.tree.map(lambda *g: jnp.stack(g), *map(random_tree, range(1, 4)))
    (params, state), _ = jax.lax.scan(step, start, gradients)
    return params, evaluation_point(state, params)


def assert_close(a, b, rtol=1e-10):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)


def compare(inner):
    want, got = jax.jit(
        lambda: (three_steps(inner), three_steps(stack_leaves(inner)))
    )()
    assert_close(got, want)


@pytest.mark.parametrize("name", RULES)
def test_updates_are_those_of_the_plain_tree(name, x64):
    compare(RULES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY)
def test_updates_of_every_optimizer_are_those_of_the_plain_tree(name, x64):
    compare(REGISTRY[name](0.1))


def test_stacks_go_in_and_come_out_again():
    params = random_tree(0)
    stacks, unstack = stack(params)
    shapes = {name: s.leaves.shape for name, s in stacks.items()}
    assert shapes == {
        "float32[3,2]": (4, 3, 2),
        "float32[2]": (3, 2),
        "float32[]": (1,),
        "float32[5]": (1, 5),
    }
    assert_close(unstack(stacks), params, rtol=0)


def test_training_stacks_is_training_the_tree(x64):
    def loss_fn(params, batch):
        terms = jax.tree.map(lambda p: jnp.sum(jnp.sin(batch * p)), params)
        return sum(jax.tree.leaves(terms))

    params = {name: random_tree(0)[name] for name in ("layers", "head")}
    stacks, unstack = stack(params)

    def trained(optimizer, loss_fn, params):
        step = jax.jit(make_step(loss_fn, optimizer, metrics="loss"))
        state = init_state(params, optimizer, 0)
        for t in range(3):
            state, _ = step(state, jnp.asarray(1.0 + t))
        return state.params

    inner = chain(clip_by_norm(0.5), adam(0.1))
    want = trained(inner, loss_fn, params)
    for optimizer in (inner, stack_leaves(inner)):
        got = trained(optimizer, lambda s, b: loss_fn(unstack(s), b), stacks)
        assert_close(unstack(got), want)


def test_with_stacked_parameters_the_program_does_not_grow_with_their_number():
    optimizer = stack_leaves(adam(0.1))

    def size(count):
        stacks, _ = stack([jnp.ones(2)] * count)
        program = jax.make_jaxpr(optimizer.update)
        return str(program(stacks, optimizer.init(stacks), stacks)).count(" = ")

    assert size(3) == size(100)


def test_the_state_of_an_ordinary_tree_does_not_grow_with_its_leaves():
    optimizer = stack_leaves(adam(0.1))
    few, many = (
        jax.eval_shape(optimizer.init, [jnp.ones(2)] * count) for count in (3, 100)
    )
    assert list(tree.leaf_paths(few)) == list(tree.leaf_paths(many))
    assert sorted(tree.leaf_paths(many)) == [
        "stack_leaves/inner/scale_by_adam/mu/float32[2]/leaves",
        "stack_leaves/inner/scale_by_adam/nu/float32[2]/leaves",
        "stack_leaves/inner/scale_by_adam/step",
        "stack_leaves/inner/scale_by_learning_rate/step",
    ]


def test_the_derivative_of_unstack_is_one_concatenation():
    stacks, unstack = stack([jnp.ones(2)] * 50)
    gradient = jax.grad(lambda s: sum(jnp.sum(x) for x in unstack(s)))
    primitives = [eqn.primitive.name for eqn in jax.make_jaxpr(gradient)(stacks).eqns]
    assert primitives.count("concatenate") == 1
    assert "pad" not in primitives
    assert "scatter-add" not in primitives


def test_an_evaluation_point_comes_back_as_single_leaves():
    params = {"a": [jnp.zeros(2)] * 2, "frozen": jnp.ones(2), "b": jnp.zeros(2)}
    inner = chain(sgd(1.0), ema_params(0.5, debias=False))
    optimizer = partition([("frozen", freeze()), ("**", stack_leaves(inner))])
    gradient = {**params, "a": [jnp.ones(2), 3 * jnp.ones(2)]}
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    point = evaluation_point(state, apply_updates(params, updates))
    np.testing.assert_allclose(point["a"], [[-0.5, -0.5], [-1.5, -1.5]])
    np.testing.assert_array_equal(point["b"], [0.0, 0.0])
    np.testing.assert_array_equal(point["frozen"], [1.0, 1.0])


def test_groups_of_a_partition_are_stacked_separately():
    inside = chain(clip_by_norm(0.1), adam(0.1))
    together = partition([("layers/**", inside), ("**", sgd(0.1))])
    apart = partition(
        [("layers/**", stack_leaves(inside)), ("**", stack_leaves(sgd(0.1)))]
    )
    got, want = jax.jit(lambda: (three_steps(apart), three_steps(together)))()
    assert_close(got, want, rtol=1e-5)


def test_dtypes_are_stacked_separately():
    params = [jnp.ones(2), jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.bfloat16)]
    optimizer = stack_leaves(sgd(0.1, momentum=0.9))
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert [u.dtype.name for u in updates] == ["float32", "bfloat16", "bfloat16"]
    trace = state["stack_leaves"].inner["trace"].trace
    assert {name: s.leaves.dtype.name for name, s in trace.items()} == {
        "float32[2]": "float32",
        "bfloat16[2]": "float32",
    }


def test_stacks_can_be_frozen_by_name():
    stacks, _ = stack([jnp.ones(2), jnp.ones(2), jnp.ones(3)])
    optimizer = partition([("float32[2]", freeze()), ("**", adam(0.1))])
    state = init_state(stacks, optimizer, 0)
    step = make_step(lambda s, b: sum(map(jnp.sum, jax.tree.leaves(s))), optimizer)
    state, _ = step(state, ())
    np.testing.assert_array_equal(state.params["float32[2]"].leaves, np.ones((2, 2)))
    np.testing.assert_allclose(state.params["float32[3]"].leaves, 0.9 * np.ones((1, 3)))


def test_the_inner_transform_is_reported():
    params, optimizer = random_tree(0), stack_leaves(RULES["clip_by_global_norm"])
    told = report(optimizer, params, optimizer.init(params), params)
    norm = told["stack_leaves/clip_by_global_norm/norm_before"]
    np.testing.assert_allclose(norm, tree.norm(params), rtol=1e-6)


@pytest.mark.parametrize(
    "params",
    [
        None,
        {"s": Stacked(jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)), "w": jnp.ones(2)},
    ],
    ids=["tree", "stacks"],
)
def test_the_laws_hold(params):
    check_transform(stack_leaves(chain(clip_by_norm(0.5), momentum(0.1))), params)


def test_a_frozen_transform_inside_is_refused():
    with pytest.raises(ValueError, match="need a transform that trains all leaves"):
        stack_leaves(freeze())


def test_a_glob_of_leaf_paths_selects_no_stack():
    with pytest.raises(ValueError, match="need a glob that selects a leaf"):
        stack_leaves(adamw(0.1, mask="**/weight")).init(random_tree(0))
