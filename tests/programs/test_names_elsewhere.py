"""A name of another library leads to what stands for it here."""

import importlib
import pkgutil
import re
import sys

import pytest

import fngrad as fg
from fngrad.programs.names_elsewhere import HERE

CASES = [(module, name) for module, names in HERE.items() for name in names]


@pytest.mark.parametrize("module", HERE)
def test_a_name_that_is_nowhere_is_missing_without_a_hint(module):
    namespace = pkgutil.resolve_name(module)
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
        getattr(namespace, "nonsense")  # noqa: B009
    assert not hasattr(namespace, "__wrapped__")


def test_every_name_of_another_library_says_what_stands_for_it_here():
    for module, name in CASES:
        use = re.escape(HERE[module][name])
        with pytest.raises(AttributeError, match=f"{name!r}; use {use}$"):
            getattr(pkgutil.resolve_name(module), name)


def test_no_two_names_of_a_table_are_read_as_one():
    for module, names in HERE.items():
        plain = [name.replace("_", "").lower() for name in names]
        assert len(set(plain)) == len(plain), module


TYPED = [
    (fg.metrics, "F1_Score", "fngrad.metrics.f_beta"),
    (fg.metrics, "MulticlassAUROC", "fngrad.metrics.roc_auc"),
    (fg.metrics, "BinaryCohenKappa", "fngrad.metrics.cohen_kappa"),
    (fg.losses, "FocalLoss", "fngrad.losses.focal"),
    (fg.losses, "InfoNCE", "fngrad.losses.info_nce"),
    (fg.losses, "resnet", "fngrad.models.resnet"),
    (fg.layers, "AdaptiveMaxPool1d", "fngrad.layers.adaptive_max_pool"),
    (fg.layers, "LoraConfig", "fngrad.lora"),
    (
        fg.layers,
        "Dropout2d",
        "fngrad.layers.dropout, which drops entries, not channels",
    ),
    (fg.layers, "normal", "fngrad.layers.initializers.normal"),
    (fg.layers.initializers, "HeNormal", "fngrad.layers.initializers.he_normal"),
    (fg.projections, "projection_simplex", "fngrad.projections.simplex"),
    (fg.sweeps, "loguniform", "fngrad.sweeps.log_uniform"),
    (fg.tree, "tree_random_like", "fngrad.tree.random_like"),
    (fg.callbacks, "EarlyStopping", "fngrad.EarlyStopping"),
    (fg.callbacks, "early_stopping", "fngrad.EarlyStopping"),
    (fg.callbacks, "TerminateOnNaN", "on_nonfinite= of fngrad.fit"),
    (fg, "manual_seed", "fngrad.init_state(key=), seed= of data"),
    (fg, "SOAP", "fngrad.soap"),
    (fg, "EMA", "fngrad.ema_params in a chain"),
    (fg, "tree_max", "fngrad.tree.max"),
    (fg, "RandAugment", "fngrad.data.augmentations.rand_augment"),
    (fg, "DiceLoss", "fngrad.losses.dice"),
    (fg, "mse", "fngrad.losses.squared_error or fngrad.metrics.mean_squared_error"),
]


def test_spelling_ends_and_other_namespaces_do_not_matter():
    for namespace, name, use in TYPED:
        with pytest.raises(AttributeError, match=f"{name!r}; use {re.escape(use)}$"):
            getattr(namespace, name)


def test_a_module_that_is_being_imported_asks_without_a_search(monkeypatch):
    monkeypatch.setitem(sys.modules, "fngrad.MultiSteps", pkgutil)
    with pytest.raises(AttributeError, match=r"no attribute 'MultiSteps'$"):
        getattr(fg, "MultiSteps")  # noqa: B009


def test_namespaces_that_are_being_imported_hide_no_missing_name(monkeypatch):
    monkeypatch.delattr(fg.models, "__all__")
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        getattr(fg.layers, "nonsense")  # noqa: B009
    monkeypatch.delattr(fg, "__all__")
    monkeypatch.setattr(importlib, "import_module", None)  # would go in a circle
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        getattr(fg.layers, "nonsense")  # noqa: B009


def test_names_that_mean_something_else_elsewhere_have_no_hint():
    for namespace, name in ((fg.losses, "max"), (fg.sweeps, "normal"), (fg, "_adam")):
        with pytest.raises(AttributeError, match=f"no attribute {name!r}$"):
            getattr(namespace, name)


def test_what_stands_for_a_name_exists():
    for module, name in CASES:
        paths = re.findall(r"(?:fngrad|jax)\.[A-Za-z_.0-9]*\w", HERE[module][name])
        assert paths, (module, name)
        for path in paths:
            pkgutil.resolve_name(path)
