"""Names of optax, flax, torch and Keras, and what stands for each here.

A namespace that lacks a name looks it up in this table, by its own ``__getattr__``.
"""

from collections.abc import Callable, Mapping
from typing import NoReturn

_OPTIMIZERS: Mapping[str, str] = {
    "Adadelta": "fngrad.adadelta",
    "Adagrad": "fngrad.adagrad",
    "Adam": "fngrad.adam",
    "AdamMini": "fngrad.adam_mini",
    "AdamW": "fngrad.adamw",
    "AdamWScheduleFree": "fngrad.schedule_free_adamw",
    "Adamax": "fngrad.adamax",
    "CAME": "fngrad.came",
    "Kron": "fngrad.kron",
    "LaProp": "fngrad.laprop",
    "LBFGS": "fngrad.steps.line_search with fngrad.lbfgs()",
    "Lion": "fngrad.lion",
    "MARS": "fngrad.mars",
    "NAdam": "fngrad.nadam",
    "RAdam": "fngrad.radam",
    "RAdamScheduleFree": "fngrad.schedule_free_radam",
    "RMSprop": "fngrad.rmsprop",
    "Rprop": "fngrad.rprop",
    "SGD": "fngrad.sgd",
    "SGDScheduleFree": "fngrad.schedule_free_sgd",
    "StableAdamW": "fngrad.stable_adamw",
}
_LOSSES: Mapping[str, str] = {
    "BCEWithLogitsLoss": "fngrad.losses.sigmoid_binary_cross_entropy",
    "CrossEntropyLoss": "fngrad.losses.softmax_cross_entropy_with_integer_labels",
    "L1Loss": "fngrad.losses.absolute_error",
    "MSELoss": "fngrad.losses.squared_error",
    "bce_with_logits": "fngrad.losses.sigmoid_binary_cross_entropy",
    "binary_cross_entropy_with_logits": "fngrad.losses.sigmoid_binary_cross_entropy",
    "cross_entropy": "fngrad.losses.softmax_cross_entropy_with_integer_labels",
    "ctc_loss": "fngrad.losses.ctc",
    "huber_loss": "fngrad.losses.huber",
    "l1_loss": "fngrad.losses.absolute_error",
    "l2_loss": "half of fngrad.losses.squared_error",
    "mse": "fngrad.losses.squared_error",
    "mse_loss": "fngrad.losses.squared_error",
    "sigmoid_focal_loss": "fngrad.losses.focal",
    "sparse_categorical_crossentropy": (
        "fngrad.losses.softmax_cross_entropy_with_integer_labels"
    ),
}
_SCHEDULES: Mapping[str, str] = {
    "CosineAnnealingLR": "fngrad.schedules.cosine",
    "CosineAnnealingWarmRestarts": "fngrad.schedules.cosine_restarts",
    "CosineDecay": "fngrad.schedules.cosine",
    "ExponentialLR": "fngrad.schedules.exponential",
    "MultiStepLR": "fngrad.schedules.piecewise_constant",
    "OneCycleLR": "fngrad.schedules.one_cycle",
    "ReduceLROnPlateau": "fngrad.steps.plateau",
    "StepLR": "fngrad.schedules.piecewise_constant",
    "constant_schedule": "fngrad.schedules.constant",
    "cosine_decay_schedule": "fngrad.schedules.cosine",
    "cosine_onecycle_schedule": "fngrad.schedules.one_cycle",
    "exponential_decay": "fngrad.schedules.exponential",
    "join_schedules": "fngrad.schedules.join",
    "linear_schedule": "fngrad.schedules.linear",
    "piecewise_constant_schedule": "fngrad.schedules.piecewise_constant",
    "polynomial_schedule": "fngrad.schedules.polynomial",
    "sgdr_schedule": "fngrad.schedules.cosine_restarts",
    "warmup_cosine_decay_schedule": "fngrad.schedules.warmup_cosine",
}
_OUR_LOSSES = (  # in optax, at the root
    "sigmoid_binary_cross_entropy",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
)
HERE: Mapping[str, Mapping[str, str]] = {
    "fngrad": {
        **_OPTIMIZERS,
        **_LOSSES,
        **_SCHEDULES,
        **{name: f"fngrad.losses.{name}" for name in _OUR_LOSSES},
        "DataLoader": "fngrad.data.from_arrays, or from_source for data on disk",
        "GradientTransformation": "fngrad.Transform",
        "MultiSteps": "fngrad.accumulate",
        "Sequential": "fngrad.layers.serial",
        "adaptive_grad_clip": "fngrad.adaptive_clip",
        "apply_if_finite": "fngrad.skip_nonfinite",
        "clip_grad_norm_": "fngrad.clip_by_global_norm in a chain",
        "global_norm": "fngrad.tree.norm",
        "incremental_update": "fngrad.tree.average, or fngrad.ema_params in a chain",
        "inject_hyperparams": "fngrad.tunable",
        "multi_transform": "fngrad.partition",
        "no_grad": "jax.lax.stop_gradient",
        "save": "fngrad.checkpoint.save",
        "set_to_zero": "fngrad.freeze",
        "value_and_grad": "jax.value_and_grad",
    },
    "fngrad.layers": {
        "BatchNorm": "fngrad.layers.batch_norm",
        "BatchNorm1d": "fngrad.layers.batch_norm",
        "BatchNorm2d": "fngrad.layers.batch_norm",
        "Conv": "fngrad.layers.conv",
        "Conv1d": "fngrad.layers.conv",
        "Conv2D": "fngrad.layers.conv",
        "Conv2d": "fngrad.layers.conv",
        "Dense": "fngrad.layers.linear",
        "Dropout": "fngrad.layers.dropout",
        "Embed": "fngrad.layers.embedding",
        "Embedding": "fngrad.layers.embedding",
        "Flatten": "fngrad.layers.flatten",
        "GRU": "fngrad.layers.gru",
        "LSTM": "fngrad.layers.lstm",
        "LayerNorm": "fngrad.layers.layer_norm",
        "Linear": "fngrad.layers.linear",
        "MaxPool2d": "fngrad.layers.max_pool",
        "MultiHeadAttention": "fngrad.layers.multi_head_attention",
        "MultiheadAttention": "fngrad.layers.multi_head_attention",
        "ReLU": "jax.nn.relu, which is a layer, as any function",
        "Sequential": "fngrad.layers.serial",
        "chain": "fngrad.layers.serial",
        "dense": "fngrad.layers.linear",
        "gelu": "jax.nn.gelu, which is a layer, as any function",
        "relu": "jax.nn.relu, which is a layer, as any function",
        "sequential": "fngrad.layers.serial",
        "sigmoid": "jax.nn.sigmoid, which is a layer, as any function",
        "silu": "jax.nn.silu, which is a layer, as any function",
        "softmax": "jax.nn.softmax, which is a layer, as any function",
        "tanh": "jax.numpy.tanh, which is a layer, as any function",
    },
    "fngrad.losses": _LOSSES,
    "fngrad.schedules": _SCHEDULES,
}


def missing_from(module: str) -> Callable[[str], NoReturn]:
    """Return the ``__getattr__`` of a namespace, which knows names of other libraries.

    Args:
        module: its name, such as ``"fngrad.layers"``.

    Returns:
        A function of a name that raises AttributeError, with what stands for the name
        here, if it is one of another library.

    Example:
        >>> import fngrad as fg
        >>> fg.MultiSteps
        Traceback (most recent call last):
        ...
        AttributeError: module 'fngrad' has no attribute 'MultiSteps'; use \
fngrad.accumulate
    """

    def missing(name: str) -> NoReturn:
        use = HERE.get(module, {}).get(name)
        hint = f"; use {use}" if use else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{hint}")

    return missing
