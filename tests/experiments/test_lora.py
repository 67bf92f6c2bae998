"""Fine-tuning a small language model in each way, at a tiny size."""

import json

import jax
import numpy as np
import pytest

import experiments.char_transformer as char_transformer
import experiments.language_model as language_model
import experiments.lora as lora
import fngrad as fg

pytestmark = pytest.mark.any_flags  # most of their time is compilation

TINY = char_transformer.Size(16, 1, 2, 16, 8, 0.02, 30)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(language_model, "SIZE", TINY)
    topics, code = char_transformer.topics(), lora.code()
    monkeypatch.setattr(char_transformer, "topics", lambda: topics[: 12 * 4096])
    monkeypatch.setattr(lora, "code", lambda: code[: 11 * 4096])


def test_both_texts_have_the_alphabet_of_the_old_one(tiny):
    old, new = lora.texts()
    assert old.alphabet == new.alphabet
    text = "".join(new.alphabet[i] for i in new.train[:200])
    assert text == "".join(c for c in lora.code() if c in old.alphabet)[:200]


def test_adapters_alone_are_trained_and_counted(tiny):
    model = language_model.make_model(TINY, 30)
    ways = lora.ways(lora.Config(rank=2), model.init(jax.random.key(0)))
    counts = {name: lora.trained(way)["trained"] for name, way in ways.items()}
    attention, gates = 2 * (16 + 16) + 2 * (16 + 8), 3 * (16 + 64)
    matrices = attention + gates  # rows and columns
    assert counts["LoRA"] == counts["LoRA+"] == 2 * matrices
    assert counts["all"] == sum(x.size for x in jax.tree.leaves(ways["all"].params))


@pytest.mark.slow
def test_each_way_learns_the_new_text_and_leaves_its_files(tiny, tmp_path):
    config = lora.Config(steps=40, fine_tuning_steps=30, runs=tmp_path)
    results = lora.main(config)
    ways = results["ways"]
    assert all(ways[name]["new"] < ways["none"]["new"] for name in ("all", "LoRA"))
    (folder,) = tmp_path.iterdir()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["results"]["ways"]["LoRA"] == ways["LoRA"]
    adapters = fg.checkpoint.load_safetensors(folder / "adapters.safetensors")
    assert sum(x.size for x in adapters.values()) == ways["LoRA"]["trained"]
    program = fg.load_exported(folder / "model.bin")
    logits = program.call(np.zeros((3, TINY.length), np.int32))
    assert logits.shape[:2] == (3, TINY.length)
    assert (folder / "curves.png").is_file()
