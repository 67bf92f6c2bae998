"""Histograms and images of a run reach every logger that takes them."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_regression import ARRAYS, DATA, first_state, loss_fn, quiet_fit
from resuming import FULL, OwnError, assert_same_run, raise_at, reached

import fngrad as fg
from fngrad.fitting.hooks import Hook
from fngrad.fitting.loops import Carry
from fngrad.fitting.recording import Loggers
from fngrad.logging.histograms import histogram_of
from fngrad.programs.step_wrappers import gradients_of
from fngrad.steps.frozen_runs import freeze_diverged
from fngrad.steps.skipping import skip_bad_steps

RATE = 0.05
SGD = fg.sgd(RATE)
SGD_STEP = fg.make_step(loss_fn, SGD)
OF = ("params", "gradients", "updates")


class Media:
    """A logger that keeps what it is told."""

    def __init__(self, fails_at=None):
        self.scalars, self.found, self.seen = [], {}, {}
        self.fails_at = fails_at

    def __call__(self, step, values):
        self.scalars.append(step)

    def histograms(self, step, histograms):
        if step == self.fails_at:
            raise FULL
        self.found[step] = {k: histogram_of(k, x) for k, x in histograms.items()}

    def images(self, step, images):
        self.seen[step] = images


def sgd_fit(data=DATA, step=SGD_STEP, **options):
    options = {"num_steps": 7, "progress": False, "loop": "python"} | options
    state = fg.init_state({"w": jnp.zeros(2), "b": jnp.zeros(())}, SGD, key=0)
    return fg.fit(step, state, data, **options)


def states_before(steps):
    """Return parameters before each of these steps, and after it, in float64."""
    step = jax.jit(SGD_STEP)
    state = fg.init_state({"w": jnp.zeros(2), "b": jnp.zeros(())}, SGD, key=0)
    found = {}
    for t in range(max(steps)):
        before, (state, _) = state, step(state, DATA.batch(t))
        if t + 1 in steps:
            found[t + 1] = [
                {k: np.asarray(x, np.float64) for k, x in s.params.items()}
                for s in (before, state)
            ]
    return found


def reference_gradient(params, step):
    batch = {k: np.asarray(x, np.float64) for k, x in DATA.batch(step - 1).items()}
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return {"w": 2 * errors @ batch["x"] / errors.size, "b": 2 * errors.mean()}


SOURCE = fg.data.from_source(jax.tree.map(np.asarray, ARRAYS), 20, 6, seed=1)


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_histograms_are_of_the_step_that_they_name(loop):
    logger = Media()
    watch = fg.callbacks.histograms(every=7, of=OF, bins=8)
    options = {"loop": loop, "num_steps": 15, "log_every": 100}
    result = sgd_fit(loggers=[logger], callbacks=[watch], **options)
    assert sorted(logger.found) == [7, 14]
    assert logger.scalars == [15]
    for step, (before, after) in states_before([7, 14]).items():
        found = logger.found[step]
        assert sorted(found) == sorted(f"{of}/{leaf}" for of in OF for leaf in "wb")
        gradient = reference_gradient(before, step)
        for leaf in "wb":
            move = after[leaf] - before[leaf]
            for of, x in zip(OF, (after[leaf], gradient[leaf], move), strict=True):
                got = found[f"{of}/{leaf}"]
                exact = np.histogram(x, bins=8)[1]
                np.testing.assert_allclose(got.edges, exact, rtol=1e-5, atol=1e-7)
                assert got.counts.sum() == x.size
                np.testing.assert_allclose(got.mean, x.mean(), rtol=1e-5, atol=1e-7)
    assert_same_run(result, sgd_fit(**options))


def test_gradients_of_a_source_and_of_a_skipped_step():
    found = []
    step = fg.steps.skip_bad_steps(SGD_STEP)
    for data in (DATA, SOURCE):
        logger = Media()
        watch = fg.callbacks.histograms("w", every=2, of=["gradients"])
        sgd_fit(data, step, loggers=[logger], callbacks=[watch], num_steps=4)
        found.append(logger.found)
    assert sorted(found[0]) == sorted(found[1]) == [2, 4]
    for at in (2, 4):
        (one,), (other,) = found[0][at].values(), found[1][at].values()
        np.testing.assert_array_equal(one.edges, other.edges)
        np.testing.assert_array_equal(one.counts, other.counts)


def test_leaves_that_are_not_trained_have_no_gradient_and_complex_ones_two_parts():
    def loss(params, batch, key):
        noise = jax.random.normal(key)
        return jnp.abs(params["z"]) ** 2 + params["w"] * params["frozen"] * noise

    optimizer = fg.partition([("frozen", fg.freeze()), ("**", fg.sgd(0.1))])
    params = {"z": jnp.complex64(1 + 2j), "w": jnp.ones(()), "frozen": jnp.ones(())}
    logger, state = Media(), fg.init_state(params, optimizer, key=0)
    fg.fit(
        fg.make_step(loss, optimizer),
        state,
        lambda step: step,
        num_steps=1,
        loggers=[logger],
        callbacks=[fg.callbacks.histograms(every=1, of=["gradients", "params"])],
        progress=False,
    )
    names = ["w", "z/imag", "z/real"]
    assert sorted(logger.found[1]) == [
        *(f"gradients/{name}" for name in names),
        *(f"params/{name}" for name in ("frozen", *names)),
    ]
    assert logger.found[1]["gradients/z/imag"].mean == 4  # the steepest ascent
    noise = jax.random.normal(jax.random.fold_in(state.key, 0))  # as in the step
    assert logger.found[1]["gradients/w"].mean == float(noise)


def test_images_are_of_the_state_after_the_step():
    logger = Media()
    draw = fg.callbacks.images(lambda state: {"w": state.params["w"][None]}, every=4)
    ends = quiet_fit(num_steps=8, loggers=[logger], callbacks=[draw], log_every=3)
    assert sorted(logger.seen) == [4, 8]
    np.testing.assert_array_equal(logger.seen[8]["w"][0], ends.state.params["w"])


def test_what_is_due_at_the_step_that_ends_a_run_is_logged():
    logger = Media()
    watch = fg.callbacks.histograms(every=3)
    ended = quiet_fit(
        num_steps=9,
        log_every=3,
        loggers=[logger],
        callbacks=[watch, lambda step, *_: fg.STOP],
    )
    assert (ended.stopped, sorted(logger.found)) == ("callback", [3])


def test_what_was_due_before_a_rollback_is_not_logged():
    logger, state = Media(), first_state()
    watch = fg.callbacks.histograms(every=4)
    watch.begin(SimpleNamespace(loggers=Loggers([logger]), state=state))
    advance = watch.around(lambda carry, length: (carry, length))
    for now, due, end in ((0, 4, 4), (4, 8, 8), (2, 4, 3)):  # from 8 it returns to 2
        assert watch.before(now) == due
        advance(Carry(state, {}), end - now)
        if end != 8:  # not finite: no report follows
            watch.after(end)
    watch.end()
    assert sorted(logger.found) == [4]


def test_a_logger_that_fails_at_histograms_is_left_out_and_others_are_told():
    broken, other = Media(fails_at=2), Media()
    with pytest.warns(UserWarning, match="Media, which raised in histograms and is"):
        result = quiet_fit(
            num_steps=4,
            log_every=1,
            loggers=[broken, lambda step, values: None, other],
            callbacks=[fg.callbacks.histograms("w", every=1)],
        )
    assert result.stopped == "completed"
    assert (sorted(broken.found), broken.scalars) == ([1], [1, 2])
    assert sorted(other.found) == other.scalars == [1, 2, 3, 4]


def test_an_exception_of_an_image_function_keeps_the_state():
    def fail(state):
        raise FULL

    draw = fg.callbacks.images(fail, every=2)
    with pytest.raises(OSError, match="No space") as caught:
        quiet_fit(num_steps=4, loggers=[Media()], callbacks=[draw])
    assert int(reached(caught).state.step) == 2


def test_an_image_function_does_not_hide_the_exception_that_ends_the_run():
    def refuse(state):
        raise ValueError("not an image")

    draw, others = fg.callbacks.images(refuse, every=1), []
    other = Hook("other", begin=lambda run: None, end=lambda: others.append("ended"))
    callbacks = [other, draw, raise_at(1, OwnError())]
    with pytest.raises(OwnError) as caught:
        sgd_fit(log_every=1, loggers=[Media()], callbacks=callbacks)
    note = "fit: the callback images(every=1) could not end: ValueError: not an image"
    assert note in reached(caught).__notes__
    assert others == ["ended"]


def test_nothing_is_made_for_a_logger_that_was_left_out():
    drawn = []

    def draw(state):
        drawn.append(int(state.step))
        return {}

    class Images(Media):
        def __call__(self, step, values):
            if step == self.fails_at:
                raise FULL

    logger = Images(fails_at=4)
    count = fg.callbacks.histograms(every=2, of=["updates"])
    with pytest.warns(UserWarning, match="Images, which raised at step 4 and is left"):
        sgd_fit(
            num_steps=8,
            log_every=4,
            loggers=[logger],
            callbacks=[fg.callbacks.images(draw, every=2), count],
        )
    assert drawn == sorted(logger.found) == [2]


def own_step(state, batch):
    return SGD_STEP(state, batch)


def histogram_fit(mask="**", of="params", **options):
    watch = fg.callbacks.histograms(mask, every=2, of=of)
    return sgd_fit(**{"loggers": [Media()], "callbacks": [watch]} | options)


@pytest.mark.filterwarnings("ignore:batches from an iterable")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fg.callbacks.histograms(every=0), "need an int every >= 1"),
        (lambda: fg.callbacks.histograms(every=1, of=["w"]), "need of to be one of"),
        (lambda: fg.callbacks.histograms(every=1, of=[]), "need at least one of"),
        (lambda: fg.callbacks.histograms(every=1, bins=513), "need an int bins"),
        (lambda: histogram_fit(loggers=[]), "need a logger that takes histograms"),
        (lambda: histogram_fit("v"), "need a glob that selects a leaf, got 'v'"),
        (
            lambda: histogram_fit(of="gradients", step=own_step),
            'need a step of fngrad.make_step, .* "updates" needs none',
        ),
        (
            lambda: histogram_fit(of="gradients", data=[DATA.batch(0)] * 9),
            "got an iterable: its batches cannot be asked for again",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_gradients_are_found_through_wrappers_of_fngrad_alone():
    def scaled(step):
        return functools.wraps(step)(lambda s, b: step(s, jax.tree.map(jnp.sin, b)))

    step = fg.steps.plateau(freeze_diverged(skip_bad_steps(SGD_STEP)))
    for found in (step, jax.jit(step), fg.steps.plateau(jax.jit(step))):
        assert gradients_of(found) is gradients_of(SGD_STEP) is not None
    for other in (scaled, lambda step: jax.jit(scaled(step)), functools.partial):
        assert gradients_of(other(step)) is None
        assert gradients_of(fg.steps.plateau(other(step))) is None
    with pytest.raises(ValueError, match='histograms of "gradients", got another'):
        histogram_fit(of="gradients", step=scaled(SGD_STEP))


def test_images_need_a_function():
    with pytest.raises(TypeError, match="need a function state -> images by name"):
        fg.callbacks.images({}, every=1)


STEPS = {
    "sam": lambda: fg.steps.sam(loss_fn, SGD),
    "polyak": lambda: fg.steps.polyak(loss_fn),
    "line_search": lambda: fg.steps.line_search(loss_fn, SGD),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_that_see_the_loss_have_the_same_gradients(name):
    state, batch = first_state(), DATA.batch(0)
    got = STEPS[name]().gradients(state, batch)
    want = SGD_STEP.gradients(state, batch)
    np.testing.assert_array_equal(got["w"], want["w"])


def test_a_run_that_ends_before_the_first_is_warned_about():
    watch, logger = fg.callbacks.histograms(every=9), Media()
    message = r"histograms\(every=9\) logged nothing: the run ended at step 8"
    with pytest.warns(UserWarning, match=message):
        quiet_fit(num_steps=8, loggers=[logger], callbacks=[watch])
    assert not logger.found
