"""Every optimizer and wrapper on eight devices is the one on one device.

They are a few programs per placement: XLA compiles many programs, or one of all of
them, in twice the time. Each program's length is that of its leaves and metrics, so
there are two matrices, which are split along different axes, and few norms.
"""

import functools
import math

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.programs.equations as equations
import fngrad.sharding as sharding

STEPS = 3
TOGETHER = 16  # optimizers in one program
# Roots of nearly singular statistics amplify the order of a sum; a code is rounded.
TOLERANCE = {"shampoo": 2e-3, "soap": 6e-3, "lbfgs": 1e-3, "quantized": 1e-3} | {
    "in 16 bits": 1e-3,
    "dion": 2e-3,  # its columns have length one, however small they were
}
RATE = 0.01
RATES = {
    "lars": 1.0,
    "adadelta": 10.0,
    "dog": 1e3,
    "prodigy": 1e3,
    "dadapt_adamw": 1e3,
} | {
    "dadapt_sgd": 1e3  # these estimate a small scale at first
}


def optimizers():
    adam = fg.adam(RATE)
    clipped = fg.chain(fg.clip_by_global_norm(0.1), adam)
    groups = fg.partition([("in", fg.muon(RATE)), ("**", adam)])
    made = {name: make(RATES.get(name, RATE)) for name, make in fg.REGISTRY.items()}
    # Else the null space of a statistic, which is noise, is scaled up to the rest.
    made["soap"] = fg.soap(RATE, eps=1e-3)
    made["schedule_free_radam"] = fg.schedule_free_radam(RATE, silent_sgd_phase=False)
    return made | {
        "clipped": clipped,
        "adaptively clipped": fg.chain(fg.adaptive_clip(0.1), adam),
        "accumulated": fg.accumulate(adam, 2),
        "averaged": fg.chain(adam, fg.ema_params(0.9)),
        "averaged with weights": fg.chain(adam, fg.average_params()),
        "cautious": fg.cautious(adam),
        "centralized": fg.chain(fg.centralize(), adam),
        "grouped": groups,
        "guarded": fg.skip_nonfinite(clipped),
        "lbfgs": fg.lbfgs(0.1),
        "lookahead": fg.lookahead(adam, sync_period=2),
        "noisy": fg.chain(adam, fg.add_noise(1e-4, 0.5, 0)),
        "proximal": fg.chain(adam, fg.proximal_decay(RATE, 1.0)),
        "projected": fg.chain(adam, fg.project(fg.projections.l2_ball, radius=0.5)),
        "quantized": fg.quantize_state(adam, min_size=1),
        "in 16 bits": fg.quantize_state(adam, bits=16, min_size=1),
        "rounded at random": fg.chain(adam, fg.stochastic_round(0)),
        "scaled loss": fg.loss_scaling(adam),
        "stacked": fg.stack_leaves(adam),
        "tunable": fg.tunable(fg.adam, learning_rate=RATE),
    }


OPTIMIZERS = optimizers()
# The norm is that of the step's own gradient, whichever the rule: these stand for all.
METRICS = dict.fromkeys(("sgd", "accumulated", "grouped", "scaled loss"), "norms")
# These rules compute every entry from what belongs to it, so that XLA splits them all
# alike: along one axis they are slow, and `sgd` and `adam` stand for them.
# fmt: off
ENTRYWISE = [
    "momentum", "rmsprop", "adagrad", "adadelta", "adamw", "adamc", "adamax", "amsgrad",
    "nadam", "radam", "adabelief", "yogi", "adan", "adopt", "ademamix",
    "simplified_ademamix", "laprop", "sign_sgd", "signum", "lion", "rprop", "madgrad",
    "schedule_free_sgd", "schedule_free_adamw", "schedule_free_radam", "averaged",
    "lookahead", "tunable",
]
# fmt: on
OF_ENTRIES = """
    jit copy broadcast_in_dim convert_element_type optimization_barrier abs add and cbrt
    clamp div eq ge gt integer_pow is_finite le lt max min mul ne neg or pow select_n
    sign sqrt square sub
"""
PLACEMENTS = eight_devices.placements()
LARGE = 2 * 32  # entries; no bias, row or column has as many
# Of large leaves that have fewer than seven parts: the ends of their paths, how many.
FEWER_PARTS = {
    # `fsdp` splits another axis than "model" does, and four devices divide no other of
    # these: small parameters have one or two blocks of 256 codes, and a ring has ten.
    ("4 x 2", "quantized"): {"codes": 2},
    ("4 x 2", "lbfgs"): {"bias": 2},
}
ALONG_ONE_AXIS = ("data parallel", "fsdp")
OTHERS = [name for name in OPTIMIZERS if name not in ENTRYWISE]
CASES = [
    pytest.param(
        *(placement, name),
        marks=[pytest.mark.slow]
        if name in ENTRYWISE and placement in ALONG_ONE_AXIS
        else [],
    )
    for placement in PLACEMENTS
    for name in OPTIMIZERS
]


def loss_fn(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["bias"][None])
    return jnp.mean((hidden @ params["out"] - batch["y"]) ** 2)


def problem():
    rng = np.random.default_rng(0)
    shapes = {"in": (16, 32), "bias": (32,), "out": (32, 8)}
    params = {
        name: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }
    x = rng.normal(size=(16, 16)).astype(np.float32)
    return params, {"x": x, "y": np.sin(x[:, :8])}


def steps(rule, names):
    made = {
        n: fg.make_step(
            loss_fn, OPTIMIZERS[n], rule=rule, metrics=METRICS.get(n, "loss")
        )
        for n in names
    }

    fast = {"xla_backend_optimization_level": 0}  # to compile, not to run

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=fast)
    def all_steps(states, batch):
        return {name: made[name](state, batch) for name, state in states.items()}

    return all_steps


def first_states(names):
    params, _ = problem()
    return {name: fg.init_state(params, OPTIMIZERS[name], 0) for name in names}


def ends(placement, name):
    """Return the states and metrics after some steps, of this optimizer and others."""
    together = ENTRYWISE if name in ENTRYWISE else OTHERS
    names = together if placement in ALONG_ONE_AXIS else OPTIMIZERS
    return ends_of_all(placement, tuple(names))


@functools.cache
def ends_of_all(placement, names):
    """Return the ends of some programs."""
    states, metrics = {}, {}
    programs = math.ceil(len(names) / TOGETHER)
    for first in range(programs):
        some = ends_of(placement, names[first::programs])
        states, metrics = states | some[0], metrics | some[1]
    return states, metrics


def ends_of(placement, names):
    """Return the ends of one program."""
    states, (_, batch) = fg.snapshot(first_states(names)), problem()
    mesh, rule = PLACEMENTS.get(placement, (None, None))
    if mesh is not None:
        states = {n: sharding.shard_state(s, mesh, rule) for n, s in states.items()}
        batch = sharding.shard_batch(batch, mesh)
    advance = steps(rule, names)
    metrics = {}
    for _ in range(STEPS):
        made = advance(states, batch)
        states = {name: state for name, (state, _) in made.items()}
        metrics = {name: values for name, (_, values) in made.items()}
    return states, metrics


@pytest.mark.parametrize(("placement", "name"), CASES)
def test_equal_to_one_device(placement, name):
    (one, metrics), (many, more) = ends("one device", name), ends(placement, name)
    tolerance = TOLERANCE.get(name, 1e-4)
    first = problem()[0]
    assert eight_devices.farthest(one[name].params, first) > 4 * tolerance
    assert eight_devices.farthest(one[name].params, many[name].params) < tolerance
    assert float(more[name]["loss"]) == pytest.approx(
        float(metrics[name]["loss"]), rel=tolerance
    )
    if name in METRICS:
        assert float(more[name]["grad_norm"]) == pytest.approx(
            float(metrics[name]["grad_norm"]), rel=10 * tolerance
        )


@pytest.mark.parametrize(("placement", "name"), CASES)
def test_the_state_stays_where_it_was_placed(placement, name):
    mesh, rule = PLACEMENTS[placement]
    state = ends(placement, name)[0][name]
    where = sharding.shardings(state, mesh, rule)
    for (path, leaf), place in zip(
        fg.tree.leaf_paths(state).items(), jax.tree.leaves(where), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim), path


@pytest.mark.parametrize(
    ("placement", "name"), [c for c in CASES if c.values[0] != "data parallel"]
)
def test_a_device_has_an_eighth_of_what_is_split(placement, name):
    state = ends(placement, name)[0][name]
    found = {}
    for path, leaf in fg.tree.leaf_paths((state.params, state.opt_state)).items():
        if leaf.size >= LARGE:
            found[path] = leaf.nbytes / eight_devices.bytes_here(leaf)
    assert len(jax.tree.leaves(state.params)) == 3
    assert {path for path in found if path.startswith("0/")} == {"0/in", "0/out"}
    fewer = {path.split("/")[-1]: parts for path, parts in found.items() if parts < 7}
    assert fewer == FEWER_PARTS.get((placement, name), {})


def primitives(jaxpr):
    """Return the names of all that reads or makes an array of one axis or more."""
    found = set()
    for equation in jaxpr.eqns:
        if any(x.aval.shape for x in [*equation.invars, *equation.outvars]):
            found.add(equations.name_of(equation))
        for inner in equations.inner_jaxprs(equation):
            found |= primitives(inner)
    return found


@pytest.mark.parametrize("name", ENTRYWISE)
def test_what_is_slow_along_one_axis_works_entry_by_entry(name):
    params, _ = problem()
    state = jax.eval_shape(OPTIMIZERS[name].init, params)
    made = jax.make_jaxpr(OPTIMIZERS[name].update)(params, state, params)
    assert primitives(made.jaxpr) <= set(OF_ENTRIES.split())


@pytest.mark.parametrize(
    "estimate",
    [lambda loss: fg.evolution_strategy(loss, pairs=4), fg.central_differences],
    ids=["evolution strategy", "central differences"],
)
def test_estimated_gradients_are_those_of_one_device(estimate):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 16)).astype(np.float32)
    data = fg.data.from_arrays({"x": x, "y": np.sin(x[:, :8])}, 16, seed=1)
    loss = estimate(lambda w, batch: jnp.mean((batch["x"] @ w - batch["y"]) ** 2))
    optimizer, w = fg.sgd(0.1), jnp.full((16, 8), 0.1)
    state = fg.init_state(w, optimizer, 3)

    def moved(mesh=None, **options):
        step = fg.make_step(loss, optimizer, **options)
        run = fg.fit(step, state, data, num_steps=2, mesh=mesh, progress=False)
        return np.asarray(run.state.params) - w

    want = moved()
    assert np.abs(want).min() > 0
    for mesh, rule in PLACEMENTS.values():
        got = moved(mesh, rule=rule)
        assert eight_devices.farthest(got, want) < 2e-3  # of the largest move
