r"""Recurrent layers: a state that each position of a sequence updates.

A *cell* makes one step: it is a `StatefulLayer` whose model state is the recurrent
state, ``apply(params, state, x) -> (y, state)`` with x of shape ``(in_size,)``. The
layer of a whole sequence scans the same step from the zero state; one product
beforehand computes the input's part of every step; cell and layer have the same
parameters:
``input/weight (in_size, gates * hidden_size)``, ``input/bias``, ``hidden/weight`` and,
for `gru`, ``hidden/bias``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import fngrad.layers.initializers as initializers
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.layers.core import (
    Layer,
    StatefulLayer,
    check_params,
    check_sizes,
    dense,
    float_array_of,
)
from fngrad.layers.initializers import Initializer, dense_params, dense_shapes
from fngrad.layers.layer_tree import Parts, made_of
from fngrad.programs.keywords_elsewhere import OF_LAYERS, explains_keywords
from fngrad.types import Key, ModelState, Params, Path

_ORTHOGONAL = initializers.orthogonal()


class LSTMState(NamedTuple):
    """State of an `lstm`."""

    hidden: jax.Array  # h, the output, shape (hidden_size,)
    cell: jax.Array  # c, shape (hidden_size,)


# (params, state, the input's part of the gates) -> state
_Step = Callable[[Params, Any, jax.Array], Any]
_Shapes = dict[Path, tuple[int, ...]]


class _Unit(NamedTuple):
    """What a cell and its layer share."""

    init: Callable[[Key], Params]
    step: _Step
    zeros: Callable[[Any], Any]  # dtype -> the first state
    shapes: _Shapes  # of the parameters


@explains_keywords(OF_LAYERS)
def gru(
    in_size: int,
    hidden_size: int,
    *,
    reverse: bool = False,
    input_init: Initializer = initializers.GLOROT,
    hidden_init: Initializer = _ORTHOGONAL,
) -> Layer:
    r"""Scan a gated recurrent unit over a sequence.

    $$r = \sigma(W_r x + b_r + U_r h + d_r)$$
    $$z = \sigma(W_z x + b_z + U_z h + d_z)$$
    $$n = \tanh(W_n x + b_n + r (U_n h + d_n)), \quad h \leftarrow (1 - z) n + z h$$

    The gates lie in the order r, z, n along the last axis of the weights. The layer's
    ``apply(params, x, *, key=None, length=None)`` takes x of shape ``(time, in_size)``
    and gives every h, shape ``(time, hidden_size)``. With a length (int, may be a
    tracer) the positions from there on are padding: they leave the state as it is and
    give 0, whatever they hold, even NaN. Combinators do not pass a length on;
    `fngrad.models.rnn` does.

    Args:
        in_size: last axis of x.
        hidden_size: size of h.
        reverse: whether to go from the last position to the first; y stays in place.
        input_init: draws the W of each gate, by default `glorot_uniform`.
        hidden_init: draws the U of each gate, by default `orthogonal`.

    Raises:
        ValueError: if a size is below 1; at ``apply``, if x has another shape or is not
            floating.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.gru(3, 4)
        >>> params = layer.init(jax.random.key(0))
        >>> jax.jit(layer.apply)(params, jnp.ones((6, 3))).shape
        (6, 4)

    References:
        Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder for
        statistical machine translation", https://arxiv.org/abs/1406.1078. Differs from
        it in: the reset gate acts after the product $U_n h$, and the roles of z and
        1 - z are swapped, as in cuDNN and torch.
    """
    unit = _gru_unit(in_size, hidden_size, input_init, hidden_init)
    return _scan("gru", unit, reverse)


def gru_cell(
    in_size: int,
    hidden_size: int,
    *,
    input_init: Initializer = initializers.GLOROT,
    hidden_init: Initializer = _ORTHOGONAL,
) -> StatefulLayer:
    """Make one step of a `gru`; the state is h.

    Args:
        in_size: size of x.
        hidden_size: size of h.
        input_init: draws the W of each gate, by default `glorot_uniform`.
        hidden_init: draws the U of each gate, by default `orthogonal`.

    Raises:
        ValueError: as in `gru`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> cell = layers.gru_cell(3, 4)
        >>> params, state = cell.init(jax.random.key(0))
        >>> y, state = jax.jit(cell.apply)(params, state, jnp.ones(3))
        >>> y.shape
        (4,)
    """
    unit = _gru_unit(in_size, hidden_size, input_init, hidden_init)
    return _cell("gru_cell", unit)


@explains_keywords(OF_LAYERS)
def lstm(
    in_size: int,
    hidden_size: int,
    *,
    reverse: bool = False,
    forget_bias: float = 1.0,
    input_init: Initializer = initializers.GLOROT,
    hidden_init: Initializer = _ORTHOGONAL,
) -> Layer:
    r"""Scan a long short-term memory over a sequence.

    $$i, f, o = \sigma(W x + b + U h), \quad g = \tanh(W_g x + b_g + U_g h)$$
    $$c \leftarrow f c + i g, \quad h \leftarrow o \tanh(c)$$

    The gates lie in the order i, f, g, o along the last axis of the weights. ``apply``
    is that of `gru`.

    Args:
        in_size: last axis of x.
        hidden_size: size of h and c.
        reverse: whether to go from the last position to the first; y stays in place.
        forget_bias: what $b_f$ begins at; above 0 a new network remembers.
        input_init: draws the W of each gate, by default `glorot_uniform`.
        hidden_init: draws the U of each gate, by default `orthogonal`.

    Raises:
        ValueError: as in `gru`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> layer = layers.lstm(3, 4)
        >>> params = layer.init(jax.random.key(0))
        >>> jax.jit(layer.apply)(params, jnp.ones((6, 3))).shape
        (6, 4)

    References:
        Hochreiter and Schmidhuber 1997, "Long short-term memory",
        https://doi.org/10.1162/neco.1997.9.8.1735; Gers et al. 2000, "Learning to
        forget", for f; Jozefowicz et al. 2015, "An empirical exploration of recurrent
        network architectures", for its bias.
    """
    unit = _lstm_unit(in_size, hidden_size, forget_bias, input_init, hidden_init)
    return _scan("lstm", unit, reverse)


def lstm_cell(
    in_size: int,
    hidden_size: int,
    *,
    forget_bias: float = 1.0,
    input_init: Initializer = initializers.GLOROT,
    hidden_init: Initializer = _ORTHOGONAL,
) -> StatefulLayer:
    """Make one step of an `lstm`; the state is an `LSTMState`.

    Args:
        in_size: size of x.
        hidden_size: size of h and c.
        forget_bias: what the forget gate's bias begins at.
        input_init: draws the W of each gate, by default `glorot_uniform`.
        hidden_init: draws the U of each gate, by default `orthogonal`.

    Raises:
        ValueError: as in `gru`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import fngrad.layers as layers
        >>> cell = layers.lstm_cell(3, 4)
        >>> params, state = cell.init(jax.random.key(0))
        >>> y, state = jax.jit(cell.apply)(params, state, jnp.ones(3))
        >>> state.cell.shape
        (4,)
    """
    unit = _lstm_unit(in_size, hidden_size, forget_bias, input_init, hidden_init)
    return _cell("lstm_cell", unit)


def _from_state(params: Params, h: jax.Array, from_input: jax.Array) -> jax.Array:
    """Return the state's part of the gates, in the dtype of the input's part."""
    return dense(params["hidden"], h).astype(from_input.dtype)


def _gru_step(params: Params, h: jax.Array, from_input: jax.Array) -> jax.Array:
    r_x, z_x, n_x = jnp.split(from_input, 3)
    r_h, z_h, n_h = jnp.split(_from_state(params, h, from_input), 3)
    r = jax.nn.sigmoid(r_x + r_h)
    z = jax.nn.sigmoid(z_x + z_h)
    n = jnp.tanh(n_x + r * n_h)
    return (1 - z) * n + z * h


def _gru_unit(
    in_size: int, hidden_size: int, input_init: Initializer, hidden_init: Initializer
) -> _Unit:
    return _Unit(
        _init(in_size, hidden_size, 3, input_init, hidden_init, hidden_bias=True),
        _gru_step,
        lambda dtype: jnp.zeros(hidden_size, dtype),
        _shapes(in_size, hidden_size, 3, hidden_bias=True),
    )


def _lstm_step(params: Params, state: LSTMState, from_input: jax.Array) -> LSTMState:
    from_state = _from_state(params, state.hidden, from_input)
    i, f, g, o = jnp.split(from_input + from_state, 4)
    kept = jax.nn.sigmoid(f) * state.cell
    cell = kept + jax.nn.sigmoid(i) * jnp.tanh(g)
    return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)


def _lstm_unit(
    in_size: int,
    hidden_size: int,
    forget_bias: float,
    input_init: Initializer,
    hidden_init: Initializer,
) -> _Unit:
    base = _init(in_size, hidden_size, 4, input_init, hidden_init, hidden_bias=False)
    forget = slice(hidden_size, 2 * hidden_size)

    def init(key: Key) -> Params:
        params = base(key)
        params["input"]["bias"] = params["input"]["bias"].at[forget].set(forget_bias)
        return params

    def zeros(dtype: Any) -> LSTMState:
        return LSTMState(jnp.zeros(hidden_size, dtype), jnp.zeros(hidden_size, dtype))

    shapes = _shapes(in_size, hidden_size, 4, hidden_bias=False)
    return _Unit(init, _lstm_step, zeros, shapes)


def _init(
    in_size: int,
    hidden_size: int,
    gates: int,
    input_init: Initializer,
    hidden_init: Initializer,
    *,
    hidden_bias: bool,
) -> Callable[[Key], Params]:
    check_sizes(in_size=in_size, hidden_size=hidden_size)
    zeros = initializers.zeros()

    def per_gate(weight_init: Initializer) -> Initializer:
        def init(key: Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            keys = jax.random.split(key, gates)
            of_one = shape[0], hidden_size
            drawn = jax.vmap(lambda key: weight_init(key, of_one, dtype))(keys)
            return jnp.moveaxis(drawn, 0, 1).reshape(shape)

        return init

    def init(key: Key) -> Params:
        k_input, k_hidden = jax.random.split(numerics.key(key))
        out_size = gates * hidden_size
        return {
            "input": dense_params(
                k_input, (in_size, out_size), per_gate(input_init), zeros
            ),
            "hidden": dense_params(
                k_hidden,
                (hidden_size, out_size),
                per_gate(hidden_init),
                zeros if hidden_bias else None,
            ),
        }

    return init


def _shapes(
    in_size: int, hidden_size: int, gates: int, *, hidden_bias: bool
) -> _Shapes:
    out_size = gates * hidden_size
    from_input = dense_shapes((in_size, out_size), True, "input")
    return from_input | dense_shapes((hidden_size, out_size), hidden_bias, "hidden")


def _hidden(state: Any) -> jax.Array:
    return state.hidden if isinstance(state, LSTMState) else state


def _cell(name: str, unit: _Unit) -> StatefulLayer:
    in_size = unit.shapes["input/weight"][0]

    def init(key: Key) -> tuple[Params, ModelState]:
        return unit.init(key), unit.zeros(jnp.result_type(float))

    def apply(
        params: Params, model_state: ModelState, x: jax.Array, *, key: Key | None = None
    ) -> tuple[jax.Array, ModelState]:
        check_params(params, unit.shapes)
        x = float_array_of(x, in_size)
        from_input = dense(params["input"], x)
        state = jax.tree.map(lambda s: s.astype(from_input.dtype), model_state)
        state = unit.step(params, state, from_input)
        return _hidden(state), tree.cast_like(state, model_state)

    return StatefulLayer(init, made_of(apply, Parts(name)))


def _scan(name: str, unit: _Unit, reverse: bool) -> Layer:
    in_size = unit.shapes["input/weight"][0]

    def apply(
        params: Params,
        x: jax.Array,
        *,
        key: Key | None = None,
        length: int | jax.Array | None = None,
    ) -> jax.Array:
        check_params(params, unit.shapes)
        x = float_array_of(x, in_size)
        if x.ndim != 2:
            raise ValueError(f"need x of shape (time, {in_size}), got shape {x.shape}")
        is_real = jnp.arange(len(x)) < (len(x) if length is None else length)
        if length is not None:  # padding may be anything, and 0 * NaN is NaN
            x = jnp.where(is_real[:, None], x, 0)
        from_inputs = dense(params["input"], x)
        # The scan's transpose sums the gradients of all steps: the sum is kept wide.
        wide = tree.widen(params["hidden"])

        def one(state: Any, position: tuple) -> tuple[Any, jax.Array]:
            from_input, real = position
            hidden = tree.cast_like(wide, params["hidden"])
            moved = unit.step({"hidden": hidden}, state, from_input)
            state = jax.tree.map(lambda a, b: jnp.where(real, a, b), moved, state)
            return state, jnp.where(real, _hidden(moved), 0)

        state = unit.zeros(from_inputs.dtype)
        _, y = lax.scan(one, state, (from_inputs, is_real), reverse=reverse)
        return y

    return Layer(unit.init, made_of(apply, Parts(name)))
