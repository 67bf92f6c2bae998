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
    "GaussianNLLLoss": "fngrad.losses.gaussian_nll, which takes log variances",
    "KLDivLoss": "fngrad.losses.kl_divergence",
    "MSELoss": "fngrad.losses.squared_error",
    "SmoothL1Loss": "fngrad.losses.smooth_l1",
    "TripletMarginLoss": "fngrad.losses.triplet",
    "bce_with_logits": "fngrad.losses.sigmoid_binary_cross_entropy",
    "binary_cross_entropy_with_logits": "fngrad.losses.sigmoid_binary_cross_entropy",
    "cross_entropy": "fngrad.losses.softmax_cross_entropy_with_integer_labels",
    "ctc_loss": "fngrad.losses.ctc",
    "dice_loss": "fngrad.losses.dice",
    "huber_loss": "fngrad.losses.huber",
    "kl_div": "fngrad.losses.kl_divergence",
    "l1_loss": "fngrad.losses.absolute_error",
    "l2_loss": "half of fngrad.losses.squared_error",
    "mse": "fngrad.losses.squared_error",
    "mse_loss": "fngrad.losses.squared_error",
    "multiclass_sparsemax_loss": "fngrad.losses.sparsemax of one-hot labels",
    "ntxent": "fngrad.losses.info_nce",
    "pinball": "fngrad.losses.quantile",
    "poly_loss_cross_entropy": "fngrad.losses.poly_cross_entropy",
    "ranking_softmax_loss": "fngrad.losses.ranking_softmax",
    "sigmoid_focal_loss": "fngrad.losses.focal",
    "smooth_l1_loss": "fngrad.losses.smooth_l1",
    "sparse_categorical_crossentropy": (
        "fngrad.losses.softmax_cross_entropy_with_integer_labels"
    ),
    "triplet_margin_loss": "fngrad.losses.triplet",
}
_METRICS: Mapping[str, str] = {
    "AUROC": "fngrad.metrics.roc_auc",
    "Accuracy": "fngrad.metrics.accuracy",
    "F1Score": "fngrad.metrics.f_beta",
    "JaccardIndex": "fngrad.metrics.iou",
    "MeanIoU": "fngrad.metrics.iou",
    "MeanMetric": "fngrad.metrics.Mean",
    "auroc": "fngrad.metrics.roc_auc",
    "balanced_accuracy": "fngrad.metrics.recall, the mean over classes",
    "cohen_kappa_score": "fngrad.metrics.cohen_kappa",
    "f1": "fngrad.metrics.f_beta",
    "f1_score": "fngrad.metrics.f_beta",
    "jaccard_score": "fngrad.metrics.iou",
    "matthews_corrcoef": "fngrad.metrics.matthews",
    "rmse": "fngrad.metrics.Derived of fngrad.metrics.mean_squared_error",
    "roc_auc_score": "fngrad.metrics.roc_auc",
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
_PROJECTIONS: Mapping[str, str] = {
    "MaxNorm": "fngrad.projections.l2_ball in fngrad.project",
    "NonNeg": "fngrad.projections.non_negative in fngrad.project",
    "UnitNorm": "fngrad.projections.l2_sphere in fngrad.project",
    "keep_params_nonnegative": "fngrad.project(fngrad.projections.non_negative)",
    "projection_box": "fngrad.projections.box",
    "projection_hypercube": "fngrad.projections.box(x, 0.0, scale)",
    "projection_l1_ball": "fngrad.projections.l1_ball",
    "projection_l2_ball": "fngrad.projections.l2_ball",
    "projection_l2_sphere": "fngrad.projections.l2_sphere",
    "projection_linf_ball": "fngrad.projections.linf_ball",
    "projection_non_negative": "fngrad.projections.non_negative",
    "projection_simplex": "fngrad.projections.simplex",
}
_AUGMENTATIONS: Mapping[str, str] = {
    "ColorJitter": "fngrad.data.augmentations.color_jitter",
    "Compose": "fngrad.data.augmentations.serial",
    "CutMix": "fngrad.data.augmentations.cutmix",
    "MixUp": "fngrad.data.augmentations.mixup",
    "Mixup": "fngrad.data.augmentations.mixup",
    "RandAugment": "fngrad.data.augmentations.rand_augment",
    "RandomChoice": "fngrad.data.augmentations.one_of",
    "RandomCrop": "fngrad.data.augmentations.random_crop",
    "RandomErasing": "fngrad.data.augmentations.random_erasing",
    "RandomFlip": "fngrad.data.augmentations.horizontal_flip, or vertical_flip",
    "RandomHorizontalFlip": "fngrad.data.augmentations.horizontal_flip",
    "RandomResizedCrop": "fngrad.data.augmentations.random_resized_crop",
    "RandomRotation": "fngrad.data.augmentations.per_image with rotate",
    "RandomVerticalFlip": "fngrad.data.augmentations.vertical_flip",
    "label_smoothing": "label_smoothing= of fngrad.losses.softmax_cross_entropy",
}
_MODELS: Mapping[str, str] = {
    "ViT": "fngrad.models.vision_transformer",
    "gpt2": "fngrad.models.decoder",
    "gru": "fngrad.models.rnn",
    "llama": "fngrad.models.decoder",
    "lstm": "fngrad.models.rnn",
    "mistral": "fngrad.models.decoder",
    "resnet18": "fngrad.models.resnet",
    "resnet50": "fngrad.models.resnet",
    "vit": "fngrad.models.vision_transformer",
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
        **_PROJECTIONS,
        **{name: f"fngrad.losses.{name}" for name in _OUR_LOSSES},
        "DataLoader": "fngrad.data.from_arrays, or from_source for data on disk",
        "GradientTransformation": "fngrad.Transform",
        "LoraConfig": "fngrad.lora",
        "MuAdam": "fngrad.mup with fngrad.adam",
        "MuSGD": "fngrad.mup with fngrad.sgd",
        "MultiSteps": "fngrad.accumulate",
        "PrivacyEngine": "fngrad.steps.differentially_private",
        "Sequential": "fngrad.layers.serial",
        "adaptive_grad_clip": "fngrad.adaptive_clip",
        "apply_if_finite": "fngrad.skip_nonfinite",
        "clip_grad_norm_": "fngrad.clip_by_global_norm in a chain",
        "differentially_private_aggregate": "fngrad.steps.differentially_private",
        "dpsgd": "fngrad.steps.differentially_private with fngrad.sgd",
        "generate": "fngrad.models.generate",
        "get_peft_model": "fngrad.lora",
        "global_norm": "fngrad.tree.norm",
        "incremental_update": "fngrad.tree.average, or fngrad.ema_params in a chain",
        "per_example_global_norm_clip": "fngrad.steps.differentially_private",
        "periodic_update": "fngrad.tree.where(step % period == 0, new, old)",
        "inject_hyperparams": "fngrad.tunable",
        "load_file": "fngrad.checkpoint.load_safetensors",
        "multi_transform": "fngrad.partition",
        "no_grad": "jax.lax.stop_gradient",
        "save": "fngrad.checkpoint.save",
        "save_file": "fngrad.checkpoint.save_safetensors",
        "set_base_shapes": "fngrad.mup",
        "set_to_zero": "fngrad.freeze",
        "value_and_grad": "jax.value_and_grad",
    },
    "fngrad.data.augmentations": _AUGMENTATIONS,
    "fngrad.layers": {
        "AdaptiveAvgPool2d": "fngrad.layers.adaptive_avg_pool",
        "AdaptiveMaxPool2d": "fngrad.layers.adaptive_max_pool",
        "BatchNorm": "fngrad.layers.batch_norm",
        "BatchNorm1d": "fngrad.layers.batch_norm",
        "BatchNorm2d": "fngrad.layers.batch_norm",
        "Conv": "fngrad.layers.conv",
        "Conv1d": "fngrad.layers.conv",
        "Conv2D": "fngrad.layers.conv",
        "Conv2d": "fngrad.layers.conv",
        "Bidirectional": "fngrad.layers.bidirectional",
        "Conv2DTranspose": "fngrad.layers.conv_transpose",
        "ConvTranspose": "fngrad.layers.conv_transpose",
        "ConvTranspose1d": "fngrad.layers.conv_transpose",
        "ConvTranspose2d": "fngrad.layers.conv_transpose",
        "Dense": "fngrad.layers.linear",
        "DropPath": "fngrad.layers.drop_path",
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
        "GEGLU": "fngrad.layers.swiglu(activation=jax.nn.gelu)",
        "GLU": "fngrad.layers.swiglu(activation=jax.nn.sigmoid)",
        "KVCache": "fngrad.layers.init_cache, for fngrad.layers.cached",
        "PReLU": "fngrad.layers.prelu",
        "ReLU": "jax.nn.relu, which is a layer, as any function",
        "RotaryEmbedding": "fngrad.layers.rotary",
        "RotaryPositionalEmbeddings": "fngrad.layers.rotary",
        "Sequential": "fngrad.layers.serial",
        "SpectralNorm": "fngrad.layers.spectral_norm",
        "SpectralNormalization": "fngrad.layers.spectral_norm",
        "StochasticDepth": "fngrad.layers.drop_path",
        "SwiGLU": "fngrad.layers.swiglu",
        "WeightNorm": "fngrad.layers.weight_norm",
        "chain": "fngrad.layers.serial",
        "dense": "fngrad.layers.linear",
        "gelu": "jax.nn.gelu, which is a layer, as any function",
        "relu": "jax.nn.relu, which is a layer, as any function",
        "sequential": "fngrad.layers.serial",
        "sigmoid": "jax.nn.sigmoid, which is a layer, as any function",
        "silu": "jax.nn.silu, which is a layer, as any function",
        "softmax": "jax.nn.softmax, which is a layer, as any function",
        "stochastic_depth": "fngrad.layers.drop_path",
        "tanh": "jax.numpy.tanh, which is a layer, as any function",
    },
    "fngrad.losses": _LOSSES,
    "fngrad.models": _MODELS,
    "fngrad.metrics": _METRICS,
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
