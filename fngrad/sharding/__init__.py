"""Where arrays are: meshes of devices, rules for parameters, states placed by them."""

from fngrad.sharding.constraints import gathered
from fngrad.sharding.meshes import abstract_mesh, make_mesh
from fngrad.sharding.placement import (
    describe,
    init_sharded,
    shard_batch,
    shard_state,
    shardings,
)
from fngrad.sharding.rules import Rule, by_path, fsdp, replicated

__all__ = [
    "Rule",
    "abstract_mesh",
    "by_path",
    "describe",
    "fsdp",
    "gathered",
    "init_sharded",
    "make_mesh",
    "replicated",
    "shard_batch",
    "shard_state",
    "shardings",
]


def __dir__() -> list[str]:
    return sorted(__all__)
