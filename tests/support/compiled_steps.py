"""Steps of small networks, compiled for one device and for eight in several ways."""

import functools
import itertools

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

import fngrad as fg
import fngrad.sharding as sharding

ADAM = fg.adam(0.01)
WIDTHS = (32, 64, 16)  # of the perceptron
PAIRS = [*itertools.pairwise(WIDTHS)]
EXAMPLES = 96


def mlp():
    model = fg.models.mlp(WIDTHS)

    def loss_fn(params, batch):
        outputs = jax.vmap(model.apply, (None, 0))(params, batch["x"])
        return jnp.mean((outputs - batch["y"]) ** 2)

    shape = (EXAMPLES, WIDTHS[0])
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return model, loss_fn, {"x": x, "y": np.sin(x[:, : WIDTHS[-1]])}


def transformer(scan, features=32):
    layers = 2 if scan else 1
    model = fg.models.transformer(
        48, 12, features=features, num_layers=layers, num_heads=2, scan=scan, remat=scan
    )

    def loss_fn(params, batch):
        logits = jax.vmap(model.apply, (None, 0))(params, batch)
        return fg.losses.softmax_cross_entropy_with_integer_labels(logits, batch).mean()

    tokens = np.random.default_rng(0).integers(0, 48, (16, 12)).astype(np.int32)
    return model, loss_fn, tokens


NETWORKS = {
    "mlp": mlp,
    "transformer": functools.partial(transformer, False),
    "wide transformer": functools.partial(transformer, False, features=128),
    "transformer in a loop": functools.partial(transformer, True),
}


def columns_then_rows(network):
    """Return the rule that splits pairs of matrices: tensor parallelism.

    A head split by words would exchange rows of the loss, too.
    """
    if network != "mlp":
        entries = [("head/*", PartitionSpec())]
        return sharding.by_path(entries, otherwise=fg.models.transformer_rule())
    first = ("layers/0/*", PartitionSpec(None, "model"))
    bias = ("layers/0/bias", PartitionSpec("model"))
    return sharding.by_path([bias, first, ("layers/1/weight", PartitionSpec("model"))])


def placement(network, name):
    """Return a mesh and a rule."""
    placements = eight_devices.placements()
    if name != "4 x 2":
        return placements[name.removesuffix(" by columns")]
    within = columns_then_rows(network)
    mesh, _ = placements["4 x 2"]
    return mesh, sharding.fsdp(min_size=eight_devices.LIMIT, within=within)


@functools.cache
def compiled(network, name, optimizer=ADAM, metrics="norms"):
    """Return a compiled step, its state and its batch.

    Args:
        network: of `NETWORKS`.
        name: "one device", "data parallel", "fsdp", "4 x 2" or "4 x 2 by columns".
        optimizer: of the step.
        metrics: of the step.
    """
    step, state, batch = placed(network, name, optimizer, metrics)
    return jax.jit(step, donate_argnums=0).lower(state, batch).compile(), state, batch


def placed(network, name, optimizer=ADAM, metrics="norms"):
    """Return a step, its state and its batch."""
    model, loss_fn, batch = NETWORKS[network]()
    state = fg.init_state(model.init(jax.random.key(0)), optimizer, 0)
    if name == "one device":
        return fg.make_step(loss_fn, optimizer, metrics=metrics), state, batch
    mesh, rule = placement(network, name)
    step = fg.make_step(loss_fn, optimizer, rule=rule, metrics=metrics)
    batch = sharding.shard_batch(batch, mesh)
    return step, sharding.shard_state(state, mesh, rule), batch
