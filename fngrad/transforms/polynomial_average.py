"""Averages of the parameters along a run, for evaluation."""

from typing import NamedTuple

import jax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.transforms.core import Transform, chain
from fngrad.transforms.iterates import wide_copy
from fngrad.types import Hyper, Params, Updates


class AverageParamsState(NamedTuple):
    """State of `average_params`."""

    step: jax.Array  # int32, shape ()
    average: Params  # of the parameters after each step

    def eval_params(self, params: Params) -> Params:
        """Return the average."""
        return self.average


def average_params(gamma: Hyper = 8.0) -> Transform:
    r"""Keep an average of the parameters that forgets polynomially; pass updates on.

    With $w_t$ the parameters after the t-th update

    $$\bar w_t = (1 - c_t)\,\bar w_{t-1} + c_t\,w_t, \qquad
      c_t = \frac{1 + \gamma}{t + \gamma}$$

    so that after n steps $w_t$ weighs in proportion to $(t / n)^\gamma$, about: the end
    of the run counts most, whatever its length. It belongs last in a chain, after the
    learning rate. `fngrad.eval_params` gives the average.

    Args:
        gamma: $\gamma$ >= 0; 0 weighs all alike.

    Raises:
        ValueError: a negative number.

    Example:
        >>> import fngrad as fg
        >>> optimizer = fg.chain(fg.sgd(0.1), fg.average_params())

    References:
        Shamir and Zhang, Stochastic gradient descent for non-smooth optimization, 2013,
        section 4, https://proceedings.mlr.press/v28/shamir13.html.
    """
    numerics.check_number("gamma", gamma, low=0.0)

    def init(params: Params) -> AverageParamsState:
        return AverageParamsState(numerics.first_step(), wide_copy(params))

    def update(
        updates: Updates, state: AverageParamsState, params: Params
    ) -> tuple[Updates, AverageParamsState]:
        forgets = numerics.hyper(gamma, state.step)
        before = state.step.astype(forgets.dtype)
        weight = (1 + forgets) / (1 + before + forgets)
        average = tree.lerp(
            state.average, tree.add(tree.widen(params), updates), weight
        )
        return updates, AverageParamsState(numerics.next_step(state.step), average)

    return chain(Transform(init, update, name="average_params"))
