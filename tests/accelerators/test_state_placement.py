"""The state on the devices: split, donated, in place."""

import planned_networks
import pytest

import fngrad as fg
from fngrad.accelerators.exported_steps import placed_step
from fngrad.accelerators.state_placement import (
    aliased_outputs,
    placement_after,
    placement_before,
)


def placed_mlp(devices, **options):
    return placed_step(*planned_networks.mlp(**options), {"data": devices})


PARAMS = 4 * (64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10)


def test_parameters_and_moments_are_counted_on_each_device():
    found = placement_before(placed_mlp(1))
    assert found.params_bytes == PARAMS
    assert 2 * PARAMS <= found.optimizer_bytes <= 2 * PARAMS + 64
    split = placement_before(placed_mlp(8, rule=fg.sharding.fsdp(min_size=128)))
    assert PARAMS / 8 < split.params_bytes < PARAMS / 8 + 4 * 40
    assert not split.splits_nothing


def test_a_rule_that_splits_nothing_is_told():
    rule = fg.sharding.fsdp(min_size=2**20)
    assert placement_before(placed_mlp(8, rule=rule)).splits_nothing
    assert not placement_before(placed_mlp(1, rule=rule)).splits_nothing
    assert not placement_before(placed_mlp(8)).splits_nothing  # nobody asked for it


def test_large_leaves_that_a_rule_leaves_whole_are_told():
    def rule(path, leaf, mesh):
        split = fg.sharding.fsdp(min_size=1)(path, leaf, mesh)
        return fg.sharding.replicated(path, leaf, mesh) if "layers/1" in path else split

    model = fg.models.mlp((64, 512, 512, 8))
    made = planned_networks.classifier(model, (64,), rule=rule)
    found = placement_before(placed_step(*made, {"data": 8}))
    assert len(found.whole) == 3  # the weight and its two moments
    assert all(path.endswith("layers/1/weight") for path in found.whole)
    assert not found.splits_nothing


@pytest.fixture(scope="module")
def placed():
    return placed_mlp(1)


def header(outputs):
    pairs = ", ".join(f"{{{i}}}: ({i}, {{}}, may-alias)" for i in outputs)
    rest = "entry_computation_layout={(f32[8]{0})->f32[8]{0}}\n{9}: (9, {}, may-alias)"
    return (
        f"HloModule jit_f, is_scheduled=true, input_output_alias={{ {pairs} }}, {rest}"
    )


def test_leaves_that_are_copied_or_moved_are_named(placed):
    before, paths = placement_before(placed), list(placed.state)
    aliased = [i for i, path in enumerate(paths) if path != "step"]
    stays = [path != "params/layers/0/bias" for path in paths]
    after = placement_after(before, placed, stays, header(aliased))
    assert (after.copied, after.moved) == (["step"], ["params/layers/0/bias"])
    assert (before.copied, before.moved) == (None, None)
    whole = placement_after(before, placed, [True] * len(paths), header(range(99)))
    assert (whole.copied, whole.moved) == ([], [])


def test_aliases_are_read_from_the_first_line():
    assert aliased_outputs(header([0, 2])) == {0, 2}
    assert aliased_outputs("HloModule jit_f, is_scheduled=true") == set()
