"""Every bit of a seed matters, and small seeds keep their keys."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fngrad as fg
import fngrad.numerics as numerics

SMALL = [0, 1, 5, 2**16 + 3, 2**31 - 1, 2**31, 2**32 - 1]
LARGE = [2**32, 2**32 + 5, 2**33 + 5, 2**63, 2**64 - 1, 2**64 + 1, 2**64 + 5, 2**100]
NEGATIVE = [-1, -2, -5, -6, -(2**31), -(2**32), -(2**32) - 5, -(2**63), -(2**100)]
WORDS = [sum(2 ** (32 * i) for i in range(n)) for n in range(2, 6)]
SEEDS = [*SMALL, *LARGE, *NEGATIVE, *WORDS]


def digest(array, dtype):
    data = np.ascontiguousarray(np.asarray(array).astype(dtype)).tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def order(seed):
    data = fg.data.from_arrays(np.arange(97), 97, seed=seed)
    return np.concatenate([data.indices(step) for step in range(2)])


def halves(seed):
    return np.concatenate(fg.data.split(np.arange(97), [0.5, 0.5], seed=seed))


def drawn(draw, seed):
    return draw(4, seed, a=fg.sweeps.uniform(0, 1))["a"]


def windows(seed):
    return fg.data.windows(np.arange(97), 2, 8, seed=seed).indices(0)


def initialized(seed):
    return fg.layers.linear(3, 2).init(seed)["weight"]


USES = {
    "orders": (SEEDS, order),
    "reseeded": (SEEDS, lambda s: fg.data.from_arrays(np.arange(97), 9).reseed(s).key),
    "windows": (SEEDS, windows),
    "states": (SEEDS, lambda s: fg.init_state(jnp.ones(2), fg.sgd(1), s).key),
    "layers": (SEEDS, initialized),
    "random": (SEEDS, lambda s: drawn(fg.sweeps.random, s)),
    "sobol": ([s for s in SEEDS if s >= 0], lambda s: drawn(fg.sweeps.sobol, s)),
    "split": ([s for s in SEEDS if s >= 0], halves),
}


def as_bytes(x):
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()


@pytest.mark.parametrize("use", USES)
def test_different_seeds_give_different_runs(use):
    seeds, function = USES[use]
    assert len(set(seeds)) == len(seeds)
    results = {as_bytes(function(seed)): seed for seed in seeds}
    assert len(results) == len(seeds)


def test_different_seeds_have_different_keys():
    assert len({bits(numerics.key(seed)) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("name", ["threefry2x32", "rbg"])
def test_a_folded_seed_is_not_a_step_of_another_run(name):
    with jax.default_prng_impl(name):
        run = numerics.key(5)
        steps = {bits(jax.random.fold_in(run, t)) for t in [*range(100), 2**31 - 1]}
        others = [2**32 + 5, -6, 2**64 + 5, *SEEDS]
        assert not steps & {bits(numerics.key(seed)) for seed in others}


@pytest.mark.parametrize("precision", ["float32", "x64"])
def test_small_seeds_have_the_keys_and_orders_they_always_had(precision, request):
    if precision == "x64":
        request.getfixturevalue("x64")
    assert [bits(numerics.key(seed)) for seed in SMALL] == [(0, s) for s in SMALL]
    assert [digest(order(seed), "<i4") for seed in SMALL] == [
        *("3ead981c1d0091b9", "d10ab6ec9c673983", "b4bfc32395eb1477"),
        *("88955c0da30af52c", "949aa4e1dd78aa91", "93f1d202dff29213"),
        "2bf6b93526047f47",
    ]
    assert [digest(halves(seed), "<i4") for seed in SMALL] == [
        *("b70c5c14c6858ad5", "8491e710b356647d", "8e800fbc536c1a36"),
        *("4d7e2ce43537729f", "545e9c37b933bdbe", "8d02bca1b1caaaad"),
        "084240487715baf9",
    ]


def test_small_seeds_have_the_fingerprints_and_points_they_always_had():
    rows = np.arange(97, dtype=np.int32)
    prints = [fg.data.from_arrays(rows, 10, seed=s).fingerprint() for s in SMALL]
    assert prints == [
        *("96fc1fc37a854faa", "ab1c112fd276f96d", "645b4d9de65eba88"),
        *("1d29ca8ac63cf3a8", "71d3c7d3d4165fd6", "4ae684ca7ffab970"),
        "bc2d42903a9062ee",
    ]
    assert [digest(drawn(fg.sweeps.random, seed), "<f8") for seed in SMALL] == [
        *("7b8674429b7501a9", "b6d46614b91c1f39", "2bf23c394f98933b"),
        *("a515dd3ad154d6fa", "4e0dea1a585313fd", "3736f371b65a566d"),
        "754c9d6228fb9985",
    ]


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "int64", "uint64"])
def test_a_traced_seed_gives_the_key_of_the_int_of_its_value(dtype, request):
    if dtype.endswith("64"):
        request.getfixturevalue("x64")
    limits = np.iinfo(dtype)
    seeds = [seed for seed in SEEDS if limits.min <= seed <= limits.max]
    seeds += [limits.min, limits.max, limits.min + 1]
    values = jnp.asarray(np.array(seeds, dtype))
    assert values.dtype == dtype
    expected = [bits(numerics.key(seed)) for seed in seeds]
    assert [bits(key) for key in jax.jit(jax.vmap(numerics.key))(values)] == expected
    assert bits(jax.jit(numerics.key)(values[-2])) == expected[-2]
    assert [bits(numerics.key(value)) for value in values] == expected
    assert [bits(numerics.key(np.array(s, dtype))) for s in seeds] == expected


@pytest.mark.parametrize("seed", [np.int64(2**32 + 5), np.array(2**32 + 5)])
def test_a_wide_numpy_int_keeps_its_bits_without_x64(seed):
    assert bits(numerics.key(seed)) == bits(numerics.key(2**32 + 5))


@pytest.mark.parametrize("seed", [True, np.True_, 1.0, "1", None, [1], jnp.array(True)])
def test_a_seed_that_is_not_an_int_is_refused(seed):
    with pytest.raises(TypeError, match="need an int or a typed key"):
        numerics.key(seed)
    for draw in (lambda s: drawn(fg.sweeps.sobol, s), halves):
        with pytest.raises(ValueError, match="need an int seed >= 0, got"):
            draw(seed)


def test_numpy_generators_take_no_negative_seed():
    for draw in (lambda s: drawn(fg.sweeps.sobol, s), halves):
        with pytest.raises(ValueError, match="need an int seed >= 0, got seed=-1"):
            draw(-1)
