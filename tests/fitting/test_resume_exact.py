"""A run that is killed and resumed ends with the bits of an uninterrupted one."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resuming import KilledError, assert_same_run, kill_at

import fngrad as fg
import fngrad.layers as layers

pytestmark = pytest.mark.xla_defaults  # bits depend on how XLA compiles

NUM_STEPS, SAVE_EVERY = 9, 4
RNG = np.random.default_rng(0)
ARRAYS = {
    "x": RNG.normal(size=(20, 3)).astype(np.float32),
    "y": RNG.integers(0, 4, 20).astype(np.int32),
}
DATA = fg.data.from_arrays(ARRAYS, batch_size=6, seed=1)
PARAMS = {
    "w": RNG.normal(size=(3, 4)).astype(np.float32),
    "b": np.zeros(4, np.float32),
}
TESTS = Path(__file__).parents[1]


def cross_entropy(logits, batch):
    return fg.losses.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def errors(params, batch):
    return cross_entropy(batch["x"] @ params["w"] + params["b"][None], batch)


def metric_fn(params, batch):
    return {"loss": errors(params, batch)}


def loss_fn(params, batch):
    return jnp.mean(errors(params, batch))


def assert_resumes(folder, step, state, data=DATA, metric_fn=metric_fn, **options):
    """A run that is killed twice, at step 6, ends as an uninterrupted one."""
    fit = functools.partial(
        fg.fit,
        step,
        state,
        data,
        num_steps=NUM_STEPS,
        metric_fn=metric_fn,
        eval_data=ARRAYS,
        eval_every=5,
        log_every=3,
        progress=False,
        **{"loop": "python"} | options,
    )
    saved = {"checkpoint_dir": folder, "save_every": SAVE_EVERY}
    undisturbed = fit()
    for _ in range(2):
        with pytest.raises(KilledError):
            fit(loggers=[kill_at(6)], **saved)
    resumed = fit(**saved)
    # 5 is the best evaluation so far; it may have waited while 4 was written.
    assert resumed.history.notes["resumed"] in ([4], [5], [4, 5])
    assert_same_run(resumed, undisturbed)
    assert fg.evaluate(metric_fn, resumed.state, ARRAYS) == fg.evaluate(
        metric_fn, undisturbed.state, ARRAYS
    )


def assert_optimizer_resumes(folder, optimizer, loss_fn=loss_fn, **options):
    step = fg.make_step(loss_fn, optimizer)
    params = jax.tree.map(jnp.asarray, PARAMS)
    assert_resumes(folder, step, fg.init_state(params, optimizer, 3), **options)


def in_groups(size):
    """Return the names of the registry in groups, each for one program."""
    names = list(fg.REGISTRY)
    return [names[i : i + size] for i in range(0, len(names), size)]


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["python", "scan"])
@pytest.mark.parametrize("names", in_groups(5), ids="-".join)
def test_every_optimizer_resumes_exactly(names, loop, tmp_path):
    rules = [(f"{name}/**", fg.REGISTRY[name](0.01)) for name in names]
    params = {name: jax.tree.map(jnp.asarray, PARAMS) for name in names}

    def summed(params, batch):
        return sum(loss_fn(params[name], batch) for name in names)

    def metric_fn(params, batch):
        return {"loss": sum(errors(params[name], batch) for name in names)}

    optimizer = fg.partition(rules)
    step, state = fg.make_step(summed, optimizer), fg.init_state(params, optimizer, 3)
    assert_resumes(tmp_path, step, state, metric_fn=metric_fn, loop=loop)


def dropout_loss(params, batch, key):
    mask = jax.random.bernoulli(key, 0.5, batch["x"].shape)
    return loss_fn(params, batch | {"x": jnp.where(mask, batch["x"], 0)})


WRAPPED = {
    "accumulate": lambda: fg.accumulate(fg.adam(0.01), 2),
    "ema_params": lambda: fg.chain(fg.momentum(0.01), fg.ema_params(0.9)),
    "lookahead": lambda: fg.lookahead(fg.adam(0.01), 3),
    "quantize_state": lambda: fg.quantize_state(fg.adam(0.01), 8, 8, min_size=0),
    "bfloat16 moments": lambda: fg.quantize_state(fg.adam(0.01), 16),
    "tunable": lambda: fg.tunable(fg.adamw, learning_rate=0.01, weight_decay=0.1),
    "partition": lambda: fg.partition([("b", fg.freeze()), ("**", fg.adamw(0.01))]),
    "stack_leaves": lambda: fg.stack_leaves(fg.adam(0.01)),
    "loss_scaling": lambda: fg.loss_scaling(fg.adam(0.01), growth_interval=2),
    "skip_nonfinite": lambda: fg.skip_nonfinite(fg.adam(0.01), 3),
    "schedule": lambda: fg.sgd(fg.schedules.cosine(0.1, NUM_STEPS)),
    "add_noise": lambda: fg.chain(fg.add_noise(0.1, 0.5, 7), fg.sgd(0.01)),
    "stochastic_round": lambda: fg.chain(fg.adam(0.01), fg.stochastic_round(7)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_every_wrapper_resumes_exactly(name, tmp_path):
    assert_optimizer_resumes(tmp_path, WRAPPED[name]())


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_mixed_precision_resumes_exactly_in_the_midst_of_overflows(loop, tmp_path):
    # The first steps overflow: 2**24 is infinite in float16.
    optimizer = fg.loss_scaling(fg.adam(0.01), init_scale=2.0**24, growth_interval=3)
    narrow = fg.mixed_precision(metric_fn, "float16")
    params = jax.tree.map(jnp.asarray, PARAMS)
    step = fg.make_step(narrow_loss, optimizer, precision="float16")
    state = fg.init_state(params, optimizer, 3)
    _, metrics = step(state, DATA.batch(0))
    assert metrics["loss_scaling/total"] == 1
    assert_resumes(tmp_path, step, state, metric_fn=narrow, loop=loop)


def narrow_loss(params, batch):
    return loss_fn(params, batch).astype(params["w"].dtype)


def composite():
    """Return a step and state with all that a state can hold at once."""
    model = layers.serial(
        layers.linear(3, 8),
        layers.batch_norm(8),
        jax.nn.relu,
        layers.dropout(0.3),
        layers.linear(8, 4),
    )
    params, model_state = model.init(jax.random.key(0))
    apply = layers.batched(model)

    def loss_fn(params, batch, key, model_state):
        logits, model_state = apply(params, model_state, batch["x"], key=key)
        return jnp.mean(cross_entropy(logits, batch)), ({}, model_state)

    def metric_fn(params, batch, model_state):
        logits, _ = apply(params, model_state, batch["x"])
        return {"loss": cross_entropy(logits, batch)}

    groups = [
        (
            "layers/0/**",
            fg.quantize_state(
                fg.tunable(fg.adam, learning_rate=0.01), 8, 8, min_size=0
            ),
        ),
        ("**/bias", fg.freeze()),
        ("**", fg.schedule_free_adamw(0.01)),
    ]
    optimizer = fg.accumulate(fg.partition(groups), 2)
    state = fg.init_state(params, optimizer, 5, model_state)
    return fg.make_step(loss_fn, optimizer), state, metric_fn


@pytest.mark.parametrize(
    "loop", ["python", pytest.param("scan", marks=pytest.mark.slow)]
)
def test_a_state_with_everything_in_it_resumes_exactly(loop, tmp_path):
    step, state, metric_fn = composite()
    noisy = DATA.map(
        lambda batch, key: batch | {"x": batch["x"] + jax.random.normal(key, (6, 3))}
    )
    assert_resumes(tmp_path, step, state, noisy, metric_fn, loop=loop)


@pytest.mark.slow
def test_a_run_over_eight_devices_resumes_exactly():
    flags = "--xla_force_host_platform_device_count=8"
    folders = (Path(__file__).parent, TESTS, TESTS / "support", TESTS.parent)
    path = os.pathsep.join(map(str, folders))
    done = subprocess.run(
        [sys.executable, "-c", "import test_resume_exact as t; t.run_on_devices()"],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "8 devices\n"


def run_on_devices():
    """Resume runs whose parameters, or whose batches, are spread over devices."""
    import tempfile

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    optimizer = fg.adam(0.01)
    step = fg.make_step(loss_fn, optimizer)
    params = {"w": jnp.zeros((3, 8)), "b": jnp.zeros(8)}
    state = fg.init_state(params, optimizer, 3)

    def place(*axes):
        spec = jax.sharding.PartitionSpec(*axes)
        return jax.sharding.NamedSharding(mesh, spec)

    def spread(leaf):
        is_wide = leaf.shape[-1:] == (8,)
        axes = (*[None] * (leaf.ndim - 1), "devices") if is_wide else ()
        return jax.device_put(leaf, place(*axes))

    def batch_at(step):
        return jax.lax.with_sharding_constraint(DATA.batch(step), place())

    for loop in ("python", "scan"):
        with tempfile.TemporaryDirectory() as folder:
            sharded = jax.tree.map(spread, state)
            assert_resumes(folder, step, sharded, batch_at, loop=loop)
    print(jax.device_count(), "devices")
