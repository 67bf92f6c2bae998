"""Variables that were set too late are found; so are caches that are not used."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from fngrad.accelerators.settings import (
    judge_cache,
    judge_flags,
    judge_precision,
    judge_settings,
    relevant_variables,
)
from fngrad.files.compilation_cache import CompilationCache

ROOT = pathlib.Path(__file__).resolve().parents[2]


def judged(variables, devices=1, **flags):
    in_force = types.SimpleNamespace(**flags)
    return judge_settings(relevant_variables(variables), in_force, devices)


def test_only_what_jax_reads_is_shown():
    variables = {
        "HOME": "/root",
        "XLA_FLAGS": "--a",
        "LIBTPU_INIT_ARGS": "--b",
        "CUDA_VISIBLE_DEVICES": "0",
        "NVIDIA_TF32_OVERRIDE": "0",
        "MY_JAX_FLAG": "1",
    }
    assert relevant_variables(variables).keys() == variables.keys() - {
        "HOME",
        "MY_JAX_FLAG",
    }
    (found,) = judged({"HOME": "/root"})
    assert (found.status, found.text) == ("ok", "none that JAX reads")


@pytest.mark.parametrize(
    ("name", "value", "in_force", "status"),
    [
        ("JAX_ENABLE_X64", "1", True, "ok"),
        ("JAX_ENABLE_X64", "True", False, "warning"),
        ("JAX_ENABLE_X64", "0", True, "warning"),
        ("JAX_PLATFORMS", "cpu", "cpu", "ok"),
        ("JAX_PLATFORMS", "tpu", "cpu", "warning"),
        ("JAX_COMPILATION_CACHE_MAX_SIZE", "8", 8, "ok"),
        ("JAX_COMPILATION_CACHE_MAX_SIZE", "8", -1, "warning"),
        ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0", 0.0, "ok"),
        ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0", 1.0, "warning"),
    ],
)
def test_a_variable_must_be_in_force(name, value, in_force, status):
    (found,) = judged({name: value}, **{name.lower(): in_force})
    assert found.status == status
    if status == "warning":
        assert f"{name}={value}, but {name.lower()} is {in_force!r}" in found.text


def test_a_flag_that_is_unset_though_its_variable_is_not_is_found():
    (found,) = judged({"JAX_PLATFORMS": "tpu"}, jax_platforms=None)
    assert found.status == "warning"
    (found,) = judged({"JAX_COORDINATOR_ADDRESS": "localhost"})  # it has no flag
    assert found.status == "ok"


@pytest.mark.parametrize(("devices", "status"), [(8, "ok"), (1, "warning")])
def test_virtual_devices_that_did_not_appear_are_found(devices, status):
    flags = "--xla_dump_to=x --xla_force_host_platform_device_count=8"
    (found,) = judged({"XLA_FLAGS": flags}, devices)
    assert found.status == status


@pytest.mark.slow
def test_a_variable_that_is_set_after_the_import_is_found():
    code = (
        "import jax, os; os.environ['JAX_ENABLE_X64'] = '1'; "
        "from fngrad.accelerators.settings import judge_settings as judge; "
        "print(judge({'JAX_ENABLE_X64': '1'}, jax.config, 1)[0].status)"
    )
    for early, expected in (("0", "warning"), ("1", "ok")):
        environment = os.environ | {"JAX_ENABLE_X64": early, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize(
    ("flag", "backend", "count"),
    [
        ("jax_disable_jit", "cpu", 1),
        ("jax_debug_nans", "tpu", 1),
        ("jax_enable_x64", "tpu", 1),
        ("jax_enable_x64", "cpu", 0),
        ("jax_numpy_rank_promotion", "tpu", 0),
    ],
)
def test_flags_that_make_a_training_slow_are_warnings(flag, backend, count):
    found = judge_flags(types.SimpleNamespace(**{flag: True}), backend)
    assert [each.status for each in found] == ["warning"] * count
    assert all(each.way_out == f"jax.config.update('{flag}', False)" for each in found)
    assert judge_flags(types.SimpleNamespace(**{flag: False}), backend) == []


@pytest.mark.parametrize(
    ("backend", "precision", "words"),
    [
        ("tpu", None, 'in bfloat16 (default); fg.Policy(matmul_precision="highest")'),
        ("gpu", None, "in TF32 where the GPU has it"),
        ("tpu", "highest", "in float32, in six passes of bfloat16 (highest)"),
        ("cpu", None, "in float32"),
    ],
)
def test_the_precision_of_products_is_told(backend, precision, words):
    found = judge_precision(backend, precision)
    assert (found.status, words in found.text) == ("ok", True)
    assert ("fg.Policy" in found.text) == (backend != "cpu" and precision is None)


def test_the_cache_is_told_with_its_size(tmp_path):
    found = judge_cache(CompilationCache(str(tmp_path), True, 3, 3 << 20))
    assert (found.status, found.text) == ("ok", f"{tmp_path}, 3 programs, 3.0 MiB")
    found = judge_cache(CompilationCache("gs://bucket", True, None, None))
    assert (found.status, found.text) == ("ok", "gs://bucket")
    found = judge_cache(CompilationCache(None, True, None, None))
    assert (found.status, "fg.cache_compilations()" in found.text) == ("ok", True)


def test_a_cache_that_is_not_used_is_a_warning(tmp_path):
    found = judge_cache(CompilationCache(str(tmp_path), False, 0, 0))
    assert (found.status, "is not used" in found.text) == ("warning", True)
    (tmp_path / "file").touch()
    found = judge_cache(CompilationCache(str(tmp_path / "file" / "a"), True, 0, 0))
    assert (found.status, "cannot be written" in found.text) == ("warning", True)
