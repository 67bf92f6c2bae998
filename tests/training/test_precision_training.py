"""Training in 16 bits: where it ends, and what it composes with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_products import operand_dtypes, products_of

import fngrad as fg
import fngrad.layers as layers
import fngrad.models as models
import fngrad.tree as tree

NUM_STEPS = 200
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 8)).astype(np.float32)
Y = X[:, :3].argmax(axis=1).astype(np.int32)
ARRAYS = {"x": X, "y": Y}
SEQUENCES = {"x": RNG.normal(size=(64, 6, 4)).astype(np.float32), "y": Y}
BRIGHT = np.eye(4, dtype=np.float32)[Y].repeat(2, axis=1)  # two of eight columns
IMAGES = {
    "x": 0.5 * RNG.normal(size=(64, 8, 8, 1)).astype(np.float32)
    + BRIGHT[:, None, :, None],
    "y": Y,
}
IS_LABEL = RNG.uniform(size=(64, 6)) < 0.5
TOKENS = {"x": np.where(IS_LABEL, Y[:, None], RNG.integers(0, 5, (64, 6))), "y": Y}
NORMS = fg.Policy("bfloat16", wide="params/**/norm/**")

MLP = models.mlp((8, 16, 3))
RNN = models.rnn(4, [8], 3)
CNN = models.cnn((8, 8, 1), 3, channels=(4,), hidden_size=8)
TRANSFORMER = layers.serial(
    models.transformer(5, 6, features=8, num_layers=1, num_heads=2),
    lambda logits: logits.mean(axis=0)[:3],
)


def cross_entropy(logits, batch):
    return fg.losses.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


@functools.cache
def loss_of(model):
    def loss_fn(params, batch):
        return cross_entropy(layers.batched(model)(params, batch["x"]), batch).mean()

    return loss_fn


@functools.cache
def start(model):
    return jax.jit(model.init)(0)


@functools.cache
def order():
    """Return the examples of each step."""
    indices = fg.data.from_arrays(Y, 16).indices
    return jax.jit(jax.vmap(indices))(jnp.arange(NUM_STEPS))


def trained(model, optimizer, precision, params):
    """Return the state after all steps, and the history."""
    step = fg.make_step(loss_of(model), optimizer, precision=precision, metrics="loss")

    @jax.jit
    def run(state, arrays, order):
        def batch(t):
            return jax.tree.map(lambda x: x[order[t]], arrays)

        return fg.run(step, state, batch, NUM_STEPS)

    arrays = jax.tree.map(jnp.asarray, DATA[model])
    return run(fg.init_state(params, optimizer, 1), arrays, order())


@functools.cache
def reference(model):
    """Return where float32 ends, the loss there, and the distance moved."""
    state, _ = trained(model, fg.adam(3e-3), None, start(model))
    end = state.params
    return end, full_loss(model, end), tree.norm(tree.sub(end, start(model)))


def full_loss(model, params):
    arrays = jax.tree.map(jnp.asarray, DATA[model])
    return float(jax.jit(loss_of(model))(params, arrays))


DATA = {MLP: ARRAYS, RNN: SEQUENCES, CNN: IMAGES, TRANSFORMER: TOKENS}
# name: (model, precision, two tolerances): of the loss, over its decrease in training;
# of the distance from where float32 ends, over the distance moved. Measured, times two
# to five. Rounding errors are 0.4 % in bfloat16; small weights before a norm, as at the
# start of a transformer, amplify them.
CASES = {
    "mlp": (MLP, "bfloat16", 0.0002, 0.01),
    "mlp in float16": (MLP, "float16", 0.00005, 0.002),
    "rnn": (RNN, "bfloat16", 0.001, 0.02),
    "cnn": (CNN, "bfloat16", 0.0002, 0.05),
    "transformer": (TRANSFORMER, "bfloat16", 0.03, 0.4),
    "transformer with wide norms": (TRANSFORMER, NORMS, 0.03, 0.4),
}
SLOW = {name for name in CASES if not name.startswith("mlp")}
AS_FOR_USERS = (pytest.mark.slow, pytest.mark.xla_defaults)  # how XLA fuses rounds


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=AS_FOR_USERS if n in SLOW else ()) for n in CASES],
)
def test_training_ends_where_float32_does(name):
    model, precision, loss_tolerance, tolerance = CASES[name]
    optimizer = fg.adam(3e-3)
    if precision == "float16":
        optimizer = fg.loss_scaling(optimizer)
    state, history = trained(model, optimizer, precision, start(model))
    assert {str(p.dtype) for p in jax.tree.leaves(state.params)} == {"float32"}
    assert np.all(history["is_finite"])
    end, loss, moved = reference(model)
    got, apart = full_loss(model, state.params), tree.norm(tree.sub(end, state.params))
    print(f"loss {got:.5f}, {loss:.5f} in float32; apart {apart:.4f} of {moved:.4f}")
    assert abs(got - loss) <= loss_tolerance * (full_loss(model, start(model)) - loss)
    assert apart <= tolerance * moved


@pytest.mark.slow
def test_parameters_in_bfloat16_train_with_stochastic_rounding():
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), start(MLP))
    right, loss, moved = reference(MLP)

    def distance(*parts):
        optimizer = fg.chain(fg.adam(3e-3), *parts)
        state, _ = trained(MLP, optimizer, "bfloat16", narrow)
        assert {str(p.dtype) for p in jax.tree.leaves(state.params)} == {"bfloat16"}
        end = tree.widen(state.params)
        return tree.norm(tree.sub(right, end)), full_loss(MLP, end)

    nearest, _ = distance()
    rounded, got = distance(fg.stochastic_round(key=0))
    print(f"apart {rounded:.4f}, rounded to nearest {nearest:.4f}, moved {moved:.4f}")
    assert rounded < 0.2 * moved
    assert rounded < 0.5 * nearest
    assert abs(got - loss) < 0.05 * loss


OPTIMIZERS = {
    "accumulate": lambda: fg.accumulate(fg.adam(3e-3), 2),
    "skip_nonfinite": lambda: fg.skip_nonfinite(fg.adam(3e-3)),
    "ema_params": lambda: fg.chain(fg.adam(3e-3), fg.ema_params(0.9)),
    "quantize_state": lambda: fg.quantize_state(fg.adam(3e-3), min_size=0),
    "partition": lambda: fg.partition(
        [("layers/0/**", fg.freeze()), ("**", fg.adam(3e-3))]
    ),
    "loss_scaling": lambda: fg.loss_scaling(fg.adam(3e-3)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_state_keeps_its_dtypes_and_every_product_is_narrow(name):
    optimizer = OPTIMIZERS[name]()
    step = fg.make_step(loss_of(MLP), optimizer, precision="bfloat16")
    state = fg.init_state(start(MLP), optimizer, 0)
    batch = jax.tree.map(lambda x: x[:8], ARRAYS)
    new, _ = jax.eval_shape(step, state, batch)
    assert tree.mismatch(state, new) is None
    assert operand_dtypes(products_of(step, state, batch)) == {"bfloat16"}


def test_micro_batches_are_one_batch():
    batch = jax.tree.map(lambda x: x[:16], ARRAYS)
    state = fg.init_state(start(MLP), fg.sgd(0.1), 0)
    ends = []
    for parts in (1, 4):
        step = fg.make_step(
            loss_of(MLP), fg.sgd(0.1), precision="bfloat16", micro_batches=parts
        )
        new, metrics = jax.jit(step)(state, batch)
        ends.append((tree.sub(new.params, state.params), metrics["loss"]))
    (whole, loss), (parts, mean) = ends
    np.testing.assert_allclose(mean, loss, rtol=1e-5)
    assert tree.norm(tree.sub(whole, parts)) <= 0.01 * tree.norm(whole)


def test_a_sweep_over_seeds_equals_its_runs():
    data = fg.data.from_arrays(ARRAYS, 16)
    optimizer = fg.sgd(0.1)
    step = fg.make_step(loss_of(MLP), optimizer, precision="bfloat16")

    def train(seed):
        state = fg.init_state(start(MLP), optimizer, seed)
        return fg.run(step, state, data.reseed(seed), 3)[1]["loss"]

    seeds = jnp.arange(3)
    together = jax.jit(jax.vmap(train))(seeds)
    one = jax.jit(train)
    for seed in seeds:
        np.testing.assert_allclose(together[seed], one(seed), rtol=1e-3)


STEPS = {
    "sam": fg.steps.sam,
    "polyak": fg.steps.polyak,
    "line_search": fg.steps.line_search,
    "sophia": fg.steps.sophia,
}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_takes_a_loss_in_mixed_precision(name):
    optimizer = fg.sophia(0.1)
    step = STEPS[name](fg.mixed_precision(loss_of(MLP), "bfloat16"), optimizer)
    state = fg.init_state(start(MLP), optimizer, 0)
    batch = jax.tree.map(lambda x: jnp.asarray(x[:8]), ARRAYS)
    assert operand_dtypes(products_of(step, state, batch)) == {"bfloat16"}
    new, metrics = jax.jit(step)(state, batch)
    assert tree.mismatch(state, new) is None
    exact = jax.jit(loss_of(MLP))(state.params, batch)
    np.testing.assert_allclose(metrics["loss"], exact, rtol=0.01)


@pytest.mark.parametrize("make", [fg.steps.gauss_newton, fg.steps.levenberg_marquardt])
def test_least_squares_takes_residuals_in_mixed_precision(make):
    def residuals(params, batch):
        return batch["x"] @ params - batch["y"]

    batch = {"x": X[:, :2], "y": X[:, :2] @ np.float32([1.0, -2.0])}
    optimizer = fg.chain(fg.adaptive_damping(1e-3), fg.sgd(1.0))
    step = jax.jit(make(fg.mixed_precision(residuals, "bfloat16"), optimizer))
    state = fg.init_state(jnp.zeros(2), optimizer, 0)
    for _ in range(3):
        state, metrics = step(state, batch)
    np.testing.assert_allclose(state.params, [1.0, -2.0], atol=0.02)
    assert metrics["loss"].dtype == jnp.float32


def test_fit_evaluates_in_the_precision_of_its_metric():
    seen = []

    def metric_fn(params, batch):
        seen.append(batch["x"].dtype)
        return {"loss": cross_entropy(layers.batched(MLP)(params, batch["x"]), batch)}

    optimizer = fg.sgd(0.1)
    step = fg.make_step(loss_of(MLP), optimizer, precision="bfloat16")
    state = fg.init_state(start(MLP), optimizer, 0)
    data = fg.data.from_arrays(ARRAYS, 16)
    options = {"eval_data": ARRAYS, "num_steps": 2, "progress": False}
    narrow = fg.mixed_precision(metric_fn, "bfloat16")
    result = fg.fit(step, state, data, metric_fn=narrow, **options)
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    expected = fg.evaluate(metric_fn, result.state, ARRAYS, precision="bfloat16")
    assert result.history.last("val/loss") == expected["loss"]
