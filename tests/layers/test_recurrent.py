"""GRU and LSTM against their steps in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.layers as layers
from fngrad.layers import initializers

IN, HIDDEN, TIME = 2, 3, 4
X = jax.random.normal(jax.random.key(1), (TIME, IN))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru_oracle(params, x):
    w, b = params["input"]["weight"], params["input"]["bias"]
    u, d = params["hidden"]["weight"], params["hidden"]["bias"]
    reset, update, new = (slice(i * HIDDEN, (i + 1) * HIDDEN) for i in range(3))
    h, outputs = np.zeros(HIDDEN), []
    for x_t in x:
        r = sigmoid(x_t @ w[:, reset] + b[reset] + h @ u[:, reset] + d[reset])
        z = sigmoid(x_t @ w[:, update] + b[update] + h @ u[:, update] + d[update])
        n = np.tanh(x_t @ w[:, new] + b[new] + r * (h @ u[:, new] + d[new]))
        h = (1 - z) * n + z * h
        outputs.append(h)
    return np.array(outputs)


def lstm_oracle(params, x):
    w, b = params["input"]["weight"], params["input"]["bias"]
    u = params["hidden"]["weight"]
    gates = [slice(i * HIDDEN, (i + 1) * HIDDEN) for i in range(4)]
    h, c, outputs = np.zeros(HIDDEN), np.zeros(HIDDEN), []
    for x_t in x:
        i, f, g, o = (x_t @ w[:, s] + b[s] + h @ u[:, s] for s in gates)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs)


KINDS = {
    "gru": (layers.gru, layers.gru_cell, gru_oracle),
    "lstm": (layers.lstm, layers.lstm_cell, lstm_oracle),
}
both = pytest.mark.parametrize("kind", list(KINDS))


@functools.cache
def params_of(kind):
    """Return parameters whose biases are not zero."""
    params = KINDS[kind][0](IN, HIDDEN).init(jax.random.key(0))
    key = jax.random.key(2)
    return jax.tree.map(
        lambda leaf: jax.random.normal(key, leaf.shape) if leaf.ndim == 1 else leaf,
        params,
    )


def wide(values):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), values)


@both
@pytest.mark.parametrize("reverse", [False, True])
def test_sequences_follow_the_formulas(kind, reverse):
    make, _, oracle = KINDS[kind]
    got = make(IN, HIDDEN, reverse=reverse).apply(params_of(kind), X)
    order = slice(None, None, -1 if reverse else 1)
    expected = oracle(wide(params_of(kind)), wide(X)[order])[order]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@both
def test_a_cell_makes_the_same_steps(kind):
    make, make_cell, _ = KINDS[kind]
    cell, params = make_cell(IN, HIDDEN), params_of(kind)
    fresh, state = cell.init(jax.random.key(0))
    own = make(IN, HIDDEN).init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, fresh, own)
    step, outputs = jax.jit(cell.apply), []
    for x in X:
        y, state = step(params, state, x)
        outputs.append(y)
    expected = make(IN, HIDDEN).apply(params, X)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_changes_nothing_and_gives_zero(kind, reverse):
    layer, params = KINDS[kind][0](IN, HIDDEN, reverse=reverse), params_of(kind)
    apply = jax.jit(layer.apply)
    padded = apply(params, X.at[3:].set(99.0), length=jnp.int32(3))
    np.testing.assert_allclose(padded[:3], apply(params, X[:3]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(padded[3], np.zeros(HIDDEN))


@both
def test_each_gate_is_drawn_by_itself(kind):
    make, make_cell, _ = KINDS[kind]
    options = {"input_init": initializers.constant(2.0)}
    params = make(IN, HIDDEN, **options).init(0)
    assert np.all(params["input"]["weight"] == 2.0)
    # Orthogonal by default, each gate's block separately.
    gates = np.split(wide(params["hidden"]["weight"]), 3 + (kind == "lstm"), axis=1)
    for gate in gates:
        np.testing.assert_allclose(gate.T @ gate, np.eye(HIDDEN), atol=1e-6)
    assert not np.allclose(gates[0], gates[1])
    options["hidden_init"] = initializers.constant(3.0)
    cell_params, _ = make_cell(IN, HIDDEN, **options).init(0)
    assert np.all(cell_params["input"]["weight"] == 2.0)
    assert np.all(cell_params["hidden"]["weight"] == 3.0)
    params = make(IN, HIDDEN, hidden_init=initializers.constant(3.0)).init(0)
    assert np.all(params["hidden"]["weight"] == 3.0)


def test_a_new_lstm_remembers():
    bias = layers.lstm(IN, HIDDEN).init(0)["input"]["bias"]
    np.testing.assert_array_equal(bias, [0.0] * 3 + [1.0] * 3 + [0.0] * 6)
    other = layers.lstm(IN, HIDDEN, forget_bias=2.0).init(0)["input"]["bias"]
    np.testing.assert_array_equal(other, 2 * bias)
    cell, state = layers.lstm_cell(IN, HIDDEN, forget_bias=2.0).init(0)
    np.testing.assert_array_equal(cell["input"]["bias"], other)
    assert isinstance(state, layers.LSTMState)


@both
def test_sequences_need_their_shape(kind):
    make, make_cell, _ = KINDS[kind]
    layer, params = make(IN, HIDDEN), params_of(kind)
    with pytest.raises(ValueError, match=r"need x of shape \(time, 2\), got shape \(2"):
        layer.apply(params, jnp.ones(2))
    with pytest.raises(ValueError, match="need x with last axis 2"):
        layer.apply(params, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="need an int hidden_size >= 1"):
        make_cell(IN, 0)


@pytest.mark.parametrize("length", [None, 3])
def test_both_directions_are_those_of_layers_alone(length):
    both = layers.bidirectional(layers.lstm, 2, 3, forget_bias=2.0)
    params = both.init(0)
    assert np.all(params["backward"]["input"]["bias"][3:6] == 2.0)
    x = np.random.default_rng(0).normal(size=(5, 2)).astype("f")
    cut = slice(None, length)
    ahead = layers.lstm(2, 3).apply(params["forward"], x[cut])
    back = layers.lstm(2, 3).apply(params["backward"], x[cut][::-1])[::-1]
    got = jax.jit(both.apply)(params, x, length=length)
    np.testing.assert_allclose(
        got[cut], np.concatenate([ahead, back], 1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(got[len(ahead) :], 0)


@pytest.mark.parametrize("length", [None, 3])
def test_each_direction_gets_a_key_of_its_own(length):
    def noisy(in_size, hidden_size, *, reverse):
        def apply(params, x, *, key=None, length=None):
            return x if key is None else x + jax.random.normal(key, x.shape)

        return layers.Layer(lambda key: (), apply)

    both = layers.bidirectional(noisy, IN, IN)
    params = both.init(0)
    without = both.apply(params, X, length=length)
    np.testing.assert_array_equal(without, np.concatenate([X, X], 1))
    noise = both.apply(params, X, key=jax.random.key(2), length=length) - without
    assert len(np.unique(noise)) == noise.size


def test_directions_can_be_added_and_get_no_reverse():
    both = layers.bidirectional(layers.gru, 2, 3, combine=sum)
    params, x = both.init(0), jnp.ones((4, 2))
    apart = layers.bidirectional(layers.gru, 2, 3).apply(params, x)
    np.testing.assert_allclose(
        both.apply(params, x), apart[:, :3] + apart[:, 3:], rtol=1e-6
    )
    with pytest.raises(TypeError, match="need no reverse"):
        layers.bidirectional(layers.gru, 2, 3, reverse=True)
    with pytest.raises(ValueError, match="forward: need x of shape"):
        both.apply(params, jnp.ones((1, 4, 2)))
