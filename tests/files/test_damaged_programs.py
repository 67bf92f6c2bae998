"""Compiled programs that were cut short are removed, and compiled again."""

import os
import pathlib
import sys
import time
import types
import warnings
import zlib

import jax
import jax.numpy as jnp
import pytest

import fngrad as fg
from fngrad.files.damaged_programs import drop_damaged, is_damaged

WHOLE = zlib.compress(b"a program" * 100)


def entries(folder):
    return {path: path.read_bytes() for path in folder.glob("*-cache")}


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_program_that_was_cut_short_is_compiled_and_kept_again(
    tmp_path, settings, size
):
    def compile_anew():
        fg.cache_compilations(tmp_path)
        jax.clear_caches()
        return float(jax.jit(lambda x: jnp.sin(x) * 3)(jnp.float32(1.0)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = compile_anew()
        whole = entries(tmp_path)
        assert whole
        for path, content in whole.items():
            path.write_bytes(content[:size])
        assert compile_anew() == expected
    assert entries(tmp_path).keys() == whole.keys()
    assert not any(map(is_damaged, entries(tmp_path).values()))


def test_what_is_whole_or_unknown_stays(tmp_path):
    contents = {"a": WHOLE, "b": b"of another version of JAX", "c": WHOLE[:9]}
    for name, content in contents.items():
        (tmp_path / f"{name}-cache").write_bytes(content)
    (tmp_path / "other").write_bytes(WHOLE[:9])
    drop_damaged(tmp_path, "*-cache")
    assert set(os.listdir(tmp_path)) == {"a-cache", "b-cache", "other", ".checked"}


def test_what_was_checked_is_not_read_again(tmp_path, monkeypatch):
    old, new = tmp_path / "old-cache", tmp_path / "new-cache"
    old.write_bytes(WHOLE)
    os.utime(old, (time.time() - 1000,) * 2)
    drop_damaged(tmp_path, "*-cache")
    new.write_bytes(WHOLE)
    plain, read = pathlib.Path.read_bytes, []
    monkeypatch.setattr(
        pathlib.Path, "read_bytes", lambda path: read.append(path) or plain(path)
    )
    drop_damaged(tmp_path, "*-cache")
    assert read == [new]


def test_an_entry_of_another_user_does_no_harm(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(f"another user's {path}")

    (tmp_path / "a-cache").write_bytes(WHOLE[:9])
    monkeypatch.setattr(pathlib.Path, "unlink", refuse)
    drop_damaged(tmp_path, "*-cache")
    assert entries(tmp_path)


def test_zstandard_is_judged_where_a_library_of_it_is_installed(monkeypatch):
    class ZstdError(Exception):
        """An error of the library."""

    def decompress(compressed):
        if not compressed.endswith(b"end"):
            raise ZstdError("no end")

    cut = b"\x28\xb5\x2f\xfd a program"
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)  # importing it raises
    assert not is_damaged(cut)
    library = types.SimpleNamespace(ZstdError=ZstdError, decompress=decompress)
    monkeypatch.setitem(sys.modules, "zstandard", library)
    assert is_damaged(cut)
    assert not is_damaged(cut + b"end")
