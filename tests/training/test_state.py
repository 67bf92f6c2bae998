"""What a training state shows of itself."""

import jax
import jax.numpy as jnp
import pytest

import fngrad as fg

PARAMS = {"bias": jnp.zeros(2), "weight": jnp.zeros((3, 2))}
STATE = fg.init_state(PARAMS, fg.adam(0.1), key=0)

TEXT = """\
TrainState(step=0): 8 parameters, 32 bytes; opt_state 72 bytes
leaf    shape   dtype    count  bytes
bias    (2,)    float32      2      8
weight  (3, 2)  float32      6     24"""
ABSTRACT = TEXT.replace("step=0", "step=int32[]")


def abstract():
    return jax.eval_shape(lambda: STATE)


def deleted():
    state = fg.snapshot(STATE)
    jax.tree.map(lambda x: x.delete(), state)
    return state


def traced():
    texts = []
    jax.eval_shape(lambda state: texts.append(repr(state)), STATE)
    return texts[0]


def mapped():
    texts = []
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), STATE)
    jax.vmap(lambda state: texts.append(repr(state)))(stacked)
    return texts[0]


def test_a_state_shows_its_step_and_its_parameters():
    assert repr(STATE) == TEXT
    assert STATE._repr_html_().endswith(f">{TEXT}</pre>")


@pytest.mark.parametrize(
    "text",
    [lambda: repr(deleted()), lambda: repr(abstract()), traced, mapped],
    ids=["donated", "abstract", "traced", "mapped"],
)
def test_a_state_without_values_shows_shapes(text):
    assert text() == ABSTRACT


def test_a_stacked_state_shows_the_shape_of_its_steps():
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), STATE)
    assert repr(stacked).startswith("TrainState(step=int32[2]): 16 parameters")


def test_a_state_is_not_computed_to_be_shown():
    with jax.transfer_guard("disallow_explicit"):
        assert "8 parameters" in repr(abstract())


def test_a_state_of_anything_is_shown():
    assert repr(fg.TrainState(None, None, (), (), ())).startswith(
        "TrainState(step=None"
    )
    nested = jax.tree.map(lambda x: None, STATE)
    assert "0 parameters" in repr(nested)


def test_a_state_stays_a_tuple_of_five():
    step, _, params, _, model_state = STATE
    assert step == 0
    assert params is STATE.params
    assert model_state == ()
    assert jax.tree.structure(STATE) == jax.tree.structure(fg.TrainState(*STATE))
