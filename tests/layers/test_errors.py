"""Errors inside a model name the layer and the shapes that did not fit."""

import jax
import jax.numpy as jnp
import pytest

import fngrad.data.dataset as dataset
import fngrad.layers as layers
from fngrad.fitting.training_loop import fit
from fngrad.optimizers import sgd
from fngrad.training import init_state, make_step
from fngrad.training.evaluation import evaluate

X = jnp.ones((6, 4))
DATA = dataset.from_arrays({"x": X}, batch_size=3)
OPTIMIZER = sgd(0.1)


def handwritten(shape):
    return layers.Layer(
        lambda key: {"weight": jnp.ones(shape)},
        lambda params, x, *, key=None: params["weight"] @ x,
    )


MODEL = layers.serial(body=layers.linear(4, 3), act=jnp.tanh, head=handwritten((2, 5)))
PARAMS = MODEL.init(0)
WHERE = r"(?s)^head: .*x: float32\[3\]; parameters: weight float32\[2, 5\]"


def loss_fn(params, batch):
    return jnp.sum(layers.batched(MODEL)(params, batch["x"]))


def metric_fn(params, batch):
    return {"y": layers.batched(MODEL)(params, batch["x"])}


def scanned(params, batch):
    def one(total, x):
        return total + jnp.sum(MODEL.apply(params, x)), None

    return jax.lax.scan(one, 0.0, batch["x"])[0]


def first_state():
    return init_state(PARAMS, OPTIMIZER, key=0)


WAYS = {
    "apply": lambda: MODEL.apply(PARAMS, X[0]),
    "vmap": lambda: loss_fn(PARAMS, {"x": X}),
    "jit": lambda: jax.jit(loss_fn)(PARAMS, {"x": X}),
    "scan": lambda: scanned(PARAMS, {"x": X}),
    "step": lambda: make_step(loss_fn, OPTIMIZER)(first_state(), {"x": X}),
    "jitted step in a scan": lambda: jax.jit(make_step(scanned, OPTIMIZER))(
        first_state(), {"x": X}
    ),
    "fit": lambda: fit(
        make_step(loss_fn, OPTIMIZER), first_state(), DATA, num_steps=2, progress=False
    ),
    "evaluate": lambda: evaluate(metric_fn, PARAMS, {"x": X}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_shape_mismatch_names_layer_and_shapes(way):
    with pytest.raises(layers.LayerError, match=WHERE) as caught:
        WAYS[way]()
    assert isinstance(caught.value, TypeError)  # what JAX raised
    assert type(caught.value.__cause__) is TypeError


def test_a_foreign_function_in_a_model_is_named_too():
    model = layers.serial(layers.linear(4, 3), lambda x: x + jnp.ones(2))
    message = r"(?s)^entry 1: .*\nx: float32\[3\]; parameters: none$"
    with pytest.raises(ValueError, match=message):
        model.apply(model.init(0), X[0])


def test_the_shapes_are_those_of_the_innermost_layer():
    model = layers.serial(layers.residual(layers.serial(handwritten((4, 7)))))
    message = r"(?s)^layers/0/layers/0: .*x: float32\[4\]; .* weight float32\[4, 7\]$"
    with pytest.raises(layers.LayerError, match=message):
        model.apply(model.init(0), X[0])


def test_a_layer_with_many_leaves_shows_the_first():
    many = layers.Layer(
        lambda key: {f"w{i}": jnp.ones(()) for i in range(10)},
        lambda params, x, *, key=None: x @ jnp.ones((9, 2)),
    )
    model = layers.serial(many)
    with pytest.raises(TypeError, match=r"w7 float32\[\] and 2 more$"):
        model.apply(model.init(0), X[0])


def test_errors_of_other_types_keep_their_type_and_carry_the_shapes():
    def branches(x):
        return x if x.sum() > 0 else -x

    model = layers.serial(layers.linear(4, 3), branches)
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        jax.eval_shape(model.apply, model.init(0), X[0])
    expected = "in the layer entry 1; x: float32[3]; parameters: none"
    assert expected in caught.value.__notes__


def test_every_layer_is_a_scope_of_the_program():
    model = layers.serial(layers.linear(4, 3), layers.serial(jnp.tanh, jnp.sin))
    program = jax.make_jaxpr(layers.batched(model))(model.init(0), X)
    scopes = {e.primitive.name: str(e.source_info.name_stack) for e in program.eqns}
    assert "layers/0" in scopes["dot_general"]
    assert "layers/1" not in scopes["dot_general"]
    assert "entry 1" in scopes["sin"]
    assert "entry 0" not in scopes["sin"]
