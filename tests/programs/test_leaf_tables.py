"""Tables of leaves, from shapes alone."""

import jax
import jax.numpy as jnp

from fngrad.programs.leaf_tables import amount, leaves_of, percent, table

PARAMS = {"bias": jnp.zeros(2, jnp.bfloat16), "weight": jnp.zeros((3, 2))}

TABLE = """\
leaf    shape   dtype     count  bytes   share
bias    (2,)    bfloat16      2      4  25.0 %
weight  (3, 2)  float32       6     24  75.0 %"""


def test_a_line_per_leaf():
    assert table(leaves_of(PARAMS), share=True) == TABLE


def test_a_short_table_says_what_it_leaves_out():
    text = table(leaves_of([jnp.zeros(1)] * 25), most=20)
    assert len(text.splitlines()) == 1 + 20
    assert text.endswith("\n... and 6 more leaves")
    assert "more" not in table(leaves_of([jnp.zeros(1)] * 20), most=20)


def test_no_leaves_have_no_parameters():
    assert amount([]) == "0 parameters, 0 bytes"
    assert amount(leaves_of(jnp.float32(0))) == "1 parameter, 4 bytes"
    assert percent(0, 0) == "0.0 %"


def test_leaves_that_share_a_path_and_leaves_that_are_not_arrays_are_listed():
    leaves = leaves_of({"a/b": jnp.zeros(1), "a": {"b": 2.0}, "c": "text"})
    assert [(leaf.path, leaf.dtype) for leaf in leaves] == [
        ("a/b", "float"),
        ("a/b", "float32"),
        ("c", "str"),
    ]


def test_keys_count_in_bytes():
    (leaf,) = leaves_of(jax.random.key(0))
    assert leaf.dtype == "key<fry>"
    assert leaf.bytes == 8
