r"""In which dtype, and how precisely, a loss or a metric computes.

With parameters in float32 and a loss in 16 bits, training is in *mixed precision*: the
gradient, the optimizer's state and the metrics stay in float32, so the parameters are
what others call master weights.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import fngrad.tree as tree
from fngrad.numerics.precision import is_narrow
from fngrad.programs.signatures import (
    OF_A_LOSS,
    OF_A_LOSS_OR_METRIC,
    operands,
    parameters,
)
from fngrad.types import ModelState, Selector


class Policy(NamedTuple):
    """The dtype in which a function computes, and the precision of its products.

    Example:
        >>> import fngrad as fg
        >>> policy = fg.Policy("bfloat16", wide="batch/y")  # targets keep their digits
        >>> full = fg.Policy(matmul_precision="highest")  # no TF32, no bfloat16
    """

    # A float dtype of at least 16 bits, such as "bfloat16"; None keeps every dtype.
    compute: Any = None
    # Which leaves of {"params": params, "batch": batch} keep their dtype; None: none.
    wide: Selector | None = None
    # Of products on a GPU or TPU, as in jax.default_matmul_precision: "highest" is
    # float32, "default" TF32 or bfloat16; None leaves it to JAX's configuration.
    matmul_precision: str | None = None


Precision: TypeAlias = Policy | str | Any | None  # a dtype, or its name, or a policy


def mixed_precision(fn: Callable[..., Any], precision: Precision) -> Callable[..., Any]:
    r"""Return a loss or a metric function that computes in another precision.

    With $c$ the cast to the policy's dtype,

    $$L_c(\theta, b) = L(c(\theta), c(b)), \qquad
      \nabla L_c(\theta) = c^\top\, \nabla L(c(\theta), c(b)),$$

    and $c^\top$, the cast back, gives the gradient the dtypes of $\theta$. Real float
    arrays among the parameters and in the batch are cast, except those that ``wide``
    selects; the model state, keys, integers, bools and complex arrays are passed on as
    they are. Results narrower than float32 are cast to float32, and the new model state
    to the dtypes of the old.

    It is for every step that evaluates a loss, for `fngrad.evaluate`, and for the
    ``metric_fn`` of `fngrad.fit` and `fngrad.run`; ``make_step(precision=)`` and
    ``evaluate(precision=)`` call it.

    Targets lose digits too: 1001 is 1000 in bfloat16. ``wide="batch/y"`` keeps them. In
    `fngrad.layers` a wide scale, bias or position leaves the products narrow; a product
    with a wide weight is wide. In float16 gradients below 3e-8 become zero; see
    `fngrad.loss_scaling`. Parameters may have 16 bits too, with an optimizer that ends
    in `fngrad.stochastic_round`.

    Args:
        fn: takes the parameters and the batch, and by name ``key`` and
            ``model_state``; it returns arrays in any tree.
        precision: a float dtype such as ``"bfloat16"``, a `Policy`, or None, which
            changes nothing.

    Returns:
        A function with the arguments of ``fn``.

    Raises:
        TypeError: if the precision is none of these, its dtype is not a float dtype of
            at least 16 bits, ``wide`` is not a selector, or ``fn`` takes other
            arguments.
        ValueError: if the dtype needs x64, or JAX does not know the precision of
            products; while tracing, if ``wide`` is a glob that selects no leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> def loss_fn(w, batch):
        ...     return jnp.sum(w * batch)
        >>> in_bfloat16 = fg.mixed_precision(loss_fn, "bfloat16")
        >>> step = fg.steps.sam(in_bfloat16, fg.sgd(0.1))
        >>> print(in_bfloat16(jnp.array([1.001]), jnp.array([2.0])))
        2.0

    References:
        Micikevicius et al., Mixed precision training, 2018, section 3,
        https://arxiv.org/abs/1710.03740.
    """
    policy = policy_of(precision)
    if policy.compute is None and policy.matmul_precision is None:
        return fn
    params, batch = operands(fn, OF_A_LOSS, OF_A_LOSS_OR_METRIC)
    signature = inspect.Signature(list(parameters(fn).values()))

    @functools.wraps(fn, updated=())
    def computed(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        cast = _cast(policy, {"params": given[params], "batch": given[batch]})
        given |= {params: cast["params"], batch: cast["batch"]}
        with _products(policy.matmul_precision):
            out = fn(*bound.args, **bound.kwargs)
        return _widened(out, given.get("model_state"))

    computed.__signature__ = signature  # type: ignore[attr-defined]
    return computed


def policy_of(precision: Precision) -> Policy:
    """Return a precision as a policy, with NumPy's dtype and hashable leaves.

    Raises:
        TypeError: as `mixed_precision`.
        ValueError: as `mixed_precision`.
    """
    policy = precision if isinstance(precision, Policy) else Policy(precision)
    _products(policy.matmul_precision)
    if policy.wide is not None:
        tree.selector_predicate(policy.wide)
        wide = jax.tree.map(lambda x: bool(x) if _is_array(x) else x, policy.wide)
        policy = policy._replace(wide=wide)
    if policy.compute is not None:
        policy = policy._replace(compute=_float_dtype(policy.compute))
    return policy


def _float_dtype(compute: Any) -> np.dtype:
    dtype = None
    with contextlib.suppress(TypeError):
        dtype = jnp.dtype(compute)
    is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if dtype is None or not is_float or jnp.finfo(dtype).bits < 16:
        raise TypeError(
            "need precision to be None, a fngrad.Policy, or a float dtype of at least "
            f'16 bits, such as "bfloat16" or "float16", got {compute!r}'
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"need x64 for precision {dtype}, which is not enabled: "
            'jax.config.update("jax_enable_x64", True)'
        )
    return dtype


def _products(precision: str | None) -> Any:
    """Return a context in which products are traced with a precision.

    Raises:
        ValueError: if JAX does not know it.
    """
    if precision is None:
        return contextlib.nullcontext()
    try:
        return jax.default_matmul_precision(precision)
    except ValueError as error:
        raise ValueError(
            "need a matmul_precision of jax.default_matmul_precision, such as "
            f'"highest", "tensorfloat32" or "default", got {precision!r}'
        ) from error


def _cast(policy: Policy, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs in the policy's dtype; integers, bools, keys and complex stay."""
    if policy.compute is None:
        return inputs
    if policy.wide is None:
        return tree.cast_real(inputs, policy.compute)
    try:
        tree.check_mask(policy.wide, inputs)
    except ValueError as error:
        raise ValueError(
            f"{error}; wide selects leaves of parameters and batch, as "
            '"params/**/norm/**", "batch/y" and {"params": mask, "batch": False} do'
        ) from error
    return jax.tree.map(
        lambda x, is_wide: x if is_wide else tree.cast_real(x, policy.compute),
        inputs,
        tree.select(policy.wide, inputs),
    )


def _widened(out: Any, model_state: ModelState | None) -> Any:
    """Return results in at least float32, a new model state in the dtypes of the old.

    Args:
        out: of a loss or a metric function, in any form.
        model_state: the old one; None for a function without one.
    """
    has_state = model_state is not None and _is_pair(out) and _is_pair(out[1])
    if not has_state:
        return jax.tree.map(_wide, out)
    value, (metrics, new) = out
    if tree.mismatch(model_state, new, dtypes=False) is None:
        new = jax.tree.map(
            lambda x, old: tree.cast_real(x, old.dtype), new, model_state
        )
    return jax.tree.map(_wide, value), (jax.tree.map(_wide, metrics), new)


def _wide(x: Any) -> Any:
    return x.astype(jnp.float32) if _is_array(x) and is_narrow(x.dtype) else x


def _is_array(x: Any) -> bool:
    return hasattr(x, "dtype")


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2
