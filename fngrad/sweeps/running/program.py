"""Tracing and compiling the program that trains a block of lanes.

A *lane* is one training: a point and a key. A *block* is the lanes that one call of
the compiled program trains, ``width`` of them on each device. Only the width affects
the arithmetic of a lane: another width may round differently, another chunk length or
number of devices does not.
"""

import contextlib
import functools
import hashlib
import io
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fngrad.tree as tree
from fngrad.logging.compilations import watched_values
from fngrad.programs.caller_warnings import warn
from fngrad.programs.equations import inner_jaxprs, outside_effects
from fngrad.sharding.meshes import context_of, no_context, off_explicit_axes
from fngrad.sharding.placement import is_on
from fngrad.sweeps.results.result import check_pair
from fngrad.sweeps.running.peers import Peers
from fngrad.tree import is_key
from fngrad.types import Key

TrainFn = Callable[..., tuple[Any, dict[str, jax.Array]]]

# On a CPU XLA uses LLVM's optimization level 3, which compiles batched random bits five
# times slower than level 2: 7.7 s instead of 2.8 for a small perceptron's training,
# with the same speed and bits at run time.
BATCHED_OPTIONS: Any = {"xla_backend_optimization_level": 2}


class Outline(NamedTuple):
    """What tracing reveals about a training."""

    outputs: Any  # (state, history), the shapes and dtypes of one lane
    fingerprint: str  # 16 hex digits: hash of the program text and its constants
    jaxpr: Any  # the program of one lane, of the leaves of (point, key, args)


class Lanes(NamedTuple):
    """The inputs of a sweep's lanes: their own and shared ones."""

    train_fn: TrainFn  # (point, key, args) -> (state, history)
    points: Any  # NumPy leaves (P, ...)
    keys: Key  # (S,)
    args: tuple[Any, ...]
    devices: Sequence[Any]  # of this process
    peers: Peers = Peers()

    @property
    def count(self) -> int:
        """The number of lanes, P S."""
        return len(jax.tree.leaves(self.points)[0]) * len(self.keys)

    @property
    def share(self) -> int:
        """The lanes of each device of all processes, rounded up."""
        return -(-self.count // (len(self.devices) * self.peers.count))

    def take(self) -> Callable[[np.ndarray], Any]:
        """Return a function of lanes: their points and key data, on the host."""
        points = jax.tree.map(canonical, self.points)
        key_data, seeds = np.asarray(jax.random.key_data(self.keys)), len(self.keys)

        def take(numbers: np.ndarray) -> Any:
            point = jax.tree.map(lambda x: x[numbers // seeds], points)
            return point, key_data[numbers % seeds]  # seeds vary fastest

        return take


class Block(NamedTuple):
    """A compiled program for blocks of one width."""

    run: Callable[[np.ndarray], Any]  # lanes, (width * devices,) -> outputs, (w, ...)
    width: int  # lanes on each device
    lanes: int  # in all
    compile_seconds: float
    bytes: int  # on each device, without the shared args
    call: Callable[[Any, Any], Any]  # points and key data -> outputs

    def of(self, lanes: Lanes) -> "Block":
        """Return the same program for lanes with other points."""
        take = lanes.take()
        return self._replace(run=lambda numbers: self.call(*take(numbers)))


def outline(lanes: Lanes, metric: str) -> Outline:
    """Trace one lane twice and check its outputs.

    Raises:
        ValueError: if train_fn is not pure, or does not record the metric as a real
            curve or scalar.
        TypeError: if train_fn does not return (state, history), or its structure
            depends on the point.
    """
    first, second = (_trace(lanes) for _ in range(2))
    names = outside_effects(first.jaxpr)
    if names:
        raise ValueError(
            f"need a pure train_fn, got one with the effects {names}: leave out "
            "jax.debug.print and callbacks, and return values in the history"
        )
    fingerprint = _fingerprint(first.jaxpr)
    if _fingerprint(second.jaxpr) != fingerprint:
        raise ValueError(
            "need a pure train_fn, got one that gave two programs when it was traced "
            "twice: it reads a global, a clock or a random state that changes. Pass "
            "what varies in points, static or args, and draw random numbers with the "
            "key"
        )
    outputs = first.out_info
    _check_outputs(outputs, metric)
    return Outline(outputs, fingerprint, first.jaxpr)


def compile_block(lanes: Lanes, width: int) -> Block:
    """Compile the program of blocks of a width."""
    begin, devices = time.perf_counter(), lanes.devices
    count, mesh = width * len(devices), _lane_mesh(devices)
    args = off_explicit_axes(mesh, lanes.args)
    args = jax.device_put(args, NamedSharding(mesh, PartitionSpec()))
    implementation, take = jax.random.key_impl(lanes.keys), lanes.take()

    def block(points: Any, key_data: jax.Array, args: Any) -> Any:
        keys = jax.random.wrap_key_data(key_data, impl=implementation)
        if width == 1:
            point, key = jax.tree.map(lambda x: x[0], (points, keys))
            outputs = lanes.train_fn(point, key, *args)
            return jax.tree.map(lambda x: x[None], outputs)
        train = jax.vmap(lambda point, key: lanes.train_fn(point, key, *args))
        return train(points, keys)

    sharded = jax.shard_map(
        block,
        mesh=mesh,
        in_specs=(PartitionSpec("lanes"), PartitionSpec("lanes"), PartitionSpec()),
        out_specs=PartitionSpec("lanes"),
        check_vma=False,
    )
    program = jax.jit(sharded)
    nans, infs = watched_values()
    with jax.disable_jit(False), context_of(mesh):
        lowered = program.lower(*take(np.zeros(count, int)), args)
    is_batched_on_cpu = width > 1 and devices[0].platform == "cpu"
    compiled = lowered.compile(BATCHED_OPTIONS if is_batched_on_cpu else None)
    seconds = time.perf_counter() - begin

    def call(points: Any, key_data: Any) -> Any:
        # A program compiled ahead of time cannot locate a NaN.
        run = program if nans or infs else compiled
        watch = jax.debug_nans(nans), jax.debug_infs(infs)
        with watch[0], watch[1], jax.disable_jit(False), context_of(mesh):
            return run(points, key_data, args)

    made = (width, count, seconds, _bytes(compiled), call)
    return Block(lambda numbers: call(*take(numbers)), *made)


def to_host(outputs: Any) -> list[np.ndarray]:
    """Return the leaves as NumPy arrays, keys as their data; block until ready."""
    return [
        np.asarray(jax.random.key_data(x) if is_key(x) else x)
        for x in jax.tree.leaves(outputs)
    ]


def _trace(lanes: Lanes) -> Any:
    point = jax.tree.map(lambda x: canonical(x)[0], lanes.points)

    def train(point: Any, key: Key, args: Any) -> Any:
        return lanes.train_fn(point, key, *args)

    mesh = _lane_mesh(lanes.devices)
    keys, args = off_explicit_axes(mesh, (lanes.keys, lanes.args))
    keys, args = jax.tree.map(functools.partial(_off, mesh), (keys, args))
    with _watched(), jax.disable_jit(False), no_context():
        key = jax.eval_shape(lambda keys: keys[0], keys)  # no key is used
        return jax.jit(train).trace(point, key, args)


def _off(mesh: Mesh, x: Any) -> Any:
    """Return the shape of an array on a mesh, which a lane does not see."""
    if not is_on(mesh, x):
        return x
    aval = jax.typeof(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=aval.weak_type)


def _lane_mesh(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), ("lanes",))


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Explain errors of tracing, and warn if train_fn prints."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except jax.errors.KeyReuseError:
        raise
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        TypeError,
    ) as error:
        is_tracer = any(
            isinstance(e, jax.errors.JAXTypeError) for e in (error, error.__cause__)
        )
        if not is_tracer and "concrete" not in str(error):
            raise
        raise TypeError(
            "need a train_fn whose structure does not depend on the point: a value "
            "that decides a branch, a shape or a length belongs in "
            "static={name: [values]}"
        ) from error
    finally:
        if printed.getvalue():
            sys.stdout.write(printed.getvalue())
            warn(
                "train_fn prints while it is traced: once per program, not once per "
                "training. Return values in the history instead"
            )


def _fingerprint(jaxpr: Any) -> str:
    text = re.sub(r" at 0x[0-9a-f]+", "", str(jaxpr))
    digest = hashlib.blake2b(text.encode(), digest_size=8)
    for constant in _constants(jaxpr):
        (host,) = to_host(constant) if hasattr(constant, "dtype") else (constant,)
        digest.update(np.asarray(host).tobytes())
    return digest.hexdigest()


def _constants(jaxpr: Any) -> Iterator[Any]:
    """Yield the constants, nested ones too, which the program text does not show."""
    yield from getattr(jaxpr, "consts", ())
    for equation in jaxpr.eqns:
        for inner in inner_jaxprs(equation):
            yield from _constants(inner)


def _check_outputs(outputs: Any, metric: str) -> None:
    _, history = check_pair(outputs, "train_fn(point, key, ...)")
    for path, leaf in tree.leaf_paths(history).items():
        if path not in history or is_key(leaf):
            raise TypeError(f"need a history of arrays by name, got {path!r} in it")
    if metric not in history:
        raise ValueError(
            f"need the metric among {sorted(history)}, got {metric!r}: "
            'metric=("loss", "min") names another'
        )
    if jnp.issubdtype(history[metric].dtype, np.complexfloating):
        raise ValueError(f"need a real metric, got a complex one, {metric!r}")
    if history[metric].ndim > 1:
        raise ValueError(
            "need a metric with one value or one curve per lane, got shape "
            f"{history[metric].shape} of {metric!r}"
        )


def canonical(column: np.ndarray) -> np.ndarray:
    """Return a column in the dtype that it has in the program."""
    return column.astype(jax.dtypes.canonicalize_dtype(column.dtype))


def _bytes(compiled: Any) -> int:
    """Return the bytes of a block on each device; 0 if the backend reports none."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    return memory.temp_size_in_bytes + memory.output_size_in_bytes
