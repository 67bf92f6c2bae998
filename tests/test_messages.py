"""Messages for plausible mistakes: the requirement, what was got, and the way out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scalar_regression import (
    ARRAYS,
    DATA,
    OPTIMIZER,
    STATE,
    STEP,
    both,
    fit,
    metric_fn,
    run,
    squared_error,
    trained,
)

import fngrad as fg

# Python operations that a traced value does not support.


def branches(w, batch):
    if jnp.mean(batch["x"]) > 0:
        return squared_error(w, batch)
    return w


def converts(w, batch):
    return squared_error(w, batch) * float(batch["x"].mean())


def takes_item(w, batch):
    return squared_error(w, batch) * batch["x"].mean().item()


def uses_numpy(w, batch):
    return squared_error(w, batch) * np.sum(np.sort(batch["x"]))


def selects(w, batch):
    return jnp.mean(w * batch["x"][batch["x"] > 1])


def counts(w, batch):
    return sum(w for _ in range(batch["x"].astype(int)[0]))


TRACED = [
    (
        branches,
        r"branches \(test_messages\.py, line \d+\), .* got a Python if.*jnp\.where",
    ),
    (
        converts,
        r"converts \(.*got an array that Python needs as a number, as float\(x\)"
        r".*x\.astype\(dtype\)",
    ),
    (takes_item, r"takes_item \(.*x\.item\(\).*x\.astype\(dtype\)"),
    (
        uses_numpy,
        r"uses_numpy \(.*got an array as the argument of a NumPy function"
        r".*in jax\.numpy",
    ),
    (
        selects,
        r"selects \(.*got an array of bools as an index.*jnp\.where\(mask, x, 0\)",
    ),
    (
        counts,
        r"counts \(.*got an array as the argument of range\(\).*jax\.lax\.fori_loop",
    ),
]


@both
@pytest.mark.parametrize(("loss_fn", "message"), TRACED)
def test_a_loss_that_needs_a_traced_value_is_named(loss_fn, message, train):
    with pytest.raises(TypeError, match=message) as caught:
        trained(loss_fn, train=train)
    cause = caught.value.__cause__
    assert isinstance(cause, jax.errors.JAXTypeError | jax.errors.JAXIndexError)


def test_a_metric_that_needs_a_traced_value_is_named():
    def graded(w, batch):
        return {"good": batch["x"] if batch["x"][0] > 0 else batch["y"]}

    with pytest.raises(TypeError, match=r"in graded \(.*got a Python if"):
        fg.evaluate(graded, STATE, ARRAYS)


def branching(step):
    return ARRAYS if step > 3 else {"x": ARRAYS["y"], "y": ARRAYS["x"]}


def slicing(step):
    return {name: x[step * 2 : step * 2 + 4] for name, x in ARRAYS.items()}


def drawing(step):
    rows = np.random.default_rng(int(step)).integers(0, 8, 4)
    return {name: x[rows] for name, x in ARRAYS.items()}


def rolling(step):
    return {name: np.roll(x, step) for name, x in ARRAYS.items()}


BATCHES = [
    (branching, "a Python if"),
    (slicing, r"a bound of a slice.*dynamic_slice_in_dim"),
    (drawing, r"int\(x\)"),
    (rolling, "NumPy"),
]


@both
@pytest.mark.parametrize(("data", "message"), BATCHES)
def test_a_function_of_the_step_that_needs_its_value_is_named(data, message, train):
    pattern = rf"in {data.__name__} \(.*{message}.*an iterable of batches"
    with pytest.raises(TypeError, match=pattern) as caught:
        train(data=data)
    assert isinstance(caught.value.__cause__, jax.errors.JAXTypeError)


def loading(step):
    return np.load(f"batch_{step}.npy")


def looking_up(step):
    return {0: ARRAYS, 1: ARRAYS}[step]


def overflowing(step):
    return {name: jnp.add(x[:4], step // 2**60) for name, x in ARRAYS.items()}


RAW = [
    (loading, FileNotFoundError),
    (looking_up, TypeError),
    (overflowing, OverflowError),
]


@both
@pytest.mark.parametrize(("data", "error"), RAW)
def test_an_error_of_a_function_of_the_step_notes_that_it_is_traced(data, error, train):
    with pytest.raises(error) as caught:
        train(data=data)
    (note,) = (x for x in caught.value.__notes__ if "JAX traces" in x)
    assert f"JAX traces {data.__name__} (test_messages.py, line " in note
    assert "without a value and not a number of Python" in note
    assert "fngrad.data.from_source(read, size, batch_size)" in note


@both
def test_a_function_of_the_step_takes_one_argument(train):
    with pytest.raises(
        TypeError, match=r"step -> batch with one argument.*\['a', 'b'\]"
    ):
        train(data=lambda a, b: ARRAYS)


def test_an_error_of_the_user_passes_unchanged():
    def fails(w, batch):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine\b"):
        trained(fails)


# Keys, and the order of arguments.


@both
def test_a_mistyped_key_is_answered_with_the_valid_keys(train):
    message = r"got the key 'X'.*float32\[\], and the batch, .*keys \['x', 'y'\]"
    with pytest.raises(KeyError, match=message) as caught:
        trained(lambda w, batch: jnp.mean(w * batch["X"]), train=train)
    assert type(caught.value.__cause__) is KeyError


def test_a_mistyped_key_of_the_parameters_is_answered_with_the_valid_keys():
    state = fg.init_state({"w": jnp.ones(2)}, OPTIMIZER, 0)
    with pytest.raises(KeyError, match=r"'q'.*the parameters, .*keys \['w'\]"):
        trained(lambda p, batch: p["q"].sum(), state)


def test_a_mistyped_key_of_a_metric_is_answered_with_the_valid_keys():
    with pytest.raises(KeyError, match=r"'X'.*keys \['x', 'y'\]"):
        fg.evaluate(lambda w, batch: {"m": batch["X"]}, STATE, ARRAYS)


@both
def test_swapped_arguments_of_a_loss_are_recognised_by_their_values(train):
    message = r"given the parameters, an array float32\[\], and the batch.*this order"
    with pytest.raises(TypeError, match=message):
        trained(lambda b, w: jnp.mean(b["x"] * w), train=train)


def test_swapped_arguments_of_a_loss_are_recognised_by_their_names():
    def loss_fn(batch, params):
        return jnp.mean(batch @ params)

    with pytest.raises(
        TypeError, match=r"loss_fn\(batch, params\): the parameters come"
    ):
        fg.make_step(loss_fn, OPTIMIZER)


@both
def test_a_loss_is_refused_as_a_step(train):
    message = r"need a step .*got a loss from squared_error: fngrad\.make_step\("
    with pytest.raises(TypeError, match=message):
        train(squared_error)


@both
def test_a_step_must_return_a_state_and_metrics(train):
    with pytest.raises(
        TypeError, match=r"\(state, metrics\), got NoneType from <lambda>"
    ):
        train(lambda state, batch: None)


@both
@pytest.mark.parametrize("together", [lambda *x: x, lambda *x: {"a": x[0], "b": x[1]}])
def test_several_states_are_told_to_be_one(together, train):
    states = together(STATE, STATE)
    message = (
        rf"need a TrainState from fngrad\.init_state, got {type(states).__name__}: one "
        r"TrainState holds several models.*fngrad\.partition gives each its own"
    )
    with pytest.raises(TypeError, match=message):
        train(state=states)
    with pytest.raises(TypeError, match=r"init_state, got dict\b(?!:)"):
        train(state={"w": STATE.params})


SWAPPED = {
    "make_step": (
        lambda: fg.make_step(OPTIMIZER, squared_error),
        r"got function squared_error.*a loss comes before the optimizer",
    ),
    "a step that sees the loss": (
        lambda: fg.steps.sam(OPTIMIZER, squared_error),
        r"got function squared_error.*a loss comes before the optimizer",
    ),
    "transform as loss": (
        lambda: fg.make_step(OPTIMIZER, OPTIMIZER),
        r"need a loss function, got a transform.*the optimizer the second",
    ),
    "optimizer not called": (
        lambda: fg.make_step(squared_error, fg.sgd),
        r"got function sgd: call what makes a transform",
    ),
    "init_state": (
        lambda: fg.init_state(OPTIMIZER, jnp.ones(2), 0),
        r"need init_state\(params, optimizer, key\), got an optimizer as params",
    ),
    "model as params": (
        lambda: fg.init_state(fg.layers.linear(2, 1), OPTIMIZER, 0),
        r"got a model as params; model\.init\(key\)",
    ),
    "fit": (
        lambda: fg.fit(STATE, STEP, DATA, num_steps=2),
        "need a step, then the state and the data, got TrainState as the step",
    ),
    "run": (lambda: fg.run(STATE, STEP, DATA, 2), "got TrainState as the step"),
    "optimizer as step": (lambda: run(OPTIMIZER), "got a transform as the step"),
    "fit data": (
        lambda: fg.fit(STEP, DATA, STATE, num_steps=2),
        "need a step, then the state and the data, got the state last",
    ),
    "run data": (lambda: fg.run(STEP, DATA, STATE, 2), "got the state last"),
    "evaluate": (
        lambda: fg.evaluate(STATE, metric_fn, ARRAYS),
        r"need a function, got TrainState: evaluate\(metric_fn, state, data\)",
    ),
    "evaluate data": (
        lambda: fg.evaluate(metric_fn, ARRAYS, STATE),
        r"got a state: evaluate\(metric_fn, state, data\)",
    ),
    "loss as metric_fn": (
        lambda: fg.evaluate(squared_error, STATE, ARRAYS),
        r'a dict, got an array float32\[\]; a loss per example .*\{"loss": losses\}',
    ),
}


@pytest.mark.parametrize("call", SWAPPED)
def test_arguments_in_another_order_are_named(call):
    function, message = SWAPPED[call]
    with pytest.raises(TypeError, match=message):
        function()


def test_the_pair_that_update_returns_is_refused_as_updates():
    params = jnp.ones(2)
    pair = OPTIMIZER.update(params, OPTIMIZER.init(params), params)
    with pytest.raises(
        ValueError, match=r"updates, state = optimizer\.update\(\.\.\.\)"
    ):
        fg.apply_updates(params, pair)


# Missing arguments, and forms of other libraries.


@pytest.mark.parametrize(
    "optimizer",
    [fg.adam(0.1), fg.masked(OPTIMIZER, "**"), fg.accumulate(OPTIMIZER, 2)],
    ids=["adam", "masked", "accumulate"],
)
def test_an_update_needs_the_parameters(optimizer):
    params = jnp.ones(2)
    message = r"need the parameters in every update, got none: optimizer\.update\(grads"
    for more in ((), (None,)):
        with pytest.raises(TypeError, match=message):
            optimizer.update(params, optimizer.init(params), *more)


MODELS = {
    "linear": fg.layers.linear(2, 3),
    "activation": fg.layers.serial(jnp.tanh),
    "dropout": fg.layers.dropout(0.5),
    "gru": fg.layers.gru(2, 3),
    "batch norm": fg.layers.batch_norm(3),
    "mlp": fg.models.mlp([2, 3, 1]),
    "user's": fg.layers.Layer(lambda key: (), lambda params, x, *, key=None: x),
}


@pytest.mark.parametrize("model", MODELS)
def test_init_needs_a_key(model):
    message = (
        r"need a key, or an int as the seed .*model\.init\(jax\.random\.key\(0\)\)"
    )
    with pytest.raises(TypeError, match=message):
        MODELS[model].init()


def tree_mask(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


MASKED = {
    "masked": lambda: fg.masked(OPTIMIZER, tree_mask),
    "partition": lambda: fg.partition([(tree_mask, OPTIMIZER), ("**", fg.freeze())]),
    "adamw": lambda: fg.adamw(1e-3, mask=tree_mask),
    "decay": lambda: fg.add_decayed_weights(1e-3, mask=tree_mask),
}


@pytest.mark.parametrize("door", MASKED)
def test_a_mask_of_the_whole_tree_is_refused_as_a_predicate(door):
    message = (
        r"\(path, leaf\) -> bool.*got tree_mask with .*\['params'\].*mask\(params\)"
    )
    with pytest.raises(TypeError, match=message):
        MASKED[door]().init({"w": jnp.ones((2, 2))})


@pytest.mark.parametrize("value", ["metric", "pair", "loss"])
def test_an_accumulator_in_the_loss_is_answered_with_its_value(value):
    def loss_fn(w, batch):
        mean = fg.metrics.mean_squared_error(w * batch["x"], batch["y"])
        if value == "loss":
            return mean
        return mean.value(), {"m": mean if value == "metric" else (mean.total, 4)}

    message = {
        "metric": r"scalar metrics, got the accumulator Mean for 'm': \.value\(\)",
        "pair": r"scalar metrics, got a tuple .* for 'm': .*weighted_sum",
        "loss": r"a scalar loss, got the accumulator Mean: \.value\(\)",
    }
    with pytest.raises(TypeError, match=message[value]):
        trained(loss_fn)


def test_the_result_of_fit_is_not_the_state_that_is_evaluated():
    result = fit()
    with pytest.raises(TypeError, match=r"got FitResult: pass result\.state"):
        fg.evaluate(metric_fn, result, ARRAYS)
