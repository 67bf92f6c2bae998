"""Settings of JAX in another thread."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import pytest

import fngrad.programs.thread_settings as thread_settings
from fngrad.programs.thread_settings import settings_of_this_thread

OTHER = {
    "debug_infs": True,
    "debug_key_reuse": True,
    "debug_nans": True,
    "default_device": jax.devices()[-1],
    "default_matmul_precision": "highest",
    "default_prng_impl": "rbg",
    "enable_x64": True,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "warn",
    "threefry_partitionable": False,
}


def in_a_thread(fn, begin=None):
    with ThreadPoolExecutor(1, initializer=begin) as pool:
        return pool.submit(fn).result()


def test_every_setting_is_here():
    assert set(OTHER) == set(thread_settings._SETTINGS)


@pytest.mark.parametrize("name", OTHER)
def test_a_thread_has_the_setting_of_the_one_that_starts_it(name):
    def read():
        return getattr(jax.config, f"jax_{name}")

    before = read()
    with thread_settings._context(name)(OTHER[name]):
        assert read() == OTHER[name] != before
        assert in_a_thread(read) == before
        begin = settings_of_this_thread()
    assert in_a_thread(read, begin) == OTHER[name]
    assert read() == before


def test_another_thread_may_move_arrays_to_the_device():
    def move():
        return int(jnp.ones(2).sum())

    jax.config.update("jax_transfer_guard", "disallow")
    try:
        assert in_a_thread(move, settings_of_this_thread()) == 2
    finally:
        jax.config.update("jax_transfer_guard", "allow")
