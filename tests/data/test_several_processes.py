"""Several processes read batches: the order of one, each its own examples."""

import pytest
from launched import ends, launch

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
import fngrad as fg
from jax.sharding import NamedSharding, PartitionSpec as P

mine = fg.distributed.initialize(heartbeat_seconds=10)
mesh = fg.sharding.make_mesh()
examples = {"x": np.arange(60, dtype=np.float32).reshape(30, 2), "y": np.arange(30)}
asked = []

def read(indices):
    asked.extend(indices.tolist())
    return {name: a[indices] for name, a in examples.items()}

def jitter(batch, key):
    return batch | {"x": batch["x"] + jax.random.normal(key, batch["x"].shape)}

def agree(batch, alone):
    for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(alone), strict=True):
        b = np.asarray(jnp.asarray(b))
        assert a.sharding.mesh == mesh and a.shape == b.shape and a.dtype == b.dtype
        for shard in a.addressable_shards:
            assert np.asarray(shard.data).tobytes() == b[shard.index].tobytes()

source = fg.data.from_source(read, 30, 8, seed=3, fingerprint="v1")
memory = fg.data.from_arrays(examples, 8, seed=3)
for prefetch in 0, 3:
    on_mesh = fg.data.from_source(read, 30, 8, seed=3, prefetch=prefetch).on(mesh)
    asked.clear()
    batches = on_mesh.map(jitter).batches(2)
    for step in range(2, 8):
        agree(next(batches), memory.map(jitter).batch(step))
    batches.close()
    own = 8 // mine.count
    wanted = [int(i) for step in range(2, 8)
              for i in memory.indices(step)[own * mine.rank :][:own]]
    assert prefetch or asked == wanted, (asked, wanted)
asked.clear()
agree(fg.data.from_source(read, 30, 7, shuffle=False).on(mesh).batch(0),
      fg.data.from_arrays(examples, 7, shuffle=False).batch(0))
assert asked == list(range(7))  # the devices do not divide 7: each has all of it
part = source.on(mesh).part(4, 8).arrays
agree(part, {name: a[4:12] for name, a in examples.items()})

state = fg.init_state({"w": jnp.arange(64.0)}, fg.adam(0.1), key=5)
placed = fg.sharding.shard_state(state, mesh, fg.sharding.fsdp(min_size=8))
agree(placed.params, state.params)
assert placed.params["w"].sharding.spec == P("data")
assert placed.params["w"].addressable_shards[0].data.shape == (16,)
made = fg.sharding.init_sharded(
    lambda: fg.init_state({"w": jnp.arange(64.0)}, fg.adam(0.1), key=5), mesh,
    fg.sharding.fsdp(min_size=8))
agree(made.opt_state, state.opt_state)
first = {"x": examples["x"][:24], "y": jnp.arange(24)}
agree(fg.sharding.shard_batch(first, mesh), first)
arrays = {"a": np.ones(3), "b": jnp.ones(2)}
beside = fg.sharding.placement.beside(placed.params, arrays)
assert all(x.sharding.is_fully_replicated for x in beside.values())

whole = fg.data.from_arrays(first, 8, seed=3)
apart = fg.data.from_arrays(fg.sharding.shard_batch(first, mesh), 8, seed=3)
assert whole.fingerprint() == apart.fingerprint()
agree(jax.jit(lambda data: data.batch(1))(apart), whole.batch(1))
print("prints", whole.fingerprint(), source.on(mesh).fingerprint())
"""


@pytest.mark.slow
def test_each_process_reads_its_part_of_the_batches_of_one():
    alone = ends(launch(SCRIPT, 1, devices=4))
    several = ends(launch(SCRIPT, 2, devices=2))
    prints = alone[0].output.partition("prints")[2].split()
    assert len(prints) == 2, alone[0].output
    for each in several:
        assert each.status == 0, each.output
        assert each.output.partition("prints")[2].split() == prints
