"""What a run computes, and what of it changed since its checkpoint.

A checkpoint records fingerprints of the programs that `fit` traces anyway: of the loss,
the optimizer and the metrics, and of the evaluation's data. The call that resumes
compares them with its own. Nothing is compared if another version of JAX, NumPy or
fngrad, another backend or setting of JAX was used; a warning says so if a program
cannot be read. With another number of micro-batches the loss is not compared, nor the
optimizer if parameters are narrower than float32. On another mesh, or on one device
instead of a mesh, only the evaluation's data and the loss without micro-batches are:
rules of whole matrices, micro-batches and evaluations depend on the number of devices.
Evaluation data are compared with data of their kind: arrays, a dataset with maps, or a
source.

The fingerprint of a loss covers its value, not how its gradient is computed, so
rematerialization may change. Where a step evaluates the loss again, as
`fngrad.steps.sam` and a line search do, this counts as part of the optimizer, with the
gradient if it has one. Loss and optimizer are told apart by the gradients that a
program names, as the steps of fngrad do; another step is compared as a whole.
"""

import dataclasses
import importlib.metadata
from typing import Any

import jax
import numpy as np

import fngrad.numerics.array_inputs as array_inputs
import fngrad.tree as tree
from fngrad.data.dataset import Dataset
from fngrad.data.sources import Source
from fngrad.files.json_values import from_json_number, to_json
from fngrad.fitting.step_checks import TracedStep
from fngrad.fitting.validation import Measured
from fngrad.numerics.precision import is_narrow
from fngrad.programs.caller_warnings import warn
from fngrad.programs.fingerprints import digest, fingerprints, of_array
from fngrad.sharding.placement import fetched
from fngrad.training import TrainState
from fngrad.training.metric_folds import arrays_of
from fngrad.transforms.tunable_hyperparameters import hyperparameters
from fngrad.types import Path

TRAINS_ANEW = 'resume="overwrite" moves the old run aside and trains anew'
_FORMAT = 2  # counts up when the fingerprints of an unchanged run change
_SETTINGS = (  # of JAX, which programs depend on
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_disable_jit",
    "jax_threefry_partitionable",
    *("jax_remat3", "jax_scan3", "jax_custom_jvp3", "jax_custom_vjp3"),
)


def record(
    step: TracedStep, state: TrainState, measured: Measured | None, mesh: Any
) -> dict[str, Any]:
    """Return what a checkpoint records of a run's programs, in JSON's types.

    Args:
        step: traced, as the run uses it.
        state: the caller's.
        measured: the metrics and their data, if the run evaluates.
        mesh: of the run.

    Returns:
        The fingerprints, by what they are of, and the hyperparameters in the state.
        Where a program cannot be read, the error instead of fingerprints.
    """
    shape = None if mesh is None else {str(k): n for k, n in mesh.shape.items()}
    try:
        found = {
            "made_by": _made_by(),
            "mesh": shape,
            "step": _of_step(step),
            "evaluation": _of_evaluation(measured) if measured else None,
        }
    except Exception as error:  # a later JAX may trace what is unknown here
        found = {"made_by": None, "error": f"{type(error).__name__}: {error}"}
    return {**found, "hyperparameters": _values(state)}


def check(
    where: str,
    known: dict[str, Any] | None,
    wanted: dict[str, Any],
    state: TrainState,
    *,
    may_change: bool,
) -> None:
    """Warn if a run goes on with another loss, optimizer, metric or evaluation data.

    A warning also says so if they cannot be compared, as a program cannot be read.
    A hyperparameter that `tunable` keeps is part of the state, of which the
    checkpoint's is used; a warning says so if the caller gives another.

    Args:
        where: the folder, for the message.
        known: what the checkpoint records; None if it is of an earlier version.
        wanted: the caller's.
        state: that of the checkpoint.
        may_change: whether to warn; otherwise the change is refused.

    Raises:
        ValueError: if something changed that must not.
    """
    if known is None:
        return
    errors = [x.get("error", "") for x in (wanted, known) if x["made_by"] is None]
    if errors:
        warn(
            "cannot compare loss, optimizer and metrics with those of the run in "
            f'{where}, so that resume="must" refuses none: reading the programs raised '
            f"{errors[0]}"
        )
    changed = " and ".join(_changed(known, wanted))
    if changed and not may_change:
        raise ValueError(
            f'need the {changed} of the run in {where} for resume="must", got another; '
            f'resume="auto" continues with it, with a warning; {TRAINS_ANEW}'
        )
    if changed:
        warn(
            f"the run in {where} continues with another {changed} than before; "
            f'resume="must" would refuse it, {TRAINS_ANEW}'
        )
    now, before = _values(state), known["hyperparameters"]
    for path, value in wanted["hyperparameters"].items():
        if path in now and value not in (now[path], before.get(path, value)):
            kept, given = (from_json_number(x) for x in (now[path], value))
            warn(
                f"the run continues with the checkpoint's {path.rpartition('/')[2]}, "
                f"{kept:.6g}, not with {given:.6g} of the given state; in a callback "
                "fngrad.set_hyperparameters changes it"
            )


def _made_by() -> dict[str, Any]:
    settings = {name: getattr(jax.config, name, None) for name in _SETTINGS}
    return {
        "jax": jax.__version__,
        "numpy": np.__version__,
        "fngrad": _version("fngrad"),
        "fingerprints": _FORMAT,
        "backend": jax.default_backend(),
        **{name: None if x is None else str(x) for name, x in settings.items()},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None  # it runs from its source


def _of_step(step: TracedStep) -> dict[str, Any]:
    """Return the fingerprints of loss and optimizer, or of a step as a whole.

    The optimizer's is that of the new parameters and of its own new state, as functions
    of any gradient, and of where else the loss is evaluated.
    """
    closed = step.program.closed
    found = fingerprints(closed, step.inputs, cuts=_is_of_the_loss)
    results = [*zip(step.outputs, closed.out_avals, found.outputs, strict=False)]
    made = {path: x for path, aval, x in results if not tree.is_key(aval)}
    made |= {path: found.named[path][0] for path in made.keys() & found.named.keys()}
    first, *others = found.named.get("loss", [""])
    if not any(name.startswith("gradient/") for name in found.named):
        return {"step": digest(first, others, sorted(made.items()))}
    of_model = {path for path in made if path.startswith("state/model_state")}
    learned = sorted((path, made[path]) for path in made.keys() - of_model)
    return {
        "loss": digest(first, sorted((path, made[path]) for path in of_model)),
        "optimizer": digest(others, learned),
        "micro_batches": found.lengths.get("loss", 1),
        "is_narrow": any(
            is_narrow(aval.dtype)
            for path, aval, _ in results
            if path.startswith("state/params")
        ),
    }


def _is_of_the_loss(name: str) -> bool:
    kind = name.partition("/")[0]
    return kind in ("loss", "mean_loss", "gradient", "mean_gradient")


def _of_evaluation(measured: Measured) -> dict[str, Any]:
    program, data = measured.program.closed, measured.data
    inputs = [str(i) for i in range(len(program.in_avals))]
    names = sorted(measured.shapes)
    found = fingerprints(program, inputs).outputs
    return {
        "metric_fn": dict(zip(names, found, strict=True)),
        "data_shapes": digest([str(aval) for aval in program.in_avals]),
        "data": _of_data(data),
    }


def _of_data(data: Any) -> dict[str, str]:
    """Return the fingerprint of examples by their kind, in any order of reading.

    Only data of one kind have the same fingerprint where they are the same: the bytes
    of arrays are hashed as JAX reads them, those before a map are others than those
    after it, and a source is known by few examples or by its identity.
    """
    if isinstance(data, Source):
        kind = "source" if data.identity is None else "source with an identity"
        kind += " and maps" if data.order.maps else ""
        order = dataclasses.replace(data.order, key=jax.random.key(0), batch_size=1)
        order = dataclasses.replace(order, shuffle=False, remainder="wrap")

        def read(indices: np.ndarray) -> Any:
            return tree.map_with_path(_as_read, data.read(indices))

        return {kind: dataclasses.replace(data, order=order, read=read).fingerprint()}
    arrays = arrays_of(data)
    is_plain = not isinstance(arrays, Dataset)
    leaves = tree.leaf_paths(arrays if is_plain else arrays.arrays)
    found = [(path, of_array(_as_read(path, x))) for path, x in leaves.items()]
    return {"arrays" if is_plain else "dataset": digest(found)}


def _as_read(path: Path, x: Any) -> Any:
    """Return an array in the dtype in which JAX reads it."""
    x = x if tree.is_key(x) else array_inputs.array(path, x)
    if isinstance(x, jax.Array):
        is_whole = x.is_fully_addressable or x.is_fully_replicated
        return x if is_whole else fetched(x)
    return np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))


def _values(state: TrainState) -> dict[str, Any]:
    return {
        f"{path}/{name}": to_json(value)
        for path, name, value in hyperparameters(state)
        if not np.iscomplexobj(value)
    }


def _changed(known: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return the names of what differs, where it can be compared."""
    if known["made_by"] is None or known["made_by"] != wanted["made_by"]:
        return []
    is_same_mesh = known["mesh"] == wanted["mesh"]
    old, new = known["step"], wanted["step"]
    parts = _comparable_parts(old, new, is_same_mesh)
    changed = [name for name in parts if old.get(name) != new.get(name)]
    old, new = known["evaluation"], wanted["evaluation"]
    if old and new:
        is_same_program = is_same_mesh and old["data_shapes"] == new["data_shapes"]
        metrics = [(x, new["metric_fn"].get(n, x)) for n, x in old["metric_fn"].items()]
        if is_same_program and any(x != y for x, y in metrics):
            changed.append("metric_fn")
        if any(old["data"].get(k, x) != x for k, x in new["data"].items()):
            changed.append("eval_data")
    return changed


def _comparable_parts(
    old: dict[str, Any], new: dict[str, Any], is_same_mesh: bool
) -> list[str]:
    """Return what of two steps has the same fingerprint where it is the same."""
    parts = [name for name in ("loss", "optimizer") if name in old and name in new]
    counts = old.get("micro_batches", 1), new.get("micro_batches", 1)
    if not is_same_mesh:
        return [name for name in parts if name == "loss" and counts == (1, 1)]
    if counts[0] == counts[1]:
        return parts or ["step"]
    # Averages are wide: where parameters are narrow, other gradients are not.
    return [name for name in parts if name == "optimizer" and not new["is_narrow"]]
