"""The two places of weight decay in an adaptive optimizer."""

from fngrad.transforms.core import Transform, chain
from fngrad.transforms.decay import add_decayed_weights
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.types import Hyper, Selector


def decaying(
    rule: Transform,
    learning_rate: Hyper,
    weight_decay: Hyper,
    mask: Selector | None,
    *,
    decoupled: bool = True,
) -> Transform:
    """Descend along a rule's direction, with weights that decay.

    Args:
        rule: turns gradients into directions.
        learning_rate: a number >= 0, a scalar array or tracer, or a schedule.
        weight_decay: the multiple of the weights that is added.
        mask: which leaves decay; ``None`` means all.
        decoupled: whether it is added to the rule's direction, as in AdamW, or to the
            gradient that the rule sees: L2 regularisation.
    """
    decay = add_decayed_weights(weight_decay, mask)
    parts = (rule, decay) if decoupled else (decay, rule)
    return chain(*parts, scale_by_learning_rate(learning_rate))
