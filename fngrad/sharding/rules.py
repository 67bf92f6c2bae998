"""Rules: over which axes of a mesh each leaf is split.

A rule is a function ``(path, leaf, mesh) -> PartitionSpec`` of a parameter, which the
optimizer's state follows (`fngrad.sharding.placement`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

import fngrad.tree as tree
from fngrad.programs.signatures import name_of, takes
from fngrad.sharding.meshes import BATCH_AXIS, AnyMesh, auto_mesh_of
from fngrad.types import Params, Path, Selector

Rule: TypeAlias = Callable[[Path, Any, AnyMesh], PartitionSpec]
_Fn = TypeVar("_Fn", bound=Callable[..., Any])
_MADE_WITH = "_fngrad_made_with"


def replicated(path: Path, leaf: Any, mesh: AnyMesh) -> PartitionSpec:
    """Every device holds the whole leaf: data parallelism."""
    return PartitionSpec()


class MadeWith(NamedTuple):
    """What is known of a step or loss that fngrad made."""

    rule: Rule | None  # by which it gathers parameters, and a step places them


def with_rule(fn: _Fn, rule: Rule | None) -> _Fn:
    """Return a step or loss that keeps the rule that it was made with."""
    setattr(fn, _MADE_WITH, MadeWith(rule))
    return fn


def made_with(fn: Any) -> MadeWith | None:
    """Return what is known of a step or loss; None of one that fngrad did not make.

    It is found through `functools.partial` and `functools.wraps`, too.
    """
    while fn is not None:
        found = getattr(fn, _MADE_WITH, None)
        if isinstance(found, MadeWith):
            return found
        is_partial = isinstance(fn, functools.partial)
        fn = fn.func if is_partial else getattr(fn, "__wrapped__", None)
    return None


def rule_of_function(fn: Any) -> Rule | None:
    """Return the rule that a step or loss was made with, or None."""
    found = made_with(fn)
    return found.rule if found else None


def fsdp(
    axis: str = BATCH_AXIS, min_size: int = 2**12, *, within: Rule = replicated
) -> Rule:
    """Split each leaf over the devices that share the batch: fully sharded data.

    A leaf is split along the largest of its axes whose size the number of devices
    divides, the last of these if several are as large.

    Args:
        axis: of the mesh.
        min_size: leaves with fewer entries are not split, since to gather them costs
            more than they take.
        within: a rule for other axes of the mesh; what it splits is split further,
            along another axis of the leaf.

    Raises:
        TypeError: if ``within`` is not a rule.
        ValueError: when the rule is applied, if the mesh does not have the axis.

    Example:
        >>> import numpy as np
        >>> import fngrad as fg
        >>> rule = fg.sharding.fsdp(min_size=8)
        >>> mesh = fg.sharding.abstract_mesh(data=4)
        >>> tuple(rule("weight", np.zeros((3, 8)), mesh))
        (None, 'data')

    References:
        Zhao et al., PyTorch FSDP, 2023, https://arxiv.org/abs/2304.11277. Rajbhandari
        et al., ZeRO, 2020, stage 3, https://arxiv.org/abs/1910.02054.
    """

    check_rule(within)
    return _FullyShardedData(axis, min_size, within)


class _FullyShardedData(NamedTuple):
    axis: str
    min_size: int
    within: Rule

    def __call__(self, path: Path, leaf: Any, mesh: AnyMesh) -> PartitionSpec:
        if self.axis not in mesh.shape:
            raise ValueError(
                f"need a mesh with the axis {self.axis!r}, got {tuple(mesh.axis_names)}"
            )
        count, shape = mesh.shape[self.axis], np.shape(leaf)
        spec = _spec(self.within, path, leaf, mesh)
        if math.prod(shape) < self.min_size or misfit(spec, shape, mesh):
            return spec
        if any(self.axis in axes_of(entry) for entry in spec):
            return spec
        entries = [*spec, *[None] * (len(shape) - len(spec))]
        fits = [
            i
            for i, (size, entry) in enumerate(zip(shape, entries, strict=True))
            if entry is None and size and size % count == 0
        ]
        if not fits:
            return spec
        entries[max(fits, key=lambda i: (shape[i], i))] = self.axis
        return PartitionSpec(*entries)


def by_path(
    entries: Sequence[tuple[Selector, PartitionSpec]], otherwise: Rule = replicated
) -> Rule:
    """Split each leaf as the first entry that selects it says: tensor parallelism.

    Args:
        entries: pairs of a glob over paths, or a predicate ``(path, leaf) -> bool``,
            and a spec.
        otherwise: the rule for the other leaves.

    Raises:
        TypeError: if an entry is not a pair of a glob or predicate and a spec, or
            ``otherwise`` is not a rule.
        ValueError: from `shardings`, if a glob selects neither a parameter, by its own
            path, nor a leaf of the state, such as ``opt_state/**``.

    Example:
        >>> import numpy as np
        >>> import fngrad as fg
        >>> from jax.sharding import PartitionSpec as P
        >>> rule = fg.sharding.by_path([("**/expand/weight", P(None, "model"))])
        >>> mesh = fg.sharding.abstract_mesh(model=4)
        >>> tuple(rule("mlp/expand/weight", np.zeros((2, 8)), mesh))
        (None, 'model')
    """
    check_rule(otherwise)
    if isinstance(entries, Mapping):
        raise TypeError(
            "need pairs (glob, PartitionSpec), the first of which decides, got a "
            f"{type(entries).__name__}: pass [*entries.items()]"
        )
    return _ByPath(tuple(_entry(entry) for entry in entries), otherwise)


class _ByPath(NamedTuple):
    entries: tuple[tuple[Selector, PartitionSpec], ...]
    otherwise: Rule

    def __call__(self, path: Path, leaf: Any, mesh: AnyMesh) -> PartitionSpec:
        for selector, spec in self.entries:
            if tree.selector_predicate(selector)(path, leaf):
                return spec
        return _spec(self.otherwise, path, leaf, mesh)


def _entry(entry: Any) -> tuple[Selector, PartitionSpec]:
    is_pair = isinstance(entry, tuple) and len(entry) == 2
    if not is_pair or not isinstance(entry[1], PartitionSpec):
        raise TypeError(f"need pairs (glob, PartitionSpec), got {entry!r}")
    tree.selector_predicate(entry[0])  # raises unless it is a selector
    return entry


def check_globs(rule: Any, params: Params, state: Any) -> None:
    """Raise if a glob of a rule, or of a rule among its fields, selects no leaf.

    Args:
        rule: its globs see the paths of parameters and those of the whole state.
        params: the parameters.
        state: the state that has them.

    Raises:
        ValueError: if there is one.
    """
    if isinstance(rule, _ByPath):
        for selector, _ in rule.entries:
            if not any(jax.tree.leaves(tree.selected(selector, state))):
                tree.check_mask(selector, params)
    if isinstance(rule, tuple):
        for field in filter(callable, rule):
            check_globs(field, params, state)


def check_rule(rule: Any) -> None:
    """Raise unless a rule is a function of a path, a leaf and a mesh.

    Raises:
        TypeError: if it is anything else, such as ``fsdp`` without parentheses.
    """
    if not (callable(rule) and takes(rule, 3)):
        got = name_of(rule) if callable(rule) else repr(rule)
        raise TypeError(
            "need a rule (path, leaf, mesh) -> PartitionSpec, such as what "
            f"fngrad.sharding.fsdp() returns, got {got}"
        )


def checked_spec(rule: Rule, path: Path, leaf: Any, mesh: AnyMesh) -> PartitionSpec:
    """Return the spec of a leaf by a rule.

    Raises:
        TypeError: if the rule returns something else.
        ValueError: if the spec does not fit the leaf or the mesh; the path is named.
    """
    spec = _spec(rule, path, leaf, mesh)
    problem = misfit(spec, np.shape(leaf), mesh)
    if problem:
        raise ValueError(f"need a spec that fits {path!r}, got {spec}: {problem}")
    return spec


def fitting_spec(rule: Rule, path: Path, leaf: Any, mesh: AnyMesh) -> PartitionSpec:
    """Return the spec of a leaf by a rule; that of a whole leaf if it does not fit.

    Raises:
        TypeError: if the rule returns something else.
    """
    spec = _spec(rule, path, leaf, mesh)
    return PartitionSpec() if misfit(spec, np.shape(leaf), mesh) else spec


def _spec(rule: Rule, path: Path, leaf: Any, mesh: AnyMesh) -> PartitionSpec:
    spec = rule(path, leaf, mesh)
    if not isinstance(spec, PartitionSpec):
        raise TypeError(f"need a PartitionSpec from a rule, got {spec!r} for {path!r}")
    return spec


def misfit(spec: PartitionSpec, shape: tuple[int, ...], mesh: AnyMesh) -> str | None:
    """Return why an array cannot be split so, or None if it can."""
    if len(spec) > len(shape):
        return f"the leaf has {len(shape)} axes"
    if any(entry is PartitionSpec.UNCONSTRAINED for entry in spec):
        return "a leaf that is kept has no unconstrained axis"
    used = [name for entry in spec for name in axes_of(entry)]
    if len(used) != len(set(used)):
        return "an axis of the mesh splits two axes"
    for size, entry in zip(shape, spec, strict=False):
        names = axes_of(entry)
        unknown = [name for name in names if name not in mesh.shape]
        if unknown:
            return f"the mesh has the axes {tuple(mesh.axis_names)}"
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            return f"{parts} devices do not divide an axis of shape {shape}"
    return None


def axes_of(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes that an entry of a spec names."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


@dataclasses.dataclass(frozen=True)
class PlacedSo:
    """The rule that splits parameters as they are split already; the rest is whole."""

    specs: tuple[tuple[Path, PartitionSpec], ...]

    @functools.cached_property
    def _by_path(self) -> dict[Path, PartitionSpec]:
        return dict(self.specs)

    def __call__(self, path: Path, leaf: Any, mesh: AnyMesh) -> PartitionSpec:
        return self._by_path.get(path, PartitionSpec())


def rule_of(params: Params) -> PlacedSo | None:
    """Return the rule by which parameters are placed.

    None if not all are on a mesh, or along Explicit axes, where JAX places all.
    """
    found = {path: _sharding_of(x) for path, x in tree.leaf_paths(params).items()}
    is_placed = all(isinstance(x, NamedSharding) for x in found.values())
    if not is_placed or auto_mesh_of(params) is None:
        return None
    return PlacedSo(tuple((path, x.spec) for path, x in found.items()))


def _sharding_of(x: Any) -> Any:
    return None if isinstance(x, Tracer) else getattr(x, "sharding", None)
