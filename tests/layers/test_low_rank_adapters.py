"""LoRA: the change of a matrix, what is trained, and what else it works with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import fngrad as fg
import fngrad.tree as tree
from fngrad.layers.low_rank_adapters import LowRank

MODEL = fg.layers.serial(
    tokens=fg.layers.embedding(11, 8),
    blocks=fg.layers.repeat(fg.layers.residual(fg.layers.linear(8, 8)), 2),
    head=fg.layers.linear(8, 11),
)
TOKENS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9], [3, 2, 3, 8, 4]])
ADAPTERS = fg.lora(["tokens/weight", "blocks/**/weight"], rank=2, alpha=3.0)
OPTIMIZER = fg.masked(fg.adamw(0.1), "adapters/**")


def trained(params):
    """Return parameters as after some steps: B is not zero."""
    fill = {"a": 1.0, "b": 0.3}

    def moved(path, x):
        if not path.startswith("adapters"):
            return x
        wave = np.cos(np.arange(x.size)).reshape(x.shape)
        return x + jnp.asarray(fill[path[-1]] * wave, x.dtype)

    return tree.map_with_path(moved, params)


def params_of(adapters, dtype=jnp.float32):
    base = tree.cast_real(MODEL.init(jax.random.key(0)), dtype)
    return adapters.init(base, 1)


def logits(params, tokens):
    return fg.layers.batched(MODEL)(params, tokens)


def loss_fn(params, batch):
    y = logits(ADAPTERS.unmerged(params), batch[:, :-1])
    losses = fg.losses.softmax_cross_entropy_with_integer_labels
    return losses(y, batch[:, 1:], reduction="mean")


@pytest.mark.parametrize(
    ("alpha", "rank_stabilized", "factor"),
    [(3.0, False, 1.5), (3.0, True, 3 / np.sqrt(2)), (None, False, 1.0)],
)
def test_the_change_is_the_scaled_product_of_the_paper(alpha, rank_stabilized, factor):
    adapters = fg.lora("w", rank=2, alpha=alpha, rank_stabilized=rank_stabilized)
    base = {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones(4)}
    params = trained(adapters.init(base, 0))
    a, b = (np.float64(params["adapters"]["w"][name]) for name in "ab")
    merged = adapters.merged(params)
    assert tree.mismatch(base, merged) is None
    np.testing.assert_allclose(merged["w"], base["w"] + factor * a @ b, rtol=1e-6)
    np.testing.assert_array_equal(merged["b"], base["b"])


def test_at_first_the_model_computes_what_it_did():
    params = params_of(ADAPTERS)
    expected = jax.tree.map(np.asarray, params["base"])
    jax.tree.map(np.testing.assert_array_equal, ADAPTERS.merged(params), expected)
    a = params["adapters"]["blocks"]["weight"]["a"]
    assert a.shape == (2, 8, 2)  # two blocks, each with 8 inputs
    assert 0.8 / np.sqrt(8) < np.max(np.abs(a)) <= 1 / np.sqrt(8)
    table = params["adapters"]["tokens"]["weight"]
    assert table["a"].shape == (11, 2)
    assert not np.any(table["b"])
    units = np.ravel(a) * np.sqrt(8), np.ravel(table["a"])[:22] * np.sqrt(11)
    assert not np.any(np.isclose(units[0][:22], units[1]))  # each has its own key


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 2e-6), ("bfloat16", 0.08)])
def test_unmerged_equals_merged_to_rounding(dtype, atol):
    params = trained(params_of(ADAPTERS, dtype))
    one = jax.jit(lambda p: logits(ADAPTERS.merged(p), TOKENS))(params)
    other = jax.jit(lambda p: logits(ADAPTERS.unmerged(p), TOKENS))(params)
    assert one.dtype == other.dtype == dtype
    assert np.max(np.abs(one - logits(params["base"], TOKENS))) > 4 * atol
    np.testing.assert_allclose(one.astype(float), other.astype(float), atol=atol)


def test_no_product_of_the_unmerged_model_has_the_shape_of_the_matrix():
    adapters = fg.lora("weight", rank=2)
    params = adapters.init({"weight": jnp.ones((32, 64))}, 0)

    def loss(pair, x):
        return jnp.sum(x @ adapters.unmerged({**params, "adapters": pair})["weight"])

    program = str(jax.make_jaxpr(jax.grad(loss))(params["adapters"], jnp.ones((3, 32))))
    assert "f32[32,64] = dot_general" not in program
    assert "f32[2,32] = dot_general" in program  # the gradient of A, transposed


def test_a_tied_head_and_a_numpy_input_are_products_too():
    w = LowRank(jnp.eye(3, 2), jnp.ones((3, 1)), jnp.full((1, 2), 2.0))
    full = np.eye(3, 2) + 2
    np.testing.assert_allclose(np.ones(3, np.float32) @ w, np.ones(3) @ full)
    np.testing.assert_allclose(jnp.ones(2) @ w.T, full @ np.ones(2))
    assert (w.shape, w.ndim) == ((3, 2), 2)


def test_a_recurrent_layer_takes_an_unmerged_matrix():
    model, x = fg.layers.gru(3, 4), jnp.ones((5, 3))
    adapters = fg.lora("**/weight", rank=2)
    params = trained(adapters.init(model.init(0), 1))
    one = model.apply(adapters.merged(params), x)
    other = model.apply(adapters.unmerged(params), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


def test_complex_matrices_have_complex_adapters():
    adapters = fg.lora("**", rank=1)
    params = adapters.init(jnp.ones((2, 3), jnp.complex64), 0)
    assert params["adapters"]["a"].dtype == jnp.complex64
    assert np.any(np.imag(params["adapters"]["a"]) != 0)


def test_alpha_can_be_swept_by_vmap():
    base = {"w": jnp.zeros((2, 2))}
    params = trained(fg.lora("w", rank=1).init(base, 0))

    def at(alpha):
        return fg.lora("w", rank=1, alpha=alpha).merged(params)["w"]

    one, two = jax.vmap(at)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(two, 2 * one)


@pytest.fixture(scope="module")
def run():
    """Return the first state and the one after two steps."""
    step = jax.jit(fg.make_step(loss_fn, OPTIMIZER))
    first = state = fg.init_state(params_of(ADAPTERS), OPTIMIZER, 0)
    for _ in range(2):
        state, metrics = step(state, TOKENS)
    return first, state, metrics


def test_only_the_adapters_are_trained_and_have_state_of_the_optimizer(run):
    first, last, _ = run
    same = jax.tree.map(np.array_equal, first.params, last.params)
    assert all(jax.tree.leaves(same["base"]))
    assert not any(jax.tree.leaves(same["adapters"]))
    moments = sum(x.size for x in jax.tree.leaves(last.opt_state) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(last.params["adapters"]))


def test_the_table_of_an_optimizer_shows_what_is_trained():
    params = params_of(ADAPTERS)
    lines = fg.describe(OPTIMIZER, params).splitlines()
    is_trained = {line.split()[0]: "  yes  " in line for line in lines[1:-1]}
    assert all(path.startswith("adapters/") == yes for path, yes in is_trained.items())
    count = sum(x.size for x in jax.tree.leaves(params["adapters"]))
    assert f"{count} trainable" in lines[-1]


def test_micro_batches_make_the_step_of_the_whole_batch(run):
    first, last, _ = run
    step = jax.jit(fg.make_step(loss_fn, OPTIMIZER, micro_batches=2))
    state = first
    for _ in range(2):
        state, _ = step(state, TOKENS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
        last.params,
        state.params,
    )


def test_a_loss_in_bfloat16_trains_adapters_in_float32(run):
    first, _, metrics = run
    step = jax.jit(fg.make_step(loss_fn, OPTIMIZER, precision="bfloat16"))
    state, _ = step(first, TOKENS)
    state, narrow = step(state, TOKENS)
    assert tree.mismatch(first, state) is None
    np.testing.assert_allclose(narrow["loss"], metrics["loss"], rtol=2e-2)


def test_a_rule_of_sharding_finds_the_matrices_of_the_base():
    mesh = fg.sharding.abstract_mesh(data=4, model=2)
    rule = fg.models.transformer_rule()
    spec = rule("base/blocks/mlp/expand/weight", np.zeros((2, 8, 8)), mesh)
    assert spec == PartitionSpec(None, None, "model")


def test_a_checkpoint_restores_state_and_adapters_alone(run, tmp_path):
    _, last, _ = run
    fg.checkpoint.save(tmp_path, last)
    back = fg.checkpoint.restore(tmp_path, like=last)
    jax.tree.map(np.testing.assert_array_equal, back.params, last.params)
    adapters = fg.checkpoint.restore(
        tmp_path, like=last.params["adapters"], part="params/adapters"
    )
    jax.tree.map(np.testing.assert_array_equal, adapters, last.params["adapters"])


@pytest.mark.parametrize(
    ("params", "rank", "error", "message"),
    [
        (jnp.ones(3), 1, ValueError, r"need matrices.* got shape \(3,\) at 'w'"),
        (jnp.ones((2, 3)), 3, ValueError, r"rank=3, got shape \(2, 3\) at 'w'"),
        (jnp.ones((2, 2), int), 1, TypeError, "need matrices of floats, got int.*'w'"),
    ],
)
def test_what_cannot_have_adapters_is_named(params, rank, error, message):
    with pytest.raises(error, match=message):
        fg.lora("w", rank=rank).init({"w": params}, 0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="rank"):
        fg.lora("w", rank=0)
    with pytest.raises(ValueError, match="alpha"):
        fg.lora("w", alpha=float("nan"))
    with pytest.raises(ValueError, match=r"glob that selects a leaf, got 'v'"):
        fg.lora("v").init({"w": jnp.ones((8, 8))}, 0)
    with pytest.raises(ValueError, match=r"that init returned.*got \['w'\]"):
        fg.lora("w").merged({"w": jnp.ones((8, 8))})
