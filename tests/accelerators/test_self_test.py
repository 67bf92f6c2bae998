"""The self-test passes on a device that is right, and fails on one that is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forked import run

import fngrad.accelerators.self_test as self_test
from fngrad.accelerators.self_test import Outcome, judge_tests

NAMES = [
    *("matmul", "exact matmul", "reduction", "random bits", "scan", "training step")
]
TOGETHER = ["all devices"] if jax.device_count() > 1 else []
FLAGS = {
    "jax_enable_x64": True,
    "jax_threefry_partitionable": False,
    "jax_default_prng_impl": "rbg",
    "jax_debug_nans": True,
    "jax_transfer_guard": "disallow",
}


def test_this_device_is_right():
    found = self_test.self_test(jax.default_backend(), None)
    assert [each.name for each in found] == NAMES + TOGETHER
    assert all(each.passed for each in found), found


@pytest.mark.parametrize("flag", FLAGS)
def test_it_passes_under_flags_that_change_numbers(flag):
    before = getattr(jax.config, flag)
    try:
        jax.config.update(flag, FLAGS[flag])
        found = self_test.self_test(jax.default_backend(), None)
    finally:
        jax.config.update(flag, before)
    assert all(each.passed for each in found), found


def failed():
    found = self_test.self_test(jax.default_backend(), None)
    return [each.name for each in found if not each.passed]


def test_other_random_bits_fail(monkeypatch):
    bits = {key: (*bits[:3], bits[3] ^ 1) for key, bits in self_test.BITS.items()}
    monkeypatch.setattr(self_test, "BITS", bits)
    assert failed() == ["random bits"]


def test_another_generator_of_the_scan_fails(monkeypatch):
    def advance():  # what the device computes, with the last bit lost once
        return self_test.INCREMENT - 1

    known = jnp.uint32
    lost = self_test.INCREMENT
    monkeypatch.setattr(
        self_test.jnp, "uint32", lambda x: known(advance() if x == lost else x)
    )
    assert "scan" in failed()


@pytest.mark.parametrize(
    ("function", "altered", "names"),
    [
        ("matmul", lambda a, b: jnp.dot(a, b) * (1 + 1e-4), ["matmul", "exact matmul"]),
        (
            "matmul",
            lambda a, b: jnp.dot(a, b).at[3, 5].add(1),
            ["matmul", "exact matmul"],
        ),
        ("matmul", lambda a, b: jnp.dot(narrow(a), narrow(b)), ["matmul"]),
        ("stack", lambda parts: jnp.array(parts) + 1, ["reduction"]),
    ],
)
def test_an_operation_that_is_wrong_fails(monkeypatch, function, altered, names):
    monkeypatch.setattr(self_test.jnp, function, altered)
    assert [name for name in failed() if name in NAMES[:3]] == names


def narrow(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def test_a_product_in_bfloat16_passes_where_it_is_the_default(monkeypatch):
    monkeypatch.setattr(
        self_test.jnp, "matmul", lambda a, b: jnp.dot(narrow(a), narrow(b))
    )
    error = self_test.product_error(self_test.rounding("tpu", None))
    assert 0.001 < error < 1
    assert self_test.product_error(self_test.rounding("tpu", "highest")) > 10


@pytest.mark.parametrize("part", [0, 1])
def test_another_training_step_fails(monkeypatch, part):
    trained = self_test._trained

    def altered(x, y, weight):
        params, loss = trained(x, y, weight)
        return (
            (params, loss + 1e-3) if part else ({**params, 1: params[1] + 2e-4}, loss)
        )

    monkeypatch.setattr(self_test, "_trained", altered)
    assert failed() == ["training step"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_fail(monkeypatch, value):
    monkeypatch.setattr(self_test, "scan_error", lambda: value)
    assert failed() == ["scan"]


def test_an_error_of_the_device_is_an_outcome(monkeypatch):
    def broken():
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")

    monkeypatch.setattr(self_test, "reduction_error", broken)
    found = self_test.self_test(jax.default_backend(), None)
    (outcome,) = [each for each in found if not each.passed]
    assert outcome.failure == "RuntimeError: RESOURCE_EXHAUSTED: out of memory"


def test_what_failed_is_a_problem_each():
    outcomes = [
        Outcome("scan", True, 0.0),
        Outcome("matmul", False, 1234.5),
        Outcome("reduction", False, np.nan, "RuntimeError: a"),
    ]
    found = judge_tests(outcomes, 1.0)
    assert [each.status for each in found] == ["problem", "problem"]
    assert found[0].text == "matmul: 1.23e+03 times the error that is allowed"
    assert found[1].text == "reduction: RuntimeError: a"
    (fine,) = judge_tests(outcomes[:1], 1.25)
    assert (fine.status, fine.text) == ("ok", "right in 1.2 s: scan")


@pytest.mark.slow
def test_eight_devices_are_summed_over():
    code = (
        "import fngrad.accelerators.self_test as s; found = s.self_test('cpu', None); "
        "assert all(each.passed for each in found), found; print(found[-1].name); "
        "s.shard_batch = lambda x, mesh: x + 1; print(s.all_devices_error())"
    )
    flags = "--xla_force_host_platform_device_count=8"
    done = run(code, variables={"XLA_FLAGS": flags})
    assert done.stdout.splitlines() == ["all devices", "1025.0"], done.stderr
