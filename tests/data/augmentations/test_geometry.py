"""Crops, flips, hidden boxes and affine maps move the pixels they are said to move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_images as oracles
import pytest
import scipy.ndimage
import scipy.stats

from fngrad.data import augmentations

N = 2000  # examples of a batch whose draws are counted
IMAGE = np.arange(1, 21, dtype=np.float32).reshape(4, 5)  # each pixel is another value


def applied(augment, images):
    """Return what a map makes of images, in one program."""
    return np.asarray(jax.jit(augment)({"x": images}, jax.random.key(0))["x"])


@functools.cache
def outcomes(name, *args, **options):
    """Return what a map makes of N copies of the image."""
    augment = getattr(augmentations, name)(*args, **options)
    return applied(augment, np.broadcast_to(IMAGE, (N, *IMAGE.shape)))


def which(made, known):
    """Return the index of the only known image that each made one equals."""
    equal = (made[:, None] == known[None]).all((2, 3))
    assert (equal.sum(1) == 1).all()
    return equal.argmax(1)


def is_likely(counts, weights):
    """Return whether counts are likely of outcomes with these weights."""
    expected = counts.sum() * np.asarray(weights) / np.sum(weights)
    return scipy.stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
def test_a_crop_is_a_uniform_window_of_the_padded_image(mode):
    made = outcomes("random_crop", (3, 4), padding=(2, 1), padding_mode=mode)
    padded = np.pad(IMAGE, [(2, 2), (1, 1)], mode=mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 4))
    counts = np.bincount(which(made, windows.reshape(-1, 3, 4)))
    assert len(counts) == 6 * 4
    assert is_likely(counts, np.ones(24))


def test_a_crop_keeps_the_size_of_an_image_unless_told_and_pads_with_its_fill():
    made = outcomes("random_crop", padding=1, fill=-3.0)
    assert made.shape == (N, 4, 5)
    assert set(np.unique(made)) == {-3.0, *IMAGE.ravel().tolist()}
    assert outcomes("random_crop", 3).shape == (N, 3, 3)
    assert (outcomes("random_crop") == IMAGE).all()


@pytest.mark.parametrize(
    ("name", "flipped"),
    [("horizontal_flip", IMAGE[:, ::-1]), ("vertical_flip", IMAGE[::-1])],
)
def test_a_flip_happens_with_its_probability(name, flipped):
    known = np.stack([IMAGE, flipped])
    counts = np.bincount(which(outcomes(name, 0.3), known))
    assert is_likely(counts, [0.7, 0.3])
    assert (outcomes(name, 0.0) == IMAGE).all()
    assert (outcomes(name, 1.0) == flipped).all()
    assert is_likely(np.bincount(which(outcomes(name), known)), [1, 1])


def test_a_full_flip_twice_is_the_identity():
    for name in ("horizontal_flip", "vertical_flip"):
        flip = getattr(augmentations, name)(1.0)
        twice = applied(augmentations.serial(flip, flip), IMAGE[None])
        assert (twice == IMAGE).all()


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_cutout_hides_the_square_around_a_uniform_pixel(size):
    made = outcomes("cutout", size, fill=-1.0)
    boxes = oracles.cutout_boxes(4, 5, size)
    known, weights = np.unique(boxes, axis=0, return_counts=True)
    images = np.where(known, -1.0, IMAGE)
    counts = np.bincount(which(made, images), minlength=len(known))
    assert (counts > 0).all()
    assert is_likely(counts, weights) or len(known) == 1


def test_cutout_leaves_images_with_the_rest_of_its_probability():
    is_whole = (outcomes("cutout", 2, probability=0.25) == IMAGE).all((1, 2))
    assert is_likely(np.bincount(is_whole), [0.25, 0.75])


def erased_boxes(made):
    """Return top, bottom, left, right of what is -1, which must be a whole box."""
    hidden = made == -1
    rows, columns = hidden.any(2), hidden.any(1)
    edges = [
        edge
        for used in (rows, columns)
        for edge in (used.argmax(1), used.shape[1] - used[:, ::-1].argmax(1))
    ]
    top, bottom, left, right = edges
    area = (bottom - top) * (right - left)
    assert (hidden.sum((1, 2)) == area).all()
    return np.stack(edges, axis=1)


def test_random_erasing_hides_boxes_of_the_given_areas_and_ratios():
    options = {"scale": (0.1, 0.3), "ratio": (0.5, 2.0), "fill": -1.0}
    erase = augmentations.random_erasing(0.75, **options)
    made = applied(erase, np.ones((N, 40, 60), np.float32))
    is_hidden = (made == -1).any((1, 2))
    assert is_likely(np.bincount(is_hidden), [0.25, 0.75])
    top, bottom, left, right = erased_boxes(made[is_hidden]).T
    height, width = bottom - top, right - left
    part, ratio = height * width / 2400, height / width
    assert (part.min(), part.max()) == pytest.approx((0.1, 0.3), abs=0.012)
    assert (ratio.min(), ratio.max()) == pytest.approx((0.5, 2.0), abs=0.1)
    uniform = scipy.stats.uniform
    assert scipy.stats.kstest((part - 0.1) / 0.2, uniform.cdf).pvalue > 1e-3
    logs = np.log2(ratio) / 2 + 0.5
    assert scipy.stats.kstest(logs, uniform.cdf).pvalue > 1e-3
    for start, size, limit in ((top, height, 40), (left, width, 60)):
        place = (start + 0.5) / (limit - size + 1)
        assert scipy.stats.kstest(place, uniform.cdf).pvalue > 1e-3


def test_an_image_for_which_no_rectangle_is_small_enough_stays_whole():
    made = outcomes("random_erasing", 1.0, scale=(0.9, 1.0), ratio=(1.0, 1.0))
    assert (made == IMAGE).all()  # 20 pixels are 4.2 x 4.2 or more


def test_noise_is_drawn_for_each_value():
    options = {"scale": (0.3, 0.3), "ratio": (1.0, 1.0), "fill": "noise"}
    erase = augmentations.random_erasing(1.0, **options)
    floats = applied(erase, np.full((90, 9, 9), 9, np.float32))
    noise = floats[floats != 9.0]
    assert len(noise) == 90 * 25
    assert scipy.stats.kstest(noise, scipy.stats.norm.cdf).pvalue > 1e-3
    counts = np.bincount(applied(erase, np.zeros((90, 9, 9), np.uint8)).ravel())
    assert is_likely(counts[1:], np.ones(255))


MATRICES = {
    "turn": oracles.rotation(25),
    "shear": np.array([[1, 0.2, 0], [0.4, 1, 0]]),
    "move": np.array([[1, 0, -1.25], [0, 1, 0.5]]),
    "all": np.array([[0.8, -0.3, 0.4], [0.1, 1.3, -0.2]]),
}


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("channels", [(), (2,)], ids=str)
def test_affine_maps_equal_their_definition(method, channels):
    image = np.random.default_rng(0).uniform(size=(6, 7, *channels)).astype("f")
    apply = jax.jit(functools.partial(augmentations.affine, method=method, fill=0.5))
    for matrix in MATRICES.values():
        made = apply(jnp.asarray(image), jnp.asarray(matrix, jnp.float32))
        expected = oracles.affine(image.astype(float), matrix, method, 0.5)
        np.testing.assert_allclose(made, expected, atol=2e-6)


def test_rotations_shears_and_moves_have_their_matrices():
    image = np.random.default_rng(1).uniform(size=(5, 6)).astype("f")

    def check(made, matrix):
        expected = oracles.affine(image, matrix, "bilinear", 0.25)
        np.testing.assert_allclose(made, expected, atol=2e-6)

    rotate, shear, translate = (
        jax.jit(functools.partial(getattr(augmentations, name), fill=0.25))
        for name in ("rotate", "shear", "translate")
    )
    for degrees in (0.0, 15.0, -40.0, 90.0):
        check(rotate(image, degrees), oracles.rotation(degrees))
    check(shear(image, 0.3, -0.2), np.array([[1, -0.2, 0], [0.3, 1, 0]]))
    check(translate(image, 1.5, -0.5), np.array([[1, 0, 0.5], [0, 1, -1.5]]))


def test_bools_between_pixels_are_the_nearest():
    mask = jnp.array([[True, False, True, True]])
    for right, expected in ((0.25, [1, 0, 1, 1]), (0.75, [0, 1, 0, 1])):
        made = augmentations.translate(mask, right)
        np.testing.assert_array_equal(made, np.array([expected], bool))


def test_quarter_turns_are_exact_and_a_turn_by_nothing_is_the_identity():
    image = np.random.default_rng(2).integers(0, 256, (6, 6, 3), np.uint8)
    for method in ("bilinear", "nearest"):
        rotate = jax.jit(functools.partial(augmentations.rotate, method=method))
        for turns in range(4):
            made = rotate(image, 90.0 * turns)
            np.testing.assert_array_equal(made, np.rot90(image, turns))


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_affine_maps_are_those_of_pil_within_rounding(method):
    Image = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(3).integers(0, 256, (12, 10), np.uint8)
    how = Image.Resampling[method.upper()]
    rotate = functools.partial(augmentations.rotate, method=method, fill=7)
    ours = jax.jit(rotate)(image, 20.0)
    theirs = Image.fromarray(image).rotate(20, how, fillcolor=7)
    difference = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
    assert difference.max() <= 1


SHADES = np.random.default_rng(5).uniform(size=(14, 11)).astype("f")
CENTER = (np.array(SHADES.shape) - 1) / 2
PLACE = np.indices(SHADES.shape).transpose(1, 2, 0) - CENTER


@jax.jit
def randomly_mapped(batch, numbers):
    names = {"images": "*", "fill": np.nan}
    return augmentations.random_affine(**numbers, **names)(batch, jax.random.key(1))


NOTHING = {
    "degrees": (0.0, 0.0),
    "translate": (0.0, 0.0),
    "scale": (1.0, 1.0),
    "shear": (0.0, 0.0),
    "vertical_shear": (0.0, 0.0),
}


def affine_maps(count=400, **numbers):
    """Return matrices (count, 2, 3) that random_affine drew, and images it made.

    Leaves that are selected change alike, so one that holds the coordinates of its
    pixels tells where each pixel comes from.
    """
    batch = {
        "x": np.broadcast_to(SHADES, (count, *SHADES.shape)),
        "place": np.broadcast_to(PLACE.astype("f"), (count, *PLACE.shape)),
    }
    made = jax.tree.map(np.asarray, randomly_mapped(batch, NOTHING | numbers))
    # Where no coordinate is cut at an edge.
    is_inner = (np.abs(made["place"]) < CENTER - 1e-3).all(-1)
    points = np.concatenate([PLACE, np.ones_like(PLACE[..., :1])], -1)
    source = np.where(is_inner[..., None], made["place"].astype(float), 0)
    used = is_inner[..., None] * points
    squares = np.einsum("nhwi,hwj->nij", used, points)
    # The normal equations of least squares.
    found = np.linalg.solve(squares, np.einsum("nhwi,nhwj->nij", used, source))
    np.testing.assert_allclose(used @ found[:, None], source, atol=1e-4)
    return found.swapaxes(1, 2), made["x"]


def test_random_affine_maps_shear_scale_turn_and_move_in_one_resampling():
    matrices, made = affine_maps(
        translate=(0.25, 0.25),
        degrees=(20.0, 20.0),
        scale=(0.9, 0.9),
        shear=(10.0, 10.0),
        vertical_shear=(-5.0, -5.0),
    )
    expected = np.linalg.inv(oracles.moved(20, 0.9, 10, -5))
    for matrix, image in zip(matrices[:20], made, strict=False):
        np.testing.assert_allclose(matrix[:, :2], expected, atol=1e-4)
        # scipy counts from the first pixel; beyond an edge it takes the edge.
        offset = matrix[:, 2] + CENTER - expected @ CENTER
        by_scipy = scipy.ndimage.affine_transform(
            SHADES.astype(float), expected, offset, order=1, mode="nearest"
        )
        is_in = np.isfinite(image)
        source = PLACE @ matrix[:, :2].T + matrix[:, 2]
        is_expected = (np.abs(source) < np.array(SHADES.shape) / 2).all(-1)
        np.testing.assert_array_equal(is_in, is_expected)
        np.testing.assert_allclose(image[is_in], by_scipy[is_in], atol=1e-3)
    moves = -np.einsum("ij,nj->ni", np.linalg.inv(expected), matrices[:, :, 2])
    assert np.abs(moves / SHADES.shape).max() <= 0.25 + 1e-4
    assert len(np.unique(moves[:, 0])) == 400


def test_numbers_of_random_affine_maps_are_uniform():
    def is_uniform(values, low, high):
        assert low <= values.min() + 1e-3
        assert values.max() - 1e-3 <= high
        found = scipy.stats.kstest((values - low) / (high - low), "uniform")
        return found.pvalue > 1e-3

    matrices, _ = affine_maps(degrees=30.0)
    assert is_uniform(np.rad2deg(np.arctan2(*matrices[:, 0, 1::-1].T)), -30, 30)
    matrices, _ = affine_maps(degrees=(10.0, 40.0))
    assert is_uniform(np.rad2deg(np.arctan2(*matrices[:, 0, 1::-1].T)), 10, 40)
    matrices, _ = affine_maps(scale=(0.5, 1.5))
    assert is_uniform(1 / matrices[:, 1, 1], 0.5, 1.5)
    matrices, _ = affine_maps(shear=(-40.0, 40.0), vertical_shear=(0.0, 20.0))
    horizontal = np.rad2deg(np.arctan(matrices[:, 1, 0]))
    vertical = np.rad2deg(np.arctan(matrices[:, 0, 1]))
    assert is_uniform(horizontal, -40, 40)
    assert is_uniform(vertical, 0, 20)
    assert abs(np.corrcoef(horizontal, vertical)[0, 1]) < 0.2
    matrices, _ = affine_maps(translate=(0.1, 0.3))
    down, right = -matrices[:, :, 2].T
    assert is_uniform(right / 11, -0.1, 0.1)
    assert is_uniform(down / 14, -0.3, 0.3)
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.2


def test_a_random_affine_map_of_nothing_is_the_identity():
    assert (outcomes("random_affine") == IMAGE).all()
    turned = applied(augmentations.random_affine((90, 90)), IMAGE[None, :, :4])
    np.testing.assert_allclose(turned[0], np.rot90(IMAGE[:, :4]), rtol=1e-6)


# Size of the result, part of the area, ratio; height and width of the box.
RESIZED = [((6, 9), 0.5, 0.8, 17, 21), ((32, 20), 0.1, 1.0, 8, 8)]


@pytest.mark.parametrize(("size", "part", "ratio", "tall", "wide"), RESIZED)
def test_a_resized_crop_is_that_of_pil(size, part, ratio, tall, wide):
    Image = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(4).integers(0, 256, (24, 30), np.uint8)
    picture, how = Image.fromarray(image), Image.Resampling.BILINEAR
    boxes = [
        (left, top, left + wide, top + tall)
        for top in range(25 - tall)
        for left in range(31 - wide)
    ]
    known = np.stack([picture.crop(b).resize(size[::-1], how) for b in boxes])
    crop = augmentations.random_resized_crop(
        size, scale=(part, part), ratio=(ratio, ratio)
    )
    made = applied(crop, np.repeat(image[None], 200, 0)).astype(int)
    distances = np.abs(made[:, None] - known.astype(int)[None]).max((2, 3))
    assert (distances.min(1) <= 1).all()
    counts = np.bincount(distances.argmin(1), minlength=len(boxes))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_a_resized_crop_that_fits_nowhere_is_central():
    image = np.arange(24, dtype=np.float32).reshape(2, 12)
    crop = augmentations.random_resized_crop((2, 2), scale=(1, 1), ratio=(1, 1))
    np.testing.assert_allclose(applied(crop, image[None])[0], image[:, 5:7])


def test_a_function_of_one_image_has_a_key_for_each():
    def shifted(image, key):
        return image + jax.random.uniform(key)

    made = applied(augmentations.per_image(shifted), np.zeros((N, 1, 1), np.float32))
    uniform = scipy.stats.uniform
    assert scipy.stats.kstest(made.ravel(), uniform.cdf).pvalue > 1e-3
