"""Train a language model of characters on Python's own documentation.

Claim: a transformer of 0.1 million parameters predicts held-out text better than
6-grams with tuned weights and slightly worse than the best n-grams; one of a million
predicts it better than these.

Command:  python -m experiments.char_transformer
          python -m experiments.char_transformer --size medium
          python -m experiments.char_transformer --size large --precision bfloat16
          python -m experiments.char_transformer --mesh data=8
          python -m experiments.launch 2 4 -m experiments.char_transformer
Minutes:  two to three of two idle cores, about ten for the medium model.
Expected: bits per character of 1.786 (0.12 million parameters) and 1.714 (1.03 million)
          next to 1.837 for 6-grams and 1.772 for 9-grams, which are the best. In these
          two runs the cores were shared with other work: 11,100 and 1,200 tokens per
          second, 8 and 6 % of a product's rate.

The text is that of `pydoc_data.topics` (Python's help on its keywords and types), each
paragraph once: 373,000 characters with Python 3.11; other versions have slightly
different ones. Every tenth block of 4,096 characters is held out.

A window of ``length`` characters predicts each next one. Muon trains the matrices of
the blocks, AdamW the rest; the learning rates rise for a tenth of the steps and fall
along a cosine. The large model runs its blocks in one loop and computes them again in
the backward pass; AdamW alone trains it. It is for a GPU: on CPU it takes a few steps,
for the speed. With ``--mesh data=8`` or ``data=4,model=2`` batches are split over
``data``, parameters over both axes; on a laptop XLA makes eight devices of a CPU
(``XLA_FLAGS=--xla_force_host_platform_device_count=8``). Several processes train on the
devices of all; the last command starts two, with four virtual devices each.

Bits per character are the mean of -log2 p over the held-out text, each character
predicted from at least half a window before it. The n-grams are scored on the same
characters: see `experiments.character_ngrams`; the length of their contexts is chosen
on the last tenth of the training text. Tokens per second are those of `fngrad.fit`
without compiling and evaluating. Utilization is the FLOPs of the loss's gradient, as
`fngrad.costs` counts its products (without what is computed again), per second, over
the rate of a product of two square matrices, timed before and after the training, times
the number of chips (the virtual devices of a CPU are one chip).

The run folder (``runs/char_transformer/...``) holds config.json, manifest.json with the
results, metrics.jsonl, curves.png, sample.txt, and ``model/``, the weights.
"""

import dataclasses
import functools
import pydoc_data.topics
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

import experiments.character_ngrams as ngrams
import experiments.meshes as meshes
import fngrad as fg
from experiments.outputs import finish, new_folder, run_cli, table
from fngrad.types import Schedule

BLOCK = 4096  # characters; one of ten blocks is held out
SHOWN = (1, 3, 5)  # characters of context in the table


class Size(NamedTuple):
    """A model and how it is trained."""

    features: int
    layers: int
    heads: int
    length: int  # characters in a window
    batch_size: int  # windows
    rate: float  # of the hidden matrices; AdamW has half of it
    steps: int
    dropout: float | None = None
    deep: bool = False  # whether the blocks run in a loop with remat


SIZES = {
    "small": Size(64, 2, 2, 64, 32, 0.02, 2500),
    "medium": Size(128, 5, 4, 128, 16, 0.02, 1500, dropout=0.1),
    "large": Size(320, 8, 5, 256, 32, 0.002, 3000, deep=True),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, how long, and where the results go."""

    size: Literal["small", "medium", "large"] = "small"
    steps: int | None = None  # by default the size's; of "large" 5 on CPU
    precision: Literal["bfloat16"] | None = None  # of the loss; None is float32
    mesh: str | None = None  # sizes of its axes, "data=8" or "data=4,model=2"
    seed: int = 0  # of weights, batches and the sample
    sample: int = 400  # characters to generate
    temperature: float = 0.8
    context: int = 8  # most characters before the one that n-grams predict
    runs: Path = Path("runs/char_transformer")  # where the run folder is made


class Text(NamedTuple):
    """A text as numbers."""

    alphabet: str  # each character once
    train: np.ndarray  # int32, shape (characters,)
    held_out: np.ndarray

    @property
    def vocab_size(self) -> int:
        """Number of different characters."""
        return len(self.alphabet)


def topics() -> str:
    """Return Python's help texts, each paragraph once: many stand in several topics."""
    texts = "\n\n".join(pydoc_data.topics.topics.values())
    return "\n\n".join(dict.fromkeys(texts.split("\n\n")))


def split(text: str, characters: set[str] | None = None) -> Text:
    """Hold out every tenth block; the alphabet is by default the text's characters."""
    alphabet = "".join(sorted(characters or set(text)))
    number = {character: i for i, character in enumerate(alphabet)}
    tokens = np.array([number[character] for character in text], np.int32)
    is_held_out = np.arange(len(tokens)) // BLOCK % 10 == 9
    return Text(alphabet, tokens[~is_held_out], tokens[is_held_out])


def make_model(size: Size, vocab_size: int, *, remat: bool) -> fg.Layer:
    """Return the transformer; remat is for deep ones."""
    return fg.models.transformer(
        vocab_size,
        size.length,
        features=size.features,
        num_layers=size.layers,
        num_heads=size.heads,
        dropout_rate=size.dropout,
        scan=size.deep,
        remat=size.deep and remat,
    )


def loss_of(model: fg.Layer) -> Any:
    """Return the loss: the mean cross-entropy in nats per character."""

    def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
        logits = fg.layers.batched(model)(params, batch["x"], key=key)
        return fg.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["y"], reduction="mean"
        )

    return loss_fn


def make_optimizer(size: Size, steps: int) -> fg.Transform:
    """Return Muon for the matrices of the blocks and AdamW for the rest.

    AdamW trains all of a deep model.
    """

    def rate(peak: float) -> Schedule:
        return fg.schedules.warmup_cosine(0.0, peak, steps // 10, max(steps, 2))

    if size.deep:
        decays = "**/weight"
        return fg.adamw(rate(size.rate), b2=0.99, weight_decay=0.1, mask=decays)
    return fg.muon(
        rate(size.rate),
        adam_learning_rate=rate(size.rate / 2),
        weight_decay=0.05,
        matrices="blocks/**/weight",
    )


def windows(tokens: np.ndarray, size: Size, seed: int) -> fg.Dataset:
    """Return the training text in overlapping windows."""
    half = size.length // 2
    return fg.data.windows(tokens, size.length, size.batch_size, stride=half, seed=seed)


def held_out_windows(tokens: np.ndarray, length: int) -> tuple[fg.Dataset, slice]:
    """Return windows half of which is scored, and the characters that are scored."""
    half = length // 2
    data = fg.data.windows(tokens, length, 1, stride=half, shuffle=False)
    return data, slice(half + 1, half + 1 + half * data.size)


def metric_of(model: fg.Layer, length: int) -> Any:
    """Return the metric: each window's mean over its second half, in bits."""

    def metric_fn(params: Any, batch: Any) -> dict[str, Any]:
        logits = fg.layers.batched(model)(params, batch["x"])[:, length // 2 :]
        losses = fg.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["y"][:, length // 2 :]
        )
        return {"bits_per_character": jnp.mean(losses, -1) / np.log(2)}

    return metric_fn


def baselines(config: Any, text: Text, scored: slice) -> dict[str, float]:
    """Return n-grams' bits per held-out character; the last one is the best.

    The best context is that of the least bits on the last tenth of the training text.
    """
    models = ngrams.train(text.train, text.vocab_size, config.context)
    best = min(models, key=lambda model: model.bits)
    shown = [m for m in models if m.context in SHOWN and m is not best]
    found = {}
    for model in [*shown, best]:
        tokens = text.held_out[scored.start - model.context : scored.stop]
        name = f"{model.context + 1}-grams"
        found[name] = ngrams.bits_per_character(model, tokens)
    return found


def peak(dtype: Any, size: int = 1024, repeats: int = 20) -> float:
    """Return the most FLOPs per second of products of square matrices."""
    a = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    times = [seconds(lambda: multiply(a, a)) for _ in range(repeats + 1)]
    return 2 * size**3 / min(times[1:])


def seconds(fn: Any) -> float:
    """Return the seconds of one call, until its arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def generate(
    model: fg.Layer, params: Any, config: Config, size: Size, text: Text
) -> str:
    """Continue a line break, one character after the other.

    The model sees the last ``length`` characters. Zeros stand after those that are
    there; causal attention does not see them.
    """

    def draw(params: Any, carry: Any, key: jax.Array) -> Any:
        tokens, count = carry
        logits = model.apply(params, tokens)[count - 1]
        new = jax.random.categorical(key, logits / config.temperature)
        new = new.astype(tokens.dtype)
        is_full = count == size.length
        tokens = jnp.where(is_full, jnp.roll(tokens, -1), tokens)
        count = jnp.where(is_full, count, count + 1)
        return (tokens.at[count - 1].set(new), count), new

    start = jnp.zeros(size.length, jnp.int32).at[0].set(text.alphabet.index("\n"))
    keys = jax.random.split(jax.random.key(config.seed + 1), config.sample)

    @jax.jit
    def drawn(params: Any, keys: jax.Array) -> jax.Array:
        begin = start, jnp.int32(1)
        return jax.lax.scan(functools.partial(draw, params), begin, keys)[1]

    return "".join(text.alphabet[int(i)] for i in drawn(params, keys))


def steps_of(config: Any, size: Size) -> int:
    """Return how many steps to train; a deep model is too slow on CPU."""
    if config.steps is not None:
        return config.steps
    return 5 if size.deep and jax.default_backend() == "cpu" else size.steps


def train(
    model: fg.Layer,
    config: Any,
    size: Size,
    text: Text,
    folder: Path,
    mesh: Any = None,
) -> fg.FitResult:
    """Train a model as a config says, on a mesh if there is one."""
    num_steps = steps_of(config, size)
    optimizer = make_optimizer(size, num_steps)
    split_by = fg.sharding.fsdp(within=fg.models.transformer_rule())
    step = fg.make_step(
        loss_of(model),
        optimizer,
        metrics="loss",
        precision=config.precision,
        rule=split_by,
    )
    k_params, k_run = jax.random.split(jax.random.key(config.seed))
    held_out, _ = held_out_windows(text.held_out, size.length)
    log_every = max(num_steps // 100, 1)
    with fg.logging.jsonl(folder / "metrics.jsonl") as log:
        return fg.fit(
            step,
            fg.init_state(model.init(k_params), optimizer, k_run),
            windows(text.train, size, config.seed),
            num_steps=num_steps,
            metric_fn=fg.mixed_precision(
                metric_of(model, size.length), config.precision
            ),
            eval_data=held_out,
            eval_every=max(num_steps // 5, 50),
            log_every=log_every,
            loggers=[log],
            mesh=mesh,
        )


def speed(
    size: Size, text: Text, result: fg.FitResult, most: float
) -> dict[str, float]:
    """Return tokens per second and how much of the peak their FLOPs are.

    Args:
        size: of the model.
        text: for its vocabulary.
        result: of the training.
        most: the peak, FLOPs per second.
    """
    model = make_model(size, text.vocab_size, remat=False)
    tokens = jax.ShapeDtypeStruct((size.batch_size, size.length), jnp.int32)
    batch = {"x": tokens, "y": tokens}
    gradient = jax.grad(loss_of(model))
    flops = fg.costs(gradient, result.state.params, batch, None).products
    steps = int(result.state.step) / result.history.notes["seconds"]["stepping"]
    return {
        "tokens_per_second": steps * size.batch_size * size.length,
        "utilization": steps * flops / most,
        "peak": most,
    }


def main(config: Config) -> dict[str, Any]:
    """Train, score, time and sample the model; return the first process's results."""
    size = SIZES[config.size]
    mesh, text = meshes.mesh_of(config.mesh, size.batch_size), split(topics())
    data = windows(text.train, size, config.seed)
    folder = new_folder(config, data)
    _, scored = held_out_windows(text.held_out, size.length)
    dtype = jnp.dtype(config.precision or "float32")
    before = peak(dtype)
    model = make_model(size, text.vocab_size, remat=True)
    result = train(model, config, size, text, folder.path, mesh)
    params = process_allgather(fg.eval_params(result.state), tiled=True)
    fg.checkpoint.save(folder.path / "model", params, step=int(result.state.step))
    if not fg.distributed.processes().is_first:
        return {}
    bits = baselines(config, text, scored)
    most = max(before, peak(dtype)) * meshes.chips(mesh)
    fast = speed(size, text, result, most)
    count = sum(x.size for x in jax.tree.leaves(params))
    bits["transformer"] = result.history.last("val/bits_per_character")
    rows = [[name, f"{value:.3f}"] for name, value in bits.items()]
    print(f"{len(text.train)} characters to learn, {scored.stop - scored.start} scored")
    print(table(["", "bits per character"], rows))
    print(
        f"the transformer has {count / 1e6:.2f} million parameters and took "
        f"{int(result.state.step)} steps at {fast['tokens_per_second']:.0f} tokens/s: "
        f"{100 * fast['utilization']:.1f} % of {fast['peak'] / 1e9:.0f} GFLOP/s, "
        f"the rate of a {dtype} product of 1024x1024 matrices in this run"
        + (f", times {meshes.chips(mesh)} chips" if meshes.chips(mesh) > 1 else "")
    )
    sample = generate(model, params, config, size, text)
    print(f"a sample at temperature {config.temperature:g}:\n{sample}")
    (folder.path / "sample.txt").write_text(sample, encoding="utf-8")
    results = {"bits_per_character": bits, "parameters": count, **fast}
    finish(folder, results, curves=result.history.plot())
    return results


if __name__ == "__main__":
    fg.distributed.initialize()
    run_cli(main, Config, __doc__)
