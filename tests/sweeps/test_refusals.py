"""Invalid sweeps raise errors that name the remedy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_problems import quiet_sweep

import fngrad.sweeps.running.block_width as block_width
import fngrad.sweeps.running.lane_training as lane_training
from fngrad.logging import ProgressBar
from fngrad.sweeps.running.program import compile_block

POINTS = {"x": np.array([1.0, 2.0, 3.0])}
CHANGING = np.array([1.0, 2.0], np.float32)


def tiny(point, key):
    return (), {"val/loss": point["x"] * jnp.arange(2.0)}


def swept(fn=tiny, **options):
    return quiet_sweep(POINTS, 2, fn, **options)


def returning(outputs):
    return lambda point, key: outputs(point["x"])


@pytest.mark.parametrize(
    ("fn", "kind", "message"),
    [
        (returning(lambda x: x), TypeError, "need train_fn.* -> .state, history"),
        (returning(lambda x: (x, [x])), TypeError, "history a dict of arrays by name"),
        (
            returning(lambda x: ((), {"a": {"b": x}})),
            TypeError,
            "need a history of arrays by name, got 'a/b' in it",
        ),
        (
            returning(lambda x: ((), {"loss": x, "acc": x})),
            ValueError,
            r"need the metric among \['acc', 'loss'\], got 'val/loss'",
        ),
        (
            returning(lambda x: ((), {"val/loss": x * jnp.ones((4, 5))})),
            ValueError,
            r"one value or one curve per lane, got shape \(4, 5\) of 'val/loss'",
        ),
        (
            returning(lambda x: ((), {"val/loss": jax.lax.complex(x, x)})),
            ValueError,
            "need a real metric, got a complex one, 'val/loss'",
        ),
    ],
)
def test_invalid_outputs_are_refused(fn, kind, message):
    with pytest.raises(kind, match=message):
        swept(fn)


@pytest.mark.parametrize(
    "fn",
    [
        lambda point, key: ((), {"val/loss": 1.0 if point["x"] > 1 else 2.0}),
        lambda point, key: ((), {"val/loss": jnp.zeros(int(point["x"]))}),
        lambda point, key: ((), {"val/loss": jnp.zeros(point["x"].astype(int))}),
        lambda point, key: ((), {"val/loss": jnp.asarray(np.sin(point["x"]))}),
        lambda point, key: ((), {"val/loss": [1.0, 2.0][point["x"].astype(int)]}),
    ],
    ids=["branch", "int", "shape", "numpy", "index"],
)
def test_a_structure_that_depends_on_the_point_raises_with_the_remedy(fn):
    with pytest.raises(TypeError, match=r"structure does not depend .* static=\{name"):
        swept(fn)


def test_an_error_inside_the_training_is_not_wrapped():
    with pytest.raises(TypeError, match="unsupported operand"):
        swept(lambda point, key: point + 1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        swept(static={"depth": [1]})


def test_a_training_that_reads_changing_values_is_refused():
    counter = itertools.count()

    def counting(point, key):
        return (), {"val/loss": point["x"] + next(counter)}

    def capturing(point, key):
        CHANGING[0] += 1
        return (), {"val/loss": point["x"] + jnp.asarray(CHANGING.copy()).sum()}

    def capturing_within(point, key):
        CHANGING[0] += 1
        captured = CHANGING.copy()
        return (), {"val/loss": jax.jit(lambda x: (x * captured).sum())(point["x"])}

    for impure in (counting, capturing, capturing_within):
        with pytest.raises(ValueError, match="two programs when it was traced twice"):
            swept(impure)


def test_effects_are_refused():
    def telling(point, key):
        jax.debug.print("x {}", point["x"])
        return (), {"val/loss": point["x"]}

    with pytest.raises(ValueError, match=r"need a pure train_fn, got one with the eff"):
        swept(telling)


def test_a_print_gives_a_warning(capsys):
    def printing(point, key):
        print("tracing")
        return (), {"val/loss": point["x"]}

    with pytest.warns(UserWarning, match="once per program, not once per training"):
        swept(printing)
    assert "tracing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"metric": "val/score"}, ValueError, r"metric=\('val/score', \"min\" or"),
        ({"metric": ("val/loss", "low")}, ValueError, r"got metric=\('val/loss', 'low"),
        ({"mode": "fast"}, ValueError, 'need mode "auto", "vmap", "map" or a number'),
        ({"mode": 0}, ValueError, "got mode=0"),
        ({"mode": True}, ValueError, "got mode=True"),
        ({"chunk": 0}, ValueError, "need an int chunk >= 1, got chunk=0"),
        ({"devices": []}, ValueError, "need at least one device, got none"),
        ({"args": [1]}, TypeError, r"need args, a tuple, got list: args=\(data,\)"),
        ({"args": (jnp.sin,)}, TypeError, "need arrays in args, got .* at '0'"),
        ({"static": {"a": "adam"}}, ValueError, "need a list of values, .*a='adam'"),
        ({"static": {"a": []}}, ValueError, r"need a list of values, .*a=\[\]"),
        ({"static": {"x": [1]}}, ValueError, "need 'x' in points or in static, got it"),
    ],
)
def test_bad_options_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        swept(**options)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (0, "need an int keys >= 1, got keys=0"),
        (True, "need an int keys >= 1, got keys=True"),
        (2.5, "need an int keys >= 1, got keys=2.5"),
        (jnp.zeros((3, 2), jnp.uint32), r"need keys, .*got uint32\[3, 2\]"),
        (jax.random.key(0), r"need keys, .*got key<fry>\[\]"),
        (jax.random.split(jax.random.key(0), 2)[:0], r"got key<fry>\[0\]"),
    ],
)
def test_bad_keys_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        quiet_sweep(POINTS, keys, tiny)


def out_of_memory(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")


def test_out_of_memory_halves_the_width_and_loses_no_lane(monkeypatch, tmp_path):
    expected, calls = swept(mode=4), []

    def compile_small(lanes, width):
        block = compile_block(lanes, width)

        def run(numbers):
            calls.append((width, int(numbers[0])))
            if width > 2 and numbers[0] > 0:
                out_of_memory()
            return block.run(numbers)

        return block._replace(run=run)

    monkeypatch.setattr(block_width, "compile_block", compile_small)
    with pytest.warns(
        UserWarning, match="in a block of 4 lanes: continuing with 2, .* 4"
    ):
        result = swept(mode=4, folder=tmp_path)
    # The four lanes that were done are not trained again.
    assert sorted(calls) == [(2, 4), (4, 0), (4, 4)]
    assert result.notes["modes"][0]["width"] == 2
    np.testing.assert_allclose(
        result.notes["values"], expected.notes["values"], rtol=1e-6
    )
    again = swept(mode="auto", folder=tmp_path)
    assert again.notes["restored"] == 6


def test_auto_recovers_if_its_first_block_runs_out_of_memory(monkeypatch):
    monkeypatch.setattr(block_width, "_cores", lambda: 1)
    to_host, full = lane_training.to_host, [True]

    def full_once(outputs):
        if full:
            full.pop()
            out_of_memory()
        return to_host(outputs)

    monkeypatch.setattr(lane_training, "to_host", full_once)
    with pytest.warns(UserWarning, match="in a block of 6 lanes: continuing with 3"):
        result = swept(mode="auto")
    assert result.notes["modes"][0]["width"] == 3
    assert result.notes["values"].tolist() == [[1.0] * 2, [2.0] * 2, [3.0] * 2]


def test_the_bar_counts_a_lane_once_that_is_trained_again(monkeypatch):
    counted = []
    monkeypatch.setattr(ProgressBar, "advance", lambda bar, n=1: counted.append(n))
    monkeypatch.setattr(block_width, "_cores", lambda: 1)

    def compile_small(lanes, width):
        block = compile_block(lanes, width)

        def run(numbers):
            return out_of_memory() if width == 5 and numbers[0] else block.run(numbers)

        return block._replace(run=run)

    monkeypatch.setattr(block_width, "compile_block", compile_small)
    with pytest.warns(UserWarning, match="in a block of 5 lanes: continuing with 2"):
        swept(mode=5)  # lane 4 shares a block with lane 5, which is not done
    assert counted == [5, 1]


def test_out_of_memory_in_a_single_lane_is_an_error(monkeypatch):
    monkeypatch.setattr(lane_training, "to_host", out_of_memory)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        swept(mode="map")


def test_other_errors_at_run_time_are_raised(monkeypatch):
    def broken(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(lane_training, "to_host", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        swept(mode=4)


def test_blocks_are_narrowed_to_fit_in_memory(monkeypatch):
    monkeypatch.setattr(block_width, "memory_budget", lambda devices: 1)
    with pytest.warns(UserWarning, match="a block of 6 lanes needs .* continuing with"):
        result = swept(mode="vmap")
    assert result.notes["modes"][0]["width"] == 1


def test_the_memory_budget_is_a_share_of_the_free_memory():
    assert 2**20 < block_width.memory_budget(jax.devices()[:1]) < 2**50
    assert block_width.memory_budget(jax.devices()[:1] * 4) <= 2**48


@pytest.mark.parametrize("static", [["width"], "width"])
def test_static_must_be_a_mapping(static):
    with pytest.raises(TypeError, match=r"need static=\{name: \[values\]\}, got"):
        quiet_sweep(static=static)


def test_data_must_be_passed_as_args():
    def train(point, key, data):
        return (), {"val/loss": point["x"] * data}

    message = r"with 0 args .* missing .*'data'.* args=\(data,\)"
    with pytest.raises(TypeError, match=message):
        quiet_sweep({"x": np.ones(2)}, 2, train)
