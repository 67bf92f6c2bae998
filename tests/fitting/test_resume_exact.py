"""A run that is killed and resumed ends with the bits of an uninterrupted one."""

import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import Forked
from resuming import KilledError, assert_same_run, kill_at

import fngrad as fg
import fngrad.layers as layers

pytestmark = pytest.mark.xla_defaults  # bits depend on how XLA compiles

NUM_STEPS, SAVE_EVERY = 9, 4
LOOPS = ("python", "scan")
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


def fit_of(step, state, data=DATA, metric_fn=metric_fn):
    """Return a `fngrad.fit` of what is trained here, and the options of its saves."""
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
    )
    return fit, {"save_every": SAVE_EVERY}


def assert_resumes(folder, step, state, *given, loop):
    """A run that is killed twice, at step 6, ends as an uninterrupted one."""
    fit, saved = fit_of(step, state, *given)
    undisturbed = fit(loop=loop)
    saved |= {"checkpoint_dir": folder, "loop": loop}
    for _ in range(2):
        with pytest.raises(KilledError):
            fit(loggers=[kill_at(6)], **saved)
    resumed = fit(**saved)
    # 5 is the best evaluation so far; it may have waited while 4 was written.
    assert resumed.history.notes["resumed"] in ([4], [5], [4, 5])
    assert_same_run(resumed, undisturbed)


def assert_continues(folder, step, state, *given, loops=("python",)):
    """From its checkpoint of step 4 a run ends as it did, in each loop."""
    fit, saved = fit_of(step, state, *given)
    for loop in loops:
        saved |= {"checkpoint_dir": folder / loop, "loop": loop}
        whole = fit(keep=4, **saved)
        for later in fg.checkpoint.steps(folder / loop)[1:]:
            shutil.rmtree(folder / loop / f"{later:08}")
        resumed = fit(**saved)
        assert resumed.history.notes["resumed"] == [4]
        assert_same_run(resumed, whole)


def in_groups(size):
    """Return the names of the registry in groups, each for one program."""
    names = list(fg.REGISTRY)
    return [names[i : i + size] for i in range(0, len(names), size)]


@pytest.mark.slow
@pytest.mark.parametrize("names", in_groups(5), ids="-".join)
def test_every_optimizer_resumes_exactly(names, tmp_path):
    rules = [(f"{name}/**", fg.REGISTRY[name](0.01)) for name in names]
    params = {name: jax.tree.map(jnp.asarray, PARAMS) for name in names}

    def summed(params, batch):
        return sum(loss_fn(params[name], batch) for name in names)

    def metric_fn(params, batch):
        return {"loss": sum(errors(params[name], batch) for name in names)}

    optimizer = fg.partition(rules)
    step, state = fg.make_step(summed, optimizer), fg.init_state(params, optimizer, 3)
    assert_continues(tmp_path, step, state, DATA, metric_fn, loops=LOOPS)


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
    optimizer = WRAPPED[name]()
    state = fg.init_state(jax.tree.map(jnp.asarray, PARAMS), optimizer, 3)
    assert_continues(tmp_path, fg.make_step(loss_fn, optimizer), state)


def test_mixed_precision_resumes_exactly_in_the_midst_of_overflows(tmp_path):
    # The first steps overflow: 2**24 is infinite in float16.
    optimizer = fg.loss_scaling(fg.adam(0.01), init_scale=2.0**24, growth_interval=3)
    narrow = fg.mixed_precision(metric_fn, "float16")
    params = jax.tree.map(jnp.asarray, PARAMS)
    step = fg.make_step(narrow_loss, optimizer, precision="float16")
    state = fg.init_state(params, optimizer, 3)
    _, metrics = step(state, DATA.batch(0))
    assert metrics["loss_scaling/total"] == 1
    assert_continues(tmp_path, step, state, DATA, narrow, loops=LOOPS)


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
    folders = [str(folder) for folder in (Path(__file__).parent, TESTS)]
    script = f"import sys; sys.path += {folders}; import test_resume_exact as t"
    variables = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    process = Forked(f"{script}; t.run_on_devices()", variables=variables)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output == "8 devices\n"


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

    with tempfile.TemporaryDirectory() as folder:
        sharded = jax.tree.map(spread, state)
        assert_continues(Path(folder), step, sharded, batch_at, loops=LOOPS)
    print(jax.device_count(), "devices")
