"""Every step of `fngrad.steps` on eight devices is the one on one device.

They are one program per placement, as those of `test_optimizers`.
"""

import functools

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fngrad as fg
import fngrad.sharding as sharding

STEPS = 3
WIDTH = 8
PLACEMENTS = eight_devices.placements()
FLAT, RULE = PLACEMENTS["fsdp"]
# It divides by differences of gradients, which amplify the order of a sum.
TOLERANCE = {"line search, strong wolfe": 1e-3}
FAST = {"xla_backend_optimization_level": 0}  # to compile, not to run
ADAM, PLAIN = fg.adam(0.01), fg.sgd(1.0)
LENGTH = fg.chain(PLAIN, fg.scale_by_step_length())
DAMPED = fg.chain(fg.adaptive_damping(1.0), PLAIN)
REDUCED = fg.chain(ADAM, fg.reduce_on_plateau(patience=1, rtol=0.5))
RECENT = fg.chain(ADAM, fg.recent_values(window=2))


def residual_fn(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["bias"][None])
    return hidden @ params["out"] - batch["y"]


def loss_fn(params, batch):
    return jnp.mean(residual_fn(params, batch) ** 2)


def drawn_loss_fn(params, batch, key):
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    return loss_fn(params, {**batch, "x": x})


def stateful_loss_fn(params, batch, model_state):
    mean = 0.5 * (model_state + jnp.mean(batch["x"], axis=0))
    return loss_fn(params, {**batch, "x": batch["x"] - mean[None]}), ({}, mean)


def made_by(factory, optimizer, function=loss_fn, **options):
    """Return a function of a rule that makes a step, its loss and its optimizer."""
    options = {"metrics": "loss", **options}

    def make(rule=None):
        return factory(sharding.gathered(function, rule), optimizer, **options)

    return make, function, optimizer


def wrapped(wrap, optimizer=ADAM, function=loss_fn, **options):
    """Return what `made_by` does, for a step of `make_step` in a wrapper."""
    return made_by(
        lambda *args, **options: wrap(fg.make_step(*args, **options)),
        optimizer,
        function,
        **options,
    )


def private(**options):
    factory = functools.partial(
        fg.steps.differentially_private, l2_norm_clip=1.0, noise_multiplier=1.0
    )
    return made_by(factory, ADAM, drawn_loss_fn, **options)


def squares(factory, optimizer, **options):
    return made_by(factory, optimizer, residual_fn, **options)


NEWTON = functools.partial(fg.steps.gauss_newton, damping=1.0)
MARQUARDT = fg.steps.levenberg_marquardt
MADE = {
    "line search": made_by(fg.steps.line_search, LENGTH, max_learning_rate=20.0),
    "line search, strong wolfe": made_by(
        fg.steps.line_search, fg.lbfgs(), condition="strong_wolfe", curv_rtol=0.1
    ),
    "polyak": made_by(fg.steps.polyak, PLAIN, max_learning_rate=10.0),
    "sam": made_by(fg.steps.sam, ADAM, metrics="norms"),
    "adaptive sam": made_by(fg.steps.sam, ADAM, adaptive=True),
    "sophia": made_by(fg.steps.sophia, fg.sophia(0.1, gamma=20.0), update_interval=2),
    "private": private(),
    "private, micro-batches": private(micro_batches=2),
    "gauss-newton": squares(NEWTON, PLAIN, metrics="norms"),
    "gauss-newton, forward": squares(NEWTON, PLAIN, jacobian="forward"),
    "gauss-newton, cg": squares(NEWTON, PLAIN, solver="cg"),
    "levenberg-marquardt": squares(MARQUARDT, DAMPED),
    "levenberg-marquardt, cg": squares(MARQUARDT, DAMPED, solver="cg"),
    "micro-batches": made_by(fg.make_step, ADAM, micro_batches=2),
    "plateau": wrapped(fg.steps.plateau, REDUCED),
    "skip bad steps": wrapped(fg.steps.skip_bad_steps),
    "skip spikes": wrapped(fg.steps.skip_spikes, RECENT, metrics="norms"),
    "freeze diverged": wrapped(fg.steps.freeze_diverged),
    "average model state": wrapped(
        fg.steps.average_model_state, function=stateful_loss_fn
    ),
}
CASES = [(placement, name) for placement in PLACEMENTS for name in MADE]
# Those through `fit`, one of each factory.
IN_RUNS = [
    *("line search", "polyak", "sophia", "private, micro-batches"),
    *("gauss-newton, cg", "levenberg-marquardt"),
]
# What cannot be split further along Explicit axes.
REFUSED = {
    "private": "gradients of single examples",
    "private, micro-batches": "gradients of single examples",
    "gauss-newton": 'solver="dense"',
    "gauss-newton, forward": 'solver="dense"',
    "levenberg-marquardt": 'solver="dense"',
    "micro-batches": "micro-batches",
}


def problem(width=WIDTH, rows=16):
    rng = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(rng.normal(size=(width, width)) / width**0.5, jnp.float32),
        "bias": jnp.full(width, 0.1),
        "out": jnp.asarray(rng.normal(size=(width, width)) / width**0.5, jnp.float32),
    }
    x = rng.normal(size=(rows, width)).astype(np.float32)
    return params, {"x": x, "y": np.sin(x)}


def first_state(name):
    _, function, optimizer = MADE[name]
    is_stateful = function is stateful_loss_fn
    model_state = fg.steps.with_average(jnp.zeros(WIDTH)) if is_stateful else ()
    return fg.init_state(problem()[0], optimizer, 0, model_state=model_state)


@functools.cache
def ends(placement):
    """Return states and metrics of all steps, and how many programs were compiled."""
    states, (_, batch) = {name: first_state(name) for name in MADE}, problem()
    mesh, rule = PLACEMENTS.get(placement, (None, None))
    if mesh is not None:
        states = {n: sharding.shard_state(s, mesh, rule) for n, s in states.items()}
        batch = sharding.shard_batch(batch, mesh)
    steps = {name: make(rule) for name, (make, _, _) in MADE.items()}

    @functools.partial(jax.jit, compiler_options=FAST)
    def advance(states, batch):
        return {name: steps[name](state, batch) for name, state in states.items()}

    metrics = {}
    with eight_devices.compilations() as found:
        for _ in range(STEPS):
            made = advance(states, batch)
            states = {name: state for name, (state, _) in made.items()}
            metrics = {name: values for name, (_, values) in made.items()}
    return states, metrics, found.count


@pytest.mark.slow
@pytest.mark.parametrize(("placement", "name"), CASES)
def test_equal_to_one_device(placement, name):
    (states, metrics, _), (others, more, _) = ends("one device"), ends(placement)
    one, many, tolerance = states[name], others[name], TOLERANCE.get(name, 1e-4)
    assert eight_devices.farthest(one.params, problem()[0]) > 20 * tolerance
    for a, b in ((one.params, many.params), (one.model_state, many.model_state)):
        assert not jax.tree.leaves(a) or eight_devices.farthest(a, b) < tolerance
    assert metrics[name].keys() == more[name].keys()
    for metric, value in metrics[name].items():
        want = pytest.approx(float(value), rel=10 * tolerance)
        assert float(more[name][metric]) == want, metric


def assert_placed(state, mesh, rule):
    where = sharding.shardings(state, mesh, rule)
    for (path, leaf), place in zip(
        fg.tree.leaf_paths(state).items(), jax.tree.leaves(where), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim), path


@pytest.mark.slow
@pytest.mark.parametrize(("placement", "name"), CASES)
def test_the_state_stays_where_it_was_placed(placement, name):
    assert_placed(ends(placement)[0][name], *PLACEMENTS[placement])


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_all_compile_once(placement):
    assert ends(placement)[2] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_RUNS)
def test_a_run_is_that_of_one_device_and_compiles_once(name):
    (make, _, _), (_, batch) = MADE[name], problem(rows=32)
    data = fg.data.from_arrays(batch, 16, seed=1)
    options = {"num_steps": STEPS, "progress": False, "loop": "python"}
    one = fg.fit(make(), first_state(name), data, **options)
    many = fg.fit(make(RULE), first_state(name), data, mesh=FLAT, **options)
    assert eight_devices.farthest(one.state.params, problem()[0]) > 2e-3
    assert eight_devices.farthest(one.state.params, many.state.params) < 1e-4
    np.testing.assert_allclose(many.history["loss"], one.history["loss"], rtol=1e-4)
    assert many.history.notes["compile_count"] == 1
    assert_placed(many.state, FLAT, RULE)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_each_device_has_the_gradients_of_its_own_examples(placement):
    """A device has its part of them, and the devices exchange sums of them only."""
    width, rows = 64, 64
    (params, batch), (mesh, rule) = problem(width, rows), PLACEMENTS[placement]
    state = fg.init_state(params, PLAIN, 0)
    of_all = rows * sum(x.nbytes for x in params.values())

    def compiled(state, batch, rule=None):
        loss = sharding.gathered(loss_fn, rule)
        step = fg.steps.differentially_private(loss, PLAIN, 0.1, 1.0, metrics="loss")
        return jax.jit(step, compiler_options=FAST).lower(state, batch).compile()

    split = sharding.shard_state(state, mesh, rule), sharding.shard_batch(batch, mesh)
    program = compiled(*split, rule)
    assert program.memory_analysis().temp_size_in_bytes < 0.4 * of_all
    for kind, counts in eight_devices.collectives(program).items():
        for shape, count in counts.items():
            sizes = [int(n) for n in shape[shape.index("[") + 1 : -1].split(",") if n]
            assert count * np.prod(sizes) <= 3 * width**2, (kind, shape, count)


EXPLICIT = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))


def along_explicit_axes(states):
    batch = jax.device_put(problem()[1], NamedSharding(EXPLICIT, P("data")))
    return jax.device_put(states, NamedSharding(EXPLICIT, P())), batch


@pytest.mark.parametrize("name", MADE)
def test_rules_and_what_needs_auto_axes_are_refused_along_explicit_ones(name):
    make, _, _ = MADE[name]
    given = along_explicit_axes(first_state(name))
    with jax.set_mesh(EXPLICIT):
        if name in REFUSED:
            with pytest.raises(ValueError, match=f"Auto axes for {REFUSED[name]}"):
                jax.eval_shape(make(), *given)
        with pytest.raises(ValueError, match="a mesh with Auto axes"):
            jax.eval_shape(make(RULE), *given)


@pytest.mark.slow
def test_other_steps_take_explicit_axes():
    names = [name for name in MADE if name not in REFUSED]
    steps = {name: MADE[name][0]() for name in names}
    states, batch = along_explicit_axes({name: first_state(name) for name in names})

    @functools.partial(jax.jit, compiler_options=FAST)
    def advance(states, batch):
        return {name: steps[name](states[name], batch)[0] for name in names}

    with jax.set_mesh(EXPLICIT):
        for _ in range(STEPS):
            states = advance(states, batch)
    for name, wanted in ends("one device")[0].items():
        tolerance = TOLERANCE.get(name, 1e-4)
        if name in names:
            got = states[name].params
            assert eight_devices.farthest(wanted.params, got) < tolerance, name
