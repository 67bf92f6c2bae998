"""Mixup and CutMix: pairs, weights, labels by area, and what losses make of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_images as oracles
import pytest
import scipy.stats

import fngrad as fg
from fngrad.data import augmentations

N, CLASSES, SIDE = 500, 5, 20
MIXES = {"mixup": augmentations.mixup, "cutmix": augmentations.cutmix}
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, N).astype(np.int32)
NUMBERS = np.arange(N, dtype=np.float32)
BATCH = {
    # Each image has one value, its number, so that a mixed one shows its pair.
    "x": np.broadcast_to(NUMBERS[:, None, None], (N, SIDE, SIDE)),
    "bytes": RNG.integers(0, 256, (N, SIDE, SIDE, 1), np.uint8),
    "y": LABELS,
    "target": np.linspace(0, 1, N, dtype=np.float32),
    "vector": RNG.uniform(size=(N, 3)).astype("f"),
}
OPTIONS = {"images": ["x", "bytes"], "labels": ["y", "target", "vector"]}


@functools.cache
def program(name, targets, per_example):
    def apply(alpha, batch, key):
        augment = MIXES[name](
            alpha, CLASSES, targets=targets, per_example=per_example, **OPTIONS
        )
        return augment(batch, key)

    return jax.jit(apply)


def mixed(name, alpha=1.0, targets="pairs", per_example=True, seed=0):
    made = program(name, targets, per_example)(alpha, BATCH, jax.random.key(seed))
    return jax.tree.map(np.asarray, made)


def drawn(made):
    """Return the number of each example's partner, and its weight."""
    second = np.round(made["target"].second * (N - 1)).astype(int)
    return second, made["y"].weight


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("per_example", [True, False])
def test_every_example_is_the_second_of_one_pair(name, per_example):
    made = mixed(name, per_example=per_example)
    second, weight = drawn(made)
    np.testing.assert_array_equal(np.sort(second), np.arange(N))
    assert (second == np.arange(N)).sum() < 10  # 1 is expected
    for label in ("y", "target", "vector"):
        np.testing.assert_array_equal(made[label].first, BATCH[label])
        np.testing.assert_array_equal(made[label].second, BATCH[label][second])
        np.testing.assert_array_equal(made[label].weight, weight)
    assert (len(np.unique(weight)) > 1) is per_example


def test_mixup_is_the_mean_by_its_weight_of_images_and_labels():
    second, weight = drawn(mixed("mixup"))
    soft = mixed("mixup", targets="soft")  # of the same key
    for name, x in BATCH.items():
        values = np.eye(CLASSES)[x] if name == "y" else x
        expected = oracles.mixed(values, second, weight)
        assert soft[name].dtype == (np.float32 if name == "y" else x.dtype)
        atol = 0.5001 if name == "bytes" else 1e-6  # the nearest byte
        np.testing.assert_allclose(soft[name], expected, rtol=2e-5, atol=atol)
    np.testing.assert_array_equal(mixed("mixup")["x"], soft["x"])


def test_the_weights_of_mixup_have_a_beta_distribution():
    for alpha in (0.2, 1.0, 3.0):
        _, weight = drawn(mixed("mixup", alpha))
        expected = scipy.stats.beta(alpha, alpha)
        assert scipy.stats.kstest(weight, expected.cdf).pvalue > 1e-3, alpha


def test_a_box_of_cutmix_is_that_of_the_pair_and_labels_count_its_pixels():
    made = mixed("cutmix")
    second, weight = drawn(made)
    is_other = made["x"] == NUMBERS[second][:, None, None]
    is_own = made["x"] == NUMBERS[:, None, None]
    assert (is_other | is_own).all()
    is_pair = second != np.arange(N)
    area = is_own.mean((1, 2))
    np.testing.assert_allclose(weight[is_pair], area[is_pair], atol=1e-6)
    rows, columns = is_other.any(2), is_other.any(1)
    np.testing.assert_array_equal(is_other, rows[:, :, None] & columns[:, None, :])
    for sides in (rows, columns):  # without gaps
        changes = np.abs(np.diff(np.pad(sides, [(0, 0), (1, 1)]).astype(int))).sum(1)
        assert set(changes) <= {0, 2}
    pasted = np.where(is_other[..., None], BATCH["bytes"][second], BATCH["bytes"])
    np.testing.assert_array_equal(made["bytes"][is_pair], pasted[is_pair])


def test_the_boxes_of_cutmix_have_the_sides_of_its_beta_distribution():
    """A box that touches no edge shows its sides, floor(20 sqrt(1 - lambda))."""
    images = np.stack([mixed("cutmix", 0.5, seed=seed)["x"] for seed in range(8)])
    is_box = (images != NUMBERS[:, None, None]).reshape(-1, SIDE, SIDE)
    edges = is_box[:, [0, -1]].any((1, 2)) | is_box[:, :, [0, -1]].any((1, 2))
    boxes = is_box[~edges & is_box.any((1, 2))]
    height, width = boxes.any(2).sum(1), boxes.any(1).sum(1)
    np.testing.assert_array_equal(height, width)
    # Smaller boxes touch no edge for more of their centers.
    sides, beta = np.arange(1, SIDE - 1), scipy.stats.beta(0.5, 0.5)
    chance = beta.cdf(((sides + 1) / SIDE) ** 2) - beta.cdf((sides / SIDE) ** 2)
    chance = chance * (SIDE - 1 - sides) ** 2
    groups = np.digitize(sides, [3, 5, 8, 11])
    expected = np.bincount(groups, chance) / chance.sum() * len(height)
    seen = np.bincount(np.digitize(height, [3, 5, 8, 11]), minlength=5)
    assert len(height) > 600
    assert scipy.stats.chisquare(seen, expected).pvalue > 1e-3


def test_soft_labels_of_cutmix_are_those_of_its_pairs():
    second, weight = drawn(mixed("cutmix"))
    soft = mixed("cutmix", targets="soft")
    expected = oracles.mixed(np.eye(CLASSES)[LABELS], second, weight)
    np.testing.assert_allclose(soft["y"], expected, atol=1e-6)
    expected = oracles.mixed(BATCH["target"], second, weight)
    np.testing.assert_allclose(soft["target"], expected, atol=1e-6)


def test_pairs_and_soft_labels_have_one_cross_entropy_with_smoothing_too():
    logits = jnp.asarray(RNG.normal(size=(N, CLASSES)).astype("f"))
    pair, soft = mixed("mixup")["y"], mixed("mixup", targets="soft")["y"]

    @jax.jit
    def both(logits, pair, soft, smoothing):
        options = {"label_smoothing": smoothing}

        def of_labels(labels):
            loss_fn = fg.losses.softmax_cross_entropy_with_integer_labels
            return loss_fn(logits, labels, **options)

        of_soft = fg.losses.softmax_cross_entropy(logits, soft, **options)
        return pair.average(of_labels), of_soft

    for smoothing in (0.0, 0.1):
        ours, expected = both(logits, pair, soft, smoothing)
        np.testing.assert_allclose(ours, expected, rtol=2e-5)


def test_a_label_out_of_range_is_nan_and_no_other_class():
    batch = BATCH | {"y": np.full(N, -1, np.int32)}
    batch["y"][: N // 2] = CLASSES
    made = program("mixup", "soft", True)(1.0, batch, jax.random.key(0))
    assert np.isnan(made["y"]).all()


@pytest.mark.parametrize("name", MIXES)
def test_what_cannot_be_mixed_is_refused(name):
    key, mix = jax.random.key(0), MIXES[name]
    batch = {"x": np.zeros((4, 2, 2), np.float32), "y": LABELS[:4]}
    with pytest.raises(ValueError, match=r"integer labels at 'y', or targets=.pairs"):
        mix()(batch, key)
    with pytest.raises(TypeError, match="integers or floats to mix, got bools at 'y'"):
        mix(1.0, 2)(batch | {"y": LABELS[:4] > 2}, key)
    with pytest.raises(ValueError, match="need alpha > 0, got alpha=0"):
        mix(0)
    with pytest.raises(ValueError, match=r"need targets to be one of .*'hard'"):
        mix(targets="hard")
    with pytest.raises(ValueError, match=r"need an int num_classes >= 1, got num_cl"):
        mix(1.0, 0)
    with pytest.raises(ValueError, match=r"selects a leaf, got 'label' for .*'x', 'y'"):
        mix(labels="label", num_classes=3)(batch, key)


def test_a_batch_without_labels_is_mixed_too():
    mix = jax.jit(augmentations.mixup(labels=(), images="**"))
    made = mix(NUMBERS, jax.random.key(0))
    assert made.shape == NUMBERS.shape
    assert (made != NUMBERS).any()
