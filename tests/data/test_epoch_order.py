"""The keyed permutation: a bijection, uniform, and with short walks.

A p-value below SIGNIFICANT fails. Seeds are fixed, so a test that passes once passes
always; a correct construction had the chance SIGNIFICANT per assertion to fail when
the seeds were chosen. Networks of 2 to 4 rounds fail by many orders of magnitude.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fngrad.data.epoch_order import (
    MAX_SIZE,
    default_rounds,
    key_words,
    mix,
    permute,
    walk,
)

SIGNIFICANT = 1e-4
ABSURD = 1e-30


@functools.partial(jax.jit, static_argnames=("n", "rounds"))
def _orders(seeds, epochs, n, rounds=None):
    position = jnp.arange(n, dtype=jnp.uint32)

    def order(seed, epoch):
        epochs = jnp.full((n,), epoch)
        return permute(jax.random.key(seed), epochs, position, n, rounds=rounds)

    return jax.vmap(order)(seeds, epochs)


def orders(kind, count, n, rounds=None):
    """Return ``count`` orders, (count, n): over keys, or over epochs of one key."""
    running = np.arange(count, dtype=np.uint32)
    fixed = np.full(count, 7, np.uint32)
    seeds, epochs = (running, fixed) if kind == "keys" else (fixed, running)
    return np.asarray(_orders(seeds, epochs, n, rounds)).astype(np.int64)


def position_p_value(orders):
    """Every element is equally often at every place.

    The sum of N uniform permutation matrices has covariance N / (n - 1) on a space of
    (n - 1)**2 dimensions, so (n - 1) / N |counts - N / n|**2 is chi-square.
    """
    count, n = orders.shape
    table = np.stack([np.bincount(column, minlength=n) for column in orders.T])
    square = ((table - count / n) ** 2).sum() * (n - 1) / count
    return stats.chi2.sf(square, (n - 1) ** 2)


def neighbour_p_value(orders):
    """The differences of neighbours, mod n and around the end, are equally frequent.

    Those of one order depend on each other; Hotelling's statistic takes their
    covariance from the sample.
    """
    count, n = orders.shape
    difference = (np.roll(orders, -1, axis=1) - orders) % n
    frequency = np.zeros((count, n))
    np.add.at(frequency, (np.arange(count)[:, None], difference), 1)
    free = frequency[:, 1:-1]  # 0 never occurs, and the last follows from the sum
    error = free.mean(axis=0) - n / (n - 1)
    square = count * error @ np.linalg.solve(np.cov(free.T), error)
    return stats.chi2.sf(square, n - 2)


def order_p_value(orders):
    """All n! orders are equally frequent."""
    count, n = orders.shape
    total = math.factorial(n)
    seen = np.unique(orders @ n ** np.arange(n), return_counts=True)[1]
    expected = count / total
    missing = total - len(seen)
    square = ((seen - expected) ** 2).sum() / expected + missing * expected
    return stats.chi2.sf(square, total - 1)


def relative(orders):
    """Return where each order sends what the one before it sent to 0, 1, 2, ..."""
    first, second = orders[:-1:2], orders[1::2]
    composed = np.empty_like(first)
    np.put_along_axis(composed, first, second, axis=1)
    return composed


COUNTS = {5: 50_000, 8: 50_000, 33: 10_000, 300: 2_000}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 33, 1000, 65537])
def test_every_order_is_a_permutation(n):
    seeds = np.array([0, 1, 2**31, 5], np.uint32)
    epochs = np.array([0, 1, 2, 2**31 - 1], np.uint32)
    seen = np.asarray(_orders(seeds, epochs, n))
    assert (np.sort(seen, axis=1) == np.arange(n)).all()


@pytest.mark.parametrize("n", [33, 1000])
def test_keys_and_epochs_select_different_orders(n):
    for kind in ("keys", "epochs"):
        assert len(np.unique(orders(kind, 100, n), axis=0)) == 100


@pytest.mark.parametrize("kind", ["keys", "epochs"])
@pytest.mark.parametrize("n", COUNTS)
def test_positions_neighbours_and_successors_are_uniform(n, kind):
    sample = orders(kind, COUNTS[n], n)
    assert position_p_value(sample) > SIGNIFICANT
    assert neighbour_p_value(sample) > SIGNIFICANT
    assert position_p_value(relative(sample)) > SIGNIFICANT


@pytest.mark.parametrize("kind", ["keys", "epochs"])
@pytest.mark.parametrize("n", [3, 4, 5])
def test_all_orders_of_few_things_are_equally_frequent(n, kind):
    assert order_p_value(orders(kind, 100_000, n)) > SIGNIFICANT


@pytest.mark.parametrize("rounds", [2, 3, 4])
@pytest.mark.parametrize("n", [5, 8, 33])
def test_the_statistics_reject_few_rounds(n, rounds):
    assert neighbour_p_value(orders("keys", COUNTS[n], n, rounds)) < ABSURD


def test_twelve_rounds_are_too_few_for_words_of_three_bits():
    assert default_rounds(8) > 12
    assert order_p_value(orders("keys", 100_000, 5, rounds=12)) < ABSURD


def test_the_statistics_accept_true_random_orders():
    rng = np.random.default_rng(0)
    sample = rng.permuted(np.tile(np.arange(5), (100_000, 1)), axis=1)
    assert position_p_value(sample) > SIGNIFICANT
    assert neighbour_p_value(sample) > SIGNIFICANT
    assert order_p_value(sample) > SIGNIFICANT


@pytest.mark.parametrize("n", [5, 33, 60_000, 65_537])
def test_the_walk_is_geometric_and_short(n):
    count, key = 20_000, jax.random.key(3)

    @jax.jit
    @jax.vmap
    def length(epoch):
        return walk(key, epoch, epoch, n)[1]

    observed = np.asarray(length(jnp.arange(count, dtype=jnp.uint32)))
    words = 2 ** (n - 1).bit_length()
    outside = 1 - n / words
    spread = math.sqrt(outside / (1 - outside) ** 2 / count)
    # Drawing without replacement until one of the n words comes.
    assert abs(observed.mean() - (words + 1) / (n + 1)) < 4 * spread
    longest = math.log(SIGNIFICANT / count) / math.log(outside)
    assert observed.max() <= min(longest, words - n) + 1


@pytest.mark.parametrize("n", [1, 2, 8, 1024, MAX_SIZE])
def test_no_position_walks_where_every_word_is_inside(n):
    position = jnp.arange(min(n, 1024), dtype=jnp.uint32)
    index, length = walk(jax.random.key(0), jnp.zeros_like(position), position, n)
    assert length == 1
    assert np.all(np.asarray(index) < n)


def test_a_batch_waits_for_its_longest_walk():
    key, n = jax.random.key(0), 65_537
    position = jnp.arange(128, dtype=jnp.uint32)
    epoch = jnp.zeros_like(position)
    alone = jax.vmap(lambda e, p: walk(key, e, p, n))(epoch, position)
    together = walk(key, epoch, position, n)
    np.testing.assert_array_equal(together[0], alone[0])
    assert together[1] == alone[1].max()


def test_a_position_outside_is_mapped_inside():
    position = jnp.array([4, 9, 2**32 - 1], jnp.uint32)
    inside = position % np.uint32(5)
    key, epoch = jax.random.key(0), jnp.zeros_like(position)
    np.testing.assert_array_equal(
        permute(key, epoch, position, 5), permute(key, epoch, inside, 5)
    )


def test_the_largest_size_works():
    position = jnp.array([0, 1, MAX_SIZE - 1], jnp.uint32)
    index = permute(jax.random.key(0), jnp.zeros_like(position), position, MAX_SIZE)
    assert len(set(index.tolist())) == 3
    assert max(index.tolist()) < MAX_SIZE


FIRST_OF_40 = [22, 31, 36, 24, 13, 0, 26, 15, 18, 5, 32, 37, 2, 38, 9, 12, 19, 30, 23]


@pytest.mark.parametrize(
    ("n", "first"), [(7, [3, 1, 6, 5, 4, 2, 0]), (40, FIRST_OF_40)]
)
def test_a_key_keeps_giving_the_same_order(n, first):
    position = jnp.arange(n, dtype=jnp.uint32)
    order = permute(jax.random.key(3), jnp.full_like(position, 2), position, n)
    assert order[: len(first)].tolist() == first


@pytest.mark.parametrize("n", [0, -1, MAX_SIZE + 1])
def test_a_size_out_of_range_raises(n):
    position = jnp.zeros(1, jnp.uint32)
    with pytest.raises(ValueError, match=f"need 1 <= n <= {MAX_SIZE}, got n={n}"):
        permute(jax.random.key(0), position, position, n)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_words_depend_on_every_word_of_the_key(impl):
    data = jax.random.key_data(jax.random.key(0, impl=impl))
    seen = set()
    for index in range(data.size):
        other = jax.random.wrap_key_data(data.at[index].add(np.uint32(1)), impl=impl)
        seen.add(tuple(key_words(other, 3).tolist()))
    assert len(seen) == data.size


def test_in_mix_every_bit_changes_every_bit():
    x = jax.random.bits(jax.random.key(0), (20_000, 1), jnp.uint32)
    flips = np.uint32(1) << np.arange(32, dtype=np.uint32)[None, :]
    change = np.asarray(mix(x ^ flips) ^ mix(x))
    for bit in range(32):
        rate = ((change >> np.uint32(bit)) & np.uint32(1)).mean(axis=0)
        assert abs(rate - 0.5).max() < 0.05


@pytest.mark.parametrize("n", [7, 100])
@pytest.mark.parametrize("rounds", [12, 13, 17, 32])
def test_every_round_counts_and_permutes(n, rounds):
    position = jnp.arange(n, dtype=jnp.uint32)
    epoch = jnp.zeros_like(position)
    orders = [
        permute(jax.random.key(0), epoch, position, n, rounds=r).tolist()
        for r in (rounds, rounds + 1)
    ]
    assert orders[0] != orders[1]
    for order in orders:
        assert sorted(order) == list(range(n))


def test_a_network_without_rounds_is_refused():
    position = jnp.zeros(1, jnp.uint32)
    with pytest.raises(ValueError, match=r"need rounds >= 1, got rounds=-1"):
        permute(jax.random.key(0), position, position, 9, rounds=-1)
