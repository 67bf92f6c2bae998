"""Compiled programs on disk: where they are, and that a second process uses them."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest

import fngrad as fg
import fngrad.files.compilation_cache as compilation_cache

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = "jax_compilation_cache_dir"

PROGRAM = """
import collections, hashlib, json, sys

import jax
import jax.numpy as jnp

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
import fngrad as fg

BEFORE
fg.cache_compilations(sys.argv[1])
model = fg.models.mlp((3, 4, 2))
predict = fg.layers.batched(model)
x = jnp.sin(jnp.arange(36.0)).reshape(12, 3)
data = fg.data.from_arrays({"x": x, "y": jnp.arange(12) % 2}, 4)


def loss_fn(params, batch):
    logits = predict(params, batch["x"])
    return fg.losses.softmax_cross_entropy_with_integer_labels(
        logits, batch["y"], reduction="mean"
    )


def metric_fn(params, batch):
    return {"accuracy": fg.metrics.accuracy(predict(params, batch["x"]), batch["y"])}


def train(point, key):
    optimizer = fg.momentum(point["learning_rate"])
    step = fg.make_step(loss_fn, optimizer)
    state = fg.init_state(model.init(key), optimizer, key)
    return fg.run(step, state, data.reseed(key), 5)


optimizer = fg.adam(0.1)
step = fg.make_step(loss_fn, optimizer)
state = fg.init_state(model.init(jax.random.key(0)), optimizer, 1)
fitted = fg.fit(
    step, state, data, num_steps=5, metric_fn=metric_fn, eval_data=data,
    checkpoint_dir=sys.argv[2], progress=False,
)
ran = jax.jit(lambda state, data: fg.run(step, state, data, 5))(state, data)
points = fg.sweeps.grid(learning_rate=[0.1, 0.2])
swept = fg.sweep(train, points, 2, metric=("loss", "min"), progress=False)
trees = (fitted.state.params, dict(fitted.history), ran[0].params, swept.state.params)
leaves = [jax.device_get(leaf).tobytes() for leaf in jax.tree.leaves(trees)]
bits = hashlib.sha256(b"".join(leaves)).hexdigest()
requests = events["/jax/compilation_cache/compile_requests_use_cache"]
hits = events["/jax/compilation_cache/cache_hits"]
print(json.dumps([requests, hits, bits]))
"""


def run(code: str, path: pathlib.Path, *arguments: str, **environment: str) -> str:
    """Run a script at a path in a fresh process; return what it prints."""
    path.write_text(code)
    own = {name: x for name, x in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        env=own | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_second_process_compiles_nothing_whatever_its_name_and_lines(tmp_path):
    compiled = str(tmp_path / "compiled")

    def found(code: str, name: str) -> list:
        return json.loads(run(code, tmp_path / name, compiled, str(tmp_path / name[0])))

    requests, hits, bits = found(PROGRAM.replace("BEFORE", ""), "first.py")
    moved = PROGRAM.replace("BEFORE", "\n# a comment\n" * 7)
    again = found(moved, "moved_and_renamed.py")
    assert requests > 10 > hits
    assert again == [requests, requests, bits]


TOO_LATE = """
import sys
import jax, jax.numpy as jnp
import fngrad as fg

traces = []

@jax.jit
def early(x):
    traces.append(x)
    return jnp.sin(x)

early(1.0)
for folder in sys.argv[1:]:
    fg.cache_compilations(folder)
    early(1.0)
    jax.jit(lambda x: jnp.cos(x) + len(folder))(1.0)
print(len(traces))
"""


def test_it_takes_effect_after_programs_were_compiled_and_in_another_folder(tmp_path):
    folders = [tmp_path / "one", tmp_path / "another"]
    traces = run(TOO_LATE, tmp_path / "late.py", *map(str, folders))
    for folder in folders:
        assert [entry for entry in folder.iterdir() if "lambda" in entry.name], folder
    assert int(traces) == 1  # what was compiled before stays as it is


def test_jaxs_own_variables_name_the_folder_and_turn_the_cache_off(tmp_path):
    code = "import jax, fngrad as fg\nprint(fg.cache_compilations())\n"
    code += "jax.jit(lambda x: x + 1)(1.0)"
    chosen = tmp_path / "chosen"

    def entries(**environment: str) -> list:
        variables = {"JAX_COMPILATION_CACHE_DIR": str(chosen)} | environment
        shown = run(code, tmp_path / "environment.py", **variables)
        assert shown == f"{chosen}\n"
        return list(chosen.glob("*-cache"))

    assert not entries(JAX_ENABLE_COMPILATION_CACHE="false")
    assert entries()


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {}, ".cache/fngrad/compiled"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, ".cache/fngrad/compiled"),
        ("linux", {"XDG_CACHE_HOME": "{home}/own"}, "own/fngrad/compiled"),
        ("darwin", {}, "Library/Caches/fngrad/compiled"),
        ("win32", {"LOCALAPPDATA": "{home}/Local"}, "Local/fngrad/compiled"),
    ],
)
def test_the_default_is_in_the_users_cache_folder(
    platform, variables, folder, tmp_path, monkeypatch, settings
):
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    assert fg.cache_compilations() == str(tmp_path / folder)
    assert (tmp_path / folder).is_dir()


def test_relative_folders_are_resolved_once(tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert fg.cache_compilations("here") == str(tmp_path / "here")
    assert fg.cache_compilations(pathlib.Path("~/there")) == str(tmp_path / "there")
    assert getattr(jax.config, FOLDER) == str(tmp_path / "there")


@pytest.mark.parametrize(
    "url", ["gs://bucket/a", pathlib.PurePosixPath("gs://bucket/a")]
)
def test_urls_are_passed_to_jax(url, settings):
    pytest.importorskip("etils.epath")
    assert fg.cache_compilations(url) == "gs://bucket/a"
    assert getattr(jax.config, FOLDER) == "gs://bucket/a"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, settings):
    (tmp_path / "file").write_text("")
    before = getattr(jax.config, FOLDER)
    with pytest.raises(OSError, match=r"need a folder .* can be written, got .*file"):
        fg.cache_compilations(tmp_path / "file" / "below")
    with pytest.raises(TypeError, match="need folder, a string or a path, got 3"):
        fg.cache_compilations(3)
    with pytest.raises(ValueError, match="need folder, a path, got ''"):
        fg.cache_compilations("")
    assert getattr(jax.config, FOLDER) == before


def test_a_limit_of_jaxs_own_needs_its_library(tmp_path, monkeypatch, settings):
    jax.config.update("jax_compilation_cache_max_size", 1 << 20)
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(ImportError, match=r'filelock for this: .*"fngrad\[cache\]"'):
        fg.cache_compilations(tmp_path)


def test_the_entries_read_longest_ago_are_dropped_once_a_day(
    tmp_path, monkeypatch, settings
):
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 250)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)

    def fill() -> None:
        for age, name in enumerate(["new", "newer", "old"]):
            entry = tmp_path / f"{name}-cache"
            entry.write_bytes(b"x" * 100)
            os.utime(entry, (now - 100 * age, now - 1000))

    def left() -> list[str]:
        fg.cache_compilations(tmp_path)
        return sorted(path.name for path in tmp_path.glob("*-cache"))

    (tmp_path / "other.txt").write_bytes(b"x" * 1000)
    fill()
    assert left() == ["new-cache", "newer-cache"]
    fill()
    assert left() == ["new-cache", "newer-cache", "old-cache"]  # of the same day
    now += 25 * 3600
    assert left() == ["new-cache", "newer-cache"]
    assert (tmp_path / "other.txt").exists()


@pytest.mark.parametrize("method", ["stat", "unlink"])
def test_an_entry_that_cannot_be_dropped_does_no_harm(
    method, tmp_path, monkeypatch, settings
):
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 0)
    plain = getattr(pathlib.Path, method)
    found = []

    def refuse(path, *args, **options):
        if path.name == "b-cache":
            found.append(path)
            kind = FileNotFoundError if method == "stat" else PermissionError
            raise kind(f"another process has {path}")
        return plain(path, *args, **options)

    for name in "abc":
        (tmp_path / f"{name}-cache").write_bytes(b"x" * 100)
    monkeypatch.setattr(pathlib.Path, method, refuse)
    fg.cache_compilations(tmp_path)
    assert found
    assert set(os.listdir(tmp_path)) == {"b-cache", ".checked", ".trimmed"}


def test_a_marker_of_another_user_does_no_harm(tmp_path, monkeypatch, settings):
    def refuse(path, **options):
        raise PermissionError(f"another user's {path}")

    monkeypatch.setattr(pathlib.Path, "touch", refuse)
    assert fg.cache_compilations(tmp_path) == str(tmp_path)


def test_the_current_cache_is_told_with_its_entries(tmp_path, settings):
    for name, size in (("a-cache", 3), ("b-cache", 4), ("b-atime", 5)):
        (tmp_path / name).write_bytes(b"x" * size)
    jax.config.update(FOLDER, str(tmp_path))
    found = compilation_cache.current_cache()
    assert found == (str(tmp_path), True, 2, 7)
    assert found.is_writable
    jax.config.update(FOLDER, str(tmp_path / "a-cache"))  # a file
    found = compilation_cache.current_cache()
    assert (found.entries, found.is_writable) == (0, False)
    for folder in (None, "gs://bucket/a"):
        jax.config.update(FOLDER, folder)
        found = compilation_cache.current_cache()
        assert found == (folder, True, None, None)
        assert found.is_writable is None
