"""Every model in 16 bits: its products, its bytes, and where training ends."""

import functools

import jax
import numpy as np
import pytest
from traced_products import operand_dtypes, products_of, residual_bytes

import fngrad as fg
import fngrad.layers as layers
import fngrad.models as models
import fngrad.tree as tree

rng = np.random.default_rng(0)
FEATURES = rng.normal(size=(64, 8)).astype(np.float32)
SEQUENCES = rng.normal(size=(64, 6, 4)).astype(np.float32)
IMAGES = rng.normal(size=(64, 8, 8, 1)).astype(np.float32)
TOKENS = rng.integers(0, 5, size=(64, 6))
LABELS = FEATURES[:, :3].argmax(axis=1).astype(np.int32)

# name: (model, its inputs)
MODELS = {
    "logistic": (models.logistic(8, 3), FEATURES),
    "mlp": (models.mlp((8, 16, 3), dropout_rate=0.1), FEATURES),
    "cnn": (models.cnn((8, 8, 1), 3, channels=(4, 8), hidden_size=8), IMAGES),
    "rnn": (models.rnn(4, [8], 3), SEQUENCES),
    "rnn of lstm": (models.rnn(4, [8], 3, recurrent=layers.lstm), SEQUENCES),
    "transformer": (
        models.transformer(5, 6, features=8, num_heads=2, dropout_rate=0.1),
        TOKENS,
    ),
    "decoder": (
        models.decoder(
            5, features=8, num_heads=2, num_kv_heads=1, window=3, dropout_rate=0.1
        ),
        TOKENS,
    ),
    "resnet": (
        models.resnet(
            1, 3, blocks=(1, 1), stem="small", width=4, norm="group", groups=2
        ),
        IMAGES,
    ),
    "vision_transformer": (
        models.vision_transformer(
            (8, 8, 1), 3, patch_size=4, features=8, num_layers=1, num_heads=2
        ),
        IMAGES,
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def loss_of(name):
    model, _ = MODELS[name]

    def loss_fn(params, batch, key):
        logits = layers.batched(model)(params, batch["x"], key=key)
        logits = logits.mean(axis=1) if logits.ndim == 3 else logits
        loss = fg.losses.softmax_cross_entropy_with_integer_labels
        return loss(logits, batch["y"]).mean()

    return loss_fn


def start_of(name, optimizer):
    model, x = MODELS[name]
    params = tree.zeros_like(jax.eval_shape(model.init, 0))
    return fg.init_state(params, optimizer, 0), {"x": x[:4], "y": LABELS[:4]}


def test_every_model_is_here():
    made = set(models.__all__) - {"transformer_rule", "generate"}
    assert {name.split()[0] for name in MODELS} == made


@pytest.mark.parametrize("wide", [None, lambda path, leaf: leaf.ndim < 2])
@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
@every_model
def test_all_products_are_in_the_policys_dtype(name, compute, wide):
    optimizer = fg.loss_scaling(fg.adam(1e-3))
    policy = fg.Policy(compute, wide)
    step = fg.make_step(loss_of(name), optimizer, precision=policy, micro_batches=2)
    state, batch = start_of(name, optimizer)
    products = products_of(step, state, batch)
    assert products
    assert operand_dtypes(products) == {compute}
    new, metrics = jax.eval_shape(step, state, batch)
    assert tree.mismatch(state, new) is None
    floats = {str(v.dtype) for v in metrics.values() if tree.is_float(v)}
    assert floats == {"float32"}


@every_model
def test_reverse_mode_keeps_half_the_bytes(name):
    model, _ = MODELS[name]
    state, batch = start_of(name, fg.sgd(0.1))

    def kept(precision):
        def logits(params, batch, key):
            return layers.batched(model)(params, batch["x"], key=key)

        network = fg.mixed_precision(logits, precision)
        return residual_bytes(lambda p: network(p, batch, state.key), state.params)

    # Masks of relu and dropout take a byte per entry in both.
    assert kept("bfloat16") <= 0.56 * kept(None)
