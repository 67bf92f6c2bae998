r"""Initial scales and rates by width: the maximal update parametrization (muP).

Widths grow along the axes in which a model's parameters differ from those of a narrow
*base* model. Only those ratios count, so that the two are the same at the base's width.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

import fngrad.numerics as numerics
import fngrad.programs.text_tables as text_tables
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.types import Params, Path, Selector, Updates

# How a rule's steps depend on the size of gradients: in proportion, or not at all.
Rule: TypeAlias = Literal["sgd", "adam"]


class MuP(NamedTuple):
    """Initial scales and rates as functions; see `mup`."""

    # The first parameters of a model of any width -> the same with muP's scales.
    init: Callable[[Params], Params]
    # A rule, "sgd" or "adam" -> the part that stands after the optimizer in a chain.
    scale_by_width: Callable[[Rule], Transform]
    # Parameters of any width -> the table of all factors, one line per leaf.
    describe: Callable[[Params], str]


def mup(base: Params, *, outputs_first: Selector | None = None) -> MuP:
    r"""Make the best learning rate of a narrow model that of wide ones: muP.

    With $r_\text{in}$ and $r_\text{out}$, the numbers of a leaf's inputs and outputs
    over those in the base model, and $q = r_\text{out} / r_\text{in}$, its initial
    standard deviation is that of the base model's leaf, and its rate that of the
    optimizer, times

    | leaves | $r_\text{in}, r_\text{out}$ | initial | SGD | Adam |
    |---|---|---|---|---|
    | first weights, embeddings, biases, norms | $1, r$ | $1$ | $r$ | $1$ |
    | hidden weights | $r, r$ | $1/\sqrt r$ | $1$ | $1/r$ |
    | last weights (read-out) | $r, 1$ | $1/r$ | $1/r$ | $1/r$ |
    | any | | $\sqrt{\min(1, q) / r_\text{in}}$ | $q$ | $1/r_\text{in}$ |

    so that in every layer activations, and what a step changes of them, keep their size
    as the width grows. The ratios are read from shapes: axes of one length in both
    models have the ratio 1. Tune the rate, its schedule and the momentum on the base
    model, then train the wide one with them.

    ``init`` measures: it gives each leaf the root mean square of the base's leaf times
    the factor, whatever the initializers do with the width; of a leaf with n entries
    drawn at random that is known to $1 / \sqrt{2n}$. Leaves of the base's shape stay
    bit for bit, zeros stay zero. A last layer that starts at zero is a good choice:
    narrow and wide models then begin with the same outputs.

    ``scale_by_width("adam")`` is for rules whose steps do not depend on the size of
    gradients (`fngrad.adam`, `fngrad.lion`, `fngrad.sign_sgd`), ``"sgd"`` for those
    in proportion to them, with momentum too. In a `fngrad.partition` each group may
    have its own. A decoupled weight decay inside the optimizer is scaled along; for one
    that is not, put ``fngrad.add_decayed_weights(-rate)`` after it. Adam's eps must be
    far below the gradients, which shrink with the width.

    What shapes cannot tell is the model's part. Attention: let the number of heads
    grow, not their size, or divide its logits by the size, not by its root. Tied
    embeddings: multiply the logits by the base's width over the width, since the matrix
    is a first one, not a last one; ``logit_scale`` of `fngrad.models.decoder` does.

    Args:
        base: parameters of the narrow model, with the same paths. ``scale_by_width``
            and ``describe`` take ShapeDtypeStructs too.
        outputs_first: which leaves have the shape (outputs, inputs, ...), as linear and
            convolutional layers of torch and Equinox, see `fngrad.tree.select`; None
            means none. The others have (..., inputs, outputs), as fngrad's layers. All
            other axes, such as a convolution's window, must be the base's.

    Returns:
        The functions ``init``, ``scale_by_width`` and ``describe``.

    Raises:
        TypeError: if ``outputs_first`` is not a selector; at ``init``, if a leaf of the
            base is abstract.
        ValueError: if a glob selects no leaf; at ``init``, ``describe`` and the
            transform's ``init``, if a leaf is not in the base model, or differs from it
            along another axis; at ``init``, if a leaf of the base model is not there;
            at ``scale_by_width``, if the rule is unknown.

    Example:
        >>> import jax
        >>> import fngrad as fg
        >>> base, wide = (fg.models.mlp((4, w, w, 2)) for w in (8, 32))
        >>> mup = fg.mup(base.init(jax.random.key(0)))
        >>> params = mup.init(wide.init(jax.random.key(0)))
        >>> optimizer = fg.chain(fg.adam(1e-2), mup.scale_by_width("adam"))
        >>> print(mup.describe(params))
        leaf             shape     r_in  r_out  init  sgd   adam
        layers/0/bias    (32,)     1     4      1     4     1
        layers/0/weight  (4, 32)   1     4      1     4     1
        layers/1/bias    (32,)     1     4      1     4     1
        layers/1/weight  (32, 32)  4     4      0.5   1     0.25
        layers/2/bias    (2,)      1     1      1     1     1
        layers/2/weight  (32, 2)   4     1      0.25  0.25  0.25

    References:
        Yang et al. 2022, "Tensor programs V: tuning large neural networks via zero-shot
        hyperparameter transfer", table 3, https://arxiv.org/abs/2203.03466; Yang, Simon
        and Bernstein 2023, "A spectral condition for feature learning", condition 1,
        https://arxiv.org/abs/2310.17813, for the line of any two ratios. Differs from
        the package mup in: no multipliers in the model, and no shapes set on its
        parameters.
    """
    is_turned = _turned(outputs_first, base)
    shapes = {p: jnp.shape(x) for p, x in tree.leaf_paths(base).items()}
    sizes = {p: _size(x) for p, x in tree.leaf_paths(base).items() if tree.is_float(x)}

    def ratio(path: Path, leaf: Any) -> _Ratio:
        if path not in shapes:
            raise ValueError(
                f"need the leaves of the base model, got {path!r}, which it lacks"
            )
        return _ratio(path, jnp.shape(leaf), shapes[path], is_turned[path])

    def init(params: Params) -> Params:
        def scaled(path: Path, x: Any) -> Any:
            here = ratio(path, x)
            if here == _Ratio(1.0, 1.0) or not tree.is_float(x):
                return x
            return _with_size(path, x, sizes[path], here.of_init())

        if missing := sorted(shapes.keys() - tree.leaf_paths(params).keys()):
            raise ValueError(
                f"need the leaves of the base model, got none at {missing[0]!r}"
            )
        return tree.map_with_path(scaled, params)

    def scale_by_width(rule: Rule) -> Transform:
        numerics.check_choice("rule", rule, get_args(Rule))

        def check(params: Params) -> tuple[()]:
            tree.map_with_path(ratio, params)
            return ()

        def update(u: Updates, state: tuple, params: Params) -> tuple[Updates, tuple]:
            def scaled(path: Path, u: jax.Array, w: Any) -> jax.Array:
                return numerics.scaled(ratio(path, w).of_rate(rule), u)

            return tree.map_with_path(scaled, u, params), state

        return chain(Transform(check, update, "scale_by_width"))

    def describe(params: Params) -> str:
        rows = [["leaf", "shape", "r_in", "r_out", "init", *get_args(Rule)]]
        for path, leaf in tree.leaf_paths(params).items():
            here = ratio(path, leaf)
            rates = [here.of_rate(rule) for rule in get_args(Rule)]
            texts = map(text_tables.short_text, [*here, here.of_init(), *rates])
            rows.append([path, str(jnp.shape(leaf)), *texts])
        return text_tables.table(rows)

    return MuP(init, scale_by_width, describe)


class _Ratio(NamedTuple):
    """The numbers of inputs and outputs of a leaf over those in the base model."""

    of_inputs: float
    of_outputs: float

    def of_init(self) -> float:
        return math.sqrt(min(1.0, self.of_outputs / self.of_inputs) / self.of_inputs)

    def of_rate(self, rule: Rule) -> float:
        return (self.of_outputs if rule == "sgd" else 1.0) / self.of_inputs


def _turned(outputs_first: Selector | None, base: Params) -> dict[Path, bool]:
    if outputs_first is None:
        return dict.fromkeys(tree.leaf_paths(base), False)
    tree.check_mask(outputs_first, base)
    return tree.leaf_paths(tree.select(outputs_first, base))


def _ratio(
    path: Path, shape: tuple[int, ...], base: tuple[int, ...], is_turned: bool
) -> _Ratio:
    rank = len(base)
    of_in, of_out = (1, 0) if is_turned or rank < 2 else (rank - 2, rank - 1)
    same = [(i in (of_in, of_out)) or n == base[i] for i, n in enumerate(shape[:rank])]
    if len(shape) != rank or not all(same):
        raise ValueError(
            f"need a leaf that differs from the base's, {base}, along the axes of "
            f"inputs and outputs alone, got {shape} at {path!r}"
        )
    growth = [n / b if n and b else 1.0 for n, b in zip(shape, base, strict=True)]
    growth += [1.0] * (2 - rank)  # a vector has one input for each output
    return _Ratio(growth[of_in], growth[of_out])


def _size(x: Any) -> jax.Array | None:
    """Return the root mean square, None of an abstract array."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return None
    x = jnp.asarray(x)
    return tree.norm(x) / math.sqrt(max(x.size, 1))


def _with_size(
    path: Path, x: jax.Array, base: jax.Array | None, factor: float
) -> jax.Array:
    """Return x with the root mean square of the base's leaf times a factor."""
    size = _size(x)
    if base is None or size is None:
        raise TypeError(
            "need arrays, whose initial scale can be measured, got a ShapeDtypeStruct "
            f"at {path!r} of the base model or of the parameters"
        )
    change = numerics.divide(base.astype(size.dtype) * factor, size)
    return numerics.scaled(change, tree.widen(x)).astype(x.dtype)
