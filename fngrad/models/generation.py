"""Tokens from a language model, one after the other, in one loop of the program."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import fngrad.layers as layers
import fngrad.layers.layer_tree as layer_tree
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.layers.core import Layer, check_sizes
from fngrad.programs.keywords_elsewhere import OF_GENERATION, explains_keywords
from fngrad.types import Key, Params, Scalar


class _Choice(NamedTuple):
    """How a token is chosen from its logits."""

    temperature: Scalar
    top_k: int | jax.Array | None
    top_p: Scalar | None


class _Drawn(NamedTuple):
    """What the loop carries."""

    tokens: jax.Array  # int32, shape (batch, num_tokens)
    last: jax.Array  # int32, shape (batch, 1)
    cache: Any
    is_done: jax.Array  # bool, shape (batch,)
    count: jax.Array  # int32, shape (): tokens drawn


@explains_keywords(OF_GENERATION)
def generate(
    model: Layer,
    params: Params,
    prompt: ArrayLike,
    num_tokens: int,
    key: int | Key | None = None,
    *,
    temperature: Scalar = 1.0,
    top_k: int | jax.Array | None = None,
    top_p: Scalar | None = None,
    stop_token: int | jax.Array | None = None,
    lengths: ArrayLike | None = None,
) -> jax.Array:
    r"""Return the tokens with which a model continues a prompt, or many prompts.

    The prompt passes the model at once, then each token alone, next to a cache of keys
    and values (`fngrad.layers.cached`), in one `lax.while_loop`. It ends early when all
    prompts have their stop token. Token $i$ with logits $y$ is drawn with the
    probability

    $$p_i = \text{softmax}(y / T)_i$$

    among the ``top_k`` most probable, and of these among the fewest whose probabilities
    sum to at least ``top_p``. It is compiled once for each model, shape of the prompt
    and ``num_tokens``; all other arguments are data.

    Args:
        model: `decoder`, `transformer`, or another layer that `layers.cached` takes,
            from tokens of shape ``(length,)`` to logits ``(length, vocab)``.
        params: its parameters.
        prompt: int, shape ``(length,)`` or ``(batch, length)``, at least one token, in
            [0, vocab). Inside of a program, where nothing can raise, all tokens after
            another one are -1, see Returns.
        num_tokens: how many to draw, at least 1.
        key: needed unless the temperature is the number 0; prompt i has
            ``fold_in(key, i)``.
        temperature: $T \ge 0$; at 0 the most probable token, the first of equal ones.
            May be a tracer.
        top_k: at least 1; may be a tracer; None for all. Of equal ones the first count.
        top_p: in [0, 1]; may be a tracer; None for 1. The most probable token stays.
        stop_token: one int, also a tracer; ends a text, and is its last token; also
            fills what follows. None for none.
        lengths: int, shape ``(batch,)`` or ``()``: of each prompt; the tokens after it
            are padding, of any value. By default all are of the full length.

    Returns:
        int32, shape ``(num_tokens,)`` or ``(batch, num_tokens)``, without the prompt.
        Where logits are NaN there is no token to draw: it is -1, and so are the next.

    Raises:
        TypeError: if the model has no cache, see `layers.cached`.
        ValueError: if the prompt or lengths have another shape or do not hold ints, a
            token of the prompt is not one of the model's `layers.embedding`, a number
            is outside its range, the stop token is not one int, the key is missing, or
            prompt and tokens do not fit a `positional_embedding`.

    Example:
        >>> import jax.numpy as jnp
        >>> import fngrad.models as models
        >>> model = models.decoder(11, features=8, num_heads=2)
        >>> params = model.init(0)
        >>> prompts = jnp.array([[3, 1, 4], [1, 5, 0]])  # the second has two tokens
        >>> models.generate(
        ...     model, params, prompts, 6, key=1, top_k=5, lengths=jnp.array([3, 2])
        ... ).shape
        (2, 6)

    References:
        Fan, Lewis and Dauphin 2018, "Hierarchical neural story generation",
        section 5.1, https://arxiv.org/abs/1805.04833 (top-k); Holtzman et al. 2020,
        "The curious case of neural text degeneration", section 3.1,
        https://arxiv.org/abs/1904.09751 (top-p). The order of
        temperature, top-k, top-p is that of Hugging Face.
    """
    num_tokens = numerics.check_count("num_tokens", num_tokens, 1)
    _check_choice(temperature, top_k, top_p)
    _check_stop(stop_token)
    is_greedy = isinstance(temperature, int | float) and temperature == 0
    if key is None and not is_greedy:
        raise ValueError(
            "need a key to draw tokens, got none; temperature=0 takes the most probable"
        )
    prompts = _prompts(prompt)
    lengths = _lengths(lengths, prompts)
    _check_tokens(model, prompt, lengths)
    drawn = _generated(
        model,
        num_tokens,
        params,
        prompts,
        lengths,
        numerics.key(0 if key is None else key),
        _Choice(temperature, top_k, top_p),
        stop_token,
    )
    return drawn if np.ndim(prompt) == 2 else drawn[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generated(
    model: Layer,
    num_tokens: int,
    params: Params,
    prompts: jax.Array,
    lengths: jax.Array,
    key: Key,
    choice: _Choice,
    stop_token: int | jax.Array | None,
) -> jax.Array:
    batch, length = prompts.shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    forward = jax.vmap(layers.cached(model), (None, 0, 0))
    # Padding goes in front, at positions below 0, which nothing attends to.
    padding = length - lengths
    prompts = jax.vmap(jnp.roll)(prompts, padding)
    most, dtype = length + num_tokens - 1, _cache_dtype(params)
    cache = jax.vmap(
        lambda start: layers.init_cache(model, most, start=start, dtype=dtype)
    )(-padding)
    fill = jnp.asarray(0 if stop_token is None else stop_token, jnp.int32)
    tokens = jnp.full((batch, num_tokens), fill)

    def draw(drawn: _Drawn) -> _Drawn:
        logits, cache = forward(params, drawn.cache, drawn.last)
        own_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, drawn.count)
        new = jax.vmap(functools.partial(next_token, **choice._asdict()))(
            logits[:, -1], own_keys
        )
        new = jnp.where(drawn.is_done, fill, new)
        is_done = drawn.is_done
        if stop_token is not None:
            is_done |= new == fill
        written = drawn.tokens.at[:, drawn.count].set(new)
        return _Drawn(written, new[:, None], cache, is_done, drawn.count + 1)

    def goes_on(drawn: _Drawn) -> jax.Array:
        return (drawn.count < num_tokens) & ~jnp.all(drawn.is_done)

    first = _Drawn(tokens, prompts, cache, jnp.zeros(batch, bool), jnp.int32(0))
    return jax.lax.while_loop(goes_on, draw, draw(first)).tokens


def next_token(
    logits: jax.Array,
    key: Key,
    *,
    temperature: Scalar = 1.0,
    top_k: int | jax.Array | None = None,
    top_p: Scalar | None = None,
) -> jax.Array:
    """Return a token drawn from its logits, as `generate` draws each.

    Args:
        logits: shape ``(vocab,)``.
        key: of this token.
        temperature: as in `generate`.
        top_k: likewise.
        top_p: likewise.

    Returns:
        int32, shape (); -1 if a logit is NaN, or all are ``-inf``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fngrad.models.generation import next_token
        >>> logits = jnp.array([0.0, 2.0, 1.0])
        >>> print(next_token(logits, jax.random.key(0), temperature=0.0))
        1
    """
    logits = tree.widen(logits)
    most = numerics.largest(logits)
    is_drawable = most > -jnp.inf  # false for NaN
    t = numerics.hyper(temperature).astype(logits.dtype)
    # The largest becomes 0, so that no quotient overflows at a low temperature.
    warmed = (logits - most) / jnp.where(t > 0, t, 1)
    if top_k is not None or top_p is not None:
        warmed = _most_probable(warmed, top_k, top_p)
    drawn = jax.random.categorical(key, warmed)
    token = jnp.where(t > 0, drawn, jnp.argmax(logits)).astype(jnp.int32)
    return jnp.where(is_drawable, token, jnp.int32(-1))


def _most_probable(
    logits: jax.Array, top_k: int | jax.Array | None, top_p: Scalar | None
) -> jax.Array:
    """Return logits with -inf for the tokens that are not drawn."""
    order = jnp.argsort(logits, descending=True, stable=True)
    places = jnp.arange(len(logits), dtype=jnp.int32)
    falling, is_kept = logits[order], places == 0
    if top_k is not None:
        is_first = places < jnp.asarray(top_k, places.dtype)
        falling = jnp.where(is_first, falling, -jnp.inf)
    if top_p is not None:
        p = jax.nn.softmax(falling)
        most = numerics.hyper(top_p).astype(p.dtype)
        is_kept |= (jnp.cumsum(p) - p < most) | (most >= 1)
        falling = jnp.where(is_kept, falling, -jnp.inf)
    return jnp.zeros_like(logits).at[order].set(falling)


def _cache_dtype(params: Params) -> Any:
    """Return the dtype of the matrices, if they have one, for the keys."""
    leaves = jax.tree.leaves(params)
    dtypes = {leaf.dtype for leaf in leaves if leaf.ndim > 1 and tree.is_float(leaf)}
    return dtypes.pop() if len(dtypes) == 1 else None


def _check_choice(temperature: Any, top_k: Any, top_p: Any) -> None:
    numerics.check_number("temperature", temperature, 0.0)
    numerics.check_number("top_p", top_p, 0.0, 1.0, optional=True)
    if top_k is not None and not isinstance(top_k, jax.Array):
        check_sizes(top_k=top_k)


def _check_stop(stop_token: Any) -> None:
    if stop_token is None:
        return
    is_text = isinstance(stop_token, str)  # which no array of JAX is
    token = np.asarray(stop_token) if is_text else jnp.asarray(stop_token)
    if token.ndim or not jnp.issubdtype(token.dtype, jnp.integer):
        raise ValueError(f"need one int as stop_token, got {stop_token!r}")


def _prompts(prompt: Any) -> jax.Array:
    """Return prompts of shape ``(batch, length)``."""
    numerics.check_unmasked("a prompt", prompt)
    prompt = prompt if hasattr(prompt, "dtype") else np.asarray(prompt)
    is_int = jnp.issubdtype(prompt.dtype, jnp.integer)
    if not is_int or prompt.ndim not in (1, 2) or 0 in prompt.shape:
        raise ValueError(
            "need a prompt of ints, of shape (length,) or (batch, length), with at "
            f"least one token, got {prompt.dtype} of shape {prompt.shape}"
        )
    return numerics.integers("prompt", prompt).reshape(-1, prompt.shape[-1])


def _check_tokens(model: Layer, prompt: Any, lengths: jax.Array) -> None:
    """Raise if a token of a prompt, whose values are known, is not one of the model."""
    vocab_size = layer_tree.tokens_of(model)
    if vocab_size is None or not (
        numerics.is_known(prompt) and numerics.is_known(lengths)
    ):
        return
    tokens = np.atleast_2d(np.asarray(prompt))
    is_padding = np.arange(tokens.shape[1]) >= np.asarray(lengths)[:, None]
    is_wrong = ~is_padding & ((tokens < 0) | (tokens >= vocab_size))
    if not is_wrong.any():
        return
    row, at = np.argwhere(is_wrong)[0]
    of_prompt = f" of prompt {row}" if np.ndim(prompt) == 2 else ""
    raise ValueError(
        f"need a prompt of tokens in [0, {vocab_size}), got {tokens[row, at]} at "
        f"position {at}{of_prompt} ({is_wrong.sum()} of {(~is_padding).sum()} tokens "
        "are out of range)"
    )


def _lengths(lengths: Any, prompts: jax.Array) -> jax.Array:
    batch, most = prompts.shape
    if lengths is None:
        return jnp.full(batch, most, jnp.int32)
    lengths = jnp.asarray(lengths)
    is_int = jnp.issubdtype(lengths.dtype, jnp.integer)
    if not is_int or lengths.shape not in ((), (batch,)):
        raise ValueError(
            f"need lengths of ints, of shape ({batch},), got {lengths.dtype} of shape "
            f"{lengths.shape}"
        )
    if numerics.is_known(lengths) and not np.all((lengths >= 1) & (lengths <= most)):
        raise ValueError(f"need lengths in [1, {most}], got {lengths}")
    return jnp.broadcast_to(lengths.astype(jnp.int32), (batch,))
