"""What a first training and a halving compile: counted in a process without a cache."""

import json
import os
import subprocess
import sys

import pytest

HEAR = """
import json
import jax
import jax.monitoring
import fngrad as fg

made = []

def heard(event, seconds, **details):
    if event.endswith("backend_compile_duration"):
        made.append(str(details.get("fun_name")))

jax.monitoring.register_event_duration_secs_listener(heard)
"""
FIT = """
model = MODEL

def loss_fn(params, batch):
    logits = fg.layers.batched(model)(params, batch["x"])
    return fg.losses.softmax_cross_entropy_with_integer_labels(
        logits, batch["y"], reduction="mean"
    )

def counted(fn):
    before = len(made)
    return fn(), made[before:]

digits = fg.data.digits(images=IMAGES)
data, by_data = counted(lambda: fg.data.from_arrays(digits.train, 128))
params, by_init = counted(lambda: model.init(0))
optimizer = OPTIMIZER
state, by_state = counted(lambda: fg.init_state(params, optimizer, key=0))
step = fg.make_step(loss_fn, optimizer)
result, by_fit = counted(
    lambda: fg.fit(step, state, data, num_steps=3, loop="LOOP", progress=False)
)
print(json.dumps([by_data, by_init, by_state, by_fit]))
"""
HALVING = """
from fngrad.sweeps import grid, successive_halving

def loss_fn(params, batch):
    return fg.tree.vdot(params, params)

def parts(point):
    optimizer = fg.sgd(point["rate"])
    return optimizer, fg.make_step(loss_fn, optimizer)

def init(point, key):
    params = [jax.numpy.ones(n) for n in range(1, LEAVES)]
    return fg.init_state(params, parts(point)[0], key)

def advance(point, state, num_steps):
    state, history = fg.run(parts(point)[1], state, lambda step: None, num_steps)
    return state, history | {"val/loss": history["loss"][-1]}

points = grid(rate=[0.1, 0.2, 0.3, 0.4])
successive_halving(init, advance, points, keys=2, rungs=(2, 6))
print(json.dumps(made))
"""
STATES = """
from fngrad.optimizers.registry import REGISTRY

params = fg.models.mlp((64, 16, 10)).init(0)
optimizers = {name: rule(1e-3) for name, rule in REGISTRY.items()} | {
    "quantize_state": fg.quantize_state(fg.adam(1e-3), bits=16),
    "ema_params": fg.chain(fg.adam(1e-3), fg.ema_params(0.99)),
    "add_noise": fg.chain(fg.add_noise(0.1, 0.5, 0), fg.sgd(0.1)),
    "loss_scaling": fg.loss_scaling(fg.adam(1e-3)),
    "lookahead": fg.lookahead(fg.adam(1e-3)),
}
counts = {}
for name, optimizer in optimizers.items():
    jax.clear_caches()
    made.clear()
    fg.init_state(params, optimizer, key=0)
    counts[name] = len(made)
print(json.dumps(counts))
"""
MLP, CNN = "fg.models.mlp((64, 16, 10))", "fg.models.cnn((8, 8, 1), 10)"
# Of these, a program for each shape, or for norms of the parameters.
SEVERAL = {"dog": 4, "kron": 5, "quantize_state": 4}


def compiled(code):
    """Return what a script prints of the programs that it compiled."""
    environment = dict(os.environ)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", HEAR + code]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("model", "optimizer", "loop"),
    [
        (MLP, "fg.adam(1e-3)", "python"),
        (MLP, "fg.momentum(0.1)", "scan"),
        (MLP, "fg.chain(fg.clip_by_global_norm(1.0), fg.adamw(1e-3))", "auto"),
        (CNN, "fg.rmsprop(1e-3)", "auto"),
    ],
)
def test_a_first_training_compiles_its_init_and_its_step(model, optimizer, loop):
    code = FIT.replace("OPTIMIZER", optimizer).replace("LOOP", loop)
    code = code.replace("MODEL", model).replace("IMAGES", str(model == CNN))
    by_data, by_init, by_state, by_fit = compiled(code)
    assert by_data == []
    assert len(by_init) == 1, by_init
    assert by_state == [], by_state
    assert len(by_fit) == 1, by_fit


def test_a_halving_compiles_as_many_programs_for_any_number_of_leaves():
    few, many = (compiled(HALVING.replace("LEAVES", n)) for n in ("2", "7"))
    assert len(many) == len(few) <= 10, many


def test_no_optimizer_compiles_its_first_state_operation_by_operation():
    counts = compiled(STATES)
    assert len(counts) > 50
    assert {n: k for n, k in counts.items() if k > SEVERAL.get(n, 2)} == {}
    assert not any(counts[name] for name in ("momentum", "rmsprop", "adam"))
