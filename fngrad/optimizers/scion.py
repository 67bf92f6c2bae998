"""Scion: steps to the corner of a norm ball, another norm per kind of layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.sharding.matrices import Place, map_matrices
from fngrad.sharding.meshes import auto_mesh_of
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.masking import partition
from fngrad.transforms.moment_arithmetic import check_decay
from fngrad.transforms.momentum_buffers import ema
from fngrad.transforms.polar_factors import (
    QUINTIC,
    Coefficients,
    check_coefficients,
    of_length,
    polar_factor,
)
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.transforms.stateless import stateless
from fngrad.types import Hyper, Params, Scalar, Selector, Updates

NORMS = (
    *("auto", "spectral", "image", "column", "one_hot_sign", "row", "sign", "rms"),
)
Balls: TypeAlias = Sequence[tuple[Selector, str, Scalar]]
EVERYWHERE: Balls = (("**", "auto", 1.0),)


def scale_by_lmo(
    norm: str = "auto",
    radius: Scalar = 1.0,
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    eps: Scalar = 1e-8,
    *,
    ns_dtype: DTypeLike | None = None,
) -> Transform:
    r"""Replace a gradient by the point of a norm ball that is farthest along it.

    That is minus the ball's *linear minimization oracle*: `scion` has the norms and the
    reference. Zero stays zero.

    Args:
        norm: one of ``"auto"``, ``"spectral"``, ``"image"``, ``"column"``,
            ``"one_hot_sign"``, ``"row"``, ``"sign"``, ``"rms"``.
        radius: $\rho$ >= 0 of the ball.
        ns_coeffs: the coefficients, see `fngrad.orthogonalize`.
        ns_steps: how many Newton-Schulz steps.
        eps: $\epsilon$ >= 0, added to the norm of what is orthogonalized, in gradient
            units.
        ns_dtype: dtype of the iterations, see `fngrad.orthogonalize`.

    Raises:
        TypeError: at ``update``, if a leaf is complex.
        ValueError: if the norm is unknown, a number is negative, or the coefficients do
            not fit; at ``update``, if the norm needs a matrix and a leaf has fewer than
            two axes.
    """
    numerics.check_choice("norm", norm, NORMS)
    numerics.check_number("radius", radius, low=0.0)
    numerics.check_number("eps", eps, low=0.0)
    check_coefficients(ns_coeffs, ns_steps)

    def change(updates: Updates, params: Params) -> Updates:
        tree.check_real("scale_by_lmo", params)
        length, floor = numerics.hyper(radius), numerics.hyper(eps)

        def corner(place: Place, g: jax.Array) -> jax.Array:
            kind = ("rms" if g.ndim < 2 else "spectral") if norm == "auto" else norm
            if kind in ("spectral", "image"):
                least = floor.astype(g.dtype)
                o = polar_factor(place, g, ns_coeffs, ns_steps, least, ns_dtype)
                point = _spectral_length(g.shape, kind) * o.reshape(g.shape)
            else:
                point = _corner(g, kind)
            return numerics.scaled(length, point)

        mesh = auto_mesh_of(updates, params)
        return map_matrices(corner, tree.widen(updates), mesh=mesh)

    return stateless(change, "scale_by_lmo")


def scion(
    learning_rate: Hyper,
    balls: Balls = EVERYWHERE,
    ns_coeffs: Coefficients = QUINTIC,
    ns_steps: int = 5,
    beta: Hyper = 0.9,
    eps: Scalar = 1e-8,
    *,
    constrained: bool = True,
    ns_dtype: DTypeLike | None = None,
) -> Transform:
    r"""Scion: conditional gradient steps with a norm for each kind of layer.

    $$d_t = \beta\,d_{t-1} + (1 - \beta)\,g_t, \qquad
      u_t = \rho\,\operatorname*{arg\,max}_{\|v\| \le 1} \langle d_t, v \rangle$$
    $$w_{t+1} = (1 - \alpha_t)\,w_t - \alpha_t\,u_t \quad\text{or}\quad
      w_{t+1} = w_t - \alpha_t\,u_t$$

    The first form is ``constrained``: weights that start in the ball of radius $\rho$
    stay in it. The norms, of a matrix (in, out) whose rows are $d_i$, with the
    direction $u / \rho$ for each:

    - ``"spectral"``, hidden layers: $\sqrt{n_{out} / n_{in}}\,U V^\top$ of
      $d = U \Sigma V^\top$ by Newton-Schulz iterations; for a kernel over its area;
    - ``"image"``, the first layer of images:
      $\max(1, \sqrt{n_{out} / n_{in}})\,U V^\top$;
    - ``"column"``, embeddings (one-hot input):
      $\sqrt{n_{out}}\,d_i / \|d_i\|$ for each row, the vector of one token (a column
      in the paper, where a matrix is (out, in));
    - ``"one_hot_sign"``, embeddings: $\operatorname{sign}(d)$;
    - ``"row"``, the last layer: the vector of each output over its norm times
      $\sqrt{n_{in}}$;
    - ``"sign"``, the last layer: $\operatorname{sign}(d) / n_{in}$;
    - ``"rms"``, vectors such as biases: $d$ over its root mean square;
    - ``"auto"``: ``"spectral"`` for leaves of two axes or more, else ``"rms"``.

    The authors' language model has ``balls=[("head/**", "sign", 3000.0),
    ("**", "auto", 50.0)]`` and a learning rate of $2^{-12}$; their "ColNorm" is
    ``"column"`` and "RowNorm" ``"row"``.

    Args:
        learning_rate: $\alpha$, a number >= 0 (at most 1 if ``constrained``), a scalar
            array or tracer, or a schedule.
        balls: (selector, norm, $\rho$), the first that selects a leaf; see
            `fngrad.partition`.
        ns_coeffs: the coefficients, see `fngrad.orthogonalize`.
        ns_steps: how many Newton-Schulz steps.
        beta: $\beta$ in [0, 1], the weight of the past; the paper's $\alpha$ is
            $1 - \beta$.
        eps: $\epsilon$ >= 0, see `scale_by_lmo`.
        constrained: whether the weights are drawn to the point, too. If not, add weight
            decay as to any other rule.
        ns_dtype: dtype of the iterations; ``None`` means at least float32.

    Raises:
        TypeError: if the learning rate is None or of another type; at ``update``, if a
            leaf is complex.
        ValueError: if a norm is unknown, a number is out of range, or the coefficients
            do not fit; at ``init``, if a leaf is in no ball; at ``update``, if a norm
            needs a matrix and a leaf has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> optimizer = fg.scion(0.1, [("head", "sign", 2.0), ("**", "auto", 1.0)])
        >>> params = {"head": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
        >>> gradient = {"head": jnp.eye(2), "bias": jnp.array([3.0, -3.0])}
        >>> updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        >>> print([f"{u:.3f}" for u in (updates["head"][0, 0], updates["bias"][1])])
        ['-0.100', '0.100']

    References:
        Pethick et al., Training deep learning models with norm-constrained LMOs, 2025,
        algorithms 1 and 2 and tables 2 and 3, https://arxiv.org/abs/2502.07529. Differs
        from it in: zero gradients give no step but that of the constraint.
    """
    check_decay("beta", beta, corrected=False)
    groups = [
        (
            selector,
            scale_by_lmo(norm, radius, ns_coeffs, ns_steps, eps, ns_dtype=ns_dtype),
        )
        for selector, norm, radius in balls
    ]
    towards_it = (add_decayed_weights(1.0),) if constrained else ()
    return chain(
        ema(beta, debias=False),
        partition(groups),
        *towards_it,
        scale_by_learning_rate(learning_rate),
    )


def _spectral_length(shape: tuple[int, ...], kind: str) -> float:
    *kernel, rows, columns = shape
    ratio = (columns / max(rows, 1)) ** 0.5
    return (max(1.0, ratio) if kind == "image" else ratio) / max(math.prod(kernel), 1)


def _corner(g: jax.Array, kind: str) -> jax.Array:
    if kind == "rms":
        return of_length(g, g.size**0.5)
    if kind == "one_hot_sign":
        return jnp.sign(g)
    if g.ndim < 2:
        raise ValueError(f"need a matrix for the norm {kind!r}, got shape {g.shape}")
    flat = g.reshape(math.prod(g.shape[:-1]), g.shape[-1])
    rows, columns = flat.shape
    if kind == "sign":
        return jnp.sign(g) / max(rows, 1)
    axis, length = (1, columns**0.5) if kind == "column" else (0, max(rows, 1) ** -0.5)
    norms = jnp.broadcast_to(numerics.norm(flat, axis, keepdims=True), flat.shape)
    return (length * numerics.divide(flat, norms)).reshape(g.shape)
