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
    (fg.fit, {"num_step": 3}, "here it is num_steps"),
    (fg.models.cnn, {"num_classes": 3}, "here it is classes"),
    (fg.models.rnn, {"num_classes": 3}, "here it is out_size"),
    (fg.models.mlp, {"dropout": 0.1}, "here it is dropout_rate"),
    (fg.models.transformer, {"dim": 3}, "here it is features"),
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
    functions = [*fg.REGISTRY.values(), fg.fit]
    functions += [getattr(fg.models, name) for name in fg.models.__all__]
    known = {n for fn in functions for n in inspect.signature(fn).parameters}
    named = {name for names in ARGUMENTS.values() for name in names}
    assert named <= known
