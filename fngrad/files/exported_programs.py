"""Programs in files: what a model computes, for processes without its code.

`jax.export` lowers a function to StableHLO for several platforms at once. Its file is
sealed here with a checksum after the end of the program, which
``jax.export.deserialize`` does not read: it takes the file as it is.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

import fngrad.tree as tree
from fngrad.files.atomic_writes import write_atomically
from fngrad.files.local_paths import check_local
from fngrad.layers.core import Layer, StatefulLayer
from fngrad.programs.optional_imports import import_extra
from fngrad.types import Params
from fngrad.types import Path as LeafPath

_SEAL = b"fngrad program 1"  # before the SHA-256 of all that precedes it
_SEALED = len(_SEAL) + hashlib.sha256().digest_size
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    fn: Callable[[Params, Any], Any],
    params: Params,
    example: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    platforms: str | Sequence[str] = ("cpu", "cuda", "tpu"),
    any_batch_size: bool = True,
    keep_params: bool = False,
) -> jax_export.Exported:
    """Return ``fn(params, x)`` as a program, and write it to a file.

    Another process runs the file without the code that made it, on any of the
    platforms, with fngrad (`load_exported`) or with JAX alone::

        program = jax.export.deserialize(bytearray(Path("model.bin").read_bytes()))
        y = jax.jit(program.call)(x)

    JAX keeps such a file readable for six months of its releases.

    Args:
        fn: takes the parameters and a batch, such as
            ``fngrad.layers.batched(model)``. Callbacks cannot be exported.
        params: of the model. They become constants of the program.
        example: a batch: arrays or ShapeDtypeStructs in dicts, lists and tuples. Only
            shapes and dtypes are read.
        path: of the file; folders are made if needed. ``None`` writes none.
        platforms: on which the program can run: of "cpu", "cuda", "rocm" and "tpu".
            They need not be here.
        any_batch_size: whether the program takes batches of every size >= 1; if not,
            only that of the example. The first axis of every array counts examples.
        keep_params: whether the parameters stay an argument: ``program.call(by_path,
            x)``, with the dict of their leaves by path, which
            `fngrad.checkpoint.load_safetensors` reads. Then they may be abstract here.

    Returns:
        The program; ``.call(x)`` runs it, also inside of `jax.jit`, and checks shapes
        and dtypes.

    Raises:
        TypeError: if ``fn`` is a layer or not callable, a leaf is not an array, or the
            path is not a path.
        ValueError: if a platform is unknown; if batches may have any size and an array
            of the example has no axis, or the first axes differ; if parameters are
            abstract that become constants; if example or result have nodes of types
            that only this process knows, and there is a path; if the path is a URL.
        OSError: if the file cannot be written.
        ImportError: if there is a path, and flatbuffers is missing.

    Example:
        >>> import tempfile
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> model = fg.models.mlp((4, 8, 2))
        >>> params = model.init(jax.random.key(0))
        >>> predict = fg.layers.batched(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = fg.export(predict, params, jnp.ones((1, 4)), f"{folder}/mlp.bin")
        ...     program = fg.load_exported(f"{folder}/mlp.bin")
        >>> program.call(jnp.ones((7, 4))).shape
        (7, 2)
    """
    _check_function(fn)
    names = _checked_platforms(platforms)
    by_path = tree.leaf_paths(params)
    inputs = _inputs(example, any_batch_size)
    if keep_params:
        program, first = _with_params(fn, params), (_abstract(by_path),)
    else:
        program, first = _with_constants(fn, params, by_path), ()
    try:
        made = jax_export.export(jax.jit(program), platforms=names)(*first, inputs)
    except Exception as error:
        if any_batch_size:
            error.add_note("any_batch_size=False exports the shapes of the example")
        raise
    if path is not None:
        _write(made, path)
    return made


def load_exported(path: str | os.PathLike[str]) -> jax_export.Exported:
    """Read a program that `export` wrote.

    Args:
        path: of the file.

    Returns:
        The program; ``.call(x)`` runs it, as ``.call(by_path, x)`` does one whose
        parameters stayed an argument. ``.in_avals`` and ``.platforms`` tell what it
        takes and where it runs.

    Raises:
        ValueError: if the file is damaged, cut off, or something else; or the path is a
            URL.
        TypeError: if the path is not a path.
        OSError: if the file cannot be read.
        ImportError: if flatbuffers is missing.
    """
    check_local("path", path)
    import_extra("flatbuffers", "files")
    content = Path(path).read_bytes()
    program, seal = content[:-_SEALED], content[-_SEALED:]
    if seal != _seal(program):
        raise ValueError(
            f"need a whole file of fngrad.export, got {str(path)!r}, which is damaged, "
            "cut off or of another kind; jax.export.deserialize reads JAX's own files"
        )
    return jax_export.deserialize(bytearray(program))


def _seal(program: bytes | bytearray) -> bytes:
    return _SEAL + hashlib.sha256(program).digest()


def _write(made: jax_export.Exported, path: str | os.PathLike[str]) -> None:
    check_local("path", path)
    import_extra("flatbuffers", "files")
    try:
        program = bytes(made.serialize())
    except ValueError as error:
        raise ValueError(
            "need an example and a result of arrays in dicts, lists and tuples, which "
            f"another process knows, got others: {error}"
        ) from error
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), program + _seal(program))


def _with_params(fn: Callable[..., Any], params: Params) -> Callable[..., Any]:
    like = _abstract(params)

    def program(by_path: dict[LeafPath, jax.Array], x: Any) -> Any:
        return fn(tree.from_leaf_paths(like, by_path), x)

    return program


def _with_constants(
    fn: Callable[..., Any], params: Params, by_path: dict[LeafPath, Any]
) -> Callable[..., Any]:
    for path, leaf in by_path.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                f"need arrays that become constants, got an abstract leaf at {path!r}; "
                "keep_params=True leaves the parameters an argument"
            )
    _abstract(by_path)
    # On the host, so that the program is not tied to the devices of the parameters.
    fixed = jax.tree.map(lambda x: x if tree.is_key(x) else np.asarray(x), params)

    def program(x: Any) -> Any:
        return fn(jax.tree.map(jax.numpy.asarray, fixed), x)

    return program


def _check_function(fn: Any) -> None:
    if isinstance(fn, Layer | StatefulLayer):
        way = "fngrad.layers.batched(model)"
        if isinstance(fn, StatefulLayer):
            way = f"lambda params, x: {way}(params, model_state, x)[0]"
        raise TypeError(f"need a function of (params, batch), got a layer; give {way}")
    if not callable(fn):
        raise TypeError(f"need a function of (params, batch), got {type(fn).__name__}")


def _checked_platforms(platforms: str | Sequence[str]) -> tuple[str, ...]:
    names = (platforms,) if isinstance(platforms, str) else tuple(platforms)
    if not names or not set(names) <= set(_PLATFORMS):
        raise ValueError(f"need platforms of {_PLATFORMS}, got {names}")
    return names


def _abstract(a: Any) -> Any:
    def abstract(path: LeafPath, x: Any) -> jax.ShapeDtypeStruct:
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise TypeError(f"need arrays, got {type(x).__name__} at {path!r}")
        dtype = x.dtype if tree.is_key(x) else jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct(x.shape, dtype)

    return tree.map_with_path(abstract, a)


def _inputs(example: Any, any_batch_size: bool) -> Any:
    """Return the example's shapes and dtypes, with a free first axis if wanted."""
    fixed = _abstract(example)
    if not any_batch_size:
        return fixed
    sizes = {}
    for path, x in tree.leaf_paths(fixed).items():
        if not x.shape:
            raise ValueError(
                f"need arrays whose first axis counts examples, got shape () at "
                f"{path!r}; any_batch_size=False exports the shapes of the example"
            )
        sizes[path] = x.shape[0]
    if len(set(sizes.values())) > 1:
        raise ValueError(f"need arrays of one batch size, got {sizes}")
    (batch,) = jax_export.symbolic_shape("batch")
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), fixed
    )
