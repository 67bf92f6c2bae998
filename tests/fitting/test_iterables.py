"""Iterables whose iterators have a state resume exactly; others cannot."""

import warnings

import grain
import grain.python as pygrain
import jax
import numpy as np
import pytest
from linear_regression import ARRAYS, OPTIMIZER, PARAMS, loss_fn

import fngrad as fg
from fngrad.fitting.inputs import Feed
from fngrad.fitting.iterables import Batches

HOST = jax.tree.map(np.asarray, ARRAYS)
STEP = fg.make_step(loss_fn, OPTIMIZER)


class Examples:
    def __repr__(self):
        return "Examples()"  # by which grain's loader compares

    def __len__(self):
        return len(HOST["x"])

    def __getitem__(self, i):
        return {name: leaf[i] for name, leaf in HOST.items()}


def map_dataset():
    examples = grain.MapDataset.source(Examples()).shuffle(seed=3).repeat()
    return examples.batch(5).to_iter_dataset(grain.ReadOptions(1, 2))


def loader():  # its state is of the type bytes
    return pygrain.DataLoader(
        data_source=Examples(),
        sampler=pygrain.IndexSampler(
            20, shuffle=True, seed=0, shard_options=pygrain.NoSharding()
        ),
        operations=[pygrain.Batch(5)],
        read_options=grain.ReadOptions(1, 2),
    )


class Counting:
    """An iterator by hand."""

    def __init__(self):
        self.step = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.step += 1
        rows = (7 * self.step + np.arange(5)) % 20
        return {name: leaf[rows] for name, leaf in HOST.items()}

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]


KINDS = {"map dataset": map_dataset, "loader": loader, "by hand": Counting}


def fit(data, num_steps=8, **options):
    state = fg.init_state(PARAMS, OPTIMIZER, 0)
    options = {"progress": False, "loop": "python", **options}
    return fg.fit(STEP, state, data, num_steps=num_steps, **options)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_with_the_batch_that_would_have_come_next(kind, tmp_path):
    want = fit(KINDS[kind]())
    assert len(set(want.history["loss"])) == 8
    for steps in (3, 4, 8):
        options = {"resume": "auto" if steps == 3 else "must"}
        result = fit(KINDS[kind](), steps, checkpoint_dir=tmp_path, **options)
    np.testing.assert_array_equal(result.history["loss"], want.history["loss"])
    jax.tree.map(np.testing.assert_array_equal, result.state.params, want.state.params)


def test_a_rollback_returns_to_the_iterators_state_too(tmp_path):
    optimizer = fg.tunable(fg.sgd, learning_rate=0.01)
    seen = []

    class Watched(Counting):
        def __next__(self):
            batch = super().__next__()
            seen.append(self.step)
            if self.step == 6 and seen.count(6) == 1:
                batch["y"] = np.full_like(batch["y"], np.nan)
            return batch

    result = fg.fit(
        fg.make_step(loss_fn, optimizer),
        fg.init_state(PARAMS, optimizer, 0),
        Watched(),
        num_steps=8,
        checkpoint_dir=tmp_path,
        save_every=4,
        on_nonfinite="rollback",
        progress=False,
    )
    again = [i for i in range(1, len(seen)) if seen[i] <= seen[i - 1]]
    assert [seen[i] for i in again] == [5]
    assert seen[-1] == 8
    assert np.isfinite(result.history["loss"]).all()


def test_the_state_before_the_first_batch_is_kept():
    batches = Batches(Counting(), lambda batch: batch)
    assert batches.notes() == {"json": {"step": 0}}
    iterator = iter(batches)
    next(iterator)
    assert batches.notes() == {"json": {"step": 1}}
    third = [next(iterator), next(iterator)][1]
    again = next(batches.resume({"json": {"step": 2}}))
    jax.tree.map(np.testing.assert_array_equal, again, third)


@pytest.mark.parametrize("used", [0, 1, 3])
def test_a_checkpoint_takes_batches_that_another_process_lacks_for_not_read(used):
    feed = Feed(Counting())
    first = feed.take(1, lambda count: count)
    taken = feed.take(3, lambda count: used)
    assert (len(first), len(taken)) == (1, used)
    other = Feed(Counting())
    assert other.resume(feed.notes())
    (found,) = other.take(1)
    data = Counting()
    wanted = [next(data) for _ in range(used + 2)][-1]
    np.testing.assert_array_equal(found["x"], wanted["x"])


def test_an_iterable_without_a_state_has_no_notes():
    batches = Batches([HOST], lambda batch: batch)
    assert not batches.is_stateful
    assert batches.notes() is None


class Loader:
    """Gives its batches once in each loop."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter([HOST] * self.count)


def test_data_that_end_before_the_steps_are_warned_about():
    warnings.filterwarnings("ignore", "batches from an iterable")
    message = "ended at step 3 of num_steps=5.*`while True: yield from loader`"
    with pytest.warns(UserWarning, match=message) as caught:
        result = fit(Loader(3), 5)
    assert result.stopped == "exhausted"
    assert {w.filename for w in caught} == {__file__}
    for enough in (None, 3, 2):
        assert int(fit(Loader(3), enough).state.step) == (enough or 3)

    def repeated():
        while True:
            yield from Loader(3)

    assert fit(repeated(), 5).stopped == "completed"


NO_EPOCHS = {
    "loader": (
        lambda: Loader(3),
        r"got Loader: num_steps=4 \* 3 makes 4 passes over its 3 batches, with an "
        "iterable that repeats, such as `while True: yield from loader`",
    ),
    "iterator": (
        lambda: iter(Loader(3)),
        "got list_iterator: num_steps= counts the batches of an iterable that repeats",
    ),
    "function": (
        lambda: lambda step: HOST,
        "got function: num_steps= counts the batches of a function of the step",
    ),
}


@pytest.mark.parametrize("kind", NO_EPOCHS)
def test_data_without_epochs_are_told_their_steps(kind):
    warnings.filterwarnings("ignore", "batches from an iterable")
    make, message = NO_EPOCHS[kind]
    with pytest.raises(ValueError, match=f"need a dataset for num_epochs, {message}"):
        fit(make(), None, num_epochs=4)


def test_data_without_epochs_are_told_how_to_be_evaluated():
    warnings.filterwarnings("ignore", "batches from an iterable")
    evaluated = {"metric_fn": lambda p, b: {"y": b["y"]}, "eval_data": HOST}
    message = (
        r'need a dataset for eval_every="epoch", the default, got generator: '
        r"eval_every=20 evaluates every 20 steps"
    )
    with pytest.raises(ValueError, match=message):
        fit((HOST for _ in range(9)), 9, **evaluated)
    result = fit((HOST for _ in range(9)), 9, eval_every=3, **evaluated)
    assert result.history.steps("val/y").tolist() == [3, 6, 9]


def test_a_checkpoint_without_an_iterators_state_warns(tmp_path):
    with pytest.warns(UserWarning, match="cannot be asked for again"):
        fit([HOST] * 3, 3, checkpoint_dir=tmp_path)

    class Full(Counting):
        def __next__(self):
            super().__next__()
            return HOST

    with pytest.warns(UserWarning, match="taken from its beginning"):
        fit(Full(), 4, checkpoint_dir=tmp_path)


def aligned(shape):
    """Return zeros at an address of which JAX can share the memory."""
    size = int(np.prod(shape)) * 4
    raw = np.zeros(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size].view(np.float32).reshape(shape)


@pytest.mark.parametrize("mesh", [None, fg.sharding.make_mesh(jax.devices()[:1])])
def test_a_buffer_that_is_filled_again_trains_as_new_arrays(mesh):
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(64, 512)).astype(np.float32) for _ in range(30)]

    def refilled():
        buffer = aligned((64, 512))
        for batch in batches:
            buffer[:] = batch
            yield buffer

    def loss(w, x):
        for _ in range(3):
            x = jax.numpy.tanh(x @ w)
        return jax.numpy.mean((x - 1) ** 2)

    step = fg.make_step(loss, fg.sgd(0.5))
    ends = []
    for data in (batches, refilled()):
        state = fg.init_state(0.05 * jax.numpy.eye(512), fg.sgd(0.5), 0)
        with pytest.warns(UserWarning, match="cannot be asked for again"):
            result = fg.fit(step, state, data, mesh=mesh, progress=False)
        ends.append(np.asarray(result.state.params))
    np.testing.assert_array_equal(*ends)
