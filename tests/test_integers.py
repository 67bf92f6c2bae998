"""Every integer argument takes NumPy integers and refuses bools.

Two calls that make one program give the same numbers, so where the argument goes into
a program the programs are compared and none is compiled.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import ARRAYS, DATA, loss_fn, metric_fn, quiet_fit
from resuming import bits
from sweep_problems import light, quiet_sweep

import fngrad as fg
import fngrad.checkpoint as checkpoint
import fngrad.numerics as numerics
import fngrad.sweeps as sweeps


def waves(*shape):
    return jnp.array(np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape))


PARAMS = {"w": jnp.array([0.5, -1.0]), "b": jnp.array(0.1)}
WIDE = {"w": waves(8, 8)}
BATCH = {name: x[:4] for name, x in ARRAYS.items()}
KEY = jax.random.key(0)


def program(f, *args):
    """Return what f traces to, as text, and the arrays that it closes over."""
    closed = jax.make_jaxpr(f)(*args)
    return re.sub(r"0x[0-9a-f]+", "", str(closed)), closed.consts


def trained(optimizer, params=PARAMS):
    """Return the program of an update from a new state."""
    return program(lambda p: optimizer.update(p, optimizer.init(p), p), params)


def stepped(step, optimizer):
    def first(batch):
        return step(fg.init_state(PARAMS, optimizer, 0), batch)

    return program(first, BATCH)


def applied(layer, x):
    def both(key, x):
        params = layer.init(key)
        return params, layer.apply(params, x)

    return program(both, KEY, x)


def measured(measure, **options):
    return program(lambda w: measure(quadratic, w, key=0, **options), W)


def quadratic(w):
    return jnp.sum(w**4) + w[0] * w[1]


IMAGE = waves(8, 8, 2)
LINE = waves(8, 4)
LABELS = jnp.array([0, 1, 2, 3, 0, 1, 2, 3])
TOKENS = jnp.array([0, 1, 2, 3, 4, 5])
W = jnp.array([1.0, 2.0, 3.0])
FIT = {"metric_fn": metric_fn, "eval_data": ARRAYS}

# A call with an integer argument n, and an n that it accepts.
CASES = {
    "fit num_steps": (lambda n: quiet_fit(num_steps=n).state, 3),
    "fit num_epochs": (lambda n: quiet_fit(num_epochs=n).state, 2),
    "fit log_every": (lambda n: quiet_fit(num_steps=4, log_every=n).state, 2),
    "fit eval_every": (
        lambda n: quiet_fit(num_steps=4, eval_every=n, **FIT).history["val/loss"],
        2,
    ),
    "run num_steps": (
        lambda n: fg.run(
            fg.make_step(loss_fn, fg.sgd(0.1)),
            fg.init_state(PARAMS, fg.sgd(0.1), 0),
            DATA,
            n,
        ),
        3,
    ),
    "run eval_every": (
        lambda n: fg.run(
            fg.make_step(loss_fn, fg.sgd(0.1)),
            fg.init_state(PARAMS, fg.sgd(0.1), 0),
            DATA,
            4,
            eval_every=n,
            **FIT,
        )[1],
        2,
    ),
    "micro_batches": (
        lambda n: stepped(
            fg.make_step(loss_fn, fg.sgd(0.1), micro_batches=n), fg.sgd(0.1)
        ),
        2,
    ),
    "batch_size": (lambda n: fg.data.from_arrays(ARRAYS, n, seed=1).batch(7), 3),
    "batch": (lambda n: DATA.batch(n), 3),
    "steps": (lambda n: np.asarray(DATA.steps(n)), 3),
    "evaluate": (
        lambda n: fg.evaluate(metric_fn, PARAMS, ARRAYS, batch_size=n),
        7,
    ),
    "windows length": (
        lambda n: fg.data.windows(jnp.arange(20), n, 2, shuffle=False).batch(1),
        3,
    ),
    "windows stride": (
        lambda n: fg.data.windows(jnp.arange(20), 4, 2, stride=n, shuffle=False).batch(
            1
        ),
        3,
    ),
    "split seed": (lambda n: fg.data.split(ARRAYS, (0.5, 0.5), seed=n), 3),
    "accumulate": (lambda n: trained(fg.accumulate(fg.adam(0.1), n)), 2),
    "lookahead": (lambda n: trained(fg.lookahead(fg.adam(0.1), sync_period=n)), 2),
    "ema every": (lambda n: trained(fg.chain(fg.sgd(0.1), fg.ema_params(every=n))), 2),
    "ema start": (
        lambda n: trained(fg.chain(fg.sgd(0.1), fg.ema_params(start_step=n))),
        2,
    ),
    "loss_scaling": (
        lambda n: trained(fg.loss_scaling(fg.adam(0.1), growth_interval=n)),
        2,
    ),
    "skip_nonfinite": (lambda n: trained(fg.skip_nonfinite(fg.adam(0.1), n)), 2),
    "shampoo": (
        lambda n: trained(fg.shampoo(0.1, update_every=n, max_size=4 * n), WIDE),
        2,
    ),
    "soap": (
        lambda n: trained(
            fg.soap(0.1, precondition_frequency=n, max_precond_dim=4 * n), WIDE
        ),
        2,
    ),
    "muon": (lambda n: trained(fg.muon(0.1, ns_steps=n), WIDE), 3),
    "adafactor": (
        lambda n: trained(fg.adafactor(0.1, min_dim_size_to_factor=n), WIDE),
        4,
    ),
    "lbfgs": (lambda n: trained(fg.lbfgs(0.1, memory_size=n)), 3),
    "quantize bits": (
        lambda n: trained(fg.quantize_state(fg.adam(0.1), bits=n, min_size=n), WIDE),
        8,
    ),
    "quantize block_size": (
        lambda n: trained(
            fg.quantize_state(fg.adam(0.1), block_size=n, min_size=n), WIDE
        ),
        16,
    ),
    "schedule_free": (
        lambda n: trained(fg.schedule_free_adamw(0.1, warmup_steps=n)),
        3,
    ),
    "cosine": (lambda n: trained(fg.adam(fg.schedules.cosine(0.1, n))), 5),
    "warmup_cosine": (
        lambda n: trained(fg.adam(fg.schedules.warmup_cosine(0.0, 0.1, n, 4 * n))),
        2,
    ),
    "adaptive_clip": (
        lambda n: trained(fg.chain(fg.adaptive_clip(0.1, axis=n), fg.sgd(0.1)), WIDE),
        0,
    ),
    "line_search": (
        lambda n: stepped(
            fg.steps.line_search(
                loss_fn,
                fg.chain(fg.sgd(1.0), fg.scale_by_step_length()),
                max_evaluations=n,
            ),
            fg.chain(fg.sgd(1.0), fg.scale_by_step_length()),
        ),
        5,
    ),
    "sophia": (
        lambda n: stepped(
            fg.steps.sophia(loss_fn, fg.sophia(0.1), update_interval=n), fg.sophia(0.1)
        ),
        2,
    ),
    "lanczos": (
        lambda n: measured(fg.curvature.lanczos, num_steps=n),
        2,
    ),
    "extreme": (
        lambda n: measured(fg.curvature.extreme_eigenvalues, count=n),
        2,
    ),
    "density": (
        lambda n: measured(fg.curvature.spectral_density, num_samples=n),
        2,
    ),
    "trace": (
        lambda n: measured(fg.curvature.trace, num_samples=n),
        3,
    ),
    "descend": (
        lambda n: fg.landscapes.descend(quadratic, W, fg.sgd(0.01), num_steps=n),
        3,
    ),
    "top_k": (
        lambda n: fg.metrics.top_k_accuracy(LINE, LABELS, k=n),
        2,
    ),
    "calibration": (
        lambda n: fg.metrics.calibration_error(LINE, LABELS, num_bins=n),
        5,
    ),
    "linear": (lambda n: applied(fg.layers.linear(4, n), LINE[0]), 3),
    "conv": (
        lambda n: applied(
            fg.layers.conv(2, 2 * n, n, stride=n, dilation=n, groups=n), IMAGE
        ),
        2,
    ),
    "conv of pairs": (
        lambda n: applied(fg.layers.conv(2, 4, (n, n), stride=(n, n)), IMAGE),
        2,
    ),
    "max_pool": (lambda n: applied(fg.layers.max_pool(n, stride=n), IMAGE), 2),
    "avg_pool": (lambda n: applied(fg.layers.avg_pool(n), IMAGE), 2),
    "attention": (
        lambda n: applied(fg.layers.multi_head_attention(2 * n, n, head_size=n), LINE),
        2,
    ),
    "embedding": (lambda n: applied(fg.layers.embedding(6, n), TOKENS), 3),
    "layer_norm": (lambda n: applied(fg.layers.layer_norm(n), LINE), 4),
    "rms_norm": (lambda n: applied(fg.layers.rms_norm(n), LINE), 4),
    "group_norm": (lambda n: applied(fg.layers.group_norm(2 * n, n), LINE), 2),
    "gru": (lambda n: applied(fg.layers.gru(4, n), LINE), 3),
    "lstm": (lambda n: applied(fg.layers.lstm(4, n), LINE), 3),
    "mlp": (lambda n: applied(fg.models.mlp([4, n, 2]), LINE[0]), 3),
    "transformer": (
        lambda n: applied(
            fg.models.transformer(
                vocab_size=6, max_length=6, features=2 * n, num_layers=n, num_heads=n
            ),
            TOKENS,
        ),
        2,
    ),
    "sweep keys": (lambda n: quiet_sweep(keys=n, fn=light).history, 2),
    "sweep mode": (lambda n: quiet_sweep(mode=n, fn=light).history, 2),
    "sweep chunk": (lambda n: quiet_sweep(chunk=n, fn=light).history, 2),
    "sweep points": (
        lambda n: sweeps.random(n, key=0, rate=sweeps.log_uniform(0.1, 1.0)),
        3,
    ),
    "rungs": (lambda n: np.asarray(sweeps.rungs(n, 9 * n)), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_an_integer_of_numpy_is_an_integer(name):
    call, n = CASES[name]
    want = jax.tree.leaves(call(n))
    for kind in (np.int64, np.uint8):
        got = jax.tree.leaves(call(kind(n)))
        assert [bits(np.asarray(x) if np.isscalar(x) else x) for x in got] == [
            bits(np.asarray(x) if np.isscalar(x) else x) for x in want
        ]


NO_COUNTS = {"cosine", "warmup_cosine", "adaptive_clip", "batch"}


@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_COUNTS])
def test_a_bool_is_not_an_integer(name):
    call, _ = CASES[name]
    for value in (True, np.True_):
        with pytest.raises((ValueError, TypeError), match="need "):
            call(value)


@pytest.mark.parametrize("value", [2, np.int64(2)])
def test_checkpoints_are_saved_and_restored_by_any_integer(value, tmp_path):
    quiet_fit(num_steps=5, checkpoint_dir=tmp_path, save_every=value, keep=value)
    assert checkpoint.steps(tmp_path) == [4, 5]
    state = fg.init_state(PARAMS, fg.momentum(0.05), 0)
    step = value + value
    assert int(checkpoint.restore(tmp_path, state, step=step).step) == 4
    path = checkpoint.save(tmp_path / "own", state, step=value)
    assert path.name == "00000002"


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 2**31},
        {"num_steps": np.int64(2**31)},
        {"num_steps": 2.0**31},
        {"num_epochs": 2**30},
    ],
    ids=str,
)
def test_steps_beyond_int32_are_refused_at_once(options):
    with pytest.raises(ValueError, match=r"2147483647.*got num_(steps|epochs)="):
        quiet_fit(**options)


def test_the_last_step_of_int32_is_not_refused():
    state = fg.init_state(PARAMS, fg.momentum(0.05), 0)
    state = state._replace(step=jnp.int32(numerics.MAX_STEP))
    result = quiet_fit(state, num_steps=numerics.MAX_STEP)
    assert (result.stopped, int(result.state.step)) == ("completed", 2**31 - 1)


def test_a_run_beyond_int32_is_refused():
    step = fg.make_step(loss_fn, fg.sgd(0.1))
    with pytest.raises(ValueError, match=r"need an int num_steps .*<= 2147483647"):
        fg.run(step, fg.init_state(PARAMS, fg.sgd(0.1), 0), DATA, 2**31)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (np.uint8(3), 3),
        (np.int64(-3), -3),
        (True, None),
        (np.True_, None),
        (3.0, None),
        (np.float32(3), None),
        (None, None),
        ("3", None),
        (np.arange(3), None),
    ],
    ids=repr,
)
def test_what_is_an_integer(value, number):
    found = numerics.as_int(value)
    assert found == number
    assert type(found) is type(number)
