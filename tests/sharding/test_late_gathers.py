"""Stacked layers are gathered one by one, however the loss hands them to their loop."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import outlined
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import fngrad as fg
import fngrad.layers as layers
import fngrad.programs.equations as equations
import fngrad.sharding as sharding
import fngrad.tree as tree

HERE = sharding.make_mesh(jax.devices()[:1])
EIGHT = sharding.abstract_mesh(data=8)
RULE = sharding.fsdp(min_size=64)
LAYERS = 3
BLOCK = layers.residual(
    layers.serial(up=layers.linear(8, 16), act=jnp.tanh, down=layers.linear(16, 8))
)
MODEL = layers.repeat(BLOCK, LAYERS)
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)


def apply(params, x):
    return layers.batched(MODEL)(params, x)


def in_chunks(params, x):
    return jax.lax.map(lambda part: apply(params, part), x.reshape(2, 4, 8))


def cast(params, x):
    wide = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(p.dtype), params)
    return apply(wide, x)


def masked(params, x):
    kept = jax.tree.map(lambda p: jnp.where(jnp.abs(p) > 0.01, p, 0.0), params)
    return apply(kept, x)


def twice(params, x):
    halves = in_chunks(params, x) + in_chunks(params, 2 * x)
    return halves.reshape(x.shape) + apply(params, x)


WAYS = {
    "plain": apply,
    "twice": twice,
    "jit": jax.jit(apply),
    "jit of jit": jax.jit(jax.jit(apply)),
    "checkpoint": jax.checkpoint(apply),
    "layers.remat": layers.batched(layers.remat(MODEL)),
    "scaled": lambda p, x: apply(jax.tree.map(lambda leaf: leaf * 1.5, p), x),
    "cast": cast,
    "masked": masked,
    "jit of casts": lambda p, x: apply(
        jax.jit(lambda p: jax.tree.map(lambda leaf: leaf * 1.5, p))(p), x
    ),
    "in chunks": in_chunks,
    "in checkpointed chunks": jax.checkpoint(in_chunks),
    "without remat": layers.batched(layers.repeat(BLOCK, LAYERS, remat=False)),
    "with a policy": jax.checkpoint(
        apply, policy=jax.checkpoint_policies.dots_saveable
    ),
}


def loss_of(way, params, x):
    return jnp.mean(way(params, x) ** 2)


def loss_by(name):
    return functools.partial(loss_of, WAYS[name])


def abstract(params):
    return outlined(params, RULE, EIGHT)


def constraints_of(fn, *args):
    """Return the shape and spec of each constraint, and the calls that it is in."""
    found = []

    def walk(jaxpr, calls):
        for equation in jaxpr.eqns:
            name = equations.name_of(equation)
            if name == "sharding_constraint":
                shape = equation.outvars[0].aval.shape
                found.append((shape, equation.params["sharding"].spec, calls))
            for inner in equations.inner_jaxprs(equation):
                walk(inner, (*calls, name))

    walk(jax.make_jaxpr(fn)(*args).jaxpr, ())
    return found


@pytest.mark.parametrize("name", WAYS)
def test_no_stack_is_gathered_outside_of_its_loop(name):
    params = MODEL.init(jax.random.key(0))
    fn = jax.grad(sharding.gathered(loss_by(name), RULE))
    found = constraints_of(fn, abstract(params), X)
    whole = [(shape, calls) for shape, spec, calls in found if spec and not any(spec)]
    assert {(8, 16), (16, 8)} <= {shape for shape, _ in whole}
    assert all("scan" in calls for _, calls in whole), whole
    assert not {(LAYERS, 8, 16), (LAYERS, 16, 8)} & {shape for shape, _ in whole}


def test_a_layer_is_gathered_inside_of_its_checkpoint():
    """The pass backward keeps slices that are split, along whichever axis."""
    params = MODEL.init(jax.random.key(0))
    loss = sharding.gathered(loss_by("plain"), RULE)
    found = constraints_of(loss, abstract(params), X)
    specs = {shape: spec for shape, spec, _ in found if len(shape) == 2 and any(spec)}
    assert specs[8, 16] == P(None, "data")
    assert specs[16, 8] == P("data", None)
    inside = [calls for shape, _, calls in found if shape in ((8, 16), (16, 8))]
    assert all(calls[-1] in ("checkpoint", "remat2") for calls in inside), inside


@pytest.mark.parametrize("name", ["plain", "jit", "checkpoint"])
def test_narrow_layers_are_gathered_and_their_gradients_split_narrow(name):
    params = MODEL.init(jax.random.key(0))
    loss = fg.mixed_precision(sharding.gathered(loss_by(name), RULE), "bfloat16")
    seen = {}
    for derived, fn in (("loss", loss), ("gradient", jax.grad(loss))):
        jaxpr = jax.make_jaxpr(fn)(abstract(params), X)
        seen[derived] = [
            equation.outvars[0].aval.dtype
            for equation in equations_in(jaxpr.jaxpr, "sharding_constraint")
            if equation.outvars[0].aval.shape in ((8, 16), (16, 8))
        ]
    assert set(seen["loss"]) == set(seen["gradient"]) == {jnp.dtype("bfloat16")}
    assert len(seen["gradient"]) >= 3 * len(seen["loss"])  # again, and transposed


def equations_in(jaxpr, name):
    for equation in jaxpr.eqns:
        if equations.name_of(equation) == name:
            yield equation
        for inner in equations.inner_jaxprs(equation):
            yield from equations_in(inner, name)


DERIVATIVES = {
    "reverse": lambda f: jax.grad(f),
    "forward": lambda f: lambda p, x: jax.jvp(lambda q: f(q, x), (p,), (p,))[1],
    "forward over reverse": lambda f: (
        lambda p, x: jax.jvp(lambda q: jax.grad(f)(q, x), (p,), (p,))[1]
    ),
}


@pytest.mark.parametrize("mode", DERIVATIVES)
@pytest.mark.parametrize(
    "name", ["plain", "jit", "checkpoint", "scaled", "twice", "without remat"]
)
def test_the_derivatives_are_those_of_the_loss(name, mode):
    params = MODEL.init(jax.random.key(0))
    here = jax.device_put(params, NamedSharding(HERE, P()))
    of = DERIVATIVES[mode]
    plain = jax.jit(of(loss_by(name)))(params, X)
    gathered = jax.jit(of(sharding.gathered(loss_by(name), RULE)))(here, X)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, plain, gathered)


def test_gradients_per_example_are_those_of_the_loss():
    params = MODEL.init(jax.random.key(0))
    here = jax.device_put(params, NamedSharding(HERE, P()))
    each = [
        jax.jit(jax.vmap(jax.grad(f), (None, 0)))(p, X[:, None])
        for f, p in (
            (loss_by("jit"), params),
            (sharding.gathered(loss_by("jit"), RULE), here),
        )
    ]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, *each)


def penalized(params, x):
    return loss_by("plain")(params, x) + tree.vdot(params, params).real


def normalized(params, x):
    norm = lambda p: jnp.sqrt(jnp.sum(p**2, -1, keepdims=True) + 1.0)  # noqa: E731
    return loss_by("plain")(jax.tree.map(lambda p: p / norm(p), params), x)


def penalized_in_a_call(params, x):
    norm = jax.jit(lambda p: jnp.linalg.norm(p["up"]["weight"]))
    return loss_by("plain")(params, x) + norm(params)


@pytest.mark.parametrize("loss", [penalized, penalized_in_a_call, normalized])
def test_a_use_of_all_layers_at_once_is_warned_of(loss):
    params = MODEL.init(jax.random.key(0))
    with pytest.warns(UserWarning, match=r"gathers all layers of .* at once, for '"):
        found = constraints_of(sharding.gathered(loss, RULE), abstract(params), X)
    assert [calls for shape, _, calls in found if shape == (LAYERS, 8, 16)]


def test_a_loss_is_traced_once_and_its_results_keep_their_kind():
    params = MODEL.init(jax.random.key(0))
    traces = []

    def loss(params, x):
        traces.append(x)
        return loss_by("plain")(params, x), {"name": "mean", "count": 3, "none": None}

    @jax.jit
    def program(params):
        value, others = sharding.gathered(loss, RULE)(params, X)
        assert others == {"name": "mean", "count": 3, "none": None}
        return value

    value = program(jax.device_put(params, NamedSharding(HERE, P())))
    assert len(traces) == 1
    assert value == pytest.approx(float(loss_by("plain")(params, X)), rel=1e-6)


def test_a_model_without_a_loop_keeps_its_calls():
    """An MLP is called with all parameters gathered, and is not evaluated again."""
    model = fg.models.mlp([8, 16, 8])
    params = model.init(jax.random.key(0))
    calls = []

    def loss(params, x):
        calls.append(x)
        return jnp.mean(jax.nn.gelu(jax.vmap(model.apply, (None, 0))(params, x)) ** 2)

    found = [
        str(jax.make_jaxpr(jax.grad(fn))(abstract(params), X)).count("custom_jvp_call")
        for fn in (loss, sharding.gathered(loss, RULE))
    ]
    assert found[0] == found[1]
    assert len(calls) == 3  # once to look for loops


def test_results_that_are_constants_are_arrays():
    params = MODEL.init(jax.random.key(0))
    here = jax.device_put(params, NamedSharding(HERE, P()))

    def constants():
        return {"float": jnp.float32(1), "weak": jnp.asarray(2.0), "int": jnp.array(3)}

    def loss(params, x):
        return loss_by("plain")(params, x), constants()

    _, results = jax.eval_shape(sharding.gathered(loss, RULE), here, X)
    assert results == jax.eval_shape(constants)

    @jax.jit
    def program(params):
        _, others = sharding.gathered(loss, RULE)(params, X)
        assert all(isinstance(x, jax.Array) for x in others.values())
        return others

    assert program(here) == constants()


def test_no_tracer_leaks():
    params = MODEL.init(jax.random.key(0))
    here = jax.device_put(params, NamedSharding(HERE, P()))
    for name in ("plain", "twice", "without remat"):
        with jax.checking_leaks():
            jax.jit(jax.grad(sharding.gathered(loss_by(name), RULE)))(here, X)


@pytest.mark.parametrize("name", ["plain", "jit", "checkpoint", "without remat"])
def test_layers_keep_their_names(name):
    params = MODEL.init(jax.random.key(0))

    def named(params, x):
        with jax.named_scope("encoder"):
            return loss_by(name)(params, x)

    here = jax.device_put(params, NamedSharding(HERE, P()))
    loss = jax.jit(jax.grad(sharding.gathered(named, RULE)))
    text = loss.lower(here, X).compile().as_text()
    products = set(re.findall(r'op_name="([^"]*dot_general)"', text))
    assert products
    assert all("encoder" in product for product in products), products


def test_a_derivative_without_jit_may_look_at_values_and_have_a_batch_anywhere():
    params = MODEL.init(jax.random.key(0))
    here = jax.device_put(params, NamedSharding(HERE, P()))

    def loss(params, x):
        if jnp.sum(params["up"]["weight"]) == 0:
            raise AssertionError
        return loss_by("plain")(params, x)

    for batch in (X, np.asarray(X)):
        got = jax.grad(sharding.gathered(loss, RULE))(here, batch)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        jax.tree.map(close, got, jax.grad(loss)(params, batch))


def test_a_derivative_by_some_leaves_may_look_at_the_values_of_others():
    params = MODEL.init(jax.random.key(0))
    here = jax.device_put(params, NamedSharding(HERE, P()))

    def loss(up, rest, x):
        frozen = rest["down"]["weight"]
        scale = np.asarray(frozen).max() + [1.0, 2.0][(frozen[0, 0, 0] > 0).astype(int)]
        return scale * frozen[frozen > 0].sum() * loss_by("plain")(rest | {"up": up}, x)

    def gathered(up, rest, x):
        fn = sharding.gathered(lambda p, x: loss(p["up"], p, x), RULE)
        return fn(rest | {"up": up}, x)

    got = jax.grad(gathered)(here["up"], here, X)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, got, jax.grad(loss)(params["up"], params, X))


def test_a_barrier_returns_each_stack_as_it_is_split():
    params = MODEL.init(jax.random.key(0))

    def loss(params, x):
        ordered, up = jax.lax.optimization_barrier((params, params["up"]["weight"]))
        return loss_by("plain")(ordered, x) + jnp.sum(up[0])

    with pytest.warns(UserWarning, match="all layers of 'up/weight' at once"):
        jax.make_jaxpr(sharding.gathered(loss, RULE))(abstract(params), X)


def test_a_loss_without_jit_may_look_at_its_values():
    params = MODEL.init(jax.random.key(0))
    here = jax.device_put(params, NamedSharding(HERE, P()))

    def loss(params, x):
        assert float(jnp.sum(params["up"]["weight"])) != 0
        return loss_by("plain")(params, x)

    gathered = sharding.gathered(loss, RULE)
    assert gathered(here, X) == pytest.approx(float(loss(params, X)), rel=1e-6)
    with jax.disable_jit():
        value = jax.jit(gathered)(here, X)
    assert value == pytest.approx(float(loss(params, X)), rel=1e-6)
