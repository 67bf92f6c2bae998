"""Colors and tones are those of their formulas, of colorsys and of PIL."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles_images as oracles
import pytest
import scipy.stats

from fngrad.data import augmentations

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (16, 20, 3), np.uint8)
RGB[0, :4] = [[0, 0, 0], [255, 255, 255], [9, 9, 9], [255, 0, 255]]  # gray, white
DARK = RNG.integers([20, 5, 40], [90, 200, 60], (40, 40, 3)).astype(np.uint8)


@functools.cache
def jitted(name):
    return jax.jit(getattr(augmentations, name))


def bytes_of(fractions):
    return np.asarray(fractions) * 255


BY_FACTOR = {
    "adjust_brightness": (oracles.brightness, (0.0, 0.6, 1.0, 1.7)),
    "adjust_contrast": (oracles.contrast, (0.0, 0.6, 1.0, 1.7)),
    "adjust_saturation": (oracles.saturation, (0.0, 0.6, 1.0, 1.7)),
    "adjust_sharpness": (oracles.sharpness, (0.0, 0.6, 1.0, 1.7)),
    "adjust_hue": (oracles.hue, (0.0, 0.2, -0.45, 1 / 3, 1.0)),
}


@pytest.mark.parametrize("name", BY_FACTOR)
def test_adjustments_equal_their_formulas(name):
    oracle, factors = BY_FACTOR[name]
    for factor in factors:
        expected = oracle(RGB / 255, factor)
        made = jitted(name)((RGB / 255).astype("f"), factor)
        np.testing.assert_allclose(made, expected, atol=2e-6)
        made = np.asarray(jitted(name)(RGB, factor), float)
        assert np.abs(made - 255 * expected).max() <= 0.5001  # rounded to the nearest


@pytest.mark.parametrize("name", BY_FACTOR)
def test_a_neutral_adjustment_keeps_every_value(name):
    neutral = 0.0 if name == "adjust_hue" else 1.0
    np.testing.assert_array_equal(jitted(name)(RGB, neutral), RGB)


@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("adjust_brightness", "Brightness"),
        ("adjust_contrast", "Contrast"),
        ("adjust_saturation", "Color"),
        ("adjust_sharpness", "Sharpness"),
    ],
)
def test_adjustments_are_those_of_pil_within_its_roundings(name, enhancer):
    Image = pytest.importorskip("PIL.Image")
    enhance = getattr(pytest.importorskip("PIL.ImageEnhance"), enhancer)
    for factor in (0.3, 0.8, 1.6):
        theirs = np.asarray(enhance(Image.fromarray(RGB)).enhance(factor), int)
        ours = np.asarray(jitted(name)(RGB, factor), int)
        # PIL rounds the degenerate image, and truncates the blend.
        assert np.abs(ours - theirs).max() <= 2


def test_tones_are_those_of_pil():
    Image = pytest.importorskip("PIL.Image")
    ops = pytest.importorskip("PIL.ImageOps")
    for image in (RGB, DARK, np.full_like(RGB, 7), DARK // 30):
        theirs = Image.fromarray(image)
        made = jitted("equalize")(image)
        np.testing.assert_array_equal(made, ops.equalize(theirs))
        made = np.asarray(jitted("autocontrast")(image), int)
        assert np.abs(made - np.asarray(ops.autocontrast(theirs), int)).max() <= 1
        for bits in (1, 3, 4, 8):
            made = jitted("posterize")(image, bits)
            np.testing.assert_array_equal(made, ops.posterize(theirs, bits))
        for threshold in (0, 77, 255, 256):
            made = jitted("solarize")(image, threshold / 255)
            np.testing.assert_array_equal(made, ops.solarize(theirs, threshold))


def test_tones_of_floats_are_those_of_bytes():
    fractions = (DARK / 255).astype("f")
    for name in ("equalize", "autocontrast"):
        made = bytes_of(jitted(name)(fractions))
        np.testing.assert_allclose(made, jitted(name)(DARK), atol=0.51)
    inverted = jitted("solarize")(fractions, 0.2)
    expected = np.where(fractions < 0.2, fractions, 1 - fractions)
    np.testing.assert_allclose(inverted, expected, atol=1e-7)
    levels = np.unique(jitted("posterize")(jnp.linspace(0, 1, 99)[None], 2))
    np.testing.assert_array_equal(levels, [0, 0.25, 0.5, 0.75])


def test_values_outside_of_a_float_image_are_clipped_first():
    image = jnp.array([[-0.5, 0.5, 1.5]])
    for name in ("adjust_brightness", "adjust_contrast", "posterize"):
        made = jitted(name)(image, 8 if name == "posterize" else 1.0)
        np.testing.assert_allclose(made, [[0.0, 0.5, 1.0]], atol=1 / 256)


def test_an_image_of_one_channel_has_neither_saturation_nor_hue():
    for gray in (RGB[..., :1], RGB[..., 0]):
        for name in ("adjust_saturation", "adjust_hue"):
            np.testing.assert_array_equal(jitted(name)(gray, 0.3), gray)
        made = np.asarray(jitted("adjust_contrast")(gray, 0.3))
        expected = 0.3 * gray + 0.7 * gray.mean()
        np.testing.assert_allclose(made, expected, atol=0.501)
    for name in ("adjust_saturation", "adjust_hue"):
        with pytest.raises(ValueError, match=r"3 channels or 1 .* shape \(16, 20, 2\)"):
            getattr(augmentations, name)(RGB[..., :2], 0.3)


def test_integers_of_another_range_are_no_image():
    wide = RGB.astype(np.int32)
    with pytest.raises(TypeError, match=r"an image of dtype uint8, in .* got int32"):
        augmentations.autocontrast(wide)
    with pytest.raises(TypeError, match=r"images at 'x' of dtype uint8, in .*int32"):
        augmentations.color_jitter(0.1)({"x": wide[None]}, jax.random.key(0))
    with pytest.raises(ValueError, match=r"need 0.0 <= factor <= inf, got factor=-1"):
        augmentations.adjust_contrast(RGB, -1)
    with pytest.raises(ValueError, match=r"need 0.0 <= bits <= 8.0, got bits=9"):
        augmentations.posterize(RGB, 9)


def applied(augment, images, seed=0):
    return np.asarray(jax.jit(augment)({"x": images}, jax.random.key(seed))["x"])


N = 1000


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_jitter_of_brightness_has_uniform_factors(strength):
    images = np.full((N, 2, 2, 3), 0.25, np.float32)
    factors = applied(augmentations.color_jitter(strength), images)[:, 0, 0, 0] / 0.25
    low = max(0.0, 1 - strength)
    expected = scipy.stats.uniform(low, 1 + strength - low)
    assert scipy.stats.kstest(factors, expected.cdf).pvalue > 1e-3


def test_jitter_of_contrast_saturation_and_hue_has_uniform_factors():
    image = np.array([[[0.5, 0.4, 0.4], [0.4, 0.4, 0.5]]], np.float32)
    images = np.broadcast_to(image, (N, *image.shape))
    for change, of_pixels in {
        "contrast": lambda x: (
            (oracles.gray(x)[..., 0] - oracles.gray(x)[..., 1])
            / (0.1 * (0.299 - 0.114))
        ),
        "saturation": lambda x: (x[..., 0, 0] - x[..., 0, 1]) / 0.1,
    }.items():
        made = applied(augmentations.color_jitter(**{change: 0.6}), images)
        factors = of_pixels(made)[:, 0]
        expected = scipy.stats.uniform(0.4, 1.2)
        assert scipy.stats.kstest(factors, expected.cdf).pvalue > 1e-3, change
    red = np.broadcast_to(np.array([1, 0, 0], np.float32), (N, 1, 1, 3))
    made = applied(augmentations.color_jitter(hue=0.15), red)[:, 0, 0]
    turns = (made[:, 1] - made[:, 2]) / 6  # green grows one way, blue the other
    expected = scipy.stats.uniform(-0.15, 0.3)
    assert scipy.stats.kstest(turns, expected.cdf).pvalue > 1e-3


def test_jitter_changes_in_a_random_order_and_rounds_once():
    """Brightness and contrast do not commute where an image is clipped."""
    image = np.array([[0.2, 0.9]], np.float32)
    jitter = augmentations.color_jitter(brightness=1.0, contrast=1.0)
    images = np.broadcast_to(image, (N, *image.shape))
    seen = set()
    for seed in range(8):
        made = applied(jitter, images, seed)
        is_clipped = made[:, 0, 1] == 1.0
        # After contrast both values keep the mean, unless brightness clipped before.
        darkest = made[is_clipped, 0, 0]
        seen.add(bool((darkest > 0.45).any()))
    assert seen == {True, False}


def test_jitter_without_strengths_keeps_every_byte():
    made = applied(augmentations.color_jitter(), RGB[None])
    np.testing.assert_array_equal(made, RGB[None])


def test_rand_augment_draws_operations_and_signs_uniformly():
    operations = {
        "add": lambda image, level: image + level,
        "first": lambda image, level: image.at[0].add(10 * level),
    }
    augment = augmentations.rand_augment(1, 4.0, operations)
    made = applied(augment, np.zeros((N, 2, 1), np.float32))[:, :, 0]
    known = np.array([[0.4, 0.4], [-0.4, -0.4], [4, 0], [-4, 0]])
    is_equal = np.isclose(made[:, None], known[None]).all(2)
    assert (is_equal.sum(1) == 1).all()
    assert scipy.stats.chisquare(is_equal.sum(0)).pvalue > 1e-3


def test_rand_augment_applies_as_many_operations_as_asked():
    augment = augmentations.rand_augment(5, 10.0, [lambda image, level: image + 1])
    assert (applied(augment, np.zeros((2, 2, 2), np.float32)) == 5).all()
    none = augmentations.rand_augment(0, 10.0)
    np.testing.assert_array_equal(applied(none, RGB[None]), RGB[None])


def operations_at(level):
    """Return what each operation of the paper makes of an image, as one program."""
    known = augmentations.rand_augment_operations(fill=0.5)
    run = jax.jit(lambda x, at: {name: op(x, at) for name, op in known.items()})
    return {name: np.asarray(x) for name, x in run(SOFT, level).items()}


SOFT = (RGB / 255).astype("f")


def test_the_operations_of_rand_augment_are_those_of_its_table():
    made = operations_at(0.5)
    assert len(made) == 14

    def moved(matrix):
        return oracles.affine(SOFT.astype(float), np.array(matrix), "nearest", 0.5)

    height, width = SOFT.shape[:2]
    right, down = 150 / 331 * 0.5 * width, 150 / 331 * 0.5 * height
    expected = {
        "identity": SOFT,
        "rotate": moved(oracles.rotation(15)),
        "shear_x": moved([[1, 0, 0], [0.15, 1, 0]]),
        "shear_y": moved([[1, 0.15, 0], [0, 1, 0]]),
        "translate_x": moved([[1, 0, 0], [0, 1, -right]]),
        "translate_y": moved([[1, 0, -down], [0, 1, 0]]),
        "brightness": oracles.brightness(SOFT, 1.45),
        "color": oracles.saturation(SOFT, 1.45),
        "contrast": oracles.contrast(SOFT, 1.45),
        "sharpness": oracles.sharpness(SOFT.astype(float), 1.45),
        "solarize": np.where(SOFT < 128 / 255, SOFT, 1 - SOFT),
        "posterize": np.minimum(np.floor(SOFT * 64), 63) / 64,
        "autocontrast": jitted("autocontrast")(SOFT),
        "equalize": jitted("equalize")(SOFT),
    }
    for name, image in expected.items():
        np.testing.assert_allclose(made[name], image, atol=3e-6, err_msg=name)


def test_at_level_0_only_autocontrast_and_equalize_change_an_image():
    for name, image in operations_at(0.0).items():
        if name == "posterize":  # to 8 bits
            np.testing.assert_allclose(image, SOFT, atol=1 / 255)
        elif name not in ("autocontrast", "equalize"):
            np.testing.assert_allclose(image, SOFT, atol=1e-6, err_msg=name)


def test_operations_must_keep_an_image():
    augment = augmentations.rand_augment(1, 1.0, [lambda image, level: image[:1]])
    with pytest.raises(ValueError, match=r"keeps an image's shape .* got \(1, 20, 3\)"):
        augment({"x": RGB[None]}, jax.random.key(0))
    with pytest.raises(ValueError, match="need one operation or more"):
        augmentations.rand_augment(operations=[])
    with pytest.raises(ValueError, match=r"need 0.0 <= magnitude <= 10.0, got .*=11"):
        augmentations.rand_augment(2, 11)
