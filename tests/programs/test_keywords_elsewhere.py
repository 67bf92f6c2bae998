"""Keywords of other libraries are answered with what they are here."""

import importlib
import inspect
import pickle

import pytest

import fngrad as fg
import fngrad.optimizers as optimizers
from fngrad.programs.keywords_elsewhere import ARGUMENTS, explains_keywords


@pytest.mark.parametrize("name", fg.REGISTRY)
def test_every_optimizer_explains_the_rate_of_torch(name):
    message = rf"{name}\(\) got an unexpected .*'lr'.*: here it is learning_rate$"
    with pytest.raises(TypeError, match=message):
        fg.REGISTRY[name](lr=0.1)


@pytest.mark.parametrize("name", fg.REGISTRY)
def test_an_explained_optimizer_is_one_object_with_its_signature(name):
    factory = fg.REGISTRY[name]
    module = importlib.import_module(factory.__module__)
    assert factory is getattr(fg, name) is getattr(module, name)
    assert factory is getattr(optimizers, name)
    assert next(iter(inspect.signature(factory).parameters)) == "learning_rate"
    assert pickle.loads(pickle.dumps(factory)) is factory


CALLS = [
    (fg.adam, {"learning_rate": 0.1, "betas": (0.9, 0.99)}, "here it is b1 and b2"),
    (fg.adam, {"learning_rate": 0.1, "epsilon": 1e-8}, "here it is eps"),
    (fg.adam, {"learning_rate": 0.1, "amsgrad": True}, "fngrad.amsgrad"),
    (fg.adam, {"learning_rate": 0.1, "use_ema": True}, "fngrad.ema_params"),
    (fg.fit, {"epochs": 3}, "here it is num_epochs"),
    (fg.fit, {"batch_size": 3}, "fngrad.data.from_arrays"),
    (fg.fit, {"lr": 3}, "fngrad.adam"),
    (fg.fit, {"num_step": 3}, r"did you mean num_steps\?$"),
    (fg.models.cnn, {"num_classes": 3}, "here it is classes"),
    (fg.models.cnn, {"out_features": 3}, "here it is classes$"),
    (fg.models.rnn, {"num_classes": 3}, "here it is out_size"),
    (fg.models.mlp, {"dropout": 0.1}, "here it is dropout_rate"),
    (fg.models.transformer, {"dim": 3}, "here it is features"),
    (fg.models.vision_transformer, {"dim": 3}, "here it is features$"),
    (fg.layers.layer_norm, {"features": 3}, "here it is size$"),
    (fg.models.decoder, {"n_heads": 3}, "here it is num_heads"),
    (fg.models.generate, {"max_new_tokens": 3}, "here it is num_tokens"),
    (fg.models.generate, {"max_length": 3}, "does not count the prompt$"),
    (fg.fit, {"steps_per_epoch": 3}, "num_steps= is of the whole run$"),
    (fg.layers.multi_head_attention, {"qkv_features": 3}, "qkv_features // num_heads"),
    (fg.losses.focal, {"weight": 3}, r"of examples; weight\[labels\] is that of"),
    (fg.losses.focal, {"class_weight": 3}, r"weights=class_weight\[labels\], as"),
    (fg.metrics.f_beta, {"weight": 3}, r"did you mean weights\?$"),
    (fg.layers.multi_head_attention, {"embed_dim": 3}, "here it is features"),
    (fg.layers.lstm, {"bidirectional": True}, r"fngrad.layers.bidirectional\("),
    (fg.layers.dropout, {"p": 0.1}, "here it is rate"),
    (fg.layers.conv, {"filters": 3}, "here it is out_channels"),
    (fg.lora, {"r": 8}, "here it is rank"),
    (fg.data.from_arrays, {"drop_last": True}, 'remainder="drop"'),
    (fg.data.from_source, {"num_workers": 2}, "here it is threads"),
    (fg.data.augmentations.horizontal_flip, {"p": 0.5}, "here it is probability"),
    (fg.data.augmentations.rotate, {"angle": 0.5}, "here it is degrees"),
    (fg.make_step, {"gradient_accumulation_steps": 2}, "here it is micro_batches"),
    (fg.make_step, {"clip_norm": 1.0}, "fngrad.clip_by_global_norm"),
    (fg.losses.huber, {"y_true": 0.0}, "here it is targets"),
    (fg.losses.softmax_cross_entropy, {"y_true": 0.0}, "here it is labels"),
    (fg.losses.softmax_cross_entropy, {"ignore_index": -1}, "where=labels != index"),
    (fg.metrics.f_beta, {"num_classes": 3}, "the last axis of the logits"),
    (fg.metrics.psnr, {"data_range": 1.0}, "here it is max_value"),
    (fg.schedules.cosine, {"T_max": 3}, "here it is decay_steps"),
    (fg.steps.differentially_private, {"max_grad_norm": 1.0}, "it is l2_norm_clip"),
    (fg.sweep, {"seeds": 3}, "here it is keys"),
    (fg.sweeps.search, {"n_trials": 3}, "here it is num_trials"),
    (fg.sweeps.search, {"sampler": None}, "study=optuna.create_study"),
]


@pytest.mark.parametrize(("function", "keywords", "hint"), CALLS)
def test_a_keyword_of_another_library_is_answered_with_ours(function, keywords, hint):
    with pytest.raises(TypeError, match=f"unexpected keyword .*: .*{hint}"):
        function(**keywords)


def test_other_errors_pass_unchanged():
    @explains_keywords()
    def outer(num_epochs=1, **options):
        return fg.chain(**options)

    with pytest.raises(TypeError, match=r"chain\(\) got .*'epochs'$"):
        outer(epochs=3)
    with pytest.raises(TypeError, match=r"keyword argument 'qwertz'$"):
        fg.adam(0.1, qwertz=1)
    with pytest.raises(TypeError, match="missing 1 required"):
        fg.adam()


def test_the_arguments_that_are_named_exist():
    functions = [*fg.REGISTRY.values(), *(fn for fn, _, _ in CALLS), fg.sweeps.search]
    functions += [fg.accumulate, fg.clip_by_global_norm, fg.ema_params, fg.init_state]
    functions += [fg.data.windows]
    augmentations = fg.data.augmentations
    for package in (fg.layers, fg.losses, fg.metrics, fg.models, augmentations):
        functions += [getattr(package, name) for name in package.__all__]
    functions += [getattr(fg.schedules, name) for name in fg.schedules.__all__]
    explained = {fn for fn in functions if hasattr(fn, "__wrapped__")}
    known = {n for fn in explained for n in inspect.signature(fn).parameters}
    lines = {line for lines in ARGUMENTS.values() for line in lines}
    named = {name for line in lines for name in line.split()}
    assert named <= known


def test_the_functions_of_a_package_are_each_one_object():
    for package in (fg.losses, fg.metrics, fg.schedules, fg.data.augmentations):
        for name in package.__all__:
            fn = getattr(package, name)
            if inspect.isfunction(fn):
                assert getattr(importlib.import_module(fn.__module__), name) is fn
                assert pickle.loads(pickle.dumps(fn)) is fn
                assert fn.__doc__
                assert hasattr(fn, "__wrapped__")


def test_a_word_that_is_not_alike_has_no_hint():
    for fn, name in ((fg.losses.triplet, "epochs"), (fg.models.generate, "num_beams")):
        with pytest.raises(TypeError, match=f"keyword argument '{name}'$"):
            fn(**{name: 1})
