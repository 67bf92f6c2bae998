"""The run folder: configs as JSON, the manifest, and what continues a run."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.logging.manifest as manifest
from fngrad.files.atomic_writes import write_atomically
from fngrad.files.json_values import to_json
from fngrad.logging import RunFolder


@dataclasses.dataclass(frozen=True)
class Model:
    sizes: tuple[int, ...] = (64, 10)
    path: pathlib.Path = pathlib.Path("a/b")


class Config(NamedTuple):
    learning_rate: float = 0.1
    model: Model = Model()
    seed: int = 3


def test_configs_become_plain_json():
    plain = to_json({"config": Config(), "x": np.float32(0.5), "n": np.int64(2)})
    config = {
        "learning_rate": 0.1,
        "model": {"sizes": [64, 10], "path": "a/b"},
        "seed": 3,
    }
    assert plain == {"config": config, "x": 0.5, "n": 2}
    assert to_json([True, None, "a", jnp.float32(1.5)]) == [True, None, "a", 1.5]
    assert to_json(jnp.bfloat16(1.5)) == 1.5
    assert to_json([np.inf, -np.inf, np.nan]) == ["Infinity", "-Infinity", "NaN"]


@pytest.mark.parametrize(
    "value", [len, object(), {1, 2}, np.ones(2), jnp.ones(2), 1j, b"raw", Model]
)
def test_values_that_json_cannot_hold_are_refused_naming_the_key(value: Any):
    with pytest.raises(TypeError, match=r"got .* at 'config\.model\.1'"):
        to_json({"model": [0, value]}, "config")


def test_keys_must_be_strings():
    with pytest.raises(TypeError, match=r"need string keys, got 1 at 'config\.model'"):
        to_json({"model": {1: 2}}, "config")


def test_an_extended_float_is_refused_naming_the_key():
    with pytest.raises(TypeError, match=r"got longdouble at 'config\.rate'"):
        to_json({"rate": np.longdouble(1)}, "config")


def test_an_empty_config_is_refused_naming_the_missing_keys(tmp_path: pathlib.Path):
    RunFolder(tmp_path, config={})
    with pytest.raises(ValueError, match=r"got differences: rate was absent, is 1$"):
        RunFolder(tmp_path, config={"rate": 1})


def test_a_failed_write_leaves_the_old_content(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", raise_disk_full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def raise_disk_full(*args: Any) -> None:
    raise OSError("disk full")


def test_a_run_folder_records_the_config_and_the_environment(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--note", "a b"])
    folder = RunFolder(
        tmp_path / "runs" / "a", config=Config(), data="abc", extra={"note": "first"}
    )
    assert sorted(os.listdir(folder.path)) == ["config.json", "manifest.json"]
    assert json.loads((folder.path / "config.json").read_text()) == to_json(Config())
    assert folder.config["model"]["sizes"] == [64, 10]
    facts = folder.manifest
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["backend"] == jax.default_backend()
    assert facts["device_kind"] == jax.devices()[0].device_kind
    assert facts["device_count"] == jax.device_count()
    assert facts["flags"]["jax_numpy_dtype_promotion"] == "strict"
    assert facts["flags"]["jax_enable_x64"] is False
    assert facts["float32_products"] == "float32"
    assert f"jax=={jax.__version__}" in facts["freeze"]
    assert (facts["seed"], facts["data"], facts["note"]) == (3, "abc", "first")
    assert facts["started"].endswith("+00:00")
    assert facts["resumed"] == []
    assert facts["command"] == "python train.py --note 'a b'"
    assert folder.metrics == folder.path / "metrics.jsonl"
    assert folder.curves == folder.path / "curves.png"


@pytest.mark.parametrize(
    ("backend", "precision", "words"),
    [
        ("cpu", None, "float32"),
        ("cpu", "bfloat16", "float32"),
        ("gpu", None, "TF32 where the GPU has it, otherwise float32 (default)"),
        (
            "gpu",
            "tensorfloat32",
            "TF32 where the GPU has it, otherwise float32 (tensorfloat32)",
        ),
        ("gpu", "highest", "float32 (highest)"),
        ("tpu", None, "bfloat16 (default)"),
        ("tpu", "high", "three passes of bfloat16 (high)"),
        ("tpu", "float32", "float32, in six passes of bfloat16 (float32)"),
        ("tpu", "BF16_BF16_F32_X3", "BF16_BF16_F32_X3"),
    ],
)
def test_the_manifest_says_how_float32_products_are_computed(
    backend: str, precision: str | None, words: str
):
    got = manifest.float32_products(backend, precision)
    assert got == words


def test_the_manifest_names_the_commit(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # hooks of the user's
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert manifest.collect()["git"] is None
    run_git("init", "-q")
    (tmp_path / "a.txt").write_text("one")
    run_git("add", "a.txt")
    run_git("commit", "-q", "-m", "first")
    git = manifest.collect()["git"]
    assert git == {"commit": run_git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "untracked.txt").write_text("two")
    assert manifest.collect()["git"]["dirty"] is False
    (tmp_path / "a.txt").write_text("two")
    assert manifest.collect()["git"]["dirty"] is True
    run_git("add", "a.txt")
    assert manifest.collect()["git"]["dirty"] is True
    run_git("commit", "-q", "-m", "second")
    assert manifest.collect()["git"]["dirty"] is False
    (tmp_path / "a.txt").unlink()
    assert manifest.collect()["git"]["dirty"] is True
    # Without a work tree git names the commit, and no changes.
    monkeypatch.chdir(tmp_path / ".git")
    git = manifest.collect()["git"]
    assert git == {"commit": run_git("rev-parse", "HEAD").strip(), "dirty": None}
    monkeypatch.setenv("PATH", "")
    assert manifest.collect()["git"] is None


def run_git(*arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=no")
    command = ("git", *identity, *arguments)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_an_equal_config_continues_the_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(manifest, "now", lambda ago: "first")
    folder = RunFolder(tmp_path / "run", config=Config(), data="abc")
    folder.update_manifest(loop="scan")
    monkeypatch.setattr(manifest, "now", lambda ago: "second")
    monkeypatch.setenv("XLA_FLAGS", "--other")
    again = RunFolder(tmp_path / "run", config=Config(), data="abc")
    facts = again.manifest
    assert facts["started"] == "first"
    assert facts["loop"] == "scan"
    (resumed,) = facts["resumed"]
    assert resumed["time"] == "second"
    assert resumed["environment"]["XLA_FLAGS"] == "--other"
    assert "versions" not in resumed


def test_another_config_is_refused_naming_every_difference(tmp_path: pathlib.Path):
    path = tmp_path / "run"
    RunFolder(path, config={"rate": 0.1, "model": {"width": 8}, "old": 1})
    before = {name: (path / name).read_bytes() for name in os.listdir(path)}
    with pytest.raises(ValueError, match=r"the config in .*run' unchanged") as info:
        RunFolder(path, config={"rate": 0.2, "model": {"width": 9}})
    for difference in (
        "rate was 0.1, is 0.2",
        "model.width was 8, is 9",
        "old was 1, is absent",
    ):
        assert difference in str(info.value)
    with pytest.raises(ValueError, match=r"rate was 0.1, is absent"):
        RunFolder(path)
    assert before == {name: (path / name).read_bytes() for name in os.listdir(path)}


def test_other_data_are_refused(tmp_path: pathlib.Path):
    RunFolder(tmp_path, data="abc")
    with pytest.raises(ValueError, match="data was 'abc', is 'xyz'"):
        RunFolder(tmp_path, data="xyz")
    RunFolder(tmp_path)


@pytest.mark.parametrize("config", [{"f": len}, {"a": {"f": len}}, 3, [1], "text"])
def test_a_config_json_cannot_hold_makes_no_folder(config: Any, tmp_path: pathlib.Path):
    with pytest.raises(TypeError, match=r"config(\.a)?\.f|as config, got"):
        RunFolder(tmp_path / "run", config=config)
    assert not os.listdir(tmp_path)


def test_updates_of_the_manifest_are_atomic(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    folder = RunFolder(tmp_path / "run")
    folder.update_manifest(loop="scan", learning_rate=np.float32(0.5))
    assert folder.manifest["learning_rate"] == 0.5
    before = folder.manifest
    with pytest.raises(TypeError, match="at 'probe'"):
        folder.update_manifest(loop="python", probe=len)
    monkeypatch.setattr(os, "replace", raise_disk_full)
    with pytest.raises(OSError, match="need a run folder that can be written"):
        folder.update_manifest(loop="python")
    assert folder.manifest == before
    assert sorted(os.listdir(folder.path)) == ["config.json", "manifest.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: pathlib.Path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=r"need a run folder that can be made.*file"):
            RunFolder(path)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"3", b""])
def test_a_file_that_is_not_a_json_object_is_named_and_left_unchanged(
    name: str, content: bytes, tmp_path: pathlib.Path
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"need (a )?JSON.* in .*{name}"):
        RunFolder(tmp_path)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == content
