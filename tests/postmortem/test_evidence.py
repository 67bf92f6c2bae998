"""An autopsy names the step, the examples and the lines, or why it cannot."""

import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from autopsy_problem import DATA, W, X, examine, mean_square

import fngrad.data.dataset as dataset
import fngrad.losses as losses
from fngrad.optimizers import sgd
from fngrad.postmortem import autopsy
from fngrad.training import init_state, make_step


def test_a_nan_in_the_data_is_named_with_its_example():
    data = dataset.from_arrays({"x": X.at[6, 1].set(jnp.nan)}, batch_size=4, seed=3)
    bad_step = next(t for t in range(2) if 6 in data.indices(t))
    found = examine(mean_square, W, data)
    assert (found.step, found.phase, found.leaf) == (bad_step + 1, "batch", "batch/x")
    assert found.operation is None
    assert found.explanation == "batch/x is not finite in 1 entry of 12"
    np.testing.assert_array_equal(found.indices, [6])


def test_a_nan_in_the_state_is_named():
    found = examine(mean_square, {"w": jnp.array([1.0, 1.0, jnp.nan])})
    assert (found.phase, found.leaf) == ("state", "params/w")
    assert found.explanation == "params/w is not finite in 1 entry of 3"


def test_a_mask_that_is_false_for_all_of_an_example_is_named_with_the_example():
    def loss_fn(params, batch):
        scores = jnp.where(batch["mask"], batch["x"] * params["w"], -jnp.inf)
        return jnp.mean(jax.nn.softmax(scores))

    arrays = {"x": X, "mask": jnp.ones((8, 3), bool).at[6].set(False)}
    data = dataset.from_arrays(arrays, batch_size=4, shuffle=False)
    found = examine(loss_fn, {"w": jnp.ones((1, 3))}, data)
    assert (found.step, found.phase, found.operation) == (2, "forward", "select_n")
    np.testing.assert_array_equal(found.rows, [2])
    np.testing.assert_array_equal(found.indices, [6])


def test_a_label_out_of_range_is_named_with_its_example():
    def loss_fn(params, batch):
        return losses.softmax_cross_entropy_with_integer_labels(
            batch["x"] @ params["w"], batch["y"], reduction="mean"
        )

    arrays = {"x": X, "y": jnp.arange(8).at[5].set(8)}
    data = dataset.from_arrays(arrays, batch_size=4, shuffle=False)
    found = examine(loss_fn, {"w": jnp.ones((3, 8))}, data)
    assert (found.step, found.phase) == (2, "forward")
    np.testing.assert_array_equal(found.indices, [5])
    assert found.lines[-1].endswith("(loss_fn)")


def test_the_run_is_made_again_up_to_the_bad_step():
    state = init_state(W, sgd(3.0), key=0)
    step = make_step(mean_square, sgd(3.0))
    found = autopsy(step, state, DATA)
    assert found.step > 20
    assert found.metrics["loss"].shape == (4,)
    advanced = state
    for t in range(found.step - 1):
        advanced, _ = step(advanced, DATA.batch(t))
    near = autopsy(step, advanced, DATA, at=found.step)
    assert (near.step, near.explanation) == (found.step, found.explanation)
    assert near.norms.keys() == {"w"}
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_without_norms_bad_parameters_are_found_a_step_earlier():
    def loss_fn(params, batch):
        return jnp.sum(jnp.sqrt(params["w"]))

    def plain(loss_fn, optimizer):
        return make_step(loss_fn, optimizer, metrics="loss")

    found = examine(loss_fn, {"w": jnp.array([1.0, 0.0])}, make=plain, at=2)
    assert (found.step, found.phase, found.leaf) == (1, "backward", "gradient/w")


def test_the_line_of_an_installed_package_leads_to_the_users():
    names = {"jnp": jnp}
    file = f"{sysconfig.get_path('purelib')}/foreign/layers.py"
    exec(compile("def apply(x):\n    return jnp.log(x)", file, "exec"), names)

    def loss_fn(params, batch):
        return jnp.sum(names["apply"](params["w"] - 1))

    found = examine(loss_fn, W)
    assert found.lines[0] == f"{file}:2 (apply)"
    assert found.lines[1].endswith("(loss_fn)")


def test_an_einsum_in_a_scope_is_not_a_layer(capfd):
    def loss_fn(params, batch):
        with jax.named_scope("encoder"):
            scores = jnp.einsum("bi,i->b", batch["x"], params["w"])
        jax.debug.print("scores {}", scores)
        return jnp.sum(scores)

    found = examine(loss_fn, {"w": jnp.full(3, 3e38)})
    assert (found.operation, found.layer) == ("dot_general", "encoder")
    jax.effects_barrier()
    assert capfd.readouterr().out.count("scores") == 2  # the replay and other rows


@pytest.mark.parametrize("calls", [1, 2, 9])
def test_an_autopsy_can_be_given_up(calls):
    class EnoughError(Exception):
        pass

    def check():
        left.pop()
        if not left:
            raise EnoughError

    left = list(range(calls))
    with pytest.raises(EnoughError):
        examine(mean_square, W, optimizer=sgd(3e38), check=check)


def test_the_report_is_short_and_names_the_evidence():
    def loss_fn(params, batch):
        return jnp.sum(batch["x"] @ params["w"]) + jnp.log(params["shift"]).sum()

    text = str(examine(loss_fn, {**W, "shift": jnp.array([2.0, 0.0])}))
    assert text.startswith("step 1 went bad in the forward pass: log(0) = -inf\n")
    for words in ("log", __file__, "gradient/shift", "loss", "-inf", "norms before"):
        assert words in text
    assert len(text.splitlines()) < 16
    assert max(map(len, text.splitlines())) < 120 + len(__file__)


def test_what_cannot_be_examined_is_refused():
    state, step = init_state(W, sgd(0.1), key=0), make_step(mean_square, sgd(0.1))
    with pytest.raises(ValueError, match="got steps 1 to 5, which stay finite"):
        autopsy(step, state, DATA, at=5)
    with pytest.raises(ValueError, match=r"after step 0 and at=-?\d|need an int at"):
        autopsy(step, state, DATA, at=0)
    later = state._replace(step=jnp.int32(7))
    with pytest.raises(ValueError, match="the state after step 7 and at=7"):
        autopsy(step, later, DATA, at=7)
    with pytest.raises(TypeError, match=r"need a TrainState .* got dict"):
        autopsy(step, {"w": 1}, DATA)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"need a dataset or a function .* got list"):
        autopsy(step, state, [X])
    many = state._replace(step=jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match=r"the state of one run, .* shape \(3,\)"):
        autopsy(step, many, DATA)


def test_a_step_whose_only_sign_is_is_finite_is_reported():
    def step(state, batch):
        metrics = {"loss": jnp.zeros(()), "is_finite": state.step < 2}
        return state._replace(step=state.step + 1), metrics

    found = autopsy(step, init_state(W, sgd(0.1), key=0), DATA)
    assert (found.step, found.phase, found.operation) == (3, "unknown", None)
    assert str(found).startswith("step 3 went bad: is_finite in the compiled step")


def test_naming_gradients_changes_neither_bits_nor_programs():
    state, batch = init_state(W, sgd(0.1), key=0), DATA.batch(0)
    named = jax.jit(make_step(mean_square, sgd(0.1))).lower(state, batch).as_text()
    assert "gradient/" not in named
