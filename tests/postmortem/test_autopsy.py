"""The operation that made a step bad is named, wherever it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from autopsy_problem import DATA, W, examine

import fngrad.data.dataset as dataset
import fngrad.layers as layers
import fngrad.losses as losses
import fngrad.programs.jaxprs as jaxprs
from fngrad.optimizers import adam, sgd
from fngrad.postmortem import autopsy
from fngrad.postmortem.interpreter import Interpreter
from fngrad.programs.platforms import by_platform
from fngrad.steps import sam
from fngrad.training import TrainState, init_state, make_step
from fngrad.transforms.accumulation import accumulate


def test_a_log_of_zero_is_found_in_the_forward_pass():
    def loss_fn(params, batch):
        return jnp.sum(batch["x"] @ params["w"]) + jnp.log(params["shift"]).sum()

    found = examine(loss_fn, {**W, "shift": jnp.array([2.0, 0.0])})
    assert (found.step, found.phase, found.operation) == (1, "forward", "log")
    assert found.explanation == "log(0) = -inf"
    line = loss_fn.__code__.co_firstlineno + 1
    assert found.lines[0].endswith(f"{__file__}:{line} (loss_fn)")
    assert found.leaf == "gradient/shift"  # 1 / 0
    np.testing.assert_array_equal(found.metrics["loss"], [-np.inf])


def test_a_root_at_zero_is_found_in_the_backward_pass():
    def loss_fn(params, batch):
        return jnp.sum(jnp.sqrt(params["w"])) + jnp.sum(params["other"])

    found = examine(loss_fn, {"w": jnp.array([1.0, 0.0]), "other": jnp.ones(2)})
    assert (found.phase, found.operation) == ("backward", "div")
    assert found.explanation == "div(0.5, 0) = inf"
    assert found.leaves[:2] == ["gradient/w", "params/w"]
    assert found.leaf == "gradient/w"
    assert "loss_fn" in found.lines[0]


def test_a_norm_at_zero_is_found_in_the_backward_pass():
    def loss_fn(params, batch):
        direction = params["w"] / jnp.maximum(jnp.sqrt(jnp.sum(params["w"] ** 2)), 1.0)
        return jnp.sum(direction)

    found = examine(loss_fn, {"w": jnp.zeros(3)})
    assert (found.phase, found.leaf) == ("backward", "gradient/w")


def growing(scale):
    return layers.Layer(
        lambda key: {"scale": jnp.array(scale)},
        lambda params, x, *, key=None: jnp.exp(params["scale"] * x),
    )


def test_an_overflow_is_found_in_its_layer_and_row():
    model = layers.serial(
        body=layers.linear(3, 3, weight_init=lambda *_: jnp.eye(3)),
        inner=layers.serial(jnp.tanh, growing(100.0)),
        head=layers.linear(3, 1),
    )

    def loss_fn(params, batch):
        return jnp.mean(layers.batched(model)(params, batch["x"]) ** 2)

    x = jnp.full((8, 3), 0.1).at[5, 1].set(3.0)
    data = dataset.from_arrays({"x": x}, batch_size=8, shuffle=False)
    found = examine(loss_fn, model.init(0), data)
    assert (found.phase, found.operation) == ("forward", "exp")
    assert found.layer == "inner/layers/0"
    assert found.explanation == "exp(99.51) = inf"
    assert found.magnitudes == pytest.approx([99.505], rel=1e-4)
    np.testing.assert_array_equal(found.indices, [5])
    np.testing.assert_array_equal(data.indices(0)[found.rows], [5])
    assert found.leaf == "gradient/head/bias"


def test_a_layer_whose_derivative_has_a_rule_is_named_once():
    model = layers.serial(
        body=layers.linear(3, 3, weight_init=lambda *_: 1e-20 * jnp.eye(3)),
        inner=layers.serial(norm=layers.layer_norm(3, eps=0.0, scale=False)),
    )

    def loss_fn(params, batch):
        return 1e30 * jnp.mean(layers.batched(model)(params, batch["x"])[:, 0])

    found = examine(loss_fn, model.init(0))
    assert (found.phase, found.layer) == ("backward", "inner/norm")


def test_an_overflow_in_the_optimizer_is_separated_from_the_gradient():
    def loss_fn(params, batch):
        return jnp.sum(params["w"].astype(jnp.float32) * -30.0)

    params = {"w": jnp.full(2, 60000.0, jnp.float16)}
    found = examine(loss_fn, params, optimizer=sgd(300.0))
    assert found.phase == "optimizer"
    assert found.leaf == "params/w"
    assert "in float16, whose largest is 6.55e+04" in found.explanation


def test_the_first_fault_of_a_scan_is_found():
    def loss_fn(params, batch):
        def grow(c, x):
            return jnp.exp(c * params["rate"]), jnp.sum(x)

        last, sums = jax.lax.scan(grow, jnp.ones(()), batch["x"])
        return jnp.mean(sums) + last

    found = examine(loss_fn, {"rate": jnp.array(1.5)})
    assert (found.phase, found.operation) == ("forward", "exp")
    assert "(grow)" in found.lines[0]
    last_finite = np.exp(1.5 * np.exp(1.5))
    assert found.explanation == f"exp({1.5 * last_finite:.4g}) = inf"


@jax.custom_vjp
def halved(x):
    return x / 2


halved.defvjp(lambda x: (x / 2, x), lambda x, g: (g * jnp.log(x - x),))


def test_the_backward_rule_of_a_custom_vjp_is_found():
    found = examine(lambda params, batch: jnp.sum(halved(params["w"])), W)
    assert (found.phase, found.operation) == ("backward", "log")
    assert found.leaf == "gradient/w"


@jax.custom_jvp
def scaled_log(x):
    return jnp.log(x)


scaled_log.defjvp(lambda primals, tangents: (scaled_log(*primals), tangents[0]))


@pytest.mark.parametrize(
    "within",
    [
        jax.jit,
        jax.checkpoint,
        lambda fn: lambda x: jax.lax.cond(x[0] < 9, fn, jnp.sin, x),
        lambda fn: lambda x: jax.lax.fori_loop(0, 3, lambda i, c: fn(c), x),
        lambda fn: scaled_log,
    ],
    ids=["jit", "checkpoint", "cond", "loop", "custom_jvp"],
)
def test_operations_within_others_are_found(within):
    fn = within(jnp.log)
    found = examine(lambda params, batch: jnp.sum(fn(params["w"] - 1)), W)
    assert (found.phase, found.operation) == ("forward", "log")
    assert found.explanation == "log(0) = -inf"


def test_the_condition_and_body_of_a_while_are_iterated():
    def loss_fn(params, batch):
        def body(x):
            return 1e10 * x

        grown = jax.lax.while_loop(lambda x: x < 1e38, body, params["w"][0])
        return jnp.sum(params["w"]) + jax.lax.stop_gradient(grown * 10)

    found = examine(loss_fn, W)
    assert found.explanation == "mul(1e+10, 1e+30) = inf"


def test_a_mask_of_infinities_is_not_blamed():
    def loss_fn(params, batch):
        scores = batch["x"] @ params["w"]
        masked = jnp.where(jnp.arange(4) < 2, scores, -jnp.inf)
        doubtful = jnp.where(scores > 1e9, jnp.log(scores - scores), scores)
        weights = jax.nn.softmax(masked + jnp.log(jnp.array([1.0, 1.0, 1.0, 0.0])))
        return jnp.sum(weights * doubtful) / jnp.sum(params["zero"])

    found = examine(loss_fn, {**W, "zero": jnp.zeros(2)})
    assert (found.operation, found.phase) == ("div", "forward")


def test_an_infinity_beside_an_overflow_is_acquitted():
    def loss_fn(params, batch):
        masked = jnp.where(jnp.arange(4) < 2, batch["x"] @ params["w"], -jnp.inf)
        return jnp.sum(jnp.exp(1000.0 * masked))

    found = examine(loss_fn, W)
    assert (found.operation, found.phase) == ("exp", "forward")


def test_a_mask_without_a_way_out_is_blamed():
    def loss_fn(params, batch):
        masked = jnp.where(jnp.arange(4) < 0, batch["x"] @ params["w"], -jnp.inf)
        return jnp.sum(jax.nn.softmax(masked))

    found = examine(loss_fn, W)
    assert found.phase == "forward"
    assert found.operation == "select_n"
    assert "the program contains a constant that is not finite" in found.explanation
    assert found.lines[-1].endswith("(loss_fn)")


def test_a_label_that_is_no_class_is_named():
    data = dataset.from_arrays(
        {"x": np.ones((4, 3), "f"), "y": np.array([0, 255, 1, 2])}, 4, shuffle=False
    )

    def loss_fn(params, batch):
        return losses.softmax_cross_entropy_with_integer_labels(
            batch["x"] * params["w"][None], batch["y"], reduction="mean"
        )

    found = examine(loss_fn, W, data)
    assert found.explanation.endswith("; a label is outside [0, n) for n classes")
    assert found.layer == ""
    np.testing.assert_array_equal(found.magnitudes, [1, np.nan])
    np.testing.assert_array_equal(found.rows, [1])


def test_a_token_that_an_embedding_has_no_row_for_is_named():
    layer = layers.embedding(3, 2)

    def loss_fn(params, batch):
        return jnp.sum(layer.apply(params, jnp.array([0, 8]))) + jnp.sum(batch["x"])

    found = examine(loss_fn, layer.init(0))
    reason = "a token is outside [0, n) for n rows of an embedding"
    assert found.explanation.endswith(reason)


def test_an_overflow_in_attention_is_named():
    layer = layers.multi_head_attention(4, 1, causal=True)
    params = jax.tree.map(lambda p: 1e30 * p, layer.init(0))

    def loss_fn(params, batch):
        return jnp.sum(layer.apply(params, 1e30 * batch["x"]))

    data = dataset.from_arrays({"x": np.ones((4, 4), "f")}, 4)
    found = examine(loss_fn, params, data)
    assert found.explanation.endswith("queries, keys, values or logits overflows")
    assert found.layer == ""


def test_statistics_that_overflow_are_a_fault_of_the_forward_pass():
    def loss_fn(params, model_state, batch):
        variance = jnp.mean(jnp.square(batch["x"] * params["w"]))
        loss = jnp.mean(batch["x"] * params["w"] / jnp.sqrt(1 + variance))
        return loss, ({}, {"variance": variance})

    optimizer = sgd(0.1)
    model_state = {"variance": jnp.zeros(())}
    state = init_state({"w": jnp.full((1, 3), 1e30)}, optimizer, 0, model_state)
    found = autopsy(make_step(loss_fn, optimizer), state, DATA)
    assert np.isfinite(found.metrics["loss"]).all()
    assert (found.phase, found.operation) == ("forward", "square")
    assert found.leaf == "model_state/variance"


def test_micro_batches_accumulation_and_sam_are_seen_through():
    def loss_fn(params, batch):
        return jnp.mean(jnp.sqrt(params["w"] * jnp.mean(batch["x"])))

    params = {"w": jnp.array([1.0, 0.0])}

    def parts(loss_fn, optimizer):
        return make_step(loss_fn, optimizer, micro_batches=2)

    for found in (
        examine(loss_fn, params, make=parts),
        examine(loss_fn, params, make=sam),
        examine(loss_fn, params, optimizer=accumulate(adam(0.1), 2)),
    ):
        assert (found.phase, found.operation) == ("backward", "div")
        assert found.explanation == "div(0.5, 0) = inf"
        assert found.leaf == "gradient/w"


def test_the_second_forward_pass_of_sam_is_not_a_backward_pass():
    def loss_fn(params, batch):
        return -jnp.sum(jnp.sqrt(params["w"]))

    def far(loss_fn, optimizer):
        return sam(loss_fn, optimizer, rho=0.5)

    found = examine(loss_fn, {"w": jnp.full(1, 0.1)}, make=far)
    assert (found.phase, found.explanation) == ("forward", "sqrt(-0.4) = nan")


def test_dropout_is_made_again():
    model = layers.serial(layers.linear(3, 2), layers.dropout(0.5), jnp.log)

    def loss_fn(params, batch, key):
        return jnp.mean(layers.batched(model)(params, batch["x"], key=key))

    found = examine(loss_fn, model.init(0))
    assert (found.operation, found.layer) == ("log", "entry 2")


def test_a_foreign_step_and_a_function_as_data_will_do():
    def step(state, batch):
        params = {"w": state.params["w"] / (batch - 3.0)}
        loss = jnp.sum(params["w"])
        return TrainState(state.step + 1, state.key, params, (), ()), {"loss": loss}

    state = init_state(W, sgd(0.1), key=0)._replace(opt_state=())
    found = autopsy(step, state, lambda step: step.astype(jnp.float32))
    assert (found.step, found.operation) == (4, "div")
    assert found.leaves == ["params/w"]


def test_an_overflow_in_a_convolution_is_found_in_the_branch_of_this_platform():
    # With groups the convolution is a sum of products on CPU, and native elsewhere.
    model = layers.serial(body=layers.conv(2, 2, (2,), groups=2))

    def loss_fn(params, batch):
        return jnp.mean(layers.batched(model)(params, batch["x"]))

    weight = jnp.full((2, 1, 2), 1e30)
    params = {"body": {"weight": weight, "bias": jnp.zeros(2)}}
    x = jnp.ones((4, 3, 2)).at[2].set(1e20)
    data = dataset.from_arrays({"x": x}, batch_size=4, shuffle=False)
    found = examine(loss_fn, params, data)
    assert (found.phase, found.layer, found.operation) == ("forward", "body", "mul")
    np.testing.assert_array_equal(data.indices(0)[found.rows], [2])


def test_of_a_switch_between_platforms_one_branch_is_evaluated():
    def chosen(x):
        cpu, other = (lambda x: jnp.sin(jnp.cos(x))), jnp.log
        return by_platform(cpu=cpu, default=other)(x)

    program, _ = jaxprs.trace(chosen, jnp.zeros(2))
    evaluated = []
    interpreter = Interpreter(program, check=lambda: evaluated.append(None))
    (y,) = interpreter.run([np.zeros(2, np.float32)])
    np.testing.assert_allclose(y.array, np.sin(1.0), rtol=1e-6)
    assert not interpreter.origins  # the logarithm of zero is in the other branch
    assert len(evaluated) <= 6  # checkpoint, platform_index, cond, cos, sin


def test_an_autopsy_shows_its_text_everywhere():
    def loss_fn(params, batch):
        return jnp.log(params["shift"]).sum()

    found = examine(loss_fn, {"shift": jnp.array([2.0, 0.0])})
    assert repr(found) == str(found)
    assert "log(0) = -inf" in found._repr_html_()
    assert "<module>" not in found._repr_html_()
    assert len(tuple(found)) == 13
