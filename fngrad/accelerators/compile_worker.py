"""The process that compiles: it reads a folder's request and writes its answer there.

It runs by its path, imports JAX and nothing of fngrad, and may crash: libtpu does when
it does not fit. ``request.pickle`` holds what `fngrad.accelerators.exported_steps`
writes; ``answer.json`` is what the compiler says, ``program.txt`` what it made.
"""

import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any


def compiled(request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Compile the step of a request; return the answer and the program, or None."""
    import jax
    from jax.experimental import topologies
    from jax.experimental.mesh_utils import create_device_mesh
    from jax.sharding import Mesh, NamedSharding

    jax.config.update("jax_enable_x64", request["x64"])
    devices = topologies.get_topology_desc(**request["topology"]).devices
    axes = request["axes"]
    grid = create_device_mesh(
        tuple(axes.values()), devices, allow_split_physical_axes=True
    )
    mesh = Mesh(grid, tuple(axes))
    state, batch = (
        tuple(
            jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
            for shape, dtype, spec in leaves
        )
        for leaves in (request["state"], request["batch"])
    )
    step = request["step"].call
    program = jax.jit(lambda state, batch: step(state, batch), donate_argnums=0)
    began = time.perf_counter()
    try:
        made = program.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:  # the compiler's refusal
        return {"refusal": str(error), "seconds": time.perf_counter() - began}, None
    seconds = time.perf_counter() - began
    stays = [
        placed.is_equivalent_to(leaf.sharding, len(leaf.shape))
        for placed, leaf in zip(made.output_shardings[0], state, strict=True)
    ]
    return {"seconds": seconds, "stays": stays, **_memory(made)}, made


def _memory(made: Any) -> dict[str, int]:
    found = made.memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
        "peak": getattr(found, "peak_memory_in_bytes", 0),
    }


def main(folder: Path) -> None:
    """Answer the request of a folder."""
    request = pickle.loads((folder / "request.pickle").read_bytes())
    answer, made = compiled(request)
    if made is not None:
        (folder / "program.txt").write_text(made.as_text(), encoding="utf-8")
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
