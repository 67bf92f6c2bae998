"""How data prints, and constant features, seeds and tables that are refused."""

import sys
import types

import numpy as np
import pytest

import fngrad.data as data
import fngrad.programs.optional_imports as optional_imports


def test_a_constant_feature_is_only_centered():
    x = np.stack([np.full(10, 0.1), np.arange(10.0)], axis=1)
    assert x.std(axis=0)[0] > 0  # by rounding
    train, other = {"x": x}, {"x": x + np.array([0.5, 0.0])}
    scaled = data.standardize(data.Splits(train, other, other), "x")
    np.testing.assert_allclose(scaled.train["x"][:, 0], 0.0, atol=1e-7)
    np.testing.assert_allclose(scaled.test["x"][:, 0], 0.5, rtol=1e-6)
    np.testing.assert_allclose(scaled.test["x"][:, 1].std(), 1.0, rtol=1e-6)


def test_splits_show_their_sizes_and_not_their_arrays():
    parts = data.Splits(*data.split({"x": np.arange(10)}, (0.5, 0.3, 0.2), seed=0))
    assert repr(parts) == "Splits(train=5, validation=3, test=2 examples)"
    assert repr(data.Splits({}, {}, {})) == ("Splits(train={}, validation={}, test={})")


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_the_seed_of_a_split_is_an_int_from_zero(seed):
    with pytest.raises(ValueError, match=rf"need an int seed >= 0, got seed={seed}"):
        data.split(np.arange(4), [0.5], seed=seed)


def test_a_table_of_its_target_alone_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("y\n1\n2\n")
    with pytest.raises(ValueError, match="need a column to predict from besides the"):
        data.csv_file(path, "y")
    path.write_text("1\n2\n")
    with pytest.raises(ValueError, match="besides the target 0, got none in"):
        data.csv_file(path, 0, header=False)


def test_a_broken_scikit_learn_is_not_reported_as_missing(monkeypatch, tmp_path):
    package = types.ModuleType("sklearn")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "datasets.py").write_text("import not_there_at_all\n")
    monkeypatch.setitem(sys.modules, "sklearn", package)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_there_at_all'"):
        data.digits()


def test_a_missing_extra_is_named_by_its_distribution():
    with pytest.raises(ImportError, match="need not-there for this: pip install"):
        optional_imports.import_extra("not_there", "data", "not-there")


def test_a_dataset_shows_its_arrays_in_a_notebook():
    arrays = {"x": np.zeros((4, 3), np.float32), "y": np.zeros(4, np.int32)}
    html = data.from_arrays(arrays, 2)._repr_html_()
    assert "Dataset(4 examples, batch_size=2" in html
    assert "x     (4, 3)  float32     12     48" in html
    assert "validation={}" in data.Splits({}, {}, {})._repr_html_()
