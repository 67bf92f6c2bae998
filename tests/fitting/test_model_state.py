"""A step that leaves the state of a model as it was is warned about."""

import warnings

import jax
import jax.numpy as jnp
import pytest

import fngrad as fg
import fngrad.layers as layers
import fngrad.programs.equations as equations
from fngrad.fitting.inputs import Feed
from fngrad.fitting.step_checks import check_step

OPTIMIZER = fg.loss_scaling(fg.sgd(0.01))
NET = layers.serial(
    layers.linear(3, 4), layers.batch_norm(4), layers.dropout(0.2), layers.linear(4, 1)
)
PARAMS, MODEL_STATE = NET.init(jax.random.key(0))
DATA = fg.data.from_arrays({"x": jnp.ones((8, 3)), "y": jnp.ones(8)}, 4)
STATE = fg.init_state(PARAMS, OPTIMIZER, 0, model_state=MODEL_STATE)
MESSAGE = r"the step returns model_state unchanged.*given a key.*; where that is meant"


def trains(params, batch, key, model_state):
    net = layers.batched(NET)
    y, model_state = net(params, model_state, batch["x"], key=key)
    return jnp.mean((y[:, 0] - batch["y"]) ** 2), ({}, model_state)


def evaluates(params, batch, model_state):
    return trains(params, batch, None, model_state)


def ignores(params, batch):
    return trains(params, batch, None, MODEL_STATE)[0]


def in_part(params, batch, model_state):
    loss, (metrics, _) = evaluates(params, batch, model_state)
    paths = fg.tree.map_with_path(
        lambda path, x: 0.5 * x if "mean" in path else x, model_state
    )
    return loss, (metrics, paths)


def stepping(**options):
    return lambda loss_fn: fg.make_step(loss_fn, OPTIMIZER, **options)


STEPS = {
    "plain": stepping(),
    "jitted": lambda loss_fn: jax.jit(jax.jit(stepping()(loss_fn))),
    "micro-batches": stepping(micro_batches=2),
    "precision": stepping(precision="bfloat16"),
    "remat": stepping(remat=jax.checkpoint_policies.dots_saveable),
    "rule": stepping(rule=fg.sharding.fsdp("data", 1)),
    "all": stepping(
        micro_batches=2,
        precision="float16",
        remat=jax.checkpoint_policies.nothing_saveable,
    ),
    "sam": lambda loss_fn: fg.steps.sam(loss_fn, OPTIMIZER),
    "skipping": lambda loss_fn: fg.steps.skip_bad_steps(stepping()(loss_fn)),
}


def warned(loss_fn, make=STEPS["plain"], state=STATE):
    """Return the warnings about a step's model state; the step is only traced."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_step(make(loss_fn), state, Feed(DATA))
    messages = [str(each.message) for each in caught]
    return [message for message in messages if "model_state" in message]


@pytest.mark.parametrize("name", STEPS)
def test_a_loss_that_gives_layers_no_key_is_warned_about(name):
    (message,) = warned(evaluates, STEPS[name])
    assert message.startswith("the step returns model_state unchanged")
    assert warned(trains, STEPS[name]) == []


def test_a_model_state_that_is_not_read_is_warned_about():
    assert len(warned(ignores)) == 1
    no_leaves = STATE._replace(model_state={"batch_norm": ()})
    for state in (no_leaves, STATE._replace(model_state=())):
        assert warned(ignores, state=state) == []


def test_a_model_state_that_changes_in_part_is_not_warned_about():
    assert warned(in_part) == []


def test_a_program_that_cannot_be_read_is_not_warned_about(monkeypatch):
    monkeypatch.setattr(equations, "scan_counts", {}.__getitem__)
    assert warned(evaluates, STEPS["micro-batches"]) == []


def test_fit_warns_once_at_the_callers_line_and_can_be_silenced():
    step = STEPS["plain"](evaluates)
    options = {"num_steps": 1, "loop": "python", "progress": False}
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        fg.fit(step, STATE, DATA, **options)
    assert [each.filename for each in caught] == [__file__]
    warnings.filterwarnings("ignore", "the step returns model_state")
    fg.fit(step, STATE, DATA, **options)
