"""The plan of a pod: its models, its meshes, its table, with a preflight made up."""

import json

import jax
import pytest

import experiments.plan_pod as plan_pod
import fngrad as fg
from fngrad.accelerators.chips import TPUS
from fngrad.accelerators.exported_steps import placed_step
from fngrad.accelerators.roofline import Times
from fngrad.accelerators.state_placement import placement_before

GIB = 2**30


def parameters(state):
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(("size", "count"), [("1B", 1e9), ("7B", 7e9)])
def test_the_models_have_the_parameters_of_their_names(size, count):
    _, state, batch = plan_pod.make(size=size, batch_size=8)
    assert parameters(state) == pytest.approx(count, rel=0.03)
    assert batch["x"].shape == (8, 1024)


def test_a_target_is_split_over_all_chips_or_over_four_for_each_part():
    assert plan_pod.splits(64) == {
        "fsdp": {"data": 64},
        "fsdp x 4": {"data": 16, "model": 4},
    }


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(plan_pod.SIZES, "1B", plan_pod.Size(64, 2, 4))


@pytest.mark.parametrize("axes", plan_pod.splits(8).values())
def test_each_chip_keeps_its_part_of_the_state(tiny, axes):
    rule = fg.sharding.fsdp(within=fg.models.transformer_rule())
    made = plan_pod.make(batch_size=16, length=8, rule=rule)
    found = placement_before(placed_step(*made, axes))
    whole = 4 * parameters(made[1])
    assert whole / 8 <= found.params_bytes < whole / 6  # norms and biases are whole
    assert not found.splits_nothing


def test_the_plan_is_a_table_a_picture_and_results(tiny, monkeypatch, tmp_path, capsys):
    asked = []

    def preflight(step, state, batch, target, axes):
        asked.append((target, batch["x"].shape, axes))
        report = fg.preflight(step, state, batch, "cuda", axes=axes)
        if target == "v5e:2x2":
            return report._replace(verdict="does not fit", needed=20 * GIB)
        times = Times(0.1, 0.05, 0.2)
        return report._replace(
            verdict="fits", chip=TPUS["v5e"], needed=2 * GIB, times=times
        )

    monkeypatch.setattr(plan_pod, "fg", Face(preflight))
    targets = ("v5e:2x2", "v5e:2x4")
    config = plan_pod.Config(targets=targets, length=8, windows=2, runs=tmp_path)
    results = plan_pod.main(config)
    assert asked[0] == ("v5e:2x2", (8, 8), {"data": 4})
    assert asked[3] == ("v5e:2x4", (16, 8), {"data": 2, "model": 4})
    shown = capsys.readouterr().out
    line = (
        "1B  fsdp  8  2.0 GiB  200 ms to 350 ms  29 to 50 %  1k  fits; compute 100 ms"
    )
    assert line in shown
    assert shown.count("does not fit") == 4  # in each line and in the table
    assert [each["tokens"] for each in results] == [64, 64, 128, 128]
    (folder,) = tmp_path.iterdir()
    assert (folder / "scaling.png").stat().st_size > 10_000
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["results"][2]["times"]["bound"] == "network"


class Face:
    """fngrad with another preflight."""

    def __init__(self, preflight):
        self.preflight = preflight

    def __getattr__(self, name):
        return getattr(fg, name)
