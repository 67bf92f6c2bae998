"""A run whose sums are exact, so that its bits do not depend on who adds what.

The scripts of several processes import it; they print what they reached as lines of
JSON, which `told` reads.
"""

import json
import signal
import zlib

import jax.numpy as jnp
import numpy as np

import fngrad as fg

# Small integers: gradients are eighths, parameters and losses short binary fractions.
X = np.random.default_rng(0).integers(-3, 5, (48, 8)).astype(np.float32)
DATA = fg.data.from_arrays({"x": X}, 8, seed=1)
OPTIMIZER = fg.sgd(2.0**-4)


def products(params, batch):
    return batch["x"] @ params["w"]


def loss_fn(params, batch):
    return jnp.mean(products(params, batch))


def metric_fn(params, batch):
    return {"loss": products(params, batch)}


STEP = fg.make_step(loss_fn, OPTIMIZER)


def shared_fit(step=STEP, data=DATA, key=0, **options):
    """Train for 40 steps, with an evaluation every 15 and a log every 10."""
    state = fg.init_state({"w": jnp.zeros(8)}, OPTIMIZER, key)
    options = {
        "num_steps": 40,
        "metric_fn": metric_fn,
        "eval_data": {"x": X},
        "eval_every": 15,
        "log_every": 10,
        "loop": "python",
        "progress": False,
    } | options
    return fg.fit(step, state, data, **options)


def summary(result):
    """Return why a run ended, at which step, and checksums of what it computed."""
    return {
        "stopped": result.stopped,
        "step": int(result.state.step),
        "params": zlib.crc32(np.asarray(result.state.params["w"]).tobytes()),
        "best": result.history.best.step,
    } | {name: zlib.crc32(x.tobytes()) for name, x in result.history.items()}


def tell(**values):
    """Print a line that `told` reads."""
    print("told", json.dumps(values), flush=True)


def tell_error(case, fn):
    """Call a function, and tell how it ended."""
    try:
        result = fn()
    except (Exception, SystemExit) as error:
        notes = " ".join(getattr(error, "__notes__", []))
        text = f"{error} {notes}"
        tell(case=case, error=type(error).__name__, text=text)
    else:
        tell(case=case, stopped=result.stopped, step=int(result.state.step))


def told(output):
    """Return what a process told, line by line."""
    lines = [x for x in output.splitlines() if x.startswith("told ")]
    return [json.loads(line.removeprefix("told ")) for line in lines]


def send_at(number, at, is_here=True):
    """Return a callback that sends this process a signal at a step."""

    def callback(step, state, values):
        if step == at and is_here:
            signal.raise_signal(number)

    return callback
