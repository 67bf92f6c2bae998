"""Every model on eight devices has the values it has on one."""

import functools

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.sharding as sharding

OPTIMIZER = fg.momentum(0.1)
PLACEMENTS = eight_devices.placements()
TOKENS = np.random.default_rng(0).integers(0, 16, (16, 8)).astype(np.int32)
IMAGES = np.random.default_rng(1).normal(size=(16, 8, 8, 1)).astype(np.float32)
LABELS = (np.arange(16) % 8).astype(np.int32)
SEQUENCES = IMAGES[..., 0]  # eight positions, eight features
FLAT = IMAGES.reshape(16, 64)

MODELS = {
    "logistic": (fg.models.logistic(64, 8), FLAT),
    "mlp": (fg.models.mlp([64, 32, 8]), FLAT),
    "cnn": (fg.models.cnn((8, 8, 1), 8, channels=(8, 16)), IMAGES),
    "rnn": (fg.models.rnn(8, [16], 8), SEQUENCES),
    "transformer": (
        fg.models.transformer(16, 8, features=16, num_layers=1, num_heads=2),
        TOKENS,
    ),
    "transformer in a loop": (
        fg.models.transformer(16, 8, features=16, num_heads=2, scan=True, remat=True),
        TOKENS,
    ),
    "decoder in a loop": (
        fg.models.decoder(
            16, features=16, num_heads=2, tied=True, scan=True, remat=True
        ),
        TOKENS,
    ),
    "resnet": (
        fg.models.resnet(
            1, 8, blocks=(1, 1), stem="small", width=8, norm="group", groups=2
        ),
        IMAGES,
    ),
    "vision_transformer": (
        fg.models.vision_transformer(
            (8, 8, 1), 8, patch_size=2, features=16, num_layers=1, num_heads=2
        ),
        IMAGES,
    ),
}


def loss_of(model, x):
    def loss_fn(params, batch, key):
        outputs = jax.vmap(model.apply, (None, 0))(params, batch["x"])
        if outputs.ndim == 3:
            outputs = outputs[:, -1, :8]
        logs = jax.nn.log_softmax(outputs)
        return -jnp.mean(jnp.take_along_axis(logs, batch["y"][:, None], 1))

    return loss_fn


@functools.cache
def run(name, placement):
    model, x = MODELS[name]
    mesh, rule = PLACEMENTS.get(placement, (None, None))
    if placement == "tensor parallel":
        mesh = sharding.make_mesh(data=4, model=2)
        rule = sharding.fsdp(min_size=64, within=fg.models.transformer_rule())
    step = fg.make_step(loss_of(model, x), OPTIMIZER, rule=rule, metrics="loss")
    state = fg.init_state(model.init(jax.random.key(0)), OPTIMIZER, 0)
    batch = {"x": x, "y": LABELS}
    if mesh is not None:
        state = sharding.shard_state(state, mesh, rule)
        batch = sharding.shard_batch(batch, mesh)
    step = jax.jit(step)
    for _ in range(3):
        state, metrics = step(state, batch)
    return state, float(metrics["loss"])


SLOW = ("decoder in a loop", "resnet", "vision_transformer")  # to compile
LOOP = "transformer in a loop"
QUICK = {(LOOP, "fsdp")}  # of those that take long under all placements
CASES = [
    pytest.param(
        *(name, place),
        marks=[pytest.mark.slow]
        if name in (*SLOW, LOOP) and (name, place) not in QUICK
        else [],
    )
    for name in MODELS
    for place in PLACEMENTS
]


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_equal_to_one_device(name, placement):
    (one, loss), (many, other) = run(name, "one device"), run(name, placement)
    assert other == pytest.approx(loss, rel=1e-5)
    assert eight_devices.farthest(one.params, many.params) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        *("transformer", LOOP),
        pytest.param("decoder in a loop", marks=pytest.mark.slow),
    ],
)
def test_tensor_parallel_transformers_too(name):
    (one, loss), (many, other) = run(name, "one device"), run(name, "tensor parallel")
    assert other == pytest.approx(loss, rel=1e-5)
    assert eight_devices.farthest(one.params, many.params) < 1e-4
    specs = {str(x.sharding.spec) for x in jax.tree.leaves(many.params)}
    assert any("model" in spec and "data" in spec for spec in specs)


def test_a_weighted_sum_is_the_mean_over_all_devices_and_parts():
    model = MODELS["logistic"][0]
    batch = {"x": FLAT, "y": LABELS, "mask": np.arange(16) < 5}  # on three devices

    def masked(params, batch):
        losses = fg.losses.softmax_cross_entropy_with_integer_labels(
            jax.vmap(model.apply, (None, 0))(params, batch["x"]),
            batch["y"],
            where=batch["mask"],
        )
        return fg.losses.weighted_sum(jnp.sum(losses), jnp.sum(batch["mask"]))

    def step(parts):
        return jax.jit(fg.make_step(masked, OPTIMIZER, micro_batches=parts))

    state = fg.init_state(model.init(jax.random.key(0)), OPTIMIZER, 0)
    mesh, _ = PLACEMENTS["data parallel"]
    one, alone = step(1)(state, batch)
    split = sharding.shard_state(state, mesh)
    many, metrics = step(2)(split, sharding.shard_batch(batch, mesh))
    np.testing.assert_allclose(metrics["loss"], alone["loss"], rtol=1e-5)
    assert eight_devices.farthest(one.params, many.params) < 1e-5
