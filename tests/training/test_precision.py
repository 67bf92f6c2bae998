"""Losses and metrics in another precision: what is cast, what is not, and how."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_products import operand_dtypes, products_of

import fngrad as fg
import fngrad.numerics as numerics
import fngrad.tree as tree
from fngrad.training.precision import Policy, mixed_precision

NARROW = [jnp.bfloat16, jnp.float16]
PARAMS = {"w": jnp.array([[1.001], [-2.5]]), "b": jnp.array([0.125])}
X = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
BATCH = {"x": X, "y": 1000.0 + X[:, 0]}


def predict(params, x):
    return (x @ params["w"])[:, 0] + params["b"]


def loss_fn(params, batch):
    return fg.losses.squared_error(predict(params, batch["x"]), batch["y"]).mean()


def rounded(a, dtype):
    """Round by NumPy: the oracle of what a cast does."""
    return jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float64), a)


def dtypes_of(a):
    return {path: str(leaf.dtype) for path, leaf in tree.leaf_paths(a).items()}


def seen(precision, params=PARAMS, batch=BATCH):
    """Return the dtypes of the arrays that a function gets."""
    got = {}

    def record(params, batch):
        got.update(dtypes_of({"params": params, "batch": batch}))
        return jnp.zeros(())

    jax.eval_shape(mixed_precision(record, precision), params, batch)
    return got


@pytest.mark.parametrize("dtype", NARROW)
def test_the_loss_is_that_of_rounded_parameters_and_inputs(dtype):
    policy = Policy(dtype, wide="batch/y")
    got, grads = jax.value_and_grad(mixed_precision(loss_fn, policy))(PARAMS, BATCH)
    params, x = rounded((PARAMS, X), dtype)
    error = x @ params["w"][:, 0] + params["b"] - BATCH["y"].astype(np.float64)
    np.testing.assert_allclose(got, np.mean(error**2), rtol=1e-4)
    expected = 2 * x.T @ error[:, None] / len(x)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        grads["w"], expected, atol=2 * eps * np.abs(error).max() * 2
    )
    np.testing.assert_allclose(grads["b"], [2 * error.mean()], rtol=2 * eps)
    assert got.dtype == jnp.float32
    assert dtypes_of(grads) == {"w": "float32", "b": "float32"}


@pytest.mark.parametrize("precision", ["bfloat16", jnp.bfloat16, Policy("bfloat16")])
def test_a_dtype_its_name_and_a_policy_mean_the_same(precision):
    assert set(seen(precision).values()) == {"bfloat16"}


def test_none_changes_nothing():
    for precision in (None, Policy(), Policy(wide="nothing")):
        assert mixed_precision(loss_fn, precision) is loss_fn


@pytest.mark.parametrize(
    "wide",
    [
        "batch/y",
        lambda path, leaf: path == "batch/y",
        {"params": False, "batch": {"x": False, "y": True}},
        {"params": jnp.array(False), "batch": {"x": False, "y": np.True_}},
    ],
)
def test_what_a_selector_names_keeps_its_dtype(wide):
    got = seen(Policy("bfloat16", wide))
    assert [path for path, dtype in got.items() if dtype == "float32"] == ["batch/y"]


def test_a_wide_target_keeps_its_digits():
    def target(params, batch):
        return batch["y"]

    batch = {"y": jnp.array(1001.0)}
    assert mixed_precision(target, "bfloat16")(PARAMS, batch) == 1000
    assert mixed_precision(target, Policy("bfloat16", "batch/y"))(PARAMS, batch) == 1001


def test_only_real_floats_are_cast():
    batch = {
        "int": jnp.arange(3),
        "uint8": jnp.zeros(3, jnp.uint8),
        "bool": jnp.ones(3, bool),
        "key": jax.random.split(jax.random.key(0), 3),
        "complex": jnp.ones(3, jnp.complex64),
        "float": jnp.ones(3),
        "number": 1.5,
        "none": None,
    }
    got = {}

    def record(params, batch):
        got.update(batch)
        return jnp.zeros(())

    mixed_precision(record, "bfloat16")(PARAMS, batch)
    assert got.pop("float").dtype == jnp.bfloat16
    for name, value in got.items():
        assert value is batch[name], name


def test_keys_and_model_states_are_passed_on_by_name():
    def loss_fn(params, model_state, batch, key):
        assert model_state["seen"].dtype == jnp.float32
        noisy = batch + jax.random.normal(key, batch.shape, batch.dtype)
        mean = jnp.mean(noisy * params)  # in bfloat16
        state = {**model_state, "seen": (0.5 * mean).astype(mean.dtype)}
        return mean, ({"mean": mean}, state)

    optimizer = fg.sgd(0.1)
    state = {"seen": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}
    state["narrow"] = jnp.zeros((), jnp.bfloat16)
    first = fg.init_state(jnp.ones(()), optimizer, 0, model_state=state)
    step = fg.make_step(loss_fn, optimizer, precision="bfloat16")
    new, metrics = jax.jit(step)(first, jnp.ones(4))
    assert tree.mismatch(first, new) is None
    assert metrics["mean"].dtype == metrics["loss"].dtype == jnp.float32
    np.testing.assert_array_equal(new.model_state["seen"], metrics["mean"] / 2)


def test_a_model_state_of_another_structure_is_refused():
    def loss_fn(params, model_state, batch):
        return jnp.sum(params), ({}, {"other": model_state})

    optimizer = fg.sgd(0.1)
    state = fg.init_state(jnp.ones(2), optimizer, 0, model_state=jnp.zeros(()))
    step = fg.make_step(loss_fn, optimizer, precision="bfloat16")
    with pytest.raises(ValueError, match="need a model_state like the one given"):
        step(state, None)


def test_a_function_keeps_its_name_its_arguments_and_what_is_bound():
    def named(params, batch, key, scale=2.0):
        return scale * jnp.sum(params) + jax.random.uniform(key, (), params.dtype)

    wrapped = mixed_precision(named, "bfloat16")
    assert wrapped.__name__ == "named"
    assert inspect.signature(wrapped) == inspect.signature(named)
    key = jax.random.key(3)
    args = jnp.ones(2), None, key
    assert wrapped(*args, scale=4.0) - wrapped(*args) == 4
    bound = mixed_precision(functools.partial(named, key=key), "bfloat16")
    optimizer = fg.sgd(0.1)
    state = fg.init_state(jnp.ones(2), optimizer, 0)
    _, metrics = fg.make_step(bound, optimizer)(state, None)
    np.testing.assert_array_equal(metrics["loss"], wrapped(*args))


@pytest.mark.parametrize(
    ("precision", "kind", "message"),
    [
        ("bf16", TypeError, "a float dtype of at least 16 bits.*got 'bf16'"),
        ("int8", TypeError, "a float dtype of at least 16 bits.*got 'int8'"),
        (jnp.float8_e4m3fn, TypeError, "at least 16 bits"),
        (16, TypeError, "need precision to be None, a fngrad.Policy"),
        ("float64", ValueError, "need x64 for precision float64"),
        (Policy("bfloat16", wide=3), TypeError, "need a selector.*got 3"),
        (Policy(matmul_precision="best"), ValueError, "such as \"highest\".*'best'"),
    ],
)
def test_an_unknown_precision_is_refused(precision, kind, message):
    for make in (
        lambda: mixed_precision(loss_fn, precision),
        lambda: fg.make_step(loss_fn, fg.sgd(0.1), precision=precision),
        lambda: fg.evaluate(loss_fn, PARAMS, BATCH, precision=precision),
    ):
        with pytest.raises(kind, match=message):
            make()


@pytest.mark.parametrize(
    ("wide", "message"),
    [
        ("w", r"selects a leaf, got 'w' for the leaves \['batch/x',.*\"batch/y\""),
        ({"w": True, "b": False}, r"got an entry.*\"batch\": False"),
    ],
)
def test_a_selector_that_matches_nothing_is_refused(wide, message):
    with pytest.raises(ValueError, match=message):
        seen(Policy("bfloat16", wide))


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_mistakes_of_a_loss_are_explained_with_a_precision_too(precision):
    make = functools.partial(fg.make_step, optimizer=fg.sgd(0.1), precision=precision)
    with pytest.raises(TypeError, match="need a loss function, got a transform"):
        make(fg.sgd(0.1))
    with pytest.raises(TypeError, match="two required arguments"):
        make(lambda params: 0.0)
    state = fg.init_state(PARAMS, fg.sgd(0.1), 0)
    step = make(lambda params, batch: params["missing"])
    with pytest.raises(KeyError, match="got the key 'missing'"):
        step(state, BATCH)


@pytest.mark.parametrize("compute", [None, "bfloat16", "float32"])
def test_all_products_carry_the_precision_that_is_asked_for(compute):
    model = fg.models.cnn((4, 4, 1), 3, channels=(2,), hidden_size=4)
    params = tree.zeros_like(jax.eval_shape(model.init, 0))
    batch = jnp.zeros((2, 4, 4, 1))

    def loss_fn(params, batch):
        return fg.layers.batched(model)(params, batch).sum()

    def precisions(policy):
        loss = jax.grad(mixed_precision(loss_fn, policy))
        return {e.params["precision"] for e in products_of(loss, params, batch)}

    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert precisions(Policy(compute, matmul_precision="highest")) == {highest}
    assert precisions(Policy(compute)) == {None}
    assert getattr(jax.config, "jax_default_matmul_precision", None) is None


def test_evaluation_computes_in_a_precision_and_compiles_once():
    calls = []

    def metric_fn(params, batch):
        calls.append(batch["x"].dtype)
        prediction = predict(params, batch["x"])
        return {"error": fg.losses.squared_error(prediction, batch["y"])}

    for wide in ("batch/y", {"params": False, "batch": {"x": False, "y": True}}):
        policy = Policy("bfloat16", wide)
        first = fg.evaluate(metric_fn, PARAMS, BATCH, precision=policy)
        count = len(calls)
        assert fg.evaluate(metric_fn, PARAMS, BATCH, precision=policy) == first
        assert len(calls) == count
        assert set(calls) == {jnp.dtype(jnp.bfloat16)}
        expected = mixed_precision(loss_fn, policy)(PARAMS, BATCH)
        np.testing.assert_allclose(first["error"], expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("compute", ["bfloat16", "float32", "float64"])
def test_parameters_in_double_precision_stay_so(compute):
    params, batch = numerics.as_double((PARAMS, BATCH))
    optimizer = fg.adam(0.1)
    step = fg.make_step(loss_fn, optimizer, precision=compute)
    state = fg.init_state(params, optimizer, 0)
    assert operand_dtypes(products_of(step, state, batch)) == {compute}
    new, metrics = step(state, batch)
    assert tree.mismatch(state, new) is None
    expected = {"bfloat16": jnp.float32}.get(compute, compute)
    assert metrics["loss"].dtype == expected
    assert metrics["grad_norm"].dtype == jnp.float64
