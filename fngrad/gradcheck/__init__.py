r"""Gradient checks by finite differences and Taylor's theorem.

The *slope* (directional derivative) of f at w along v is
$\lim_{h \to 0} (f(w + h v) - f(w)) / h$, which the chain rule gives as
$\nabla f(w) \cdot v$. These checks compare the two in float64, whatever the parameters'
dtype and jax's x64 setting. If f casts to float32, its values have that precision.

`finite_difference_gradient` computes the gradient naively, one coordinate at a time,
with two evaluations each: for n coordinates it costs about n times as much as
`jax.grad`.
"""

from fngrad.gradcheck.comparison import GradientReport, LeafReport, check_gradients
from fngrad.gradcheck.finite_differences import complex_step, finite_difference_gradient
from fngrad.gradcheck.taylor import TaylorReport, taylor_test

__all__ = [
    "GradientReport",
    "LeafReport",
    "TaylorReport",
    "check_gradients",
    "complex_step",
    "finite_difference_gradient",
    "taylor_test",
]


def __dir__() -> list[str]:
    return sorted(__all__)
