"""Steps that average the state of the model, for evaluation."""

from typing import NamedTuple

import jax

import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.programs.step_wrappers import wraps_step
from fngrad.training import Step, TrainState
from fngrad.transforms.averages import EmaParamsState, empty_average, with_term
from fngrad.transforms.moment_arithmetic import check_decay
from fngrad.types import Batch, Hyper, Metrics, ModelState


class AveragedModelState(NamedTuple):
    """A model state and the average of those that steps have made."""

    current: ModelState  # what the loss takes and returns
    average: EmaParamsState

    def eval_model_state(self) -> ModelState:
        """Return the average, in the dtypes of the current one, or this while empty.

        Leaves that are not floats are the current ones.
        """
        return tree.cast_like(self.average.eval_params(self.current), self.current)


def with_average(model_state: ModelState) -> AveragedModelState:
    """Return a model state with an empty average, for `average_model_state`.

    Args:
        model_state: such as a stateful layer's ``init`` gives, or that of a state whose
            training goes on with an average.

    Raises:
        ValueError: if there is no float in it.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad as fg
        >>> model_state = fg.steps.with_average({"mean": jnp.ones(2)})
        >>> print(model_state.eval_model_state())
        {'mean': Array([1., 1.], dtype=float32)}
    """
    if not jax.tree.leaves(tree.floats(model_state)):
        raise ValueError(
            "need a model state with floats to average, got "
            f"{list(tree.leaf_paths(model_state))}"
        )
    return AveragedModelState(model_state, empty_average(model_state))


def average_model_state(step: Step, decay: Hyper = 0.999) -> Step:
    r"""Keep an exponential moving average of the model state that a step makes.

    With $s_t$ the model state after step t, such as statistics of batch norm,

    $$\bar s_t = \frac{\sum_{i \le t} w_i s_i}{\sum_{i \le t} w_i}, \qquad
      w_i = (1 - \beta_i) \prod_{i < j \le t} \beta_j$$

    which has the weights of `fngrad.ema_params` with the same decay: averaged
    parameters go with the statistics of the same steps. `fngrad.evaluate`, `fngrad.fit`
    and `fngrad.run` evaluate with the average (`fngrad.eval_model_state`). The loss
    sees the current state only, and training keeps its bits. The average is a part of
    the state, so checkpoints hold it. Steps are counted, also those that `accumulate`
    or `fngrad.skip_nonfinite` leave without an update.

    Args:
        step: from `fngrad.make_step`, `fngrad.steps`, or any other whose model state
            keeps its structure.
        decay: $\beta$, in [0, 1); may be a schedule.

    Returns:
        A step with the same metrics, for a state whose model state is that of
        `with_average`. A NaN stays in the average for ever;
        ``skip_bad_steps(average_model_state(step))`` keeps it out.

    Raises:
        ValueError: if the decay is out of range.
        TypeError: while tracing, if the model state is not that of `with_average`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad as fg
        >>> def loss_fn(w, batch, model_state):  # the last batch is its model state
        ...     return jnp.sum(w * batch), ({}, batch)
        >>> optimizer = fg.sgd(0.1)
        >>> step = fg.make_step(loss_fn, optimizer)
        >>> step = fg.steps.average_model_state(step, decay=0.5)
        >>> model_state = fg.steps.with_average(jnp.zeros(1))
        >>> state = fg.init_state(jnp.ones(1), optimizer, 0, model_state=model_state)
        >>> for batch in (jnp.array([1.0]), jnp.array([4.0])):
        ...     state, _ = jax.jit(step)(state, batch)
        >>> print(state.model_state.current, fg.eval_model_state(state))
        [4.] [3.]

    References:
        Tarvainen and Valpola, Mean teachers are better role models, 2017, section 2,
        https://arxiv.org/abs/1703.01780, for averages of a whole model. As
        ``use_buffers=True`` of torch's ``AveragedModel``; differs from it in: the
        average is corrected for its beginning.
    """
    check_decay("decay", decay, corrected=True)

    @wraps_step(step, _with_current)
    def averaging(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        new_state, metrics = step(_with_current(state), batch)
        before, current = state.model_state.average, new_state.model_state
        average = with_term(before, current, numerics.hyper(decay, before.step))
        return (
            new_state._replace(model_state=AveragedModelState(current, average)),
            metrics,
        )

    return averaging


def _with_current(state: TrainState) -> TrainState:
    """Return a state for the inner step, whose model state is the current one."""
    model_state = state.model_state
    if not isinstance(model_state, AveragedModelState):
        raise TypeError(
            "need a model state with an average, got "
            f"{type(model_state).__name__}: init_state(params, optimizer, key, "
            "model_state=fngrad.steps.with_average(model_state))"
        )
    return state._replace(model_state=model_state.current)
