"""What holds for every augmentation: keys, dtypes, leaves, seeds, resuming."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
from fngrad.data import augmentations

OPERATIONS = augmentations.rand_augment_operations()
MAPS = {
    "random_crop": augmentations.random_crop(padding=2),
    "horizontal_flip": augmentations.horizontal_flip(),
    "vertical_flip": augmentations.vertical_flip(),
    "cutout": augmentations.cutout(3),
    "random_erasing": augmentations.random_erasing(0.8, fill="noise"),
    "color_jitter": augmentations.color_jitter(0.4, 0.4),
    "mixup": augmentations.mixup(1.0, 3),
    "cutmix": augmentations.cutmix(1.0, 3),
    "random_affine": augmentations.random_affine(20, 0.2, (0.8, 1.2), 10, (-5, 5)),
    "rand_augment": augmentations.rand_augment(
        2, 9.0, [OPERATIONS[name] for name in ("rotate", "contrast", "shear_x")]
    ),
    "serial": augmentations.serial(
        augmentations.random_crop(padding=1), augmentations.horizontal_flip()
    ),
    "one_of": augmentations.one_of(
        augmentations.horizontal_flip(1.0), augmentations.vertical_flip(1.0)
    ),
}
IMAGES = np.random.default_rng(0).uniform(size=(6, 8, 9, 3)).astype("f")
BATCH = {
    "x": IMAGES,
    "y": np.array([0, 1, 2, 0, 1, 2], np.int32),
    "id": np.arange(6),
}
every_map = pytest.mark.parametrize("name", MAPS)


@every_map
def test_seeds_in_a_vmap_have_the_batches_of_seeds_one_by_one(name):
    augment = jax.jit(MAPS[name])
    keys = jax.random.split(jax.random.key(1), 3)
    alone = [augment(BATCH, key) for key in keys]
    many = jax.jit(jax.vmap(MAPS[name], in_axes=(None, 0)))(BATCH, keys)
    for i, batch in enumerate(alone):
        made = jax.tree.map(lambda x, i=i: x[i], many)
        chex.assert_trees_all_close(made, batch, atol=1e-6)
        np.testing.assert_array_equal(batch["id"], BATCH["id"])  # not selected
        if name not in ("mixup", "cutmix"):
            np.testing.assert_array_equal(batch["y"], BATCH["y"])
    seen = {np.asarray(batch["x"]).tobytes() for batch in alone}
    assert len(seen) > 1 or name == "one_of"


@every_map
def test_images_keep_shape_and_dtype_and_nearly_their_values(name):
    key, augment = jax.random.key(2), jax.jit(MAPS[name])
    expected = np.asarray(augment(BATCH, key)["x"], float)
    for dtype, unit in ((jnp.bfloat16, 1), (jnp.float16, 1), (jnp.uint8, 255)):
        images = jnp.round(IMAGES * unit) if unit > 1 else jnp.asarray(IMAGES)
        made = augment(BATCH | {"x": images.astype(dtype)}, key)["x"]
        assert made.shape == IMAGES.shape
        assert made.dtype == dtype
        if name != "random_erasing":  # its noise is drawn in the dtype
            np.testing.assert_allclose(made.astype(float) / unit, expected, atol=0.02)


@every_map
def test_dtypes_are_kept_in_double_precision_too(name, x64):
    for dtype in (jnp.float64, jnp.float32, jnp.bfloat16, jnp.uint8):
        images = jax.ShapeDtypeStruct(IMAGES.shape, dtype)
        made = jax.eval_shape(MAPS[name], BATCH | {"x": images}, jax.random.key(0))
        assert (made["x"].shape, made["x"].dtype) == (images.shape, images.dtype)


def test_leaves_that_are_selected_change_alike():
    flip = augmentations.horizontal_flip(images=["x", "mask"])
    crop = augmentations.random_crop(padding=2, images=["x", "mask"])
    both = augmentations.serial(flip, crop)
    made = jax.jit(both)(BATCH | {"mask": IMAGES[..., 0] > 0.5}, jax.random.key(3))
    assert made["mask"].dtype == bool
    np.testing.assert_array_equal(made["mask"], made["x"][..., 0] > 0.5)
    assert (made["x"] != IMAGES).any()


def test_the_batch_of_a_step_is_a_function_of_seed_and_step():
    def data(seed):
        arrays = {"x": np.repeat(IMAGES, 4, 0)}
        return fg.data.from_arrays(arrays, 6, seed=seed).map(MAPS["vertical_flip"])

    batch = jax.jit(lambda data, step: data.batch(step)["x"])
    first = [batch(data(0), step) for step in range(6)]
    again = [batch(data(0), step) for step in (5, 3)]  # as after a resume
    chex.assert_trees_all_equal(again, [first[5], first[3]])
    assert (batch(data(1), 3) != first[3]).any()
    seeds = jnp.arange(2)
    many = jax.jit(jax.vmap(lambda seed: data(0).reseed(seed).batch(3)["x"]))(seeds)
    np.testing.assert_array_equal(many, [batch(data(seed), 3) for seed in range(2)])


def test_serial_has_the_batches_of_one_map_after_the_other():
    mirror, flip = augmentations.horizontal_flip(), augmentations.vertical_flip()
    data = fg.data.from_arrays(BATCH, 4)

    def double(batch):
        return batch | {"x": 2 * batch["x"]}

    batch = jax.jit(lambda data: data.batch(1))
    for maps in ((mirror, double, flip), (mirror, double)):
        one, both = data, data.map(augmentations.serial(*maps))
        for fn in maps:
            one = one.map(fn)
        chex.assert_trees_all_equal(batch(both), batch(one))
    assert repr(data.map(mirror)).endswith(".map(horizontal_flip)")


def test_maps_in_series_have_keys_of_their_own():
    def noisy(batch, key):
        return batch + jax.random.normal(key, batch.shape)

    made = augmentations.serial(noisy, noisy)(jnp.zeros(2000), 0)
    assert abs(made.std() - 2**0.5) < 0.1  # one key would give 2


def test_one_of_several_is_drawn_by_its_probabilities():
    def to(value):
        return lambda batch: jnp.full_like(batch, value)

    def counts(**options):
        choose = augmentations.one_of(to(0), to(1), to(2), **options)
        keys = jax.random.split(jax.random.key(0), 3000)
        made = jax.jit(jax.vmap(choose, in_axes=(None, 0)))(jnp.zeros(1), keys)
        return np.bincount(np.asarray(made, int).ravel(), minlength=3) / 3000

    np.testing.assert_allclose(counts(), 1 / 3, atol=0.03)
    seen = counts(probabilities=(3.0, 0.0, 1.0))
    np.testing.assert_allclose(seen, [0.75, 0, 0.25], atol=0.03)
    assert seen[1] == 0


def test_numbers_may_be_data_and_give_the_bits_of_written_ones():
    makers = {
        "mixup": lambda v: augmentations.mixup(v, labels=()),
        "brightness": augmentations.color_jitter,
        "cutout": lambda v: augmentations.cutout(3, probability=v, fill=v),
    }
    key, value = jax.random.key(4), 0.4
    for name, make in makers.items():
        written = jax.jit(make(value))(BATCH, key)
        passed = jax.jit(lambda v, make=make: make(v)(BATCH, key))(value)
        chex.assert_trees_all_equal(passed, written, custom_message=name)


def test_gray_images_without_channels_and_an_int_as_key_will_do():
    augment = augmentations.serial(
        augmentations.random_crop(6), augmentations.cutout(2)
    )
    gray = {"x": IMAGES[..., 0]}
    made = augment(gray, 5)
    assert made["x"].shape == (6, 6, 6)
    chex.assert_trees_all_equal(made, augment(gray, jax.random.key(5)))


def call(augment, batch):
    return lambda: augment(batch, jax.random.key(0))


FLAT = {"x": np.zeros((4, 64), np.float32)}
BYTES = {"x": np.zeros((2, 4, 4), np.uint8)}
INTEGERS = {"x": np.zeros((2, 4, 4), np.int32)}
TWO_SIZES = {"a": np.zeros((2, 4, 4)), "b": np.zeros((2, 5, 4))}
MISTAKES = {
    r"\(n, height, width, channels\), got shape \(4, 64\) at 'x'; flat images": call(
        augmentations.horizontal_flip(), FLAT
    ),
    r"need a glob that selects a leaf, got 'image' for the leaves \['x'\]": call(
        augmentations.horizontal_flip(images="image"), FLAT
    ),
    r"need images that select a leaf, got .* for the leaves \['x'\]": call(
        augmentations.horizontal_flip(images=lambda path, leaf: False), FLAT
    ),
    r"need images of one number and size, got \{'a': \(2, 4, 4\), 'b'": call(
        augmentations.horizontal_flip(images="**"), TWO_SIZES
    ),
    r"window of at most the padded images' \(6, 6\), got size=\(7, 7\)": call(
        augmentations.random_crop(7, padding=1), BYTES
    ),
    r"at most \(3, 3\) pixels with padding_mode='reflect' .* padding=\(4, 4\)": call(
        augmentations.random_crop(padding=4, padding_mode="reflect"), BYTES
    ),
    r"need an integer fill in \[0, 255\] for images of dtype uint8, got fill=0.5": call(
        augmentations.cutout(2, fill=0.5), BYTES
    ),
    r"need images of uint8 or floats for fill=\"noise\", got int32": call(
        augmentations.random_erasing(fill="noise"), INTEGERS
    ),
    r"need fill to be one of \('noise',\), got fill='random'": call(
        augmentations.random_erasing(fill="random"), BYTES
    ),
    r"alike, got from number 1: ": call(
        augmentations.one_of(lambda b: b, augmentations.random_crop(2)), BYTES
    ),
    r"need first axes of one length, got \{'x': 4, 'y': 3\}": call(
        augmentations.mixup(), FLAT | {"y": np.zeros(3, np.float32)}
    ),
    "need padding_mode to be one of": lambda: augmentations.random_crop(
        padding_mode="zeros"
    ),
    "need size as one int or two, got": lambda: augmentations.random_crop((1, 2, 3)),
    "need an int size >= 1, got size=0": lambda: augmentations.random_crop(0),
    "need an int padding >= 0": lambda: augmentations.random_crop(padding=-1),
    r"<= probability <= 1.0, got probability=2": lambda: augmentations.vertical_flip(2),
    r"high <= 1 in scale=\(low, high\), got scale=\(0.5, 2\)": lambda: (
        augmentations.random_erasing(scale=(0.5, 2))
    ),
    r"got ratio=\(2, 1\)": lambda: augmentations.random_erasing(ratio=(2, 1)),
    r"need 0 < low <= high < inf in ratio=\(low, high\), got ratio=\(0, 1\)": lambda: (
        augmentations.random_erasing(ratio=(0, 1))
    ),
    r"got ratio=\(1, inf\)": lambda: augmentations.random_resized_crop(
        2, ratio=(1, np.inf)
    ),
    r"need an integer fill in .* got fill=inf": call(
        augmentations.cutout(2, fill=np.inf), BYTES
    ),
    r"need a matrix of shape \(2, 3\), got shape \(3, 3\)": lambda: (
        augmentations.affine(BYTES["x"][0], np.eye(3))
    ),
    r"need 0.0 <= hue <= 0.5, got hue=0.6": lambda: augmentations.color_jitter(hue=0.6),
    r"need 0.0 <= contrast <= inf": lambda: augmentations.color_jitter(contrast=-1),
    "as many probabilities, got 0 maps": augmentations.one_of,
    "got 1 maps and 2 prob": lambda: augmentations.one_of(
        lambda b: b, probabilities=(1, 2)
    ),
    r"need 0.0 <= probabilities\[1\] <= inf, got": lambda: augmentations.one_of(
        lambda b: b, lambda b: b, probabilities=(1, -1)
    ),
    "need method to be one of": lambda: augmentations.rand_augment_operations(
        method="cubic"
    ),
    "need method to be one of .* got method='cubic'": lambda: (
        augmentations.random_affine(method="cubic")
    ),
    "need scale as .low, high., got scale=1.1": lambda: augmentations.random_affine(
        scale=1.1
    ),
    "need scale > 0, got scale=0": lambda: augmentations.random_affine(scale=(0, 1)),
    "need 0.0 <= degrees <= inf, got degrees=-5": lambda: augmentations.random_affine(
        -5
    ),
    "<= high < inf in degrees=.low, high., got degrees=.5, -5.": lambda: (
        augmentations.random_affine((5, -5))
    ),
    r"need -90.0 < low <= high < 90.0 in shear=\(low, high\), got shear=90": lambda: (
        augmentations.random_affine(shear=90)
    ),
    "need vertical_shear as one number or .low, high., got .1, 2, 3.": lambda: (
        augmentations.random_affine(vertical_shear=(1, 2, 3))
    ),
    "need 0.0 <= translate <= 1.0, got translate=5": lambda: (
        augmentations.random_affine(translate=(0.1, 5))
    ),
    "need translate as one number or two": lambda: augmentations.random_affine(
        translate=(0.1, 0.1, 0.1)
    ),
    "need degrees to be a number": lambda: augmentations.random_affine("10"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_explained(message):
    with pytest.raises((ValueError, TypeError), match=message):
        MISTAKES[message]()


def test_a_function_of_other_arguments_is_no_map():
    for compose in (augmentations.serial, augmentations.one_of):
        with pytest.raises(TypeError, match=r"need a function fn\(batch\)"):
            compose(lambda a, b: a)
