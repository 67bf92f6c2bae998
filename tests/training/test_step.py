"""States, steps and runs as pure functions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad.data.dataset as dataset
import fngrad.tree as tree
from fngrad.optimizers import adam, sgd
from fngrad.training import init_state, make_step, run, snapshot
from fngrad.transforms.clipping import clip_by_global_norm
from fngrad.transforms.core import Transform, chain, named
from fngrad.transforms.masking import freeze, partition
from fngrad.transforms.scaling import scale_by_learning_rate
from fngrad.transforms.tunable_hyperparameters import tunable

X = jnp.arange(12.0).reshape(6, 2) / 10
Y = X @ jnp.array([1.0, -2.0])
BATCH = {"x": X, "y": Y}
PARAMS = {"w": jnp.array([0.5, 0.5]), "b": jnp.array(0.1)}


def predict(params, x):
    return x @ params["w"] + params["b"]


def loss_fn(params, batch):
    return jnp.mean((predict(params, batch["x"]) - batch["y"]) ** 2)


def train(step, state, batch=BATCH, steps=3):
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


def test_a_step_of_sgd_is_gradient_descent():
    step = jax.jit(make_step(loss_fn, sgd(0.1)))
    state, metrics = step(init_state(PARAMS, sgd(0.1), 0), BATCH)
    grads = jax.grad(loss_fn)(PARAMS, BATCH)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, grads)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss_fn(PARAMS, BATCH), rtol=1e-6)
    assert state.step == 1


def test_the_metrics_are_the_norms_the_rate_and_the_reports():
    optimizer = chain(clip_by_global_norm(0.5), sgd(lambda step: 0.1 / (step + 1)))
    step = make_step(loss_fn, optimizer)
    with jax.numpy_dtype_promotion("standard"):
        state, metrics = step(init_state(PARAMS, optimizer, 0), BATCH)
        _, second = step(state, BATCH)
    grads = jax.grad(loss_fn)(PARAMS, BATCH)
    np.testing.assert_allclose(metrics["grad_norm"], tree.norm(grads), rtol=1e-6)
    np.testing.assert_allclose(metrics["param_norm"], tree.norm(PARAMS), rtol=1e-6)
    moved = tree.sub(state.params, PARAMS)
    np.testing.assert_allclose(metrics["update_norm"], tree.norm(moved), rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], 0.1)
    np.testing.assert_allclose(second["learning_rate"], 0.05)
    assert bool(metrics["is_finite"])
    clip = {k: float(v) for k, v in metrics.items() if k.startswith("clip")}
    assert len(clip) == 2
    np.testing.assert_allclose(max(clip.values()), tree.norm(grads), rtol=1e-6)
    np.testing.assert_allclose(min(clip.values()), 0.5, rtol=1e-6)


def test_the_learning_rate_is_the_first_in_force():
    def scheduled(learning_rate):
        return sgd(lambda step: learning_rate / (step.astype(float) + 1))

    group = chain(sgd(0.3), named("after", scale_by_learning_rate(0.5)))
    for optimizer, expected in (
        (partition([("w", group), ("**", freeze())]), 0.3),
        (tunable(scheduled, learning_rate=0.1), 0.05),
    ):
        step = make_step(loss_fn, optimizer)
        _, metrics = train(step, init_state(PARAMS, optimizer, 0), steps=2)
        np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-6)


def test_the_norms_can_be_left_out():
    step = make_step(loss_fn, sgd(0.1), metrics="loss")
    _, metrics = step(init_state(PARAMS, sgd(0.1), 0), BATCH)
    assert sorted(metrics) == ["is_finite", "learning_rate", "loss"]


def test_key_and_model_state_are_found_by_name_in_any_position():
    def with_key(key, params, batch):
        noise = jax.random.normal(key, ())
        return loss_fn(params, batch) + 0.0 * noise, {"noise": noise}

    def with_state(params, model_state, batch, scale=1.0):
        seen = model_state + batch["x"].shape[0]
        return scale * loss_fn(params, batch), ({}, seen)

    def keyword_only(params, /, batch, *, key, model_state):
        noise = jax.random.normal(key, ())
        return loss_fn(params, batch), ({"noise": noise}, model_state + 1)

    state, metrics = train(
        make_step(with_key, sgd(0.1)), init_state(PARAMS, sgd(0.1), 7)
    )
    key = jax.random.fold_in(jax.random.key(7), 2)
    np.testing.assert_allclose(metrics["noise"], jax.random.normal(key, ()))

    first = init_state(PARAMS, sgd(0.1), 0, model_state=jnp.int32(0))
    state, _ = train(make_step(with_state, sgd(0.1)), first)
    assert state.model_state == 18
    state, metrics = train(make_step(keyword_only, sgd(0.1)), first)
    assert state.model_state == 3
    assert "noise" in metrics


@pytest.mark.parametrize(
    "bad",
    [
        lambda params: 0.0,
        lambda params, batch, extra: 0.0,
        lambda *args: 0.0,
        lambda params, batch, **options: 0.0,
    ],
)
def test_a_loss_of_another_signature_is_refused_with_the_accepted_forms(bad):
    with pytest.raises(TypeError, match=r"loss_fn\(params, batch, key\) -> loss"):
        make_step(bad, sgd(0.1))


def with_model_state(params, batch, model_state):
    return loss_fn(params, batch), {}


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda p, b: b["x"] @ p["w"], ValueError, r"scalar loss, got shape \(6,\)"),
        (lambda p, b: jnp.int32(1), TypeError, "need a real float loss, got int32"),
        (lambda p, b: None, TypeError, "got NoneType for loss"),
        (lambda p, b: (p["b"], p["b"], {}), TypeError, "got a tuple"),
        (lambda p, b: (p["b"], p["b"]), TypeError, "need a dict of metrics"),
        (lambda p, b: (p["b"], {"m": p["w"]}), ValueError, r"got shape \(2,\) for 'm'"),
        (lambda p, b: (p["b"], {"m": "hi"}), TypeError, "got str for 'm'"),
        (lambda p, b: (p["b"], {"m": {"n": 1.0}}), TypeError, "got dict for 'm'"),
        (lambda p, b: (p["b"], {"loss": p["b"]}), ValueError, "got a second 'loss'"),
        (with_model_state, TypeError, r"need \(loss, \(metrics, model_state\)\)"),
        (
            lambda params, batch, model_state: (params["b"], ({}, jnp.zeros(3))),
            ValueError,
            r"need a model_state like the one given.*shape \(\), got \(3,\)",
        ),
    ],
)
def test_a_loss_that_returns_another_form_is_refused(loss, error, message):
    state = init_state(PARAMS, sgd(0.1), 0, model_state=jnp.zeros(()))
    with pytest.raises(error, match=message):
        make_step(loss, sgd(0.1))(state, BATCH)


def test_arguments_of_make_step_and_init_state_are_checked():
    with pytest.raises(ValueError, match='metrics="norms" or "loss", got'):
        make_step(loss_fn, sgd(0.1), metrics="all")
    with pytest.raises(ValueError, match="need an int micro_batches >= 1"):
        make_step(loss_fn, sgd(0.1), micro_batches=0)
    with pytest.raises(TypeError, match="need an int or a typed key"):
        init_state(PARAMS, sgd(0.1), jax.random.PRNGKey(0))
    with pytest.raises(TypeError, match="got int32 at 'n'"):
        init_state({"n": jnp.arange(2)}, sgd(0.1), 0)
    with pytest.raises(ValueError, match="at least one leaf"):
        init_state({}, sgd(0.1), 0)


def test_an_object_that_is_not_a_state_is_refused():
    message = r"need a TrainState from fngrad\.init_state, got dict"
    with pytest.raises(TypeError, match=message):
        make_step(loss_fn, sgd(0.1))(PARAMS, BATCH)


def test_double_precision_numpy_parameters_become_single_without_a_warning():
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
    state = init_state(params, adam(0.1), 0)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    train(make_step(loss_fn, adam(0.1)), state)


def test_weakly_typed_parameters_trace_once():
    params = {"w": PARAMS["w"], "b": jnp.asarray(0.1)}
    assert params["b"].weak_type
    step = jax.jit(chex.assert_max_traces(make_step(loss_fn, sgd(0.1)), n=1))
    train(step, init_state(params, sgd(0.1), 0))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_weakly_typed_model_state_traces_once(micro_batches):
    traces = []

    def loss_fn(w, model_state, batch):
        traces.append(None)
        model_state = {"sign": jnp.where(w[0] > 0, 1.0, -1.0), "number": 2.0}
        return jnp.sum(w**2), ({}, model_state)

    step = jax.jit(make_step(loss_fn, sgd(0.1), micro_batches=micro_batches))
    first = {"sign": jnp.zeros(()), "number": jnp.zeros(())}
    state, _ = step(init_state(jnp.ones(2), sgd(0.1), 0, first), jnp.ones(2))
    once = len(traces)
    state, _ = step(state, jnp.ones(2))
    assert len(traces) == once
    assert not state.model_state["number"].weak_type


def test_the_state_of_another_optimizer_is_refused():
    step = make_step(loss_fn, sgd(0.1, momentum=0.9))
    with pytest.raises(ValueError, match=r"leaf 'scale_by_adam/.*' is not expected"):
        step(init_state(PARAMS, adam(0.1), 0), BATCH)


def test_only_trainable_leaves_are_differentiated():
    @jax.custom_vjp
    def guarded(b):
        return b

    def refuse(residuals, g):
        raise AssertionError("a frozen leaf was differentiated")

    guarded.defvjp(lambda b: (b, None), refuse)
    optimizer = partition([("b", freeze()), ("**", sgd(0.1))])

    def loss(params, batch):
        return loss_fn({"w": params["w"], "b": guarded(params["b"])}, batch)

    state = init_state(PARAMS, optimizer, 0)
    new, metrics = make_step(loss, optimizer)(state, BATCH)
    np.testing.assert_array_equal(new.params["b"], PARAMS["b"])
    grads = jax.grad(loss_fn)(PARAMS, BATCH)
    for name, kept in (("grad_norm", grads), ("param_norm", PARAMS)):
        np.testing.assert_allclose(metrics[name], tree.norm(kept["w"]), rtol=1e-6)
    with pytest.raises(AssertionError, match="a frozen leaf"):
        make_step(loss, sgd(0.1))(init_state(PARAMS, sgd(0.1), 0), BATCH)


def test_the_gradient_of_a_complex_leaf_points_uphill():
    target = jnp.array(1.0 + 2.0j)

    def distance(z, batch):
        return jnp.abs(z - target) ** 2

    step = make_step(distance, sgd(0.5))
    state, _ = step(init_state(jnp.array(0.0j), sgd(0.5), 0), BATCH)
    np.testing.assert_allclose(state.params, target)


def test_micro_batches_are_one_big_batch():
    def loss(params, batch):
        value = loss_fn(params, batch)
        return value, {"double": 2 * value}

    first = init_state(PARAMS, adam(0.1), 0)
    whole, expected = train(make_step(loss, adam(0.1)), first)
    cut, metrics = train(make_step(loss, adam(0.1), micro_batches=3), first)
    chex.assert_trees_all_close(cut.params, whole.params, rtol=1e-5)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)


def test_micro_batches_carry_the_model_state_and_split_the_key():
    def loss(params, batch, key, model_state):
        return loss_fn(params, batch), ({"k": jax.random.uniform(key)}, model_state + 1)

    state = init_state(PARAMS, sgd(0.1), 0, model_state=jnp.int32(0))
    state, metrics = make_step(loss, sgd(0.1), micro_batches=2)(state, BATCH)
    key = jax.random.fold_in(jax.random.key(0), 0)
    draws = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(2)]
    assert state.model_state == 2
    np.testing.assert_allclose(metrics["k"], np.mean(draws), rtol=1e-6)


def test_a_batch_that_cannot_be_cut_is_refused():
    step = make_step(loss_fn, sgd(0.1), micro_batches=4)
    with pytest.raises(ValueError, match=r"multiple of micro_batches=4, got .*'x'"):
        step(init_state(PARAMS, sgd(0.1), 0), BATCH)


def test_maps_and_losses_of_one_seed_have_different_draws():
    def draw(batch, key):
        return {"draw": jax.random.normal(key, (2,))}

    data = dataset.from_arrays(BATCH, batch_size=2, seed=0).map(draw)

    def loss(params, batch, key):
        apart = jnp.abs(batch["draw"] - jax.random.normal(key, (2,))).min()
        return loss_fn(params, BATCH), {"apart": apart}

    _, history = run(
        make_step(loss, sgd(0.1)), init_state(PARAMS, sgd(0.1), 0), data, 5
    )
    assert history["apart"].min() > 1e-4


def test_nonfinite_numbers_are_data():
    step = jax.jit(make_step(loss_fn, sgd(0.1)))
    bad = BATCH | {"y": BATCH["y"].at[0].set(jnp.nan)}
    _, metrics = step(init_state(PARAMS, sgd(0.1), 0), bad)
    assert not bool(metrics["is_finite"])


def test_the_first_step_can_be_donated():
    for optimizer in (sgd(0.1, momentum=0.9), adam(0.1)):
        params = snapshot(PARAMS)
        state = init_state(params, optimizer, 0)
        step = jax.jit(make_step(loss_fn, optimizer), donate_argnums=0)
        state, _ = step(state, BATCH)
        state, _ = step(state, BATCH)
        assert params["w"].is_deleted()
        assert bool(jnp.isfinite(state.params["w"]).all())


def test_three_calls_trace_once():
    step = jax.jit(chex.assert_max_traces(make_step(loss_fn, adam(0.1)), n=1))
    train(step, init_state(PARAMS, adam(0.1), 0))


def test_a_handwritten_transform_trains():
    raw = Transform(
        init=lambda params: (),
        update=lambda updates, state, params: (tree.scale(-0.1, updates), state),
    )
    state, _ = train(make_step(loss_fn, raw), init_state(PARAMS, raw, 0))
    expected, _ = train(make_step(loss_fn, sgd(0.1)), init_state(PARAMS, sgd(0.1), 0))
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-6)


def test_a_snapshot_owns_its_memory_and_parts_tied_leaves():
    tied = jnp.ones(3)
    copy = snapshot({"a": tied, "b": tied, "key": jax.random.key(0)})
    pointers = {leaf.unsafe_buffer_pointer() for leaf in (tied, copy["a"], copy["b"])}
    assert len(pointers) == 3
    assert not snapshot(jnp.asarray(1.0)).weak_type


DATA = dataset.from_arrays(BATCH, batch_size=2, seed=3)
STEP = make_step(loss_fn, sgd(0.1))


def metric_fn(params, batch):
    return {"loss": (predict(params, batch["x"]) - batch["y"]) ** 2}


def test_a_run_is_a_fold_of_steps():
    state = init_state(PARAMS, sgd(0.1), 0)
    last, history = jax.jit(lambda s, d: run(STEP, s, d, 7))(state, DATA)
    step = jax.jit(STEP)
    losses = []
    for t in range(7):
        state, metrics = step(state, DATA.batch(t))
        losses.append(metrics["loss"])
    # Another program may round a reduction differently, in the last place.
    chex.assert_trees_all_close(last.params, state.params, rtol=1e-5)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)


def test_a_run_takes_a_function_of_the_step():
    state = init_state(PARAMS, sgd(0.1), 0)
    from_function, _ = run(STEP, state, DATA.batch, 4)
    from_dataset, _ = run(STEP, state, DATA, 4)
    chex.assert_trees_all_equal(from_function.params, from_dataset.params)


@pytest.mark.parametrize(("every", "expected"), [(2, [2, 4, 5]), (5, [5]), (None, [5])])
def test_a_run_evaluates_on_a_schedule_and_at_the_end(every, expected):
    state = init_state(PARAMS, sgd(0.1), 0)
    evaluated = jax.jit(
        lambda s, d: run(
            STEP, s, d, 5, metric_fn=metric_fn, eval_data=BATCH, eval_every=every
        )
    )
    last, history = evaluated(state, DATA)
    assert history["loss"].shape == (5,)
    losses = [loss_fn(run(STEP, state, DATA, n)[0].params, BATCH) for n in expected]
    np.testing.assert_allclose(history["val/loss"], losses, rtol=1e-5)
    chex.assert_trees_all_equal(last.params, run(STEP, state, DATA, 5)[0].params)


def test_arguments_of_run_are_checked():
    state = init_state(PARAMS, sgd(0.1), 0)
    with pytest.raises(ValueError, match="need an int num_steps >= 0"):
        run(STEP, state, DATA, -1)
    with pytest.raises(ValueError, match="need both metric_fn and eval_data"):
        run(STEP, state, DATA, 1, metric_fn=metric_fn)
    with pytest.raises(TypeError, match=r"got dict: fngrad.data.from_arrays\(arrays"):
        run(STEP, state, BATCH, 1)
    with pytest.raises(ValueError, match="need an int eval_every >= 1"):
        run(STEP, state, DATA, 1, metric_fn=metric_fn, eval_data=BATCH, eval_every=0)
