r"""Is the gradient right? Finite differences, and the tangent's error.

The *slope* of f at w along v is $\lim_{h \to 0} (f(w + h v) - f(w)) / h$; by the chain
rule it is $\nabla f(w) \cdot v$. Everything here compares those two numbers in float64,
whatever the precision of the parameters and of the global flag. A function that casts
to float32 inside is compared in what it computes.

`finite_difference_gradient` is the naive way to a gradient, one coordinate at a time:
two evaluations each, so n coordinates cost n times what `jax.grad` costs.
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
