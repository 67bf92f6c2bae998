"""Arrays of `numpy.ma` are refused wherever data enter, by leaf."""

import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg

HOLES = np.arange(8) % 2 == 0
X = np.ma.masked_array(np.arange(8, dtype=np.float32), HOLES)
LABELS = np.ma.masked_array(np.arange(8), HOLES)
WHOLE = np.arange(8, dtype=np.float32)
LOGITS = np.ones((8, 9), np.float32)
OPTIMIZER = fg.sgd(0.1)


def squared_error(w, batch):
    return {"loss": (w * batch["x"]) ** 2}


def state_of(params):
    return fg.init_state(params, OPTIMIZER, 0)


DOORS = {
    "from_arrays": lambda: fg.data.from_arrays({"in": {"x": X}}, 4),
    "windows": lambda: fg.data.windows(LABELS, 2, 2),
    "split": lambda: fg.data.split({"in": {"x": X}}, [0.5, 0.5], 0),
    "stratify": lambda: fg.data.split(WHOLE, [0.5, 0.5], 0, stratify=LABELS // 4),
    "standardize": lambda: fg.data.standardize(
        fg.data.Splits({"x": WHOLE}, {"x": X}, {"x": WHOLE}), "x"
    ),
    "evaluate": lambda: fg.evaluate(squared_error, jnp.ones(()), {"in": {"x": X}}),
    "params": lambda: state_of({"in": {"x": X}}),
    "model_state": lambda: fg.init_state(WHOLE, OPTIMIZER, 0, model_state={"x": X}),
    "gradients": lambda: OPTIMIZER.update({"x": X}, {}, {"x": jnp.asarray(WHOLE)}),
    "updates": lambda: fg.apply_updates({"x": WHOLE}, {"x": X}),
    "snapshot": lambda: fg.snapshot({"in": {"x": X}}),
    "grid": lambda: fg.sweeps.grid(x=X),
    "choice": lambda: fg.sweeps.choice(X),
    "random": lambda: fg.sweeps.random(3, 0, x=X),
    "sobol": lambda: fg.sweeps.sobol(3, 0, x=X),
    "points": lambda: fg.sweep(lambda point, key: {}, {"in": {"x": X}}, 2),
    "population": lambda: fg.sweeps.population_based_training(
        lambda *args: None,
        lambda *args: None,
        {"x": X},
        0,
        steps_per_round=1,
        rounds=1,
    ),
    "loss": lambda: fg.losses.squared_error(X, WHOLE),
    "targets": lambda: fg.losses.squared_error(WHOLE, X),
    "labels": lambda: fg.losses.softmax_cross_entropy_with_integer_labels(
        LOGITS, LABELS
    ),
    "where": lambda: fg.losses.squared_error(WHOLE, WHOLE, where=X > 3),
    "weights": lambda: fg.losses.squared_error(WHOLE, WHOLE, weights=X),
    "metric": lambda: fg.metrics.mean_squared_error(WHOLE, X),
    "metric labels": lambda: fg.metrics.accuracy(LOGITS, LABELS),
    "metric weights": lambda: fg.metrics.mean_squared_error(WHOLE, WHOLE, weights=X),
    "checkpoint": lambda: fg.checkpoint.save("not_made", {"in": {"x": X}}, step=0),
    "descend": lambda: fg.landscapes.descend(jnp.sum, X, OPTIMIZER, 2),
}
NAMED = ("from_arrays", "split", "evaluate", "params", "snapshot", "points")


@pytest.mark.parametrize("door", DOORS)
def test_a_masked_array_is_refused(door):
    with pytest.raises((ValueError, RuntimeError), match=r"[Mm]asked ?[Aa]rray"):
        DOORS[door]()


@pytest.mark.parametrize("door", NAMED)
def test_the_leaf_of_a_masked_array_is_named(door):
    message = "without a mask, got a masked array with 4 of 8 entries masked"
    with pytest.raises(ValueError, match=rf"at 'in/x' {message}.*\.filled\(value\)"):
        DOORS[door]()


def test_a_mask_that_hides_nothing_is_refused_too():
    with pytest.raises(ValueError, match="with 0 of 8 entries masked"):
        fg.data.from_arrays(np.ma.masked_array(WHOLE), 4)


def test_a_filled_array_is_taken():
    data = fg.data.from_arrays(X.filled(-1.0), "all")
    np.testing.assert_array_equal(data.batch(0), np.where(HOLES, -1, WHOLE))
