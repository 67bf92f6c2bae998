"""Annealed noise: its variance and its keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fngrad.transforms.noise import add_noise

PARAMS = {"a": jnp.zeros(4000), "b": jnp.zeros(4000)}


def noise_of(transform, steps):
    state, noises = transform.init(PARAMS), []
    for _ in range(steps):
        noise, state = transform.update(PARAMS, state, PARAMS)
        noises.append(noise)
    return noises


@pytest.mark.parametrize(("eta", "gamma"), [(4.0, 0.0), (4.0, 2.0), (0.25, 0.5)])
def test_the_variance_decays_as_in_the_paper(eta, gamma):
    for t, noise in enumerate(noise_of(add_noise(eta, gamma, key=3), 3)):
        # sqrt(2 / 4000) = 2 % is the spread of a variance from 4000 draws.
        got = np.var(noise["a"])
        np.testing.assert_allclose(got, eta / (1 + t) ** gamma, rtol=0.1)


def test_leaves_and_steps_have_independent_noise():
    first, second = noise_of(add_noise(1.0, 0.0, key=3), 2)
    draws = np.stack([first["a"], first["b"], second["a"], second["b"]])
    np.testing.assert_allclose(np.corrcoef(draws), np.eye(4), atol=0.08)


def test_an_int_and_its_typed_key_are_the_same():
    (a,), (b,), (c,) = (
        noise_of(add_noise(1.0, 0.5, key), 1) for key in (7, jax.random.key(7), 8)
    )
    np.testing.assert_array_equal(a["a"], b["a"])
    assert not np.array_equal(a["a"], c["a"])


def test_the_noise_of_a_step_depends_only_on_key_and_step():
    transform = add_noise(1.0, 0.5, key=7)
    state = transform.init(PARAMS)["add_noise"]
    resumed = {"add_noise": state._replace(step=jnp.int32(2))}
    noise, _ = transform.update(PARAMS, resumed, PARAMS)
    np.testing.assert_array_equal(noise["a"], noise_of(transform, 3)[2]["a"])


def test_a_donated_state_leaves_the_callers_key_alone():
    key = jax.random.key(7)
    transform = add_noise(1.0, 0.5, key)
    update = jax.jit(transform.update, donate_argnums=1)
    update(PARAMS, transform.init(PARAMS), PARAMS)
    update(PARAMS, transform.init(PARAMS), PARAMS)
    assert not key.is_deleted()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1.0, 0.5, 0), ValueError, "need 0.0 <= eta"),
        ((1.0, -0.5, 0), ValueError, "need 0.0 <= gamma"),
        ((1.0, 0.5, 0.5), TypeError, "need an int or a typed key"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        add_noise(*arguments)
