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

# The arguments that have the role of a keyword, of which a function has some or none.
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "activation_fn": ("activation",),
    "beta1": ("b1",),
    "beta2": ("b2",),
    "beta_1": ("b1",),
    "beta_2": ("b2",),
    "betas": ("b1", "b2", "b3"),
    "callback": ("callbacks",),
    "ckpt_dir": ("checkpoint_dir",),
    "d_model": ("features",),
    "dim": ("features",),
    "dropout": ("dropout_rate",),
    "do_sample": ("temperature",),
    "eos_token_id": ("stop_token",),
    "epochs": ("num_epochs",),
    "epsilon": ("eps",),
    "hidden_dim": ("hidden_size", "hidden_sizes"),
    "in_channels": ("in_shape",),
    "in_features": ("in_size",),
    "input_shape": ("in_shape",),
    "input_size": ("in_size",),
    "kernel": ("kernel_size",),
    "layers": ("num_layers", "sizes"),
    "log_every_n_steps": ("log_every",),
    "logger": ("loggers",),
    "lr": ("learning_rate",),
    "max_epochs": ("num_epochs",),
    "max_new_tokens": ("num_tokens",),
    "max_seq_len": ("max_length",),
    "max_steps": ("num_steps",),
    "metrics": ("metric_fn",),
    "n_classes": ("classes", "out_size"),
    "num_classes": ("classes", "out_size"),
    "num_outputs": ("classes", "out_size"),
    "out_features": ("classes", "out_size"),
    "patience": ("early_stopping",),
    "steps": ("num_steps",),
    "steps_per_epoch": ("num_steps",),
    "val_data": ("eval_data",),
    "validation_data": ("eval_data",),
    "verbose": ("progress",),
}
# What stands for an argument elsewhere than among a function's arguments.
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


def _hint(fn: Callable[..., Any], message: str, places: Mapping[str, str]) -> str:
    found = re.search(r"unexpected keyword argument '(\w+)'", message)
    if found is None:
        return ""
    name, own = found[1], list(inspect.signature(fn).parameters)
    meant = [x for x in ARGUMENTS.get(name, ()) if x in own]
    if not meant and name in places:
        return places[name]
    meant = meant or difflib.get_close_matches(name, own, 1)
    return f"here it is {' and '.join(meant)}" if meant else ""
