"""Metrics by layer and by group: norms, and learning rates in force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.steps as steps
import fngrad.tree as tree
from fngrad.transforms.structure import partitions_of

PARAMS = {
    "blocks": [{"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([0.0])}] * 2,
    "head": {"w": jnp.array([[1.0], [2.0]])},
}
GLOBS = ["blocks/*", "head", "**/b"]
RATE = 0.25


def half_square(params, batch):
    """Return a loss whose gradient is the parameters, times the batch."""
    return batch * tree.vdot(params, params) / 2


@functools.cache
def first_step(globs=None, optimizer=None):
    """Return the parameters and metrics after one jitted step from PARAMS."""
    optimizer = fg.sgd(RATE) if optimizer is None else optimizer
    metrics = "norms" if globs is None else list(globs)
    step = fg.make_step(half_square, optimizer, metrics=metrics)
    state = fg.init_state(PARAMS, optimizer, 0)
    new, metrics = jax.jit(step)(state, jnp.float32(1))
    return new.params, metrics


def norm64(*leaves):
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    return np.sqrt(np.sum(flat**2))


def test_norms_by_layer_are_those_of_the_layers_leaves():
    _, metrics = first_step(tuple(GLOBS))
    blocks, head = PARAMS["blocks"], PARAMS["head"]
    expected = {
        **{
            f"blocks/{i}": norm64(block["w"], block["b"])
            for i, block in enumerate(blocks)
        },
        **{f"blocks/{i}/b": norm64(block["b"]) for i, block in enumerate(blocks)},
        "head": norm64(head["w"]),
    }
    factors = {"grad_norm": 1.0, "update_norm": RATE, "param_norm": 1.0}
    found = {name for name in metrics if name.partition("/")[0] in factors}
    assert found == {*factors, *(f"{k}/{path}" for k in factors for path in expected)}
    for kind, factor in factors.items():
        for path, norm in expected.items():
            np.testing.assert_allclose(
                metrics[f"{kind}/{path}"], factor * norm, rtol=1e-6, err_msg=path
            )


def test_norms_by_layer_change_no_bit_of_the_step():
    plain, by_layer = first_step(), first_step(tuple(GLOBS))
    jax.tree.map(np.testing.assert_array_equal, plain[0], by_layer[0])
    for name, value in plain[1].items():
        np.testing.assert_array_equal(by_layer[1][name], value, err_msg=name)


def test_norms_by_layer_reach_the_history_and_loggers():
    logged = {}
    step = fg.make_step(half_square, fg.sgd(RATE), metrics=["head"])
    history = fg.fit(
        step,
        fg.init_state(PARAMS, fg.sgd(RATE), 0),
        lambda t: jnp.float32(1),
        num_steps=2,
        loggers=[lambda step, values: logged.update({step: values})],
        progress=False,
    ).history
    norms = np.sqrt(5) * (1 - RATE) ** np.arange(2)
    np.testing.assert_allclose(history["grad_norm/head"], norms, rtol=1e-6)
    assert logged[2]["grad_norm/head"] == history.last("grad_norm/head")


@pytest.mark.parametrize(
    ("globs", "layers"),
    [
        (["*"], {"blocks", "head"}),
        (["**"], {"blocks/0/w", "blocks/0/b", "blocks/1/w", "blocks/1/b", "head/w"}),
        (["blocks/0", "blocks/*"], {"blocks/0", "blocks/1"}),
        (["head/**", "**/1"], {"head/w", "blocks/1"}),
        (["b?ocks"], {"blocks"}),
    ],
)
def test_a_glob_selects_the_innermost_layers(globs, layers):
    assert tree.by_layer(globs, PARAMS).keys() == layers


def test_norms_by_layer_neither_overflow_nor_underflow():
    step = jax.jit(fg.make_step(half_square, fg.sgd(1.0), metrics=["head"]))
    state = fg.init_state(PARAMS, fg.sgd(1.0), 0)
    for size in (1e30, 1e-30):
        _, metrics = step(state, jnp.float32(size))
        np.testing.assert_allclose(
            metrics["grad_norm/head"], size * np.sqrt(5), rtol=1e-6
        )


@pytest.mark.parametrize(
    ("globs", "message"),
    [
        (["blocks/*", "haed"], r"need globs that select a layer, got 'haed' for \["),
        (["w"], r"got 'w' for .*; '\*\*/w' selects leaves at any depth"),
    ],
)
def test_a_glob_that_selects_no_layer_is_refused_before_a_run_begins(
    tmp_path, globs, message
):
    step = fg.make_step(half_square, fg.sgd(0.1), metrics=globs)
    state = fg.init_state(PARAMS, fg.sgd(0.1), 0)
    with pytest.raises(ValueError, match=message):
        fg.fit(step, state, lambda t: 1.0, num_steps=2, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layers_that_are_not_trained_have_no_norms():
    optimizer = fg.partition([("head/**", fg.freeze()), ("**", fg.sgd(0.1))])
    _, metrics = first_step(("*",), optimizer)
    assert "grad_norm/blocks" in metrics
    assert "grad_norm/head" not in metrics
    with pytest.raises(ValueError, match="got 'head' for"):
        first_step(("head",), optimizer)


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ("head/*", ValueError, r"given as a list: metrics=\['head/\*'\]"),
        ([], ValueError, "need at least one glob, or"),
        ([1], TypeError, r"or a list of globs over the paths of layers, got \[1\]"),
        (None, TypeError, "or a list of globs .*, got None"),
    ],
)
def test_other_metrics_are_refused(metrics, error, message):
    with pytest.raises(error, match=message):
        fg.make_step(half_square, fg.sgd(0.1), metrics=metrics)


def private(*args, **metrics):
    return steps.differentially_private(*args, 1.0, 1.0, **metrics)


BUILDERS = {
    "differentially_private": (private, fg.sgd(1.0)),
    "gauss_newton": (steps.gauss_newton, fg.sgd(1.0)),
    "levenberg_marquardt": (
        steps.levenberg_marquardt,
        fg.chain(fg.adaptive_damping(), fg.sgd(1.0)),
    ),
    "line_search": (steps.line_search, fg.sgd(1.0)),
    "polyak": (steps.polyak, fg.sgd(1.0)),
    "sam": (steps.sam, fg.sgd(1.0)),
    "sophia": (steps.sophia, fg.sophia(0.1)),
}


def test_every_step_that_sees_the_loss_is_tested():
    wrappers = {"freeze_diverged", "observe", "plateau"}
    wrappers |= {"skip_bad_steps", "skip_spikes"}
    wrappers |= {"AveragedModelState", "average_model_state", "with_average"}
    assert wrappers | BUILDERS.keys() == set(steps.__all__)


@pytest.mark.parametrize("name", BUILDERS)
def test_steps_that_see_the_loss_take_the_same_metrics(name):
    build, optimizer = BUILDERS[name]
    is_of_residuals = build in (steps.gauss_newton, steps.levenberg_marquardt)

    def function(params, batch):
        return params["blocks"][0]["w"] if is_of_residuals else half_square(params, 1.0)

    state = fg.init_state(PARAMS, optimizer, 0)
    kinds = ("grad_norm", "update_norm", "param_norm")
    for metrics, expected in (
        ("loss", set()),
        (["head"], {*kinds, *(f"{kind}/head" for kind in kinds)}),
    ):
        step = build(function, optimizer, metrics=metrics)
        told = jax.eval_shape(step, state, jnp.zeros(2))[1]
        assert {name for name in told if name.startswith(kinds)} == expected
    with pytest.raises(ValueError, match="need at least one glob"):
        build(function, optimizer, metrics=[])


LINEAR = fg.schedules.linear(0.5, 0.0, 9)
INNER = fg.partition([("head/**", fg.sgd(0.3)), ("**", fg.sgd(0.4))])
GROUPED = {
    "groups": (
        fg.partition([("head/**", fg.sgd(0.1)), ("**", fg.sgd(0.2))]),
        {"learning_rate/head/**": 0.1, "learning_rate/**": 0.2},
    ),
    "one rate": (
        fg.partition([("head/**", fg.sgd(0.1)), ("**", fg.muon(0.1))]),
        {
            "learning_rate": 0.1,
            "learning_rate/head/**": 0.1,
            "learning_rate/**": 0.1,
            "partition/**/masked/rest/scale_by_learning_rate/learning_rate": 0.1,
        },
    ),
    "one schedule": (
        fg.partition([("head/**", fg.sgd(LINEAR)), ("**", fg.adam(LINEAR))]),
        {
            "learning_rate": 0.5,
            "learning_rate/head/**": 0.5,
            "learning_rate/**": 0.5,
        },
    ),
    "one schedule at two paces": (
        fg.partition(
            [("head/**", fg.sgd(LINEAR)), ("**", fg.accumulate(fg.sgd(LINEAR), 2))]
        ),
        {"learning_rate/head/**": 0.5, "learning_rate/**": 0.5},
    ),
    "one number that may change": (
        fg.partition(
            [
                ("head/**", fg.sgd(0.5)),
                ("**", fg.tunable(fg.sgd, learning_rate=0.5)),
            ]
        ),
        {
            "learning_rate/head/**": 0.5,
            "learning_rate/**": 0.5,
            "partition/**/tunable/learning_rate": 0.5,
        },
    ),
    "rates of their own": (
        fg.partition([("head/**", fg.madgrad(0.5)), ("**", fg.sgd(0.5))]),
        {"learning_rate/head/**": 0.5, "learning_rate/**": 0.5},
    ),
    "one frozen": (
        fg.partition([("head/**", fg.freeze()), ("**", fg.sgd(0.2))]),
        {"learning_rate/**": 0.2, "learning_rate": 0.2},
    ),
    "named and wrapped": (
        fg.skip_nonfinite(fg.named("all", fg.partition([("**", fg.sgd(0.2))]))),
        {"learning_rate/**": 0.2, "learning_rate": 0.2},
    ),
    "schedules": (
        fg.partition(
            [
                ("head/**", fg.sgd(LINEAR)),
                ("**", fg.tunable(fg.adam, learning_rate=0.1)),
            ]
        ),
        {
            "learning_rate/**": 0.1,
            "learning_rate/head/**": 0.5,
            "partition/**/tunable/learning_rate": 0.1,
        },
    ),
    "inside each other": (
        fg.partition([("blocks/**", fg.sgd(0.1)), ("**", fg.muon(0.2))]),
        {
            "learning_rate/**": 0.2,
            "learning_rate/blocks/**": 0.1,
            "partition/**/masked/rest/scale_by_learning_rate/learning_rate": 0.2,
        },
    ),
    "groups of groups": (
        fg.partition([("blocks/0/**", fg.sgd(0.1)), ("**", fg.skip_nonfinite(INNER))]),
        {
            "learning_rate/**/**": 0.4,
            "learning_rate/**/head/**": 0.3,
            "learning_rate/blocks/0/**": 0.1,
        },
    ),
    "a glob that begins with another": (
        fg.partition([("**", fg.sgd(0.1)), ("**/w", fg.sgd(0.2))]),
        {"learning_rate/**": 0.1, "learning_rate/**/w": 0.2},
    ),
    "none": (fg.sgd(0.1), {"learning_rate": 0.1}),
    "masked": (fg.masked(fg.sgd(0.1), "head/**"), {"learning_rate": 0.1}),
}


@pytest.mark.parametrize("name", GROUPED)
def test_the_learning_rate_of_every_group_has_the_groups_name(name):
    optimizer, expected = GROUPED[name]
    _, metrics = first_step(None, optimizer)
    rates = {k: float(v) for k, v in metrics.items() if "learning_rate" in k}
    assert rates == pytest.approx(expected)


def test_a_history_with_earlier_names_of_rates_is_resumed(tmp_path):
    """Checkpoints of earlier versions hold rates of groups under other names."""
    optimizer, _ = GROUPED["groups"]
    plain = fg.make_step(half_square, optimizer)
    old = {
        "learning_rate/**": "partition/**/scale_by_learning_rate/learning_rate",
        "learning_rate/head/**": "partition/head/**/scale_by_learning_rate/x",
    }

    def as_before(state, batch):
        state, metrics = plain(state, batch)
        metrics = {old.get(name, name): x for name, x in metrics.items()}
        return state, metrics | {"learning_rate": jnp.float32(0.1)}

    def fit(step, num_steps):
        state, data = fg.init_state(PARAMS, optimizer, 0), lambda t: jnp.float32(1)
        options = {"checkpoint_dir": tmp_path, "loop": "python", "progress": False}
        return fg.fit(step, state, data, num_steps=num_steps, **options)

    fit(as_before, 2)
    history = fit(plain, 3).history
    assert list(history.steps("learning_rate")) == [1, 2]
    assert list(history.steps("learning_rate/**")) == [3]
    assert list(history.steps(old["learning_rate/**"])) == [1, 2]


def test_only_partitions_have_groups():
    optimizer, _ = GROUPED["groups of groups"]
    assert list(partitions_of(optimizer)) == [
        *(("partition", "blocks/0/**"), ("partition", "**")),
        *(("partition", "head/**"), ("partition", "**")),
    ]

    def with_groups(groups):  # a variable of this name in a transform of one's own
        return fg.Transform(lambda params: (), lambda u, s, p: (u, groups and s))

    assert not [*partitions_of(with_groups(3)), *partitions_of(with_groups([3]))]


def test_the_only_leaf_of_an_array_is_not_a_layer_but_every_leaf():
    norms = {}
    for metrics in (("**",), "norms"):
        step = fg.make_step(half_square, fg.sgd(RATE), metrics=metrics)
        state = fg.init_state(jnp.array([3.0, 4.0]), fg.sgd(RATE), 0)
        norms[metrics] = step(state, jnp.float32(1))[1]
    assert norms["norms"] == norms["**",]
    assert norms["norms"]["grad_norm"] == 5
