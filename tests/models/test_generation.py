"""Generation: greedy is the whole model again and again; what is drawn, and the end."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import filled

import fngrad as fg
import fngrad.layers as layers
import fngrad.models as models
from fngrad.layers.layer_tree import tokens_of
from fngrad.models.generation import next_token

VOCAB, COUNT, LONGEST = 7, 9, 14
PROMPTS = np.array([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])


@functools.cache
def small():
    model = models.decoder(
        VOCAB,
        features=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        window=4,
        tied=True,
    )
    return model, filled(model, scale=1.0)


@functools.cache
def whole(model):
    return jax.jit(model.apply)


def continued(model, params, prompt, count):
    """Return the most probable tokens by the whole model, token after token."""
    tokens = np.zeros(LONGEST, np.int32)
    tokens[: len(prompt)] = prompt
    end = len(prompt) + count
    for at in range(len(prompt), end):
        tokens[at] = np.argmax(whole(model)(params, tokens)[at - 1])
    return tokens[len(prompt) : end]


def generated(model, params, prompts, **changes):
    """Generate with all numbers as floats and arrays: one program for all tests."""
    arguments = {"key": 7, "temperature": 0.0, "top_k": 99, "top_p": 1.0}
    arguments |= {"stop_token": -1} | changes
    return np.array(models.generate(model, params, prompts, COUNT, **arguments))


@pytest.mark.parametrize(
    "name", ["decoder", pytest.param("transformer", marks=pytest.mark.slow)]
)
def test_greedy_tokens_are_those_of_the_whole_model(name):
    model, params = small()
    if name == "transformer":
        model = models.transformer(
            VOCAB, LONGEST, features=8, num_layers=2, num_heads=2, scan=True
        )
        params = filled(model, scale=1.0)
    got = models.generate(model, params, PROMPTS[0], COUNT, temperature=0)
    assert got.dtype == jnp.int32
    expected = continued(model, params, PROMPTS[0], COUNT)
    np.testing.assert_array_equal(got, expected)
    assert len(set(expected)) > 1


def test_prompts_of_unequal_lengths_are_continued_as_alone():
    model, params = small()
    prompts = PROMPTS.copy()
    prompts[1, 2:] = [-9, 99, 0]
    lengths = np.array([5, 2])
    got = generated(model, params, prompts, lengths=lengths)
    for tokens, prompt, length in zip(got, prompts, lengths, strict=True):
        expected = continued(model, params, prompt[:length], COUNT)
        np.testing.assert_array_equal(tokens, expected)


def test_every_prompt_of_a_batch_has_a_key_of_its_own():
    model, params = small()
    one, other = generated(model, params, PROMPTS[[0, 0]], temperature=3.0)
    assert np.any(one != other)
    again, _ = generated(model, params, PROMPTS, temperature=3.0)
    np.testing.assert_array_equal(again, one)
    later, _ = generated(model, params, PROMPTS, temperature=3.0, key=8)
    assert np.any(later != one)


def test_every_token_is_drawn_with_a_key_of_its_own():
    model, params = small()
    got = generated(model, params, PROMPTS, temperature=3.0)
    draw = jax.jit(functools.partial(next_token, temperature=3.0))
    for i, prompt in enumerate(PROMPTS):
        tokens = np.zeros(LONGEST, np.int32)
        tokens[: len(prompt)] = prompt
        for count in range(COUNT):
            at = len(prompt) + count
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), i), count)
            tokens[at] = draw(whole(model)(params, tokens)[at - 1], key)
        np.testing.assert_array_equal(got[i], tokens[len(prompt) :])


@pytest.mark.slow
def test_a_prompt_alone_is_the_first_of_a_batch():
    model, params = small()
    alone = generated(model, params, PROMPTS[0], temperature=3.0)
    together = generated(model, params, PROMPTS, temperature=3.0)
    np.testing.assert_array_equal(alone, together[0])


def test_the_stop_token_ends_a_text_and_fills_the_rest():
    model, params = small()
    free = generated(model, params, PROMPTS, temperature=3.0)
    first_at = {t: [np.argmax(row == t) for row in free] for t in range(VOCAB)}
    # One text ends while the other goes on.
    stop = next(t for t in first_at if 0 < min(first_at[t]) < max(first_at[t]) - 1)
    got = generated(model, params, PROMPTS, temperature=3.0, stop_token=stop)
    for tokens, without, end in zip(got, free, first_at[stop], strict=True):
        np.testing.assert_array_equal(tokens[:end], without[:end])
        assert np.all(tokens[end:] == stop)


def test_numbers_and_keys_are_data():
    traces = []

    def traced(x):
        traces.append(x)
        return x

    model, params = small()
    model, params = layers.serial(model, traced), {"layers": [params]}
    generated(model, params, PROMPTS)
    count = len(traces)
    generated(model, params, PROMPTS, temperature=2.0, top_k=2, top_p=0.5, key=3)
    generated(model, params, PROMPTS, lengths=np.array([1, 2]), stop_token=5)
    assert len(traces) == count > 0


@pytest.mark.slow
def test_it_runs_inside_a_program_of_your_own():
    model, params = small()

    @jax.jit
    def drawn(params, temperature, lengths):
        return models.generate(
            model,
            params,
            PROMPTS,
            COUNT,
            7,
            temperature=temperature,
            top_k=jnp.int32(3),
            top_p=temperature,
            stop_token=jnp.int32(-1),
            lengths=lengths,
        )

    lengths = np.array([4, 5])
    got = drawn(params, 0.9, lengths)
    limits = {"temperature": 0.9, "top_k": 3, "top_p": 0.9, "lengths": lengths}
    np.testing.assert_array_equal(got, generated(model, params, PROMPTS, **limits))


@pytest.mark.slow
def test_tokens_after_an_unknown_one_show_inside_of_a_program():
    model, params = small()
    generate = functools.partial(models.generate, model, params, temperature=0)
    prompts = PROMPTS.copy()
    prompts[1, 2] = VOCAB
    got = np.array(jax.jit(lambda prompts: generate(prompts, COUNT))(prompts))
    np.testing.assert_array_equal(got[0], generated(model, params, PROMPTS)[0])
    assert np.all(got[1] == -1)


def test_only_the_tokens_that_an_embedding_gets_are_checked():
    table = layers.embedding(VOCAB, 8)
    ahead = layers.serial(layers.dropout(0.1), layers.serial(table))
    for model, expected in (
        (table, VOCAB),
        (small()[0], VOCAB),
        (layers.serial(layers.serial(), layers.remat(table)), VOCAB),
        (layers.parallel(layers.embedding(9, 8), table), VOCAB),
        (layers.serial(lambda x: x % VOCAB, table), None),
        (ahead, None),
        (layers.linear(3, 2), None),
    ):
        assert tokens_of(model) == expected, model


@pytest.mark.slow
def test_the_loop_ends_with_the_last_text():
    calls = []

    def count(x):
        jax.debug.callback(lambda: calls.append(1))
        return x

    model = layers.serial(
        tokens=layers.embedding(VOCAB, 8),
        attend=layers.multi_head_attention(8, 2, causal=True),
        count=count,
        head=layers.read_out(VOCAB, 8),
    )
    params = filled(model, scale=1.0)
    (first,) = models.generate(model, params, PROMPTS[0], 1, temperature=0)
    jax.effects_barrier()
    calls.clear()
    models.generate(model, params, PROMPTS[0], 50, temperature=0, stop_token=first)
    jax.effects_barrier()
    assert len(calls) == 1


def kept_by(logits, temperature, top_k, top_p):
    """Return the probabilities by the definition, in float64."""
    p = np.exp(np.asarray(logits, np.float64) / temperature)
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    kept = order[: top_k or len(p)]
    p = np.where(np.isin(range(len(p)), kept), p, 0)
    p /= p.sum()
    if top_p is not None:
        total, fewest = 0.0, []
        for i in kept:
            fewest.append(i)
            total += p[i]
            if total >= top_p:
                break
        p = np.where(np.isin(range(len(p)), fewest), p, 0)
    return p / p.sum()


LOGITS = np.array([0.3, 2.0, -1.0, 1.0, 1.0, -np.inf, 0.0], np.float32)


@functools.cache
def drawer(with_k, with_p):
    def draw(keys, temperature, top_k, top_p):
        limits = {"top_k": top_k} if with_k else {}
        limits |= {"top_p": top_p} if with_p else {}
        one = functools.partial(next_token, temperature=temperature, **limits)
        return jax.vmap(one, (None, 0))(LOGITS, keys)

    return jax.jit(draw)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, None, None),
        (0.5, None, None),
        (1.0, 3, None),
        (1.0, 2, None),
        (1.0, 99, None),
        (1.0, None, 0.4),
        (1.0, None, 0.75),
        (1.0, None, 1.0),
        (1.0, None, 0.0),
        (2.0, 4, 0.8),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_of_the_definition(
    temperature, top_k, top_p
):
    count = 20000
    keys = jax.random.split(jax.random.key(0), count)
    draw = drawer(top_k is not None, top_p is not None)
    tokens = draw(keys, temperature, top_k, top_p)
    p = kept_by(LOGITS, temperature, top_k, top_p)
    found = np.bincount(tokens, minlength=VOCAB) / count
    assert np.all(found[p == 0] == 0)
    deviation = np.sqrt(p * (1 - p) / count)
    assert np.all(np.abs(found - p) <= 5 * deviation), (found, p)


def test_low_temperatures_are_greedy_without_overflow():
    for temperature in (0.0, 1e-30):
        token = next_token(
            1e30 * LOGITS[[0, 1, 2, 3, 4, 6]],
            jax.random.key(0),
            temperature=temperature,
        )
        assert int(token) == 1
    ties = jnp.array([1.0, 2.0, 2.0])
    assert int(next_token(ties, jax.random.key(0), temperature=0.0)) == 1


@pytest.mark.parametrize("limits", [{}, {"top_k": 2}, {"top_p": 0.5}])
def test_there_is_no_token_where_logits_are_nan(limits):
    draw = jax.jit(functools.partial(next_token, **limits))
    for logits, is_drawable in (
        ([0.0, np.nan, 1.0], False),
        ([-np.inf] * 3, False),
        ([-np.inf, 1.0, -np.inf], True),
    ):
        for temperature in (0.0, 1.0):
            token = draw(jnp.array(logits), jax.random.key(0), temperature=temperature)
            assert int(token) == (1 if is_drawable else -1)


def test_top_k_may_be_an_integer_of_64_bits(x64):
    token = next_token(jnp.asarray(LOGITS), jax.random.key(0), top_k=jnp.asarray(1))
    assert int(token) == 1


@pytest.mark.slow
def test_parameters_in_16_bits_and_adapters_generate_too():
    model, params = small()
    prompt = PROMPTS[0]
    narrow = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    got = models.generate(model, narrow, prompt, COUNT, temperature=0)
    np.testing.assert_array_equal(got, continued(model, narrow, prompt, COUNT))
    adapters = fg.lora("blocks/**/weight", rank=1)
    apart = adapters.unmerged(adapters.init(params, key=0))
    got = models.generate(model, apart, prompt, COUNT, temperature=0)
    np.testing.assert_array_equal(got, continued(model, params, prompt, COUNT))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": np.ones(3)}, "need a prompt of ints, of shape (length,) or"),
        ({"prompt": np.ones((2, 0), int)}, "with at least one token, got"),
        ({"prompt": "abc"}, "need a prompt of ints, of shape (length,) or"),
        (
            {"prompt": np.ma.masked_equal([3, 1, 4], 1)},
            "need a prompt without a mask, got a masked array",
        ),
        (
            {"prompt": np.array([3, 1, VOCAB])},
            "need a prompt of tokens in [0, 7), got 7 at position 2 (1 of 3 tokens",
        ),
        (
            {"prompt": [[3, 1, 4], [3, -1, -2]]},
            "got -1 at position 1 of prompt 1 (2 of 6 tokens are out of range)",
        ),
        ({"prompt": np.array([2**32 + 3, 1])}, "got 4294967299 at position 0 (1 of"),
        ({"prompt": np.array([300], np.uint16)}, "got 300 at position 0 (1 of"),
        ({"num_tokens": 0}, "need an int num_tokens >= 1"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": 0}, "need an int top_k >= 1"),
        ({"top_k": 2.5}, "need an int top_k >= 1"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"stop_token": [1, 2]}, "need one int as stop_token, got [1, 2]"),
        ({"stop_token": 2.0}, "need one int as stop_token, got 2.0"),
        ({"stop_token": "."}, "need one int as stop_token, got '.'"),
        ({"key": None}, "need a key to draw tokens, got none; temperature=0 takes"),
        ({"lengths": np.array([1, 2])}, "need lengths of ints, of shape (1,), got"),
        ({"lengths": np.array([4])}, "need lengths in [1, 3], got [4]"),
        ({"lengths": 0}, "need lengths in [1, 3], got 0"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    model, params = small()
    arguments = {"prompt": np.array([3, 1, 4]), "num_tokens": 2, "key": 0} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        models.generate(model, params, **arguments)


def test_a_model_without_a_cache_is_refused():
    model = models.rnn(2, [3], 3)
    with pytest.raises(TypeError, match="for a cache, got rnn"):
        models.generate(model, model.init(0), np.array([1]), 2, 0)
    longer = models.transformer(VOCAB, 4, features=8)
    params = filled(longer, scale=1.0)
    with pytest.raises(ValueError, match="at most max_length=4 positions, got 5"):
        models.generate(longer, params, np.array([1, 2, 3]), 3, 0)
