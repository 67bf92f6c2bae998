"""Short computations on a device whose results are known."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fngrad.accelerators.findings import OK, PROBLEM, Finding
from fngrad.layers import batched
from fngrad.logging.manifest import float32_products
from fngrad.losses import softmax_cross_entropy_with_integer_labels
from fngrad.models import logistic
from fngrad.optimizers import momentum
from fngrad.sharding import make_mesh, shard_batch
from fngrad.training import init_state, make_step
from fngrad.training.precision import Policy

SIZE = 256  # of the matrices
ROUNDING = {"bfloat16": 2.0**-8, "TF32": 2.0**-10, "float32": 2.0**-24}  # of a factor

# The first bits of Threefry 2x32 with the key 0, with and without
# jax_threefry_partitionable. The very first is x ^ y for x, y = 6b200159, 99ba4efe,
# which Random123 (Salmon et al. 2011) publishes for counter and key 0 in kat_vectors.
BITS = {
    True: (0xF29A4FA7, 0xFA843692, 0x55110E28, 0x77FAA835),
    False: (0xF71F4EA9, 0x39A405D9, 0xA20E4081, 0x4BDFAE2F),
}
MULTIPLIER, INCREMENT = 1664525, 1013904223  # Numerical Recipes' generator


class Outcome(NamedTuple):
    """How far a result is from the known value."""

    name: str
    passed: bool
    error: float  # in units of what is allowed: at most 1 if all is well
    failure: str = ""  # the error that was raised


def self_test(platform: str, precision: str | None) -> list[Outcome]:
    """Compute with the default device, and compare with known values.

    Args:
        platform: of ``jax.default_backend()``.
        precision: of ``jax_default_matmul_precision``.

    Example:
        >>> import jax
        >>> from fngrad.accelerators.self_test import self_test
        >>> all(each.passed for each in self_test(jax.default_backend(), None))
        True
    """
    tests: dict[str, Callable[[], float]] = {
        "matmul": lambda: product_error(rounding(platform, precision)),
        "exact matmul": integer_product_error,
        "reduction": reduction_error,
        "random bits": random_bits_error,
        "scan": scan_error,
        "training step": training_step_error,
    }
    if jax.device_count() > 1 and jax.process_count() == 1:
        tests["all devices"] = all_devices_error
    with jax.transfer_guard("allow"):
        return [_result(name, test) for name, test in tests.items()]


def _result(name: str, test: Callable[[], float]) -> Outcome:
    try:
        error = test()
    except Exception as raised:  # of any kind: a device that is broken or full
        first = str(raised).partition("\n")[0]
        failure = f"{type(raised).__name__}: {first}"
        return Outcome(name, passed=False, error=float("nan"), failure=failure)
    return Outcome(name, passed=error <= 1, error=error)  # a NaN does not pass


def rounding(platform: str, precision: str | None) -> float:
    """Return by how much of itself a factor of a product of float32 may be rounded.

    Args:
        platform: of ``jax.default_backend()``.
        precision: of ``jax_default_matmul_precision``. An algorithm that is not known
            here is allowed what bfloat16 is.

    Example:
        >>> from fngrad.accelerators.self_test import rounding
        >>> rounding("cpu", None), rounding("tpu", None), rounding("tpu", "highest")
        (5.960464477539063e-08, 0.00390625, 5.960464477539063e-08)
    """
    words = float32_products(platform, precision)
    found = [ROUNDING[name] for name in ROUNDING if words.startswith(name)]
    return found[0] if found else ROUNDING["bfloat16"]


def product_error(factor: float) -> float:
    """Return the error of a product of matrices, over the bound of its rounding.

    Both factors are rounded by ``factor`` at most, and each of the ``n`` additions in
    float32: Higham 2002, Accuracy and Stability of Numerical Algorithms, eq. 3.13.
    """
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, SIZE, SIZE)).astype(np.float32)
    found = np.asarray(jax.jit(jnp.matmul)(a, b), np.float64)
    wide = a.astype(np.float64), b.astype(np.float64)
    bound = (2 * factor + SIZE * ROUNDING["float32"]) * (abs(wide[0]) @ abs(wide[1]))
    return float(np.max(abs(found - wide[0] @ wide[1]) / bound))


def integer_product_error() -> float:
    """Return the largest error of a product that is exact in every precision."""
    generator = np.random.default_rng(1)
    a, b = generator.integers(-8, 9, (2, SIZE, SIZE))
    found = jax.jit(jnp.matmul)(a.astype(np.float32), b.astype(np.float32))
    return _different(found, a @ b)


def reduction_error() -> float:
    """Return the error of a sum below 2^24, exact in float32, and of a maximum."""
    x = np.random.default_rng(2).permutation(np.arange(5000, dtype=np.float32))
    found = jax.jit(lambda x: jnp.stack([x.sum(), x.max(), x.min()]))(x)
    return _different(found, [5000 * 4999 // 2, 4999, 0])


def random_bits_error() -> float:
    """Return by how much random bits differ from `BITS`."""
    config: Any = jax.config  # type checkers do not know its settings
    key = jax.random.key(0, impl="threefry2x32")
    found = jax.random.bits(key, (4,), jnp.uint32)
    return _different(found, BITS[bool(config.jax_threefry_partitionable)])


def scan_error() -> float:
    """Return by how much a scan over integers differs from Python's."""
    value = 1
    for _ in range(100):
        value = (MULTIPLIER * value + INCREMENT) % 2**32

    def advance(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x * jnp.uint32(MULTIPLIER) + jnp.uint32(INCREMENT), None

    start = jnp.uint32(1)
    found, _ = jax.jit(lambda x: jax.lax.scan(advance, x, None, length=100))(start)
    return _different(found, value)


def training_step_error() -> float:
    """Return the error of a step of gradient descent in units of 1e-4.

    A TPU's exp and log may be off by 1e-6; products are those of full precision.
    The model is linear, with a softmax and cross-entropy; NumPy computes the step in
    float64: with probabilities ``p`` and labels ``y`` the gradient with respect to the
    logits of an example is ``p - onehot(y)``.
    """
    x, y, weight = _examples()
    found, loss = _trained(x, y, weight)
    exponentials = np.exp(x.astype(np.float64) @ weight)
    p = exponentials / exponentials.sum(1, keepdims=True)
    signal = (p - np.eye(4)[y]) / len(y)
    expected = {2: weight - 0.5 * x.T @ signal, 1: -0.5 * signal.sum(0)}
    errors = [np.max(abs(found[n] - expected[n])) for n in expected]
    errors.append(abs(loss + np.log(p[np.arange(len(y)), y]).mean()))
    return float(max(errors)) / 1e-4


def _examples() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, labels and the weights before the step."""
    generator = np.random.default_rng(3)
    x = generator.standard_normal((32, 8)).astype(np.float32)
    y = generator.integers(0, 4, 32).astype(np.int32)
    weight = generator.standard_normal((8, 4)).astype(np.float32)
    return x, y, weight


def _trained(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray
) -> tuple[dict[int, np.ndarray], float]:
    """Return the parameters after a step, by their number of axes, and the loss."""
    model = logistic(8, 4)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    starts = {2: jnp.asarray(weight), 1: jnp.zeros(4, jnp.float32)}
    params = jax.tree.map(lambda leaf: starts[leaf.ndim], shapes)
    predict = batched(model)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = predict(params, batch["x"])
        return softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    optimizer = momentum(0.5)
    full = Policy(matmul_precision="highest")
    step = make_step(loss_fn, optimizer, metrics="loss", precision=full)
    state = init_state(params, optimizer, key=0)
    state, metrics = jax.jit(step)(state, {"x": x, "y": y})
    leaves = jax.tree.leaves(state.params)
    return {leaf.ndim: np.asarray(leaf) for leaf in leaves}, float(metrics["loss"])


def all_devices_error() -> float:
    """Return the error of a sum over an array that lies on all devices."""
    count = 128 * jax.device_count()
    x = shard_batch(np.arange(count, dtype=np.float32) % 128, make_mesh(data=-1))
    return _different(jax.jit(jnp.sum)(x), 127 * count // 2)


def _different(found: Any, expected: Any) -> float:
    """Return 0 for what is met exactly, else 1 and the largest difference."""
    difference = np.asarray(found, np.float64) - np.asarray(expected, np.float64)
    return 1.0 + float(np.max(abs(difference))) if np.any(difference) else 0.0


def judge_tests(results: list[Outcome], seconds: float) -> list[Finding]:
    """Return what is to be said about the results of a self-test."""
    failed = [each for each in results if not each.passed]
    way_out = "do not train on this device: restart the machine, or take another"
    if not failed:
        names = ", ".join(each.name for each in results)
        return [Finding(OK, "self-test", f"right in {seconds:.1f} s: {names}")]
    return [
        Finding(
            PROBLEM,
            "self-test",
            f"{each.name}: "
            + (each.failure or f"{each.error:.3g} times the error that is allowed"),
            way_out,
        )
        for each in failed
    ]
