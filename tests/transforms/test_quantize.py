"""Quantized moments: which are coded, how much memory they take, how they train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fngrad as fg
import fngrad.numerics.low_bit_codes as low_bit_codes
import fngrad.transforms.quantized_update as quantized_update
import fngrad.tree as tree
from fngrad.optimizers import REGISTRY, adagrad, adam, momentum, rmsprop
from fngrad.optimizers.adam import ScaleByAdamState
from fngrad.optimizers.rmsprop import scale_by_rms
from fngrad.transforms.clipping import clip_by_global_norm
from fngrad.transforms.core import Transform, apply_updates, chain, report
from fngrad.transforms.laws import check_transform
from fngrad.transforms.masking import freeze, partition
from fngrad.transforms.quantize import (
    describe_quantization,
    quantize_state,
)
from fngrad.transforms.queries import KINDS
from fngrad.transforms.tunable_hyperparameters import set_hyperparameters, tunable

small = functools.partial(quantize_state, block_size=4, min_size=0)
LAWFUL = {
    "8 bits": small(adam(0.1)),
    "4 bits": small(chain(clip_by_global_norm(1.0), momentum(0.1)), bits=4),
    "in a partition": partition(
        [("layers/**", chain(small(rmsprop(0.1)))), ("**", freeze())]
    ),
    "around a partition": small(
        partition([("layers/**", adam(0.1)), ("**", freeze())])
    ),
    "tunable": tunable(lambda **h: small(adam(**h)), learning_rate=0.1, b2=0.99),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.slow] * (x != "8 bits")) for x in LAWFUL],
)
def test_the_laws_hold(name):
    check_transform(LAWFUL[name])


def declared(state):
    """Return the paths of the leaves that state classes declare, by a separate walk."""
    found = set()
    paths, _ = jax.tree_util.tree_flatten_with_path(
        state,
        is_leaf=lambda x: hasattr(type(x), "signed") or hasattr(x, "non_negative"),
    )
    for path, node in paths:
        names = [name for kind in KINDS for name in getattr(type(node), kind, ())]
        for name in names:
            below = tree.leaf_paths(getattr(node, name))
            root = tree.path_string(path)
            found |= {f"{root}/{name}/{p}".rstrip("/") for p in below}
    return found


MATRIX = {"w": jnp.ones((8, 16)), "b": jnp.ones(3)}


@pytest.mark.parametrize("name", REGISTRY)
def test_every_rule_keeps_declared_moments_in_codes_and_nothing_else(name):
    plain = REGISTRY[name](0.1)
    inner = jax.eval_shape(plain.init, MATRIX)
    optimizer = quantize_state(plain, block_size=16, min_size=10)
    state = jax.eval_shape(optimizer.init, MATRIX)["quantize_state"].inner
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        state, is_leaf=quantized_update.is_short
    )
    before = tree.leaf_paths(inner)
    large = {path for path in declared(inner) if before[path].size >= 10}
    kept = {tree.path_string(path): leaf for path, leaf in leaves}
    assert {p for p, leaf in kept.items() if quantized_update.is_short(leaf)} == large
    for path, leaf in kept.items():
        assert (leaf.shape, leaf.dtype) == (before[path].shape, before[path].dtype)
    lines = describe_quantization(optimizer, MATRIX).split("\n")
    assert {line.split()[0] for line in lines if " 8 bits " in line} == large
    updates, new = jax.eval_shape(
        optimizer.update, MATRIX, optimizer.init(MATRIX), MATRIX
    )
    assert tree.mismatch(updates, MATRIX) is None
    assert tree.mismatch(new["quantize_state"].inner, state) is None


def gradients(step, shape=(16, 16)):
    draws = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (2, *shape))
    return {"a": draws[0], "b": 0.01 * draws[1]}


def visited(optimizer, steps=4):
    params = jax.tree.map(jnp.ones_like, gradients(0))
    state, updates = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for step in range(steps):
        new, state = update(gradients(step), state, params)
        params = apply_updates(params, new)
        updates.append(new)
    return updates, state


@pytest.mark.parametrize(
    "factory", [momentum, rmsprop, adagrad, adam], ids=lambda f: f.__name__
)
def test_updates_are_the_float32_ones_within_the_width_of_a_code(factory):
    want, _ = visited(factory(0.1))
    got, _ = visited(quantize_state(factory(0.1), block_size=32, min_size=0))
    for step, (a, b) in enumerate(zip(got, want, strict=True)):
        error = tree.norm(tree.sub(a, b)) / tree.norm(b)
        # Nothing is coded before the first update, then each step adds about 1/16.
        assert error < (1e-6 if step == 0 else 0.15), step


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY)
def test_every_rule_runs_on_codes(name):
    grads = np.random.default_rng(0).normal(size=(4, 32, 16)).astype(np.float32)
    grads[:, 16:] /= 100  # blocks of other sizes

    @functools.partial(jax.jit, static_argnums=0)
    def updates(optimizer, grads):
        def advance(carry, grads):
            params, state = carry
            new, state = optimizer.update({"a": grads}, state, params)
            return (apply_updates(params, new), state), new["a"]

        params = {"a": jnp.ones((32, 16))}
        start = params, optimizer.init(params)
        return jax.lax.scan(advance, start, grads)[1]

    coded = functools.partial(quantize_state, block_size=32, min_size=0)
    for bits in (8, 4):
        assert np.all(np.isfinite(updates(coded(REGISTRY[name](1e-3), bits), grads)))


def test_a_slow_second_moment_falls_with_the_gradients():
    # The first entry of each block holds the scale; the others fall to a tenth.
    params = {"w": jnp.zeros(512)}
    holds = jnp.arange(512) % 256 == 0

    def advance(state, step):
        size = jnp.where(holds, 1.0, jnp.where(step < 1000, 1.0, 0.1))
        _, state = rule.update({"w": size}, state, params)
        return state, None

    moments = []
    for rule in (scale_by_rms(0.999), small(scale_by_rms(0.999), block_size=256)):
        start = rule.init(params)
        end, _ = jax.jit(lambda s: jax.lax.scan(advance, s, jnp.arange(4000)))(start)
        inner = end["quantize_state"].inner if "quantize_state" in end else end
        moments.append(quantized_update.decode(inner["scale_by_rms"].nu["w"]))
    ratio = np.asarray(moments[1] / moments[0])
    np.testing.assert_allclose(ratio[holds], 1, rtol=1e-3)
    assert abs(np.mean(ratio) - 1) < 0.1


def test_a_run_repeats_to_the_bit():
    (first, a), (second, b) = (visited(small(adam(0.1))) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, (first, a), (second, b))


def test_small_leaves_are_not_coded_and_change_nothing():
    want, _ = visited(adam(0.1))
    got, _ = visited(quantize_state(adam(0.1)))  # 256 entries per leaf
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_the_learning_rate_is_reported_and_can_be_changed():
    params = gradients(0)
    optimizer = quantize_state(tunable(adam, learning_rate=0.25), min_size=0)
    state = set_hyperparameters(optimizer.init(params), learning_rate=0.5)
    told = report(optimizer, params, state, params)
    assert told["quantize_state/tunable/learning_rate"] == 0.5


class Foreign:
    """A transform of another library, which declares nothing."""

    def init(self, params):
        return {"m": {"w": params["w"] * 0}, "v": {"w": params["w"] * 0}}

    def update(self, updates, state, params=None):
        m = {"w": 0.9 * state["m"]["w"] + updates["w"]}
        v = {"w": 0.9 * state["v"]["w"] + updates["w"] ** 2}
        return {"w": -m["w"] / jnp.sqrt(v["w"] + 1e-8)}, {"m": m, "v": v}


def test_globs_select_the_moments_of_a_foreign_rule():
    params = {"w": jnp.ones((4, 16))}
    wrapped = small(Foreign(), signed="**/m/**", non_negative=("**/v/*",))
    state = wrapped.init(params)["quantize_state"].inner["Foreign"]
    assert state["m"]["w"].coding == low_bit_codes.Coding(8, True)
    assert state["v"]["w"].coding == low_bit_codes.Coding(8, False)
    updates, _ = wrapped.update(params, wrapped.init(params), params)
    np.testing.assert_allclose(updates["w"], -1.0, rtol=1e-5)
    untold = small(Foreign()).init(params)
    assert not any(map(quantized_update.is_short, jax.tree.leaves(untold)))


def test_an_array_that_an_update_passes_on_keeps_its_codes():
    def update(updates, state, params):
        return updates, {"kept": state["kept"], "last": updates}

    def init(params):
        return {"kept": tree.scale(2.0, params), "last": tree.scale(1.0, params)}

    rule = Transform(init, update, name="rule")
    params = {"w": jnp.linspace(-1.0, 1.0, 8)}
    optimizer = small(rule, signed=("**/kept/*", "**/last/*"))
    state = optimizer.init(params)
    updates, new = optimizer.update(tree.scale(3.0, params), state, params)
    np.testing.assert_array_equal(updates["w"], 3 * params["w"])
    before, after = (s["quantize_state"].inner["rule"] for s in (state, new))
    jax.tree.map(np.testing.assert_array_equal, after["kept"], before["kept"])
    last = low_bit_codes.decode(after["last"]["w"])
    np.testing.assert_allclose(last, 3 * params["w"], atol=0.3)


def test_a_transform_without_state_is_left_as_it_is():
    params = {"w": jnp.full(3, 2.0)}
    optimizer = small(clip_by_global_norm(1e9))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["w"], params["w"])


def test_moments_in_double_precision_are_coded_too(x64):
    updates, state = visited(small(adam(0.1)))
    assert updates[-1]["a"].dtype == jnp.float64
    assert state["quantize_state"].inner["scale_by_adam"].nu["a"].dtype == jnp.float64
    np.testing.assert_array_less(np.abs(updates[-1]["a"]), 0.5)


def test_moments_of_complex_parameters_stay_and_their_squares_do_not():
    params = {"z": jnp.ones((4, 4), jnp.complex64)}
    state = jax.eval_shape(small(adam(0.1)).init, params)["quantize_state"]
    moments = state.inner["scale_by_adam"]
    assert moments.mu["z"].dtype == jnp.complex64
    assert moments.nu["z"].coding == low_bit_codes.Coding(8, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 2}, "need bits=16, 8 or 4, got bits=2"),
        ({"block_size": 0}, "need an even block_size >= 2, got block_size=0"),
        ({"block_size": 7}, "need an even block_size >= 2, got block_size=7"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize_state(adam(0.1), **arguments)


@pytest.mark.parametrize(("outer", "within"), [(16, 16), (16, 8), (8, 16), (8, 8)])
def test_moments_are_not_quantized_twice(outer, within):
    inner = quantize_state(adam(0.1), bits=within, min_size=0)
    optimizer = quantize_state(inner, bits=outer, min_size=0)
    with pytest.raises(ValueError, match="got a quantize_state inside another"):
        jax.eval_shape(optimizer.init, jnp.ones(3))


@pytest.mark.parametrize(
    ("globs", "message"),
    [
        (
            {"signed": "**/moment/*"},
            r"a leaf of the state, got signed='\*\*/moment/\*'",
        ),
        (
            {"non_negative": "**/mu/*"},
            "need one kind per leaf, got signed and non_negative: 'scale_by_adam/mu/a'",
        ),
    ],
)
def test_globs_that_do_not_fit_are_refused(globs, message):
    with pytest.raises(ValueError, match=message):
        quantize_state(adam(0.1), **globs).init(gradients(0))


def memory(optimizer, count=12, size=128):
    """Return bytes of state, of temporaries, and of all at the peak of an update."""
    shape = jax.ShapeDtypeStruct((size, size), jnp.float32)
    params = {str(i): shape for i in range(count)}
    state = jax.eval_shape(optimizer.init, params)

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    used = jitted.lower(params, state, params).compile().memory_analysis()
    arguments = used.argument_size_in_bytes + used.output_size_in_bytes
    peak = arguments - used.alias_size_in_bytes + used.temp_size_in_bytes
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return stored, used.temp_size_in_bytes, peak


@pytest.mark.parametrize(("bits", "most"), [(8, 0.27), (4, 0.14)])
def test_stored_moments_shrink_as_the_bits_do(bits, most):
    params = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
    plain, coded = (
        jax.eval_shape(optimizer.init, params)
        for optimizer in (adam(0.1), quantize_state(adam(0.1), bits))
    )
    sizes = [
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        for state in (coded, plain)
    ]
    assert sizes[0] <= most * sizes[1]


def test_an_update_needs_less_memory_because_leaves_are_updated_in_turn(monkeypatch):
    optimizer = chain(clip_by_global_norm(1.0), quantize_state(adam(0.1)))
    stored, temporary, peak = memory(optimizer)
    plain = memory(chain(clip_by_global_norm(1.0), adam(0.1)))
    assert stored < 0.27 * plain[0]
    assert stored + temporary < 1.05 * (plain[0] + plain[1])
    assert peak < 1.05 * plain[2]
    monkeypatch.setattr(
        quantized_update, "_confined", lambda fn, inputs, step: fn(inputs)
    )
    _, all_at_once, _ = memory(optimizer)
    assert temporary < 0.8 * all_at_once


SEEDS, STEPS = 20, 400


def final_losses(optimizer):
    """Train a network on digits, once per seed; return its losses, (split, seed)."""
    model, splits = fg.models.mlp((64, 32, 10)), fg.data.digits()
    data = fg.data.from_arrays(splits.train, 64)

    def loss_fn(params, batch):
        logits = fg.layers.batched(model)(params, batch["x"])
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["y"], reduction="mean"
        )

    step = fg.make_step(loss_fn, optimizer, metrics="loss")

    def train(seed, data):
        params = model.init(jax.random.key(seed))
        state = fg.init_state(params, optimizer, seed)
        state, _ = fg.run(step, state, data.reseed(seed), STEPS)
        return [loss_fn(state.params, x) for x in (splits.train, splits.validation)]

    fast = {"xla_backend_optimization_level": 2}  # to run, not to compile
    lanes = jax.jit(jax.vmap(train, in_axes=(0, None)), compiler_options=fast)
    return np.asarray(lanes(jnp.arange(SEEDS), data))


def is_equivalent(losses, reference, margin):
    """Two one-sided t-tests of the log ratio, paired by seed, each at 5 %."""
    ratio = np.log(losses / reference)
    _, above = stats.ttest_1samp(ratio, -margin, alternative="greater")
    _, below = stats.ttest_1samp(ratio, margin, alternative="less")
    return max(above, below) < 0.05


@pytest.mark.slow
def test_training_with_8_bits_equals_float32_in_loss_and_a_zero_code_ruins_it(
    monkeypatch,
):
    rule = adam(fg.schedules.cosine(3e-3, STEPS))
    train, validation = final_losses(rule)
    coded = final_losses(quantize_state(rule, min_size=0))
    assert is_equivalent(coded[0], train, margin=0.05)
    assert is_equivalent(coded[1], validation, margin=0.02)
    assert not is_equivalent(1.05 * coded[1], validation, margin=0.02)
    four = final_losses(quantize_state(rule, bits=4, min_size=0))
    assert np.mean(four[1]) < 1.05 * np.mean(validation)
    with monkeypatch.context() as patched:
        # The control: signed codes have a zero, so second moments can be zero.
        patched.setattr(ScaleByAdamState, "signed", ("mu", "nu"))
        patched.setattr(ScaleByAdamState, "non_negative", ())
        control = final_losses(quantize_state(rule, min_size=0))
    assert not np.all(control[1] < 10 * np.mean(validation))
