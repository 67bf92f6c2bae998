"""The table of leaves that `describe` prints."""

import jax.numpy as jnp
import pytest

from fngrad.optimizers import adam, sgd
from fngrad.transforms.core import (
    chain,
    named,
)
from fngrad.transforms.description import describe
from fngrad.transforms.masking import freeze, partition
from fngrad.transforms.momentum_buffers import trace
from fngrad.transforms.quantize import quantize_state
from fngrad.transforms.scaling import scale


@pytest.mark.parametrize("shallow_first", [True, False])
def test_the_table_distinguishes_leaves_whose_paths_end_alike(shallow_first):
    inner = "a" if not shallow_first else "z"  # trees are sorted by name
    params = {"weight": jnp.ones(3), inner: {"weight": jnp.ones(3)}}
    table = describe(partition([("weight", freeze()), ("**", trace(0.9))]), params)
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert "none" in lines["weight"]
    assert "no " in lines["weight"]
    assert "12 bytes" in lines[f"{inner}/weight"]
    assert "6 parameters, 3 trainable" in lines["total"]


def test_the_table_counts_every_state_of_a_leaf():
    optimizer = chain(named("fast", trace(0.9)), named("slow", trace(0.99)), sgd(0.1))
    assert "fast/trace, slow/trace: 24 bytes" in describe(optimizer, jnp.ones(3))
    assert "fast/trace, slow/trace: 24 bytes" in describe(
        optimizer, {"step": jnp.ones(3)}
    )
    groups = [named(name, chain(trace(0.9), scale(1.0))) for name in ("a", "b")]
    assert "trace/trace, trace/trace: 24 bytes" in describe(
        chain(*groups), {"w": jnp.ones(3)}
    )


@pytest.mark.parametrize(("bits", "size"), [(16, 16384), (8, 8320), (4, 4224)])
def test_the_table_shows_moments_in_few_bits(bits, size):
    optimizer = quantize_state(adam(0.1), bits=bits)
    table = describe(optimizer, {"w": jnp.ones((64, 64))})
    assert f"scale_by_adam/mu, scale_by_adam/nu: {size} bytes" in table
