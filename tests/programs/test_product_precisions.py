"""The precisions that a program asks for are found wherever its products are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fngrad as fg
from fngrad.logging import RunFolder, manifest
from fngrad.programs.product_precisions import float32_precisions

X = jnp.ones((4, 4))


def highest(x):
    return jnp.matmul(x, x, precision="highest")


def convolve(x):
    image = x[None, None]
    return lax.conv(image, image, (1, 1), "SAME", precision=lax.Precision.HIGH)


def by_algorithm(x):
    return lax.dot(x, x, precision=lax.DotAlgorithmPreset.BF16_BF16_F32_X3)


def by_parts_of_an_algorithm(x):
    algorithm = lax.DotAlgorithm(np.float32, np.float32, np.float32)
    return lax.dot(x, x, precision=algorithm)


def unlike(x):
    return jnp.matmul(x, x, precision=(lax.Precision.HIGHEST, lax.Precision.HIGH))


@pytest.mark.parametrize(
    ("fn", "found"),
    [
        (jnp.sin, set()),
        (lambda x: x @ x, {"default"}),
        (lambda x: highest(x) @ x, {"default", "highest"}),
        (unlike, {"high", "highest"}),
        (convolve, {"high"}),
        (lambda x: lax.ragged_dot(x, x[None], jnp.array([4])), {"default"}),
        (by_algorithm, {"BF16_BF16_F32_X3"}),
        (by_parts_of_an_algorithm, {"an algorithm of its own"}),
        (lambda x: x.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16), set()),
        (lambda x: x.astype(int) @ x.astype(int), set()),
        (lambda x: highest(lax.complex(x, x)), {"highest"}),
        (jax.grad(lambda x: jnp.sum(highest(x))), {"highest"}),
        (jax.jit(jax.checkpoint(highest)), {"highest"}),
        (lambda x: lax.scan(lambda c, _: (highest(c), None), x, length=2), {"highest"}),
        (lambda x: lax.cond(x[0, 0] > 0, highest, jnp.sin, x), {"highest"}),
        (
            lambda x: lax.while_loop(lambda c: highest(c)[0, 0] > 0, jnp.sin, x),
            {"highest"},
        ),
    ],
)
def test_precisions_of_products_of_float32_are_found(fn, found):
    assert float32_precisions(jax.make_jaxpr(fn)(X)) == found


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        (fg.Policy(matmul_precision="highest"), "asked: highest"),
        (None, "asked: default"),
        ("bfloat16", "none"),
    ],
    ids=["policy", "default", "bfloat16"],
)
def test_a_run_records_the_products_of_its_step(
    tmp_path, monkeypatch, precision, words
):
    optimizer = fg.sgd(0.1)
    monkeypatch.setattr(
        manifest, "float32_products", lambda _, precision: f"asked: {precision}"
    )

    def loss_fn(w, x):
        return jnp.sum(x @ w)

    step = fg.make_step(loss_fn, optimizer, precision=precision)
    state = fg.init_state(jnp.ones((4, 2)), optimizer, key=0)
    data = fg.data.from_arrays(jnp.ones((4, 4)), 2)
    fg.fit(step, state, data, num_steps=1, run_dir=tmp_path, progress=False)
    assert RunFolder(tmp_path).manifest["float32_products"] == words
