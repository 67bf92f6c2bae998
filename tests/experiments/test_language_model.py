"""The decoder that writes: its texts, its speed, its results, at a tiny size."""

import json

import jax
import numpy as np
import pytest
from drawn_parameters import filled

import experiments.char_transformer as char_transformer
import experiments.language_model as language_model
import fngrad as fg

pytestmark = pytest.mark.any_flags  # most of their time is compilation

TINY = char_transformer.Size(16, 1, 2, 16, 8, 0.02, 30)


@pytest.fixture(scope="module")
def text():
    return char_transformer.split(char_transformer.topics()[: 12 * 4096])


def test_it_has_the_size_that_its_docstring_states():
    params = jax.eval_shape(language_model.make_model(language_model.SIZE, 103).init, 0)
    millions = fg.tree.size(params) / 1e6
    assert f"a decoder of {millions:.2f} million parameters" in language_model.__doc__


@pytest.mark.slow
def test_every_prompt_is_continued_by_itself(text):
    model = language_model.make_model(TINY, text.vocab_size)
    params = filled(model, scale=1.0)
    config = language_model.Config(sample=5, temperature=1e-6, top_p=1.0)
    written = language_model.written(config, model, params, text)
    logits = jax.jit(model.apply)  # of the whole text, zeros after its end unseen
    for prompt, whole in zip(language_model.PROMPTS, written, strict=True):
        assert whole.startswith(prompt)
        assert len(whole) == len(prompt) + 5
        tokens = np.zeros(max(map(len, language_model.PROMPTS)) + 5, np.int32)
        tokens[: len(whole)] = language_model.numbers(text, whole)
        best = np.argmax(logits(params, tokens), axis=-1)
        ends = slice(len(prompt), len(whole))
        np.testing.assert_array_equal(
            best[ends.start - 1 : ends.stop - 1], tokens[ends]
        )


@pytest.mark.slow
def test_both_ways_to_write_give_one_text(text):
    model = language_model.make_model(TINY, text.vocab_size)
    found = language_model.speed(model, filled(model, scale=1.0), text.held_out[:16], 8)
    assert found.same_text
    assert found.with_cache > 0
    assert found.without_cache > 0


@pytest.mark.slow
def test_the_run_folder_holds_results_curves_samples_and_the_model(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(language_model, "SIZE", TINY)
    topics = char_transformer.topics()
    monkeypatch.setattr(char_transformer, "topics", lambda: topics[: 12 * 4096])
    config = language_model.Config(context=2, sample=20, timed=8, runs=tmp_path)
    results = language_model.main(config)
    (folder,) = tmp_path.iterdir()
    shown = capsys.readouterr().out
    written = json.loads((folder / "manifest.json").read_text())["results"]
    assert written == results
    bits = results["bits_per_character"]["decoder"]
    assert bits < np.log2(103)
    assert f"decoder {bits:19.3f}" in shown
    sample = (folder / "sample.txt").read_text(encoding="utf-8")
    assert sample in shown
    assert all(prompt in sample for prompt in language_model.PROMPTS)
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    text = char_transformer.split(topics[: 12 * 4096])
    model = language_model.make_model(TINY, text.vocab_size)
    params = fg.checkpoint.restore(folder / "model", model.init(jax.random.key(1)))
    data, _ = char_transformer.held_out_windows(text.held_out, TINY.length)
    metric_fn = char_transformer.metric_of(model, TINY.length)
    found = fg.evaluate(metric_fn, params, data)["bits_per_character"]
    assert found == pytest.approx(bits, rel=1e-6)
