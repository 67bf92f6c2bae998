"""Names of optax, flax, torch, timm and Keras, and what stands for each here.

A table has a line for each thing here, with its names there. Case and underscores do
not count, nor does an end such as ``Loss``, ``Score`` or ``2d``: see `missing_names`.
"""

from collections.abc import Mapping

_ROOT: Mapping[str, str] = {
    "fngrad.Transform": "GradientTransformation",
    "fngrad, which has every rule, as fngrad.adam": "optim",
    "fngrad.accumulate": "MultiSteps apply_every",
    "fngrad.adamax with weight_decay=": "adamaxw",
    "fngrad.adaptive_clip": "adaptive_grad_clip",
    "fngrad.average_params, or fngrad.ema_params in a chain": (
        "AveragedModel SWA polyak_averaging"
    ),
    "fngrad.cautious(fngrad.adamw(...))": "CAdamW cautious_adamw",
    "callbacks=[fn] of fngrad.fit, fn(step, state, metrics)": "Callback LambdaCallback",
    "fngrad.central_differences": "finite_differences",
    "fngrad.central_differences, or fngrad.evolution_strategy": "SPSA",
    "fngrad.chain(fngrad.add_noise(...), fngrad.sgd(...))": "noisy_sgd",
    "fngrad.checkpoint.load_safetensors": "load_file",
    "fngrad.checkpoint.restore": "load load_state_dict restore",
    "fngrad.checkpoint.save": "save state_dict",
    "fngrad.checkpoint.save_safetensors": "save_file",
    "fngrad.clip in a chain": "clip_grad_value_",
    "fngrad.clip_by_global_norm in a chain": "clip_grad_norm_",
    "fngrad.data.from_arrays, or from_source for data on disk": "DataLoader",
    "fngrad.data.standardize": "normalize",
    "fngrad.describe": "print_trainable_parameters",
    "fngrad.ema_params in a chain": (
        "EMA ExponentialMovingAverage ModelEma ModelEmaV2 ModelEmaV3 SwapEMAWeights"
    ),
    "fngrad.evolution_strategy": "evolution_strategies OpenES",
    "fngrad.export": "torch_export onnx",
    "fngrad.fit": "Trainer",
    "fngrad.fit(keep_best=..., checkpoint_dir=...)": "ModelCheckpoint",
    "fngrad.freeze": "set_to_zero",
    "fngrad.init_state(key=), seed= of data": "set_seed manual_seed seed_everything",
    "fngrad.kron": "PSGD PSGDKron",
    "fngrad.layers": "nn",
    "fngrad.layerwise": "layer_decay layerwise_lr_decay param_groups_layer_decay",
    "fngrad.gradual_unfreezing": "unfreeze BaseFinetuning",
    "fngrad.lora": "LoraConfig LoraModel PeftModel get_peft_model",
    "fngrad.lora, whose merged gives one matrix": "merge_and_unload",
    "fngrad.make_step(precision=)": "autocast GradScaler",
    "fngrad.models.generate": "generate",
    "fngrad.muonh, or fngrad.adamh": "hyperball",
    "fngrad.mup": "set_base_shapes make_base_shapes MuReadout",
    "fngrad.mup with fngrad.adam": "MuAdam",
    "fngrad.mup with fngrad.adamw": "MuAdamW",
    "fngrad.mup with fngrad.sgd": "MuSGD",
    "fngrad.nadam with weight_decay=": "nadamw",
    "fngrad.orthogonalize": "newton_schulz polar_express",
    "fngrad.partition": "multi_transform",
    "fngrad.projections.l2_ball in fngrad.project": "MaxNorm",
    "fngrad.projections.l2_sphere in fngrad.project": "UnitNorm",
    "fngrad.projections.non_negative in fngrad.project": "NonNeg",
    "fngrad.project(fngrad.projections.non_negative)": "keep_params_nonnegative",
    "fngrad.scale_by_kron": "scale_by_psgd",
    "fngrad.skip_nonfinite": "apply_if_finite skip_not_finite zero_nans",
    "fngrad.steps.average_model_state": "update_bn ema_model_state",
    "fngrad.steps.differentially_private": (
        "PrivacyEngine make_private differentially_private_aggregate "
        "per_example_global_norm_clip per_example_layer_norm_clip"
    ),
    "fngrad.steps.differentially_private with fngrad.adam": "dp_adam",
    "fngrad.steps.differentially_private with fngrad.sgd": "dpsgd",
    "fngrad.steps.line_search with fngrad.lbfgs()": "LBFGS",
    "fngrad.steps.polyak": "polyak_sgd",
    "fngrad.steps.sam": "SAM",
    "fngrad.steps.skip_spikes": "skip_large_updates",
    "fngrad.sweeps.learning_rate_range_test": "lr_find",
    "fngrad.sweeps.search": "Tuner create_study",
    "fngrad.sweeps.grid for fngrad.sweep": "grid_search",
    "fngrad.sweeps.random for fngrad.sweep": "random_search",
    "fngrad.tree.average, or fngrad.ema_params in a chain": (
        "incremental_update soft_update target_update"
    ),
    "fngrad.tree.norm": "global_norm",
    "fngrad.tree.where(step % period == 0, new, old)": "periodic_update",
    "fngrad.tunable": "inject_hyperparams",
    "fngrad.sophia with fngrad.steps.sophia": "SophiaG",
    "jax.grad": "grad",
    "jax.jit": "jit",
    "jax.lax.stop_gradient": "no_grad",
    "jax.tree.map": "tree_map",
    "jax.value_and_grad": "value_and_grad",
    "jax.vmap": "vmap",
    "weight_decay= of a rule, or fngrad.add_decayed_weights": (
        "weight_decay decoupled_weight_decay"
    ),
}
_SCHEDULE_FREE: Mapping[str, str] = {
    "fngrad.schedule_free_adamw": "AdamWScheduleFree ScheduleFreeAdamW",
    "fngrad.schedule_free_radam": "RAdamScheduleFree",
    "fngrad.schedule_free_sgd": "SGDScheduleFree",
}
_LOSSES: Mapping[str, str] = {
    "fngrad.losses.absolute_error": "L1 MAE mean_absolute_error",
    "fngrad.losses.cosine_distance": "CosineEmbedding CosineSimilarity",
    "fngrad.losses.focal": "sigmoid_focal BinaryFocalCrossentropy",
    "fngrad.losses.focal_tversky with gamma=1.0": "Tversky",
    "fngrad.losses.gaussian_nll, which takes log variances": "GaussianNLL",
    "fngrad.losses.info_nce": "ntxent",
    "fngrad.losses.info_nce, or fngrad.losses.triplet": "contrastive",
    "fngrad.losses.kl_divergence": "KLDiv convex_kl_divergence",
    "fngrad.losses.kl_divergence of softened logits": "distillation",
    "fngrad.losses.poly_cross_entropy": "poly poly1 poly_loss_cross_entropy",
    "fngrad.losses.quantile": "pinball",
    "fngrad.losses.ranking_softmax": "ListNet",
    "fngrad.losses.sigmoid_binary_cross_entropy": (
        "BCE BCEWithLogits binary_cross_entropy binary_cross_entropy_with_logits "
    ),
    "fngrad.losses.softmax_cross_entropy": (
        "categorical_crossentropy SoftTargetCrossEntropy safe_softmax_cross_entropy "
        "softmax_cross_entropy_with_logits"
    ),
    "fngrad.losses.softmax_cross_entropy_with_integer_labels": (
        "CrossEntropy NLL sparse_categorical_crossentropy"
    ),
    "fngrad.losses.sparsemax of one-hot labels": "multiclass_sparsemax",
    "fngrad.losses.squared_error": "MSE mean_squared_error",
    "fngrad.losses.triplet": "TripletMargin",
    "half of fngrad.losses.squared_error": "l2",
    "jax.nn.one_hot": "one_hot",
    "label_smoothing= of fngrad.losses.softmax_cross_entropy": (
        "label_smoothing LabelSmoothingCrossEntropy"
    ),
}
_METRICS: Mapping[str, str] = {
    "a dict of fngrad.metrics, for metric_fn=": "MetricCollection MultiMetric",
    "fngrad.metrics.Derived of fngrad.metrics.mean_squared_error": (
        "rmse RootMeanSquaredError"
    ),
    "fngrad.metrics.Accumulator": "Metric",
    "fngrad.metrics.Mean": "MeanMetric Average",
    "fngrad.metrics.average_precision": "pr_auc",
    "fngrad.metrics.bits_per_character": "bpc",
    "fngrad.metrics.calibration_error": "ece expected_calibration_error",
    "fngrad.metrics.cohen_kappa": "kappa",
    "fngrad.metrics.f_beta": "f1",
    "fngrad.metrics.iou": "jaccard JaccardIndex MeanIoU",
    "fngrad.metrics.matthews": "mcc MatthewsCorrCoef",
    "fngrad.metrics.maximum_calibration_error": "mce",
    "fngrad.metrics.mean_absolute_error": "mae",
    "fngrad.metrics.mean_absolute_percentage_error": "mape",
    "fngrad.metrics.mean_squared_error": "mse",
    "fngrad.metrics.ndcg": "RetrievalNormalizedDCG",
    "fngrad.metrics.pearson": "PearsonCorrCoef pearsonr",
    "fngrad.metrics.psnr": "PeakSignalNoiseRatio",
    "fngrad.metrics.recall": "sensitivity",
    "fngrad.metrics.recall, the mean over classes": "balanced_accuracy",
    "fngrad.metrics.roc_auc": "AUROC auc",
    "fngrad.metrics.spearman": "SpearmanCorrCoef spearmanr",
    "fngrad.metrics.ssim": (
        "StructuralSimilarityIndexMeasure structural_similarity "
        "MultiScaleStructuralSimilarityIndexMeasure"
    ),
    "fngrad.metrics.top_k_accuracy": "TopKCategoricalAccuracy",
}
_SCHEDULES: Mapping[str, str] = {
    "fngrad.schedules.constant": "constant_schedule",
    "fngrad.schedules.cosine": (
        "CosineAnnealingLR CosineDecay cosine_decay_schedule cosine_annealing"
    ),
    "fngrad.schedules.cosine_restarts": (
        "CosineAnnealingWarmRestarts CosineDecayRestarts sgdr_schedule"
    ),
    "fngrad.schedules.exponential": "ExponentialLR ExponentialDecay",
    "fngrad.schedules.inverse_sqrt": "Noam NoamLR",
    "fngrad.schedules.join": "join_schedules SequentialLR",
    "fngrad.schedules.join of fngrad.schedules.linear and another": (
        "linear_warmup warmup_constant_schedule"
    ),
    "fngrad.schedules.linear": "linear_schedule LinearLR",
    "fngrad.schedules.one_cycle": "OneCycleLR cosine_onecycle_schedule",
    "fngrad.schedules.piecewise_constant": (
        "MultiStepLR StepLR step_decay piecewise_constant_schedule "
        "PiecewiseConstantDecay"
    ),
    "fngrad.schedules.polynomial": "polynomial_schedule PolynomialDecay",
    "fngrad.schedules.warmup_cosine": (
        "warmup_cosine_decay_schedule get_cosine_schedule_with_warmup "
        "cosine_schedule_with_warmup"
    ),
    "fngrad.schedules.warmup_stable_decay": "WSD warmup_stable_decay_schedule",
    "fngrad.steps.plateau": "ReduceLROnPlateau",
}
_PROJECTIONS: Mapping[str, str] = {
    "fngrad.projections.box": "projection_box clip",
    "fngrad.projections.box(x, 0.0, scale)": "projection_hypercube hypercube",
    "fngrad.projections.l1_ball": "projection_l1_ball l1",
    "fngrad.projections.l2_ball": "projection_l2_ball l2 MaxNorm",
    "fngrad.projections.l2_sphere": "projection_l2_sphere UnitNorm",
    "fngrad.projections.linf_ball": "projection_linf_ball",
    "fngrad.projections.non_negative": "projection_non_negative NonNeg",
    "fngrad.projections.simplex": "projection_simplex probability_simplex",
}
_AUGMENTATIONS: Mapping[str, str] = {
    "fngrad.data.augmentations.adjust_brightness": "RandomBrightness",
    "fngrad.data.augmentations.adjust_contrast": "RandomContrast",
    "fngrad.data.augmentations.adjust_saturation(image, 0.0)": "RandomGrayscale",
    "fngrad.data.augmentations.cutout": "CoarseDropout",
    "fngrad.data.augmentations.horizontal_flip": (
        "RandomHorizontalFlip hflip random_flip_left_right"
    ),
    "fngrad.data.augmentations.horizontal_flip, or vertical_flip": "RandomFlip",
    "fngrad.data.augmentations.one_of": "RandomChoice",
    "fngrad.data.augmentations.rand_augment": "AutoAugment TrivialAugmentWide",
    "fngrad.data.augmentations.random_affine": (
        "RandomRotation RandomTranslation RandomZoom RandomShear random_rotate "
        "random_translate ShiftScaleRotate"
    ),
    "fngrad.data.augmentations.random_crop(padding=...)": (
        "pad_and_crop random_crop_and_pad"
    ),
    "fngrad.data.augmentations.serial": "Compose",
    "fngrad.data.augmentations.vertical_flip": "RandomVerticalFlip vflip",
    "fngrad.data.standardize": "Normalize",
    "jax.image.resize in fngrad.data.augmentations.per_image": "Resize",
    "label_smoothing= of fngrad.losses.softmax_cross_entropy": "label_smoothing",
}
_DATA: Mapping[str, str] = {
    "fngrad.data.Dataset.map": "map",
    "fngrad.data.augmentations": "augment transforms",
    "fngrad.data.digits": "load_digits",
    "fngrad.data.from_arrays": ("TensorDataset ArrayDataset from_tensor_slices loader"),
    "fngrad.data.from_arrays, or from_source for data on disk": "DataLoader",
    "fngrad.data.from_arrays(..., shuffle=True)": "shuffle",
    "fngrad.data.idx_files of its files": "mnist",
    "fngrad.data.split": "random_split train_test_split",
    "fngrad.data.standardize": "Normalize StandardScaler",
}
_LAYERS: Mapping[str, str] = {
    "alibi=True of fngrad.layers.multi_head_attention": "ALiBi",
    "fngrad.layers.adaptive_avg_pool": "AdaptiveAvgPool2d",
    "fngrad.layers.adaptive_max_pool": "AdaptiveMaxPool2d",
    "fngrad.layers.avg_pool": "AveragePooling2D",
    "fngrad.layers.batch_norm": "BatchNormalization",
    "fngrad.layers.bidirectional with fngrad.layers.lstm": "BiLSTM",
    "fngrad.layers.conv with groups=in_channels": "DepthwiseConv2D",
    "fngrad.layers.conv_transpose": "Conv2DTranspose",
    "fngrad.layers.drop_path": "StochasticDepth",
    "fngrad.layers.dropout, which drops entries, not channels": (
        "Dropout1d Dropout2d Dropout3d SpatialDropout2D FeatureAlphaDropout"
    ),
    "fngrad.layers.embedding": "Embed",
    "fngrad.layers.group_norm with a group per channel": "InstanceNorm",
    "fngrad.layers.gru, or fngrad.layers.lstm": "RNN",
    "fngrad.layers.global_avg_pool": "GlobalAveragePooling2D",
    "fngrad.layers.global_max_pool": "GlobalMaxPooling2D",
    "fngrad.layers.init_cache, for fngrad.layers.cached": "KVCache DynamicCache",
    "fngrad.layers.layer_norm": "LayerNormalization",
    "fngrad.layers.linear": "Dense",
    "fngrad.layers.lstm_cell": "OptimizedLSTMCell",
    "fngrad.layers.max_pool": "MaxPooling2D",
    "fngrad.layers.multi_head_attention": (
        "SelfAttention MultiHeadDotProductAttention Attention"
    ),
    "fngrad.layers.multi_head_attention with num_kv_heads=": (
        "GroupedQueryAttention GroupQueryAttention"
    ),
    "fngrad.layers.multi_head_attention with window=": "sliding_window_attention",
    "fngrad.layers.positional_embedding": "PositionalEncoding",
    "fngrad.layers.remat": "checkpoint",
    "fngrad.layers.repeat": "scan",
    "fngrad.layers.rotary": (
        "RotaryEmbedding RotaryPositionalEmbeddings RoPE apply_rotary_pos_emb"
    ),
    "fngrad.layers.serial": "Sequential chain",
    "fngrad.layers.serial()": "Identity",
    "fngrad.layers.serial, where any function of x is a layer": "Lambda",
    "fngrad.layers.spectral_norm": "SpectralNormalization",
    "fngrad.layers.swiglu(activation=jax.nn.gelu)": "GEGLU",
    "fngrad.layers.swiglu(activation=jax.nn.sigmoid)": "GLU",
    "fngrad.layers.tied": "tie_weights",
    "fngrad.layers.weight_norm": "WeightNormalization",
    "fngrad.lora, on the parameters of any model": "LoRALinear LoRALayer",
    "fngrad.models.transformer": "TransformerEncoderLayer TransformerBlock",
    "jax.nn.dot_product_attention": "scaled_dot_product_attention",
    "jax.nn.gelu, which is a layer, as any function": "gelu",
    "jax.nn.leaky_relu, which is a layer, as any function": "LeakyReLU",
    "jax.nn.relu, which is a layer, as any function": "ReLU",
    "jax.nn.sigmoid, which is a layer, as any function": "sigmoid",
    "jax.nn.silu, which is a layer, as any function": "SiLU swish",
    "jax.nn.softmax, which is a layer, as any function": "softmax",
    "jax.numpy.tanh, which is a layer, as any function": "tanh",
}
_INITIALIZERS: Mapping[str, str] = {
    "fngrad.layers.initializers.glorot_normal": "xavier_normal_",
    "fngrad.layers.initializers.glorot_uniform": "xavier_uniform_",
    "fngrad.layers.initializers.he_normal": "kaiming_normal_",
    "fngrad.layers.initializers.he_uniform": "kaiming_uniform_",
    "fngrad.layers.initializers.normal": "RandomNormal",
    "fngrad.layers.initializers.ones": "ones_init",
    "fngrad.layers.initializers.truncated_normal": "trunc_normal_",
    "fngrad.layers.initializers.uniform": "RandomUniform",
    "fngrad.layers.initializers.zeros": "zeros_init",
}
_MODELS: Mapping[str, str] = {
    "fngrad.models.cnn": "LeNet",
    "fngrad.models.decoder": "gpt gpt2 llama mistral LlamaForCausalLM LanguageModel",
    "fngrad.models.generate": "sample",
    "fngrad.models.logistic": "LogisticRegression",
    "fngrad.models.resnet": "resnet18 resnet34 resnet50 resnet101 resnet152",
    "fngrad.models.rnn": "gru lstm",
    "fngrad.models.vision_transformer": (
        "ViT vit_b_16 vit_base_patch16_224 vit_small_patch16_224"
    ),
}
_SWEEPS: Mapping[str, str] = {
    "fngrad.sweeps.choice": "categorical",
    "fngrad.sweeps.choice, or static={name: [values]} of fngrad.sweeps.search": (
        "suggest_categorical"
    ),
    "fngrad.sweeps.grid": "grid_search",
    "fngrad.sweeps.learning_rate_range_test": "lr_find LRFinder",
    "fngrad.sweeps.log_uniform": "suggest_loguniform",
    "fngrad.sweeps.population_based_training": "PBT",
    "fngrad.sweeps.random": "random_search",
    "fngrad.sweeps.search": "create_study optimize TPE TPESampler BayesianOptimization",
    "fngrad.sweeps.successive_halving": (
        "ASHA ASHAScheduler Hyperband HyperbandPruner SuccessiveHalvingPruner"
    ),
    "fngrad.sweeps.sweep": "run tune",
    "fngrad.sweeps.uniform, or log_uniform": "suggest_float suggest_uniform",
    "an IntDistribution of Optuna in space= of fngrad.sweeps.search": (
        "suggest_int randint quniform"
    ),
    "those of Optuna in space= of fngrad.sweeps.search": (
        "FloatDistribution IntDistribution CategoricalDistribution"
    ),
}
_STEPS: Mapping[str, str] = {
    "fngrad.skip_nonfinite": "apply_if_finite",
    "fngrad.steps.differentially_private": "dpsgd PrivacyEngine",
    "fngrad.steps.line_search": "zoom_linesearch backtracking_linesearch",
    "fngrad.steps.line_search with fngrad.lbfgs()": "lbfgs",
    "fngrad.steps.plateau": "ReduceLROnPlateau reduce_on_plateau",
    "fngrad.steps.polyak": "polyak_sgd",
    "fngrad.steps.sam with adaptive=True": "asam",
    "fngrad.steps.skip_spikes": "skip_large_updates",
}
_TREE: Mapping[str, str] = {
    "fngrad.tree.average": "incremental_update soft_update",
    "fngrad.tree.norm": "l2_norm global_norm",
    "fngrad.tree.scale": "scalar_mul",
    "fngrad.tree.set": "tree_at",
    "fngrad.tree.size": "count_params num_params",
    "jax.flatten_util.ravel_pytree": "ravel",
    "jax.tree.flatten": "flatten",
    "jax.tree.leaves": "leaves",
    "jax.tree.map": "map",
}
_CALLBACKS: Mapping[str, str] = {
    "fngrad.callbacks.max_minutes": "Timer",
    "loggers= of fngrad.fit": "CSVLogger TensorBoard",
    "on_nonfinite= of fngrad.fit": "TerminateOnNaN",
    "progress= of fngrad.fit": "ProgressBar",
    "fngrad.schedules, as learning_rate=": "LearningRateScheduler",
}
_CHECKPOINT: Mapping[str, str] = {
    "fngrad.checkpoint.load_safetensors": "load_file",
    "fngrad.checkpoint.restore": "load load_state_dict restore_checkpoint",
    "fngrad.checkpoint.save": "state_dict save_checkpoint save_pytree",
    "fngrad.checkpoint.save_safetensors": "save_file",
}


def _by_name(*tables: Mapping[str, str]) -> dict[str, str]:
    return {
        name: use
        for table in tables
        for use, names in table.items()
        for name in names.split()
    }


# By namespace: a name there -> what to use here.
HERE: Mapping[str, Mapping[str, str]] = {
    "fngrad": _by_name(_ROOT, _SCHEDULE_FREE),
    "fngrad.callbacks": _by_name(_CALLBACKS),
    "fngrad.checkpoint": _by_name(_CHECKPOINT),
    "fngrad.data": _by_name(_DATA),
    "fngrad.data.augmentations": _by_name(_AUGMENTATIONS),
    "fngrad.layers": _by_name(_LAYERS),
    "fngrad.layers.initializers": _by_name(_INITIALIZERS),
    "fngrad.losses": _by_name(_LOSSES),
    "fngrad.metrics": _by_name(_METRICS),
    "fngrad.models": _by_name(_MODELS),
    "fngrad.projections": _by_name(_PROJECTIONS),
    "fngrad.schedules": _by_name(_SCHEDULES),
    "fngrad.steps": _by_name(_STEPS),
    "fngrad.sweeps": _by_name(_SWEEPS),
    "fngrad.tree": _by_name(_TREE),
}
