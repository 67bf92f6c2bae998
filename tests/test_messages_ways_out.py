"""Errors that newcomers meet name the way out."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

import fngrad as fg
import fngrad.sweeps as sweeps

PARAMS = {
    "layers": [{"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}],
    "w": jnp.ones(2),
}
LOGITS = jnp.ones((4, 3))
ONE_HOT = jax.nn.one_hot(jnp.arange(4) % 3, 3)
POINTS = sweeps.grid(a=[1.0])


def first_step(transform):
    optimizer = fg.chain(transform, fg.scale(-0.1))
    step = fg.make_step(lambda params, batch: jnp.sum(params**2), optimizer)
    return step(fg.init_state(jnp.ones(2), optimizer, 0), ())


def sweep(train_fn, **options):
    return fg.sweep(train_fn, POINTS, 2, progress=False, **options)


def test_moments_that_are_not_wide_are_told_how_to_be():
    def update(updates, state, params):
        state = fg.tree.average(0.9, state, updates)
        return jax.tree.map(jnp.tanh, state), state

    way_out = r"init makes moments in bfloat16: fngrad\.tree\.wide_zeros_like\(params\)"
    with pytest.raises(ValueError, match=f"the state keeps its form.*{way_out}"):
        fg.check_transform(fg.Transform(fg.tree.zeros_like, update))
    fg.check_transform(fg.Transform(fg.tree.wide_zeros_like, update))


@pytest.mark.parametrize(
    "call",
    [
        lambda glob: fg.adamw(0.1, mask=glob),
        lambda glob: fg.masked(fg.sgd(0.1), glob),
        lambda glob: fg.partition([(glob, fg.freeze()), ("**", fg.sgd(0.1))]),
    ],
)
def test_a_glob_that_matches_nothing_suggests_one_at_any_depth(call):
    with pytest.raises(ValueError, match=r"got 'weight'.*'\*\*/weight' selects leaves"):
        call("weight").init(PARAMS)
    with pytest.raises(ValueError, match=r"got 'wieght' for the leaves \[[^;]*\]$"):
        call("wieght").init(PARAMS)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_one_hot_labels_are_told_their_loss(dtype):
    labels = ONE_HOT.astype(dtype)
    words = (
        r"need integer labels of shape \(4,\), got .*softmax_cross_entropy takes one"
    )
    with pytest.raises(TypeError, match=words):
        fg.losses.softmax_cross_entropy_with_integer_labels(LOGITS, labels)
    with pytest.raises(TypeError, match=r"labels\.argmax\(1\) are integers"):
        fg.losses.multiclass_hinge(LOGITS, labels)
    with pytest.raises(TypeError, match=r"one-hot labels pass labels\.argmax\(-1\)"):
        fg.metrics.accuracy(LOGITS, labels)
    assert fg.losses.softmax_cross_entropy(LOGITS, ONE_HOT).shape == (4,)


def test_a_train_fn_with_another_argument_is_told_how_to_get_it():
    def train_fn(point, key, width):
        return (), {"val/loss": point["a"] + width}

    with pytest.raises(
        TypeError, match=r"got train_fn .*'width'\], missing .*: pass .*"
    ):
        sweep(train_fn)
    for result in (
        sweep(train_fn, args=(jnp.float32(2.0),)),
        sweep(train_fn, static={"width": [2.0]}),
        sweep(functools.partial(train_fn, width=2.0)),
    ):
        assert result.notes["values"].tolist() == [[3.0, 3.0]]


def test_all_parts_of_a_data_set_are_told_to_be_one_even_if_equally_long():
    splits = fg.data.Splits(*3 * [{"x": jnp.arange(9.0)}])
    with pytest.raises(TypeError, match=r"one part, got Splits: splits\.train"):
        fg.data.from_arrays(splits, 2)
    assert fg.data.from_arrays(splits.train, 2).size == 9


def test_a_loss_of_three_arrays_is_told_to_unpack_its_batch():
    words = (
        r"got loss_fn with .*\['p', 'x', 'y'\]: .* take \(p, batch\) .* x, y = batch$"
    )

    def loss_fn(p, x, y):
        return jnp.mean((p * x - y) ** 2)

    with pytest.raises(TypeError, match=re.compile(words, re.DOTALL)):
        fg.make_step(loss_fn, fg.sgd(0.1))


def loss_of(*names):
    """Return a loss with arguments of these names."""
    return eval(f"lambda {', '.join(names)}: 0.0")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("params batch rng", "rng is recognized by its name, so call it key$"),
        ("params dropout_key batch", "dropout_key is .*, so call it key$"),
        ("params batch batch_stats", "batch_stats is .*, so call it model_state$"),
        ("state batch rng", "rng is .*, so call it key$"),
        ("params batch rng key", "key takes the place of rng$"),
        ("params batch rngs seed", "key takes the place of rngs and seed$"),
        (
            "params state x y",
            r"state is .* call it model_state; .* \(params, batch\) .* x, y = batch$",
        ),
    ],
)
def test_an_argument_that_flax_names_otherwise_is_told_its_name(names, words):
    with pytest.raises(TypeError, match=re.compile(f"]: {words}", re.DOTALL)):
        fg.make_step(loss_of(*names.split()), fg.sgd(0.1))


def test_a_metric_is_told_that_it_has_no_key():
    metric_fn = loss_of("params", "batch", "rng")
    with pytest.raises(TypeError, match=r"no key is given here, so leave out rng\b"):
        fg.evaluate(metric_fn, PARAMS, {"x": LOGITS})


@pytest.mark.parametrize("is_traced", [False, True])
def test_an_old_key_is_told_the_ways_out(is_traced):
    words = jax.random.PRNGKey(0)

    def state(words):
        return fg.init_state(PARAMS, fg.sgd(0.1), words)

    ways_out = (
        r"got the raw words uint32\[2\], as jax\.random\.PRNGKey .*: pass the int "
        r"itself, jax\.random\.key\(seed\), or jax\.random\.wrap_key_data\(words\)"
    )
    with pytest.raises(TypeError, match=ways_out):
        jax.eval_shape(state, words) if is_traced else state(words)
    assert state(jax.random.wrap_key_data(words)).key == state(0).key


def swapped(updates, state, params):
    return state, updates


@pytest.mark.parametrize(
    "init",
    [
        lambda p: {"m": fg.tree.zeros_like(p)},
        lambda p: (jnp.zeros(()), fg.tree.zeros_like(p)),
    ],
)
def test_updates_and_state_in_the_wrong_order_are_told_apart(init):
    transform = fg.Transform(init, swapped)
    words = r"need \(updates, state\) from the update of .*, got \(state, updates\)"
    for call in (first_step, jax.jit(first_step, static_argnums=0), fg.check_transform):
        with pytest.raises((TypeError, ValueError), match=words):
            call(transform)


@pytest.mark.parametrize(
    ("init", "update", "words"),
    [
        (jnp.zeros_like, lambda u, s: (u, s), r"update\(updates, state, params\)"),
        (jnp.zeros_like, lambda u, s, p, k: (u, s), r"got <lambda> .*'p', 'k'\]"),
        (lambda: (), lambda u, s, p: (u, s), r"need init\(params\) in .* \[\]"),
    ],
)
def test_functions_with_other_arguments_are_refused_when_they_are_chained(
    init, update, words
):
    for call in (fg.chain, fg.check_transform):
        with pytest.raises(TypeError, match=words):
            call(fg.Transform(init, update))


def test_a_state_that_is_not_an_array_is_refused_by_init():
    counting = fg.Transform(lambda params: 0, lambda u, s, p: (u, s + 1))
    with pytest.raises(TypeError, match=r"arrays in the state, got int .*jnp\.asarray"):
        first_step(counting)


def test_a_resume_with_another_width_names_the_parameters_first(tmp_path):
    def state(width):
        model, optimizer = fg.models.mlp((2, width, 1)), fg.adam(0.1)
        return fg.init_state(model.init(jax.random.key(0)), optimizer, 0)

    fg.checkpoint.save(tmp_path, state(3))
    words = (
        r"another shape: 'params/layers/0/bias' \(3,\) saved, \(4,\) wanted, 'params"
    )
    with pytest.raises(fg.checkpoint.CheckpointError, match=words):
        fg.checkpoint.restore(tmp_path, state(4))
