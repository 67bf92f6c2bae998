"""FLOPs and bytes of each device, by hand."""

import jax
import jax.numpy as jnp
import planned_networks
import pytest

import fngrad as fg
from fngrad.accelerators.exported_steps import placed_step
from fngrad.accelerators.state_placement import placement_before
from fngrad.accelerators.step_work import has_wide_products, work_of
from fngrad.programs.operation_counts import costs_of

BATCH, INPUTS, OUTPUTS = 32, 16, 8


def linear_step(**options):
    """Return the step of one product, whose gradient is another one."""

    def loss_fn(w, x):
        return jnp.mean((x @ w) ** 2)

    optimizer = fg.sgd(0.1)
    shapes = jax.ShapeDtypeStruct((INPUTS, OUTPUTS), jnp.float32)
    state = jax.eval_shape(lambda w: fg.init_state(w, optimizer, key=0), shapes)
    step = fg.make_step(loss_fn, optimizer, **options)
    return step, state, jax.ShapeDtypeStruct((BATCH, INPUTS), jnp.float32)


def work(axes, **options):
    made = linear_step(**options)
    placed = placed_step(*made, axes)
    return work_of(placed, costs_of(placed.jaxpr), *made), placed


def by_hand(batch, axes_of_parts=1):
    """Return the bytes of x w = y and of x' y = w', and of what is kept and given."""
    x, w, y = batch * INPUTS, INPUTS * OUTPUTS, batch * OUTPUTS
    return 4 * 2 * (x + w + y) / axes_of_parts, 4 * x


def test_one_device_has_all_of_it():
    found, placed = work({"data": 1})
    products, given = by_hand(BATCH)
    state = placement_before(placed).bytes
    assert found.flops == 2 * 2 * BATCH * INPUTS * OUTPUTS
    assert found.bytes == products + given + 2 * state


def test_each_device_reads_whole_parameters_for_its_part_of_the_batch():
    found, placed = work({"data": 4})
    products, given = by_hand(BATCH // 4)
    assert found.flops == BATCH * INPUTS * OUTPUTS
    assert found.bytes == products + given + 2 * placement_before(placed).bytes


def test_other_axes_share_the_products():
    found, placed = work({"data": 4, "model": 2})
    products, given = by_hand(BATCH // 4, 2)
    assert found.flops == BATCH * INPUTS * OUTPUTS / 2
    assert found.bytes == products + given + 2 * placement_before(placed).bytes


def test_a_step_that_takes_no_smaller_batch_shares_what_it_has():
    def loss_fn(w, x):
        assert x.shape[0] == BATCH
        return jnp.mean((x @ w) ** 2)

    step, state, batch = linear_step()
    step = fg.make_step(loss_fn, fg.sgd(0.1))
    placed = placed_step(step, state, batch, {"data": 4})
    found = work_of(placed, costs_of(placed.jaxpr), step, state, batch)
    assert found.flops == BATCH * INPUTS * OUTPUTS


@pytest.mark.parametrize(("precision", "is_wide"), [(None, True), ("bfloat16", False)])
def test_products_in_float32_are_noticed(precision, is_wide):
    made = planned_networks.mlp(precision=precision)
    assert has_wide_products(placed_step(*made, {"data": 1})) is is_wide
