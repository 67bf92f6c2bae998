"""Layers in one loop: the numbers of layers one by one, and what is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_products import residual_bytes

import fngrad as fg
import fngrad.layers as layers
import fngrad.models as models

COUNT = 3
KEY = jax.random.key(3)
BLOCKS = {
    "residual": layers.residual(
        layers.serial(norm=layers.layer_norm(4), linear=layers.linear(4, 4))
    ),
    "dropout": layers.serial(layers.linear(4, 4), layers.dropout(0.5)),
    "batch statistics": layers.serial(layers.linear(4, 4), layers.batch_norm(4)),
}
every_block = pytest.mark.parametrize("name", list(BLOCKS))


def stacked(made):
    return layers.stack_layers({"blocks": made}, "blocks")["blocks"]


@functools.cache
def layouts_of(name):
    """Return what both layouts make of a batch: parameters, outputs, gradients."""
    block = BLOCKS[name]
    is_stateful = isinstance(block, layers.StatefulLayer)

    def facts(layer, convert):
        made = layer.init(KEY)
        params, state = made if is_stateful else (made, None)
        apply = layers.batched(layer)

        def loss(params, x, key):
            if is_stateful:
                y, new_state = apply(params, state, x, key=key)
                return jnp.sum(jnp.sin(y)), (y, convert(new_state))
            y = apply(params, x, key=key)
            return jnp.sum(jnp.sin(y)), (y, ())

        x = jax.random.normal(jax.random.key(1), (5, 4))
        run = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
        (grads, by_x), (y, new_state) = run(params, x, KEY)
        evaluated = None
        if not is_stateful:
            evaluated = jax.jit(apply)(params, x)
        return convert(params), convert(grads), by_x, y, new_state, evaluated

    one_by_one = facts(layers.serial(*[block] * COUNT), stacked)
    in_a_loop = {
        remat: facts(layers.repeat(block, COUNT, remat=remat), lambda values: values)
        for remat in (True, False)
    }
    return one_by_one, in_a_loop


@every_block
@pytest.mark.parametrize("remat", [True, False])
def test_a_loop_gives_the_numbers_of_layers_one_by_one(name, remat):
    one_by_one, in_a_loop = layouts_of(name)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, in_a_loop[remat], one_by_one)


@every_block
def test_a_key_gives_the_parameters_of_layers_one_by_one(name):
    one_by_one, in_a_loop = layouts_of(name)
    jax.tree.map(np.testing.assert_array_equal, in_a_loop[True][0], one_by_one[0])


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_every_generator_of_keys_draws_as_for_layers_one_by_one(generator):
    key = jax.random.key(5, impl=generator)
    block = layers.serial(layers.linear(32, 32), layers.dropout(0.5))
    one_by_one, loop = layers.serial(*[block] * COUNT), layers.repeat(block, COUNT)
    params, x = one_by_one.init(key), jnp.ones(32)
    jax.tree.map(np.testing.assert_array_equal, loop.init(key), stacked(params))
    y = one_by_one.apply(params, x, key=key)
    np.testing.assert_allclose(loop.apply(stacked(params), x, key=key), y, rtol=1e-6)
    assert np.any(y == 0)
    assert np.any(y != 0)


def test_what_is_dropped_differs_by_layer():
    drop = layers.repeat(layers.dropout(0.5), 2, remat=False)
    ones = jnp.ones(400)
    kept = jax.jit(drop.apply)((), ones, key=KEY)
    # Twice the same entries would leave half of them.
    assert 0.15 < np.mean(np.asarray(kept) > 0) < 0.35


def bytes_kept(layer, x):
    """Return how many bytes the forward pass keeps for the backward one."""
    params = jax.eval_shape(layer.init, KEY)
    return residual_bytes(lambda params: layer.apply(params, x), params)


def wide_block():
    return layers.residual(
        layers.serial(layers.linear(8, 64), jnp.sin, layers.linear(64, 8))
    )


@pytest.mark.parametrize(
    "of",
    [
        lambda block: layers.repeat(block, 6),
        lambda block: layers.serial(*[layers.remat(block)] * 6),
    ],
    ids=["repeat", "remat"],
)
def test_rematerialization_keeps_the_inputs_of_the_layers_alone(of):
    x = jnp.ones((100, 8))
    params = 6 * 4 * (8 * 64 + 64 + 64 * 8 + 8)
    inputs = 6 * x.nbytes
    kept = bytes_kept(of(wide_block()), x)
    without = bytes_kept(layers.serial(*[wide_block()] * 6), x)
    assert kept <= params + inputs + 64
    assert without >= params + inputs + 6 * 4 * 100 * 64


def test_a_policy_says_what_is_kept_as_well():
    x = jnp.ones((100, 8))
    dots = jax.checkpoint_policies.dots_saveable
    products = 6 * 4 * 100 * 64

    def added(of):
        return bytes_kept(of(dots), x) - bytes_kept(of(True), x)

    assert added(lambda remat: layers.repeat(wide_block(), 6, remat=remat)) == products
    # What is kept replaces the weights that would compute it again.
    weights = 6 * 4 * 8 * 64
    one_by_one = functools.partial(rematerialized_one_by_one, wide_block(), 6)
    assert products - weights <= added(one_by_one) <= products


def rematerialized_one_by_one(block, count, remat):
    policy = None if remat is True else remat
    return layers.serial(*[layers.remat(block, policy)] * count)


def test_a_loop_with_remat_takes_less_memory_than_one_without():
    x = jnp.ones((200, 16))

    def temporaries(remat):
        layer = layers.repeat(
            layers.residual(
                layers.serial(layers.linear(16, 128), jnp.sin, layers.linear(128, 16))
            ),
            12,
            remat=remat,
        )
        params = jax.eval_shape(layer.init, KEY)
        gradient = jax.grad(lambda params, x: jnp.sum(layer.apply(params, x)))
        compiled = jax.jit(gradient).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(True) < temporaries(False) / 3


def test_the_program_is_as_long_for_any_depth():
    def equations(count):
        layer = layers.repeat(wide_block(), count)
        params = jax.eval_shape(layer.init, KEY)
        gradient = jax.grad(lambda params: jnp.sum(layer.apply(params, jnp.ones(8))))
        return str(jax.make_jaxpr(gradient)(params)).count("\n")

    assert equations(64) == equations(2)


def test_a_layer_that_changes_x_is_refused():
    layer = layers.repeat(layers.linear(4, 3), 2)
    with pytest.raises(ValueError, match=r"keeps the shape and dtype of x .*\(4,\)"):
        layer.apply(layer.init(KEY), jnp.ones(4))


def test_parameters_of_another_depth_are_refused():
    block = layers.linear(4, 4)
    params = layers.repeat(block, 2).init(KEY)
    with pytest.raises(ValueError, match=r"parameters of 3 layers.*\(2, 4\) at 'bias'"):
        layers.repeat(block, 3).apply(params, jnp.ones(4))


def test_parameters_one_by_one_are_refused_with_the_way_out():
    block = layers.linear(4, 4)
    params = layers.serial(block, block).init(KEY)
    with pytest.raises(ValueError, match="; stack_layers converts"):
        layers.repeat(block, 2).apply(params, jnp.ones(4))


def test_stacked_parameters_are_refused_one_by_one_with_the_way_out():
    block = layers.linear(4, 4)
    params = layers.repeat(block, 3).init(KEY)
    with pytest.raises(ValueError, match="unstack_layers converts"):
        layers.serial(*[block] * 3).apply(params, jnp.ones(4))
    with pytest.raises(ValueError, match=r"got a dict .*'weight'\]$"):
        layers.serial(*[block] * 2).apply(params, jnp.ones(4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: layers.repeat(jnp.tanh, 2), TypeError, "need a layer to repeat"),
        (lambda: layers.repeat(layers.linear(2, 2), 0), ValueError, "count"),
        (
            lambda: layers.repeat(layers.linear(2, 2), 2, remat="dots"),
            TypeError,
            r"jax\.checkpoint_policies, .*got 'dots'",
        ),
        (lambda: layers.remat(jnp.tanh), TypeError, r"jax\.checkpoint"),
        (lambda: layers.remat(layers.linear(2, 2), 1), TypeError, "got 1"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_remat_leaves_a_layer_without_parameters_without_a_place():
    model = layers.serial(layers.remat(layers.dropout(0.5)), layers.linear(2, 2))
    assert set(model.init(KEY)) == {"layers"}
    assert len(model.init(KEY)["layers"]) == 1


LANGUAGE = {"features": 8, "num_heads": 2, "num_layers": 3}
TOKENS = {"x": jnp.arange(12).reshape(3, 4) % 11}


def language_loss(model):
    def loss_fn(params, batch):
        logits = layers.batched(model)(params, batch["x"][:, :-1])
        return jnp.mean(
            fg.losses.softmax_cross_entropy_with_integer_labels(
                logits, batch["x"][:, 1:]
            )
        )

    return loss_fn


@functools.cache
def trained(scan, remat):
    model = models.transformer(11, 8, **LANGUAGE, scan=scan, remat=remat)
    optimizer = fg.adam(1e-2)
    state = fg.init_state(model.init(KEY), optimizer, key=0)
    step = fg.make_step(language_loss(model), optimizer)
    return jax.jit(step)(state, TOKENS)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scan", "remat"),
    [(True, True), (False, True), (True, jax.checkpoint_policies.dots_saveable)],
)
def test_a_transformer_trains_alike_in_every_layout(scan, remat):
    expected, got = trained(False, False), trained(scan, remat)
    if scan:
        expected = layers.stack_layers(expected, "**/blocks")
    expected = expected._replace(key=jax.random.key_data(expected.key))
    got = got._replace(key=jax.random.key_data(got.key))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        got,
        expected,
    )


def test_a_checkpoint_of_either_layout_restores_into_the_other(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    serial, looped = trained(False, False), trained(True, True)
    fg.checkpoint.save(tmp_path / "serial", serial)
    fg.checkpoint.save(tmp_path / "looped", looped)

    like = layers.unstack_layers(looped, "**/blocks")
    read = fg.checkpoint.restore(tmp_path / "serial", like)
    stacked = layers.stack_layers(read, "**/blocks")
    assert jax.tree.structure(stacked) == jax.tree.structure(looped)
    same(layers.unstack_layers(stacked, "**/blocks"), serial)

    like = layers.stack_layers(serial, "**/blocks")
    read = fg.checkpoint.restore(tmp_path / "looped", like)
    same(
        layers.stack_layers(layers.unstack_layers(read, "**/blocks"), "**/blocks"),
        looped,
    )


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for mine, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
            mine, theirs = jax.random.key_data(mine), jax.random.key_data(theirs)
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("convert", "a", "message"),
    [
        (layers.stack_layers, {"a": {"w": jnp.ones(2)}}, "got a dict with the entries"),
        (layers.stack_layers, {"b": {}}, "need a glob that selects"),
        (
            layers.stack_layers,
            {"a": {"layers": [jnp.ones(2), jnp.ones(3)]}},
            r"another layer 1: .*\(2,\), got \(3,\)",
        ),
        (layers.unstack_layers, {"a": {"w": jnp.ones(2), "b": jnp.ones(3)}}, "leading"),
        (layers.unstack_layers, {"a": {"w": jnp.ones(())}}, "leading"),
        (layers.unstack_layers, {"b": {}}, "need a glob that selects"),
    ],
)
def test_trees_that_do_not_convert_are_refused(convert, a, message):
    with pytest.raises(ValueError, match=message):
        convert(a, "**/a")


def differs_by_layout(optimizer):
    """Return whether an optimizer changes stacked layers in another way."""

    @jax.jit
    def after_two_updates(params, grads):
        state = optimizer.init(params)
        for factor in (1.0, -0.5):
            scaled = fg.tree.scale(factor, grads)
            updates, state = optimizer.update(scaled, state, params)
            params = fg.apply_updates(params, updates)
        return params

    layer = layers.serial(*[layers.linear(4, 4)] * 2)
    params, grads = layer.init(1), layer.init(2)
    expected = stacked(after_two_updates(params, grads))
    got = after_two_updates(stacked(params), stacked(grads))
    gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), got, expected)
    return max(jax.tree.leaves(gaps)) > 1e-5


@pytest.mark.parametrize("rule", [fg.momentum, fg.rmsprop, fg.adamw, fg.lion])
def test_rules_of_single_entries_see_no_difference_in_a_stack(rule):
    assert not differs_by_layout(rule(0.1))


# As the docstring of repeat says.
@pytest.mark.filterwarnings("ignore:muon takes 'bias'")
@pytest.mark.parametrize("rule", [fg.muon, fg.soap, fg.adafactor, fg.sm3, fg.lamb])
def test_rules_of_whole_leaves_see_one_leaf_in_a_stack(rule):
    assert differs_by_layout(rule(0.1))


def test_a_state_that_does_not_convert_is_refused_by_the_next_step():
    models_of = [models.transformer(11, 8, **LANGUAGE, scan=scan) for scan in (0, 1)]
    optimizer = fg.novograd(0.1)
    state = fg.init_state(models_of[0].init(KEY), optimizer, key=0)
    stacked_state = layers.stack_layers(state, "**/blocks")
    step = fg.make_step(language_loss(models_of[1]), optimizer)
    with pytest.raises(ValueError, match=r"nu/blocks/.* needs shape \(\), got \(3,\)"):
        jax.eval_shape(step, stacked_state, TOKENS)
