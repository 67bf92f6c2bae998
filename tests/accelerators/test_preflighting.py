"""A preflight without libtpu: what is lowered, and what is refused."""

import jax
import jax.numpy as jnp
import planned_networks
import pytest

import fngrad as fg
import fngrad.accelerators.preflighting as preflighting
import fngrad.accelerators.targets as targets
from fngrad.accelerators.compiled_elsewhere import Compiled, refused
from fngrad.accelerators.preflighting import mesh_axes
from fngrad.accelerators.targets import parsed_target
from fngrad.programs.compiled_memory import Memory

GIB = 2**30


@pytest.mark.parametrize("platform", ["cuda", "cpu"])
def test_a_step_is_lowered_for_other_platforms(platform):
    step, state, batch = planned_networks.mlp()
    found = fg.preflight(step, state, batch, platform)
    assert (found.verdict, found.fits, found.reason) == ("lowers", None, "")
    counted = fg.costs(step, state, batch)
    assert found.costs[::2] == counted[::2]  # products and bytes
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert found.arguments == state_bytes + 4 * 128 * 65
    assert (found.memory, found.times, found.traffic) == (None, None, None)
    assert "of arguments alone" in repr(found)


def test_a_platform_has_as_many_devices_as_the_axes_say():
    made = planned_networks.mlp(rule=fg.sharding.fsdp())
    found = fg.preflight(*made, "cuda", axes={"data": 8})
    assert found.devices == 8
    assert found.state.bytes < fg.preflight(*made, "cuda").state.bytes / 5


@pytest.mark.parametrize("target", ["cuda", "v5e:1x1"])
def test_what_cannot_be_exported_has_a_reason(target, monkeypatch):
    monkeypatch.setattr(preflighting, "check_installed_libtpu", lambda: None)
    step, state, batch = planned_networks.mlp()

    def printing(state, batch):
        new_state, metrics = step(state, batch)
        jax.debug.callback(print, metrics["loss"])
        return new_state, metrics

    found = fg.preflight(printing, state, batch, target)
    assert found.verdict == "does not compile"
    assert found.reason.startswith("the step calls Python while it runs")
    assert found.costs.products == fg.costs(step, state, batch).products


@pytest.fixture
def compiler(monkeypatch):
    """Return a function that sets what the compiler of TPUs says, without one."""
    monkeypatch.setattr(preflighting, "check_installed_libtpu", lambda: None)

    def says(answer):
        monkeypatch.setattr(preflighting, "compiled_elsewhere", lambda *_: answer)

    return says


ALIASES = ", ".join(f"{{{i}}}: ({i}, {{}}, may-alias)" for i in range(99))
PROGRAM = f"""HloModule f, input_output_alias={{ {ALIASES} }}
ENTRY %main (p: f32[8]) -> f32[8] {{
  %a = f32[262144]{{0}} all-reduce(%p), channel_id=1, replica_groups={{}}
}}"""


def test_times_come_from_the_work_and_the_traffic(compiler):
    memory = Memory(GIB, GIB, GIB, GIB)
    step, state, batch = planned_networks.mlp()
    stays = [True] * len(jax.tree.leaves(state))
    compiler(Compiled("", False, False, 2 * GIB, memory, None, stays, PROGRAM, 1.0))
    found = fg.preflight(step, state, batch, "v5e:2x4")
    assert found.verdict == "fits"
    assert found.traffic is not None
    assert found.traffic.bytes == 2 * 2**20 * 7 // 8
    assert found.times is not None
    assert found.times.network == found.traffic.bytes / 200e9
    assert found.times.compute == found.costs.products / 8 / 197e12
    assert found.times.memory > 2 * found.state.bytes / 819e9
    assert (found.state.copied, found.state.moved) == ([], [])


def test_a_program_of_more_than_the_memory_does_not_fit(compiler):
    memory = Memory(GIB, GIB, GIB, GIB)
    step, state, batch = planned_networks.mlp()
    stays = [True] * len(jax.tree.leaves(state))
    compiler(
        Compiled("", False, False, 16 * GIB, memory, 16 * GIB, stays, PROGRAM, 1.0)
    )
    assert fg.preflight(step, state, batch).verdict == "does not fit"


def test_a_refusal_for_memory_does_not_fit_and_another_does_not_compile(compiler):
    made = planned_networks.mlp()
    compiler(refused("RESOURCE_EXHAUSTED: (40.00G) exceeds available HBM (15.75G)"))
    found = fg.preflight(*made)
    assert (found.verdict, found.needed) == ("does not fit", 40 * GIB)
    assert found.changes
    compiler(refused("INTERNAL: a defect"))
    found = fg.preflight(*made)
    assert (found.verdict, found.needed, found.changes) == (
        "does not compile",
        None,
        [],
    )
    assert "INTERNAL: a defect" in repr(found)


def test_a_compiler_that_crashed_or_hung_gave_no_answer(compiler):
    compiler(refused("it was stopped")._replace(is_unanswered=True))
    found = fg.preflight(*planned_networks.mlp())
    assert (found.verdict, found.fits) == ("no answer", None)
    assert "it was stopped" in repr(found)


@pytest.mark.parametrize(
    ("axes", "sizes"),
    [
        (None, {"data": 8}),
        ({"data": 4, "model": 2}, {"data": 4, "model": 2}),
        ({"data": -1, "model": 2}, {"data": 4, "model": 2}),
    ],
)
def test_axes_have_all_sizes(axes, sizes):
    assert mesh_axes(axes, parsed_target("v5e:2x4")) == sizes


@pytest.mark.parametrize(
    "axes", [{"data": 4}, {"data": -1, "model": 3}, {"a": -1, "b": -1}]
)
def test_axes_multiply_to_the_devices(axes):
    with pytest.raises(ValueError, match="multiply to the 8 devices of v5e:2x4"):
        mesh_axes(axes, parsed_target("v5e:2x4"))


@pytest.mark.parametrize("axes", [8, {}, {"data": 8.0}, {"data": 0}, {"data": -2}])
def test_axes_are_sizes_by_name(axes):
    with pytest.raises(TypeError, match="need a"):
        mesh_axes(axes, parsed_target("v5e:2x4"))


def test_a_missing_libtpu_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(targets, "version_of", lambda name: None)
    monkeypatch.setattr(
        targets, "required_parts", lambda name: {"libtpu": "==0.0.42.*"}
    )
    with pytest.raises(ImportError, match=r'pip install "libtpu==0\.0\.42\.\*"'):
        fg.preflight(*planned_networks.mlp())


def test_errors_of_the_step_are_its_own():
    step, state, batch = planned_networks.mlp()
    wrong = {"x": jax.ShapeDtypeStruct((128, 63), jnp.float32), "y": batch["y"]}
    with pytest.raises(ValueError, match=r"layers/0: need x with last axis 64"):
        fg.preflight(step, state, wrong, "cpu")
