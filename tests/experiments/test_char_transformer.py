"""The character language model: its text, its scores, its results, at a small size."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.char_transformer as char_transformer
import experiments.character_ngrams as ngrams
import experiments.meshes as meshes
import fngrad as fg
from fngrad.logging.history import History

TINY = char_transformer.Size(16, 1, 2, 16, 8, 0.02, 30)


@pytest.fixture
def text():
    return char_transformer.split(char_transformer.topics()[: 12 * 4096])


@pytest.fixture
def tiny(monkeypatch):
    topics = char_transformer.topics()[: 12 * 4096]
    peak = functools.partial(char_transformer.peak, size=256, repeats=3)
    monkeypatch.setitem(char_transformer.SIZES, "small", TINY)
    monkeypatch.setattr(char_transformer, "topics", lambda: topics)
    monkeypatch.setattr(char_transformer, "peak", peak)


def last_logits(model, params, tokens, length):
    """Return the logits after the last token, in float64."""
    padded = np.zeros(length, np.int32)
    padded[: len(tokens)] = tokens
    logits = jax.jit(model.apply)(params, padded)[len(tokens) - 1]
    return np.asarray(logits, np.float64)


def test_no_paragraph_of_the_text_stands_in_it_twice():
    paragraphs = char_transformer.topics().split("\n\n")
    assert len(paragraphs) == len(set(paragraphs)) > 1000


def test_a_tenth_is_held_out_and_all_of_the_text_is_in_one_part(text):
    whole = char_transformer.topics()[: 12 * 4096]
    learned = "".join(text.alphabet[i] for i in text.train)
    held_out = "".join(text.alphabet[i] for i in text.held_out)
    assert held_out == whole[9 * 4096 : 10 * 4096]
    assert learned == whole[: 9 * 4096] + whole[10 * 4096 :]


def test_the_metric_scores_the_characters_that_the_ngrams_score(text):
    tokens, length = text.held_out[:200], 16
    data, scored = char_transformer.held_out_windows(tokens, length)
    seen = [np.asarray(data.batch(i)["y"])[0, length // 2 :] for i in range(data.size)]
    np.testing.assert_array_equal(np.concatenate(seen), tokens[scored])


@pytest.mark.slow
@pytest.mark.any_flags
def test_bits_per_character_are_the_mean_surprise_in_bits(text):
    length = TINY.length
    model = char_transformer.make_model(TINY, text.vocab_size, remat=False)
    params = model.init(jax.random.key(0))
    data, scored = char_transformer.held_out_windows(text.held_out[:100], length)
    metric_fn = char_transformer.metric_of(model, length)
    found = fg.evaluate(metric_fn, params, data)["bits_per_character"]
    surprises = []
    for at in range(scored.start, scored.stop):
        start = (at - 1 - length // 2) // (length // 2) * (length // 2)
        logits = last_logits(model, params, text.held_out[start:at], length)
        p = np.exp(logits - np.max(logits))
        surprises.append(-np.log2(p[text.held_out[at]] / np.sum(p)))
    assert found == pytest.approx(np.mean(surprises), rel=1e-5)


def test_the_best_ngrams_are_those_of_the_least_bits_on_the_tuning_text(text):
    config = char_transformer.Config(context=3)
    scored = slice(9, 1000)
    found = char_transformer.baselines(config, text, scored)
    assert list(found) == ["2-grams", "4-grams"]
    *_, model = ngrams.train(text.train, text.vocab_size, 3)
    tokens = text.held_out[6:1000]
    assert found["4-grams"] == ngrams.bits_per_character(model, tokens)
    assert found["4-grams"] < found["2-grams"] < np.log2(text.vocab_size)


def test_a_greedy_sample_is_what_the_model_finds_most_probable(text):
    size = TINY._replace(length=8)
    model = char_transformer.make_model(size, text.vocab_size, remat=False)
    params = jax.tree.map(lambda p: 20 * p, model.init(jax.random.key(0)))
    config = char_transformer.Config(sample=20, temperature=1e-4)
    shown = char_transformer.generate(model, params, config, size, text)
    seen = [text.alphabet.index("\n")]
    for character in shown:
        logits = last_logits(model, params, seen[-8:], 8)
        assert text.alphabet[int(np.argmax(logits))] == character
        seen.append(text.alphabet.index(character))
    assert len(set(shown)) > 1


def test_utilization_counts_each_product_forward_and_twice_backward(text):
    size = TINY._replace(deep=True)
    model = char_transformer.make_model(size, text.vocab_size, remat=True)
    history = History({"seconds": {"stepping": 2.0}})
    state = fg.init_state(model.init(jax.random.key(0)), fg.sgd(0.1), 0)
    result = fg.FitResult(state._replace(step=jnp.int32(4)), history, "completed")
    found = char_transformer.speed(size, text, result, 1e9)
    f, t, b, vocab = size.features, size.length, size.batch_size, text.vocab_size
    forward = 2 * b * t * (12 * f * f + f * vocab) + 4 * b * t * t * f
    assert found["tokens_per_second"] == 2 * b * t
    assert found["utilization"] == pytest.approx(2 * 3 * forward / 1e9)


def test_a_mesh_that_cannot_be_made_is_refused_before_anything_is_written(tmp_path):
    config = char_transformer.Config(mesh="data=1000", runs=tmp_path)
    with pytest.raises(ValueError, match="need axes whose sizes multiply to"):
        char_transformer.main(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("backend", "count"), [("cpu", 1), ("tpu", 8)])
def test_utilization_is_of_all_chips_of_a_mesh(backend, count, monkeypatch):
    mesh = fg.sharding.abstract_mesh(data=4, model=2)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert meshes.chips(mesh) == count
    assert meshes.chips(None) == 1


@pytest.mark.slow
@pytest.mark.any_flags
def test_the_run_folder_holds_results_curves_a_sample_and_the_model(
    tiny, tmp_path, capsys
):
    config = char_transformer.Config(
        context=2, sample=20, precision="bfloat16", runs=tmp_path
    )
    results = char_transformer.main(config)
    (folder,) = tmp_path.iterdir()
    shown = capsys.readouterr().out
    written = json.loads((folder / "manifest.json").read_text())["results"]
    assert written == results
    bits = results["bits_per_character"]
    assert bits["transformer"] < np.log2(103)
    assert f"transformer {bits['transformer']:19.3f}" in shown
    assert 0 < results["utilization"] < 1
    sample = (folder / "sample.txt").read_text(encoding="utf-8")
    assert len(sample) == 20
    assert sample in shown
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert fg.logging.read_jsonl(folder / "metrics.jsonl")[-1]["step"] == TINY.steps
    text = char_transformer.split(char_transformer.topics())
    model = char_transformer.make_model(TINY, text.vocab_size, remat=True)
    like = model.init(jax.random.key(1))
    params = fg.checkpoint.restore(folder / "model", like)
    data, _ = char_transformer.held_out_windows(text.held_out, TINY.length)
    metric_fn = fg.mixed_precision(
        char_transformer.metric_of(model, TINY.length), "bfloat16"
    )
    found = fg.evaluate(metric_fn, params, data)["bits_per_character"]
    assert found == pytest.approx(bits["transformer"], rel=1e-6)


def test_the_large_model_takes_five_steps_on_cpu():
    large = char_transformer.SIZES["large"]
    assert char_transformer.steps_of(char_transformer.Config(), large) in (5, 3000)
    config = char_transformer.Config(steps=7)
    assert char_transformer.steps_of(config, large) == 7


@pytest.mark.parametrize(
    ("name", "millions"), [("small", 0.1), ("medium", 1), ("large", 10)]
)
def test_the_sizes_are_what_they_are_called(name, millions):
    model = char_transformer.make_model(char_transformer.SIZES[name], 103, remat=True)
    params = jax.eval_shape(model.init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(params))
    assert count == pytest.approx(1e6 * millions, rel=0.25)


def test_a_text_names_the_axes_of_a_mesh():
    assert meshes.mesh_of(None, 32) is None
    assert dict(meshes.mesh_of("data=1, model=1", 32).shape) == {
        "data": 1,
        "model": 1,
    }
    for text in ("8", "data", "data=x", "", "model=1", "data=1,data=1", "data=--1"):
        with pytest.raises(ValueError, match="need a mesh data=8 or data=4,model=2"):
            meshes.mesh_of(text, 32)


def test_a_mesh_that_does_not_divide_the_batches_is_refused(monkeypatch):
    three = fg.sharding.abstract_mesh(data=3)
    monkeypatch.setattr(fg.sharding, "make_mesh", lambda **axes: three)
    with pytest.raises(ValueError, match="divides batches of 32, got 3"):
        meshes.mesh_of("data=3", 32)


SHARED = """
import functools, sys
import fngrad as fg
mine = fg.distributed.initialize()
import experiments.char_transformer as it
it.SIZES["small"] = it.Size(16, 1, 2, 16, 8, 0.02, 30)
it.topics = lambda topics=it.topics: topics()[: 12 * 4096]
it.peak = functools.partial(it.peak, size=256, repeats=3)
found = it.main(it.Config(steps=10, sample=5, context=2, runs=sys.argv[1]))
print("rank", mine.rank, sorted(found))
"""


@pytest.mark.slow
@pytest.mark.any_flags
def test_one_command_trains_in_two_processes_of_four_devices(tmp_path):
    command = ["experiments.launch", "2", "4", "-c", SHARED, str(tmp_path)]
    made = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=True
    )
    assert "rank 1 []" in made.stdout
    assert "rank 0 ['bits_per_character', 'parameters'" in made.stdout
    (run,) = tmp_path.iterdir()
    files = {"config.json", "manifest.json", "metrics.jsonl", "model", "sample.txt"}
    assert files <= {path.name for path in run.iterdir()}
    assert made.stdout.count("run folder:") == 1
