"""Keywords of optax, torch, Keras and Lightning, and what stands for each here.

Python's own error says only that a function has no such argument.
"""

import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Fn = TypeVar("_Fn", bound=Callable[..., Any])
_ALIKE = 0.65  # from which share of letters on an argument is taken for a misspelling

# The arguments that have the role of keywords, of which a function has some or none.
_ARGUMENTS: Mapping[str, str] = {
    "activation": "activation_fn act_fn act_layer hidden_act",
    "alpha": "lora_alpha",
    "axis": "dim",
    "b1": "beta1 beta_1",
    "b2": "beta2 beta_2",
    "b1 b2 b3": "betas",
    "bias": "use_bias",
    "bias_init": "bias_initializer",
    "callbacks": "callback",
    "checkpoint_dir": "ckpt_dir",
    "classes": "n_classes num_classes num_outputs out_features",
    "decay": "beta momentum",
    "decay_steps": "T_max total_steps",
    "degrees": "angle",
    "depth": "layers num_layers",
    "devices": "n_jobs",
    "dropout_rate": "attn_dropout dropout dropout_p",
    "early_stopping": "patience",
    "eps": "epsilon",
    "eval_data": "val_data validation_data",
    "features": "d_model embed_dim n_embd embedding_dim dim",
    "fill": "fillcolor fill_value cval",
    "folder": "storage",
    "head_size": "head_dim key_dim key_size",
    "hidden_size hidden_sizes": (
        "hidden_dim d_ff dim_feedforward ffn_dim intermediate_size mlp_dim units"
    ),
    "in_channels": "in_chans in_features",
    "in_shape": "in_channels in_chans img_size image_size input_shape",
    "in_size": "in_features input_size input_dim",
    "k": "top_k topk",
    "kernel_size": "kernel",
    "key": "rng seed",
    "keys": "n_seeds num_seeds seeds",
    "l2_norm_clip": "max_grad_norm clip_norm",
    "label_smoothing": "smoothing",
    "labels": "target targets y_true",
    "learning_rate": "lr",
    "length": "block_size context_length seq_len",
    "level": "q quantile tau",
    "log_every": "log_every_n_steps",
    "loggers": "logger",
    "logits": "input y_pred preds predictions",
    "magnitude": "m",
    "matrices": "target_modules",
    "max_length": "block_size context_length max_position_embeddings max_seq_len",
    "max_norm": "clip_norm max_grad_norm",
    "max_value": "data_range max_val",
    "method": "interpolation",
    "metric": "direction",
    "metric_fn": "metrics",
    "micro_batches every": (
        "accumulate_grad_batches gradient_accumulation_steps every_k_schedule "
        "num_microbatches"
    ),
    "noise_multiplier": "sigma",
    "num_bins": "n_bins thresholds",
    "num_epochs": "epochs max_epochs",
    "num_heads": "heads n_head n_heads nhead num_attention_heads",
    "num_kv_heads": "kv_heads n_kv_heads num_key_value_heads",
    "num_layers": "depth layers n_layer n_layers num_hidden_layers",
    "num_ops": "n",
    "num_steps": "max_steps steps",
    "num_tokens": "max_new_tokens max_tokens",
    "num_trials": "max_trials n_trials num_samples",
    "out_channels": "filters features out_features",
    "out_size": ("out_features units features n_classes num_classes num_outputs"),
    "precision": "amp dtype mixed_precision",
    "predictions": "input logits y_pred preds",
    "prefetch": "prefetch_factor",
    "probability": "p prob",
    "progress": "verbose",
    "prompt": "ids input_ids tokens",
    "rank": "r",
    "rank_stabilized": "use_rslora",
    "rate": "p drop_prob dropout_rate",
    "remat": "checkpoint gradient_checkpointing",
    "rotary": "rope use_rope",
    "size": "length",
    "size channels": "normalized_shape num_features features dim",
    "sizes": "layers",
    "smooth": "eps epsilon",
    "space": "param_distributions param_space search_space",
    "stop_token": "eos_token eos_token_id",
    "stride": "strides",
    "targets": "target labels y_true",
    "temperature": "do_sample tau",
    "threads": "num_workers",
    "tied": "tie_embeddings tie_weights tie_word_embeddings",
    "trials_per_batch": "batch_size",
    "vocab_size": "num_embeddings vocab",
    "warmup_steps": "num_warmup_steps warmup",
    "weight_init": "kernel_init kernel_initializer",
    "weights": "sample_weight",
    "where": "mask",
    "window": "kernel_size pool_size sliding_window win_size",
}


def _by_name(arguments: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for own, names in arguments.items():
        for name in names.split():
            found[name] = (*found.get(name, ()), own)
    return found


# A keyword there -> the arguments here, of which a function has one line or none.
ARGUMENTS: Mapping[str, tuple[str, ...]] = _by_name(_ARGUMENTS)
# What stands for an argument elsewhere than among a function's arguments.
OF_DATA: Mapping[str, str] = {
    "collate_fn": "fngrad.data.Dataset.map(fn) changes batches",
    "drop_last": 'remainder="drop" leaves the last examples of an epoch out',
    "drop_remainder": 'remainder="drop" leaves the last examples of an epoch out',
    "num_workers": "arrays need none; fngrad.data.from_source has threads",
    "transform": "fngrad.data.Dataset.map(fn) changes batches",
}
OF_LAYERS: Mapping[str, str] = {
    "batch_first": "a layer takes one example, fngrad.layers.batched a batch",
    "bidirectional": "fngrad.layers.bidirectional(recurrent, in_size, hidden_size)",
    "qkv_features": "head_size=, of each head: qkv_features // num_heads",
    "num_layers": "fngrad.layers.serial of several, or fngrad.models.rnn",
    "return_sequences": "y has all steps; y[-1] is the last one",
    "training": "a key means training: apply(params, x, key=key)",
}
OF_GENERATION: Mapping[str, str] = {
    "max_length": "num_tokens=, which does not count the prompt",
}
OF_LOSSES: Mapping[str, str] = {
    "class_weight": "weights=class_weight[labels], as weights are of examples",
    "from_logits": "cross entropies take logits, without an argument",
    "ignore_index": "where=labels != index leaves labels out",
    "size_average": 'reduction="mean", or "none", the default',
    "weight": "weights=, of examples; weight[labels] is that of their classes",
}
OF_METRICS: Mapping[str, str] = {
    "num_classes": "the last axis of the logits says it",
    "task": "the shape of the logits says it",
}
OF_STEPS: Mapping[str, str] = {
    **dict.fromkeys(
        ("clip_norm", "gradient_clip_val", "max_grad_norm"),
        "fngrad.chain(fngrad.clip_by_global_norm(...), optimizer)",
    ),
    "has_aux": "a loss returns its value, or (value, metrics)",
}
OF_SWEEPS: Mapping[str, str] = {
    "pruner": "fngrad.sweeps.successive_halving stops trainings early",
    "sampler": "study=optuna.create_study(sampler=...) has it",
}
OF_OPTIMIZERS: Mapping[str, str] = {
    "amsgrad": "fngrad.amsgrad is a rule of its own",
    "clipnorm": "fngrad.chain(fngrad.clip_by_norm(...), ...)",
    "clipvalue": "fngrad.chain(fngrad.clip(...), ...)",
    "ema_momentum": "fngrad.chain(..., fngrad.ema_params(...))",
    "global_clipnorm": "fngrad.chain(fngrad.clip_by_global_norm(...), ...)",
    "params": "fngrad.init_state(params, optimizer, key) takes the parameters",
    "use_ema": "fngrad.chain(..., fngrad.ema_params(...))",
    "weight_decay": "fngrad.chain(fngrad.add_decayed_weights(...), ...)",
}
OF_FIT: Mapping[str, str] = {
    "batch_size": "it belongs to the data: fngrad.data.from_arrays(arrays, batch_size)",
    "learning_rate": "it belongs to the optimizer: fngrad.adam(learning_rate)",
    "loss": "it belongs to the step: fngrad.make_step(loss_fn, optimizer)",
    "loss_fn": "it belongs to the step: fngrad.make_step(loss_fn, optimizer)",
    "lr": "it belongs to the optimizer: fngrad.adam(learning_rate)",
    "optimizer": "it belongs to the step: fngrad.make_step(loss_fn, optimizer)",
    "seed": "it belongs to the state: fngrad.init_state(params, optimizer, key=seed)",
    "shuffle": "it belongs to the data: fngrad.data.from_arrays(..., shuffle=True)",
    "steps_per_epoch": "an epoch is the whole data; num_steps= is of the whole run",
}


def explains_keywords(
    places: Mapping[str, str] | None = None,
) -> Callable[[_Fn], _Fn]:
    """Return a decorator that explains keywords that a function does not have.

    Args:
        places: what stands for some elsewhere than among the function's arguments.

    Returns:
        A decorator; the function's name and signature stay.

    Example:
        >>> from fngrad.programs.keywords_elsewhere import explains_keywords
        >>> @explains_keywords()
        ... def train(num_epochs=1):
        ...     return num_epochs
        >>> train(epochs=3)
        Traceback (most recent call last):
        ...
        TypeError: train() got an unexpected keyword argument 'epochs': here it is \
num_epochs
    """

    def decorate(fn: _Fn) -> _Fn:
        @functools.wraps(fn)
        def explained(*args: Any, **kwargs: Any) -> Any:
            try:
                return fn(*args, **kwargs)
            except TypeError as error:
                trace = error.__traceback__
                if trace is None or trace.tb_next is not None:  # raised further inside
                    raise
                hint = _hint(fn, str(error), places or {})
                if not hint:
                    raise
                raise TypeError(f"{str(error).rstrip('.')}: {hint}") from None

        return explained  # type: ignore[return-value]

    return decorate


def explain_in_place(functions: dict[str, Any], places: Mapping[str, str]) -> None:
    """Replace functions by what explains their keywords, also in their own modules.

    So a package that defines many functions has all of them explained at once, and each
    stays one object under all of its names.

    Args:
        functions: by name; changed.
        places: as for `explains_keywords`.
    """
    for name, fn in functions.items():
        explained = explains_keywords(places)(fn)
        setattr(sys.modules[fn.__module__], name, explained)
        functions[name] = explained


def explain_package(namespace: dict[str, Any], places: Mapping[str, str]) -> None:
    """Explain the keywords of all public functions of a package.

    Args:
        namespace: the ``globals()`` of the package, with ``__all__``; changed.
        places: as for `explains_keywords`.
    """
    found = {name: namespace[name] for name in namespace["__all__"]}
    functions = {name: fn for name, fn in found.items() if inspect.isfunction(fn)}
    explain_in_place(functions, places)
    namespace.update(functions)


def _hint(fn: Callable[..., Any], message: str, places: Mapping[str, str]) -> str:
    found = re.search(r"unexpected keyword argument '(\w+)'", message)
    if found is None:
        return ""
    name, own = found[1], list(inspect.signature(fn).parameters)
    lines = ([x for x in line.split() if x in own] for line in ARGUMENTS.get(name, ()))
    meant = next(filter(None, lines), [])
    if not meant and name in places:
        return places[name]
    if meant:
        return f"here it is {' and '.join(meant)}"
    alike = difflib.get_close_matches(name, own, 1, _ALIKE)
    return f"did you mean {alike[0]}?" if alike else ""
