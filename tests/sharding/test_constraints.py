"""Constraints change where arrays are, not what they are; on one device they vanish."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import outlined
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fngrad as fg
import fngrad.layers as layers
import fngrad.sharding as sharding
import fngrad.tree as tree
from fngrad.sharding.constraints import placed, split
from fngrad.sharding.rules import rule_of
from fngrad.training.loss_forms import cut
from fngrad.training.metric_folds import accumulated

HERE = sharding.make_mesh(jax.devices()[:1])
EIGHT = sharding.abstract_mesh(data=4, model=2)
RULE = sharding.fsdp(min_size=8)


def loss(params, batch, key=None):
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["bias"][None])
    return jnp.mean((hidden @ params["out"] - batch["y"]) ** 2)


def problem():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = {"in": draw(4, 8), "bias": draw(8), "out": draw(8, 2)}
    return params, {"x": draw(16, 4), "y": draw(16, 2)}


def abstract(a, rule=RULE, mesh=EIGHT):
    return outlined(a, rule, mesh)


def constraints_of(fn, *args):
    """Return the specs of all constraints of a traced function, by depth of loops."""
    found = []

    def walk(jaxpr, depth):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "sharding_constraint":
                found.append((depth, equation.params["sharding"].spec))
            deeper = depth + (equation.primitive.name == "scan")
            for value in jax.tree.leaves(
                equation.params, is_leaf=lambda x: hasattr(x, "eqns")
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    walk(inner, deeper)

    walk(jax.make_jaxpr(fn)(*args).jaxpr, 0)
    return found


def test_parameters_are_split_then_gathered_and_the_batch_is_split():
    params, batch = problem()
    found = constraints_of(sharding.gathered(loss, RULE), abstract(params), batch)
    assert [spec for _, spec in found] == [
        *(P("data"), P("data")),  # x, y
        *(P("data"), P(None)),  # bias, as it is kept and as it is used
        *(P(None, "data"), P(None, None)),  # in
        *(P("data", None), P(None, None)),  # out
    ]


def test_axes_other_than_the_batchs_stay_split_in_use():
    within = sharding.by_path([("in", P(None, "model"))])
    rule = sharding.fsdp(min_size=8, within=within)
    params, batch = problem()
    params = {"in": params["in"], "bias": params["bias"], "out": params["out"]}
    found = constraints_of(sharding.gathered(loss, rule), abstract(params, rule), batch)
    specs = [spec for _, spec in found]
    at = specs.index(P("data", "model"))
    assert specs[at + 1] == P(None, "model")


def test_without_a_mesh_the_program_is_that_of_the_loss():
    params, batch = problem()
    wrapped = sharding.gathered(loss, RULE)
    plain, gathered = (str(jax.make_jaxpr(f)(params, batch)) for f in (loss, wrapped))
    assert plain == gathered
    assert sharding.gathered(loss, None) is loss
    assert placed(params, RULE) is params
    assert split(batch, None) is batch


def test_the_step_without_a_rule_is_the_same_function_on_one_device():
    params, batch = problem()
    optimizer = fg.adam(0.1)
    state = fg.init_state(params, optimizer, 0)
    programs = [
        str(jax.make_jaxpr(fg.make_step(loss, optimizer, rule=rule))(state, batch))
        for rule in (None, RULE)
    ]
    assert programs[0] == programs[1]


MODES = {
    "reverse": lambda f: jax.grad(f),
    "forward": lambda f: jax.jacfwd(f),
    "forward over reverse": lambda f: lambda p: jax.jvp(jax.grad(f), (p,), (p,))[1],
    "reverse over reverse": lambda f: jax.grad(
        lambda p: tree.vdot(jax.grad(f)(p), jax.lax.stop_gradient(p)).real
    ),
    "many tangents": lambda f: jax.vmap(lambda p: jax.grad(f)(p)),
    "rematerialized": lambda f: jax.grad(jax.checkpoint(f)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_differentiation_passes(mode):
    params, batch = problem()
    if mode == "many tangents":
        params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    here = jax.device_put(params, NamedSharding(HERE, P()))
    results = [
        jax.jit(MODES[mode](lambda p, f=f: f(p, batch)))(x)
        for f, x in ((loss, params), (sharding.gathered(loss, RULE), here))
    ]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    jax.tree.map(close, *results)


@pytest.mark.parametrize("remat", [True, False])
def test_layers_of_repeat_are_gathered_one_by_one(remat):
    block = layers.residual(layers.serial(linear=layers.linear(8, 8)))
    model = layers.repeat(block, 3, remat=remat)
    params = model.init(jax.random.key(0))

    def loss(params, x):
        return jnp.mean(jax.vmap(model.apply, (None, 0))(params, x) ** 2)

    x = jnp.ones((8, 8))
    gathered = sharding.gathered(loss, sharding.fsdp(min_size=64))
    found = constraints_of(gathered, abstract(params, sharding.fsdp(min_size=64)), x)
    inside = [spec for depth, spec in found if depth]
    assert P(None, "data") in inside
    assert P(None, None) in inside
    # The stack is used only inside of the loop, as it is split.
    here = jax.device_put(params, NamedSharding(HERE, P()))
    plain, on_mesh = (jax.jit(jax.grad(f)) for f in (loss, gathered))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        plain(params, x),
        on_mesh(here, x),
    )


def test_a_stack_split_along_its_layers_is_gathered_at_once():
    model = layers.repeat(layers.linear(2, 2), 16)
    params = model.init(jax.random.key(0))
    rule = sharding.fsdp(min_size=1)
    found = constraints_of(
        sharding.gathered(lambda p, x: model.apply(p, x).sum(), rule),
        abstract(params, rule),
        jnp.ones(2),
    )
    assert {depth for depth, _ in found} == {0}


def test_micro_batches_have_consecutive_rows_on_one_device():
    params, batch = problem()
    one = fg.init_state(params, fg.sgd(0.1), 0)
    seen = []

    def watched(params, batch):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), batch["x"][:, 0])
        return loss(params, batch)

    step = jax.jit(fg.make_step(watched, fg.sgd(0.1), micro_batches=2))
    rows = np.asarray(batch["x"][:, 0])
    ends = []
    for state in (one, sharding.shard_state(one, HERE)):
        seen.clear()
        after, metrics = step(state, batch)
        jax.effects_barrier()
        np.testing.assert_array_equal(np.stack(seen), [rows[:8], rows[8:]])
        ends.append((after.params, metrics))
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_micro_batches_are_some_rows_of_every_device():
    rows = jnp.arange(16)
    whole = cut("x", rows, 2, devices=4)
    np.testing.assert_array_equal(whole, [rows[::2], rows[1::2]])


@pytest.mark.parametrize(("parts", "fits"), [(2, True), (4, True), (8, False)])
def test_micro_batches_that_the_devices_do_not_divide_are_refused(parts, fits):
    params, batch = problem()
    step = fg.make_step(loss, fg.sgd(0.1), micro_batches=parts)
    state = abstract(fg.init_state(params, fg.sgd(0.1), 0))
    if fits:
        assert constraints_of(step, state, batch)
        return
    with pytest.raises(ValueError, match=r"a multiple of the 4 devices .*got 2 rows"):
        jax.eval_shape(step, state, batch)


@pytest.mark.parametrize(
    ("size", "batch_size", "counts"),
    [
        (16, 8, [8]),
        (20, 8, [8, 4]),
        (21, 6, [8, 4, 1]),  # a batch size of 6 is rounded up to 8
        (7, 100, [4, 3]),
        (3, 8, [3]),
    ],
)
def test_evaluations_divide_all_batches_but_the_last_few_examples(
    size, batch_size, counts
):
    seen = []

    def metric_fn(params, batch):
        seen.append(len(batch))
        return {"x": batch * jnp.sum(params)}

    def evaluated(params, x):
        return accumulated(metric_fn, params, (), x, batch_size)["x"].value()

    params = abstract(jnp.ones((8, 8)))
    found = constraints_of(evaluated, params, jnp.arange(float(size)))
    assert [*dict.fromkeys(seen)] == counts
    specs = {spec for _, spec in found}
    assert (P("data") in specs) == (size >= 4)
    assert (P() in specs) == bool(size % 4)


def test_a_batch_that_does_not_divide_stays_whole():
    found = constraints_of(
        lambda p, b: split(b, EIGHT), abstract(problem()[0]), {"x": jnp.ones((6, 2))}
    )
    assert [spec for _, spec in found] == [P()]


def test_a_placed_state_says_its_rule():
    params, _ = problem()
    assert rule_of(params) is None
    rule = rule_of(sharding.shard_state(params, HERE, RULE))
    assert rule is not None
    assert rule("in", params["in"], HERE) == P(None, "data")
    assert hash(rule) == hash(rule_of(sharding.shard_state(params, HERE, RULE)))


def test_an_evaluation_inside_of_run_gathers_parameters_as_the_step_does():
    params, batch = problem()
    step = fg.make_step(loss, fg.sgd(0.1), rule=RULE)
    state = abstract(fg.init_state(params, fg.sgd(0.1), 0))
    data = fg.data.from_arrays(batch, 8)

    def metric_fn(params, batch):
        return {"loss": jnp.atleast_1d(loss(params, batch))}

    def program(state, **options):
        return fg.run(step, state, data, 1, **options)

    def gathered_whole(**options):
        specs = [s for _, s in constraints_of(lambda s: program(s, **options), state)]
        return sum(spec == P(None, None) for spec in specs)

    one = jax.tree.map(lambda x: x[:1], batch)
    evaluation = {"metric_fn": metric_fn, "eval_data": one}
    assert gathered_whole(**evaluation) == gathered_whole() + 2


def test_keys_and_model_states_reach_the_loss():
    def stateful(params, model_state, batch, key):
        value = jnp.sum(params) * jnp.sum(batch) + jax.random.uniform(key)
        return value, ({}, model_state + 1)

    here = jax.device_put(jnp.ones(4), NamedSharding(HERE, P()))
    wrapped = sharding.gathered(stateful, RULE)
    value, (_, after) = wrapped(here, jnp.float32(1), jnp.ones(2), jax.random.key(0))
    want, _ = stateful(jnp.ones(4), jnp.float32(1), jnp.ones(2), jax.random.key(0))
    assert value == want
    assert after == 2


def test_a_batch_stays_where_it_is_on_a_mesh_without_the_axis_data():
    mesh = sharding.abstract_mesh(model=8)
    found = constraints_of(lambda b: split(b, mesh), {"x": jnp.ones((16, 2))})
    assert found == []


def test_programs_under_explicit_axes_are_left_to_jax():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    params, batch = problem()
    data = fg.data.from_arrays(batch, 8)
    step = fg.make_step(loss, fg.sgd(0.1), micro_batches=2)
    state = fg.init_state(params, fg.sgd(0.1), 0)
    with jax.set_mesh(mesh):
        after, _ = jax.jit(lambda s, d: fg.run(step, s, d, 2))(state, data)
    want, _ = jax.jit(lambda s, d: fg.run(step, s, d, 2))(state, data)
    jax.tree.map(np.testing.assert_allclose, after.params, want.params)
