"""What a preflight shows, and what it would change, from numbers made up."""

import json

import pytest

import fngrad as fg
from fngrad.accelerators.advice import advised, all_changes
from fngrad.accelerators.chips import TPUS
from fngrad.accelerators.collectives import Collective, Traffic
from fngrad.accelerators.preflight_report import Preflight
from fngrad.accelerators.roofline import Times
from fngrad.accelerators.state_placement import StatePlacement
from fngrad.files.json_values import to_json
from fngrad.programs.compiled_memory import Memory

GIB = 2**30
STATE = StatePlacement(3 * GIB, GIB, [], [], [], splits_nothing=False)
FITS = Preflight(
    target="v5e:2x4",
    axes={"data": 4, "model": 2},
    verdict="fits",
    reason="",
    chip=TPUS["v5e"],
    memory=Memory(3 * GIB, 3 * GIB, 2 * GIB, 3 * GIB),
    peak=4 * GIB,
    needed=5 * GIB,
    arguments=3 * GIB,
    costs=fg.Costs(9 * 10**12, 10**12, 10**9, {}),
    examples=256,
    traffic=Traffic({"all-gather": Collective(12, 2 * GIB)}, 0),
    times=Times(0.01, 0.02, 0.04),
    state=STATE,
    changes=[],
    compile_seconds=3.5,
)
REFUSED = FITS._replace(
    verdict="does not fit",
    reason="RESOURCE_EXHAUSTED: Ran out of memory",
    memory=None,
    peak=None,
    needed=40 * GIB,
    traffic=None,
    times=None,
    state=STATE._replace(copied=None, moved=None),
)


def rows(report):
    """Return the cells after the first of each line, by the first."""
    found: dict[str, list[str]] = {}
    for line in repr(report).splitlines():
        first, *rest = line.strip().split("  ")
        found.setdefault(first, [cell.strip() for cell in rest if cell])
    return found


def test_a_step_that_fits_shows_all_of_it():
    shown = rows(FITS)
    assert next(iter(shown)) == "Preflight for v5e:2x4 (data=4, model=2): fits"
    assert shown["memory"] == ["5.0 GiB", "of 15.8 GiB on each device, 31.7 %"]
    assert shown["temporaries"] == ["2.0 GiB"]
    assert shown["peak"] == ["4.0 GiB", "the compiler's other estimate"]
    assert shown["FLOPs"][1] == "on all devices together, 90 % in matrix products"
    assert shown["all-gather"] == ["2.0 GiB", "sent by each, 12 times"]
    assert shown["step"] == [
        "40 ms",
        "if all overlap, 6.4e+03 examples/s; 70 ms if nothing does",
    ]
    assert shown["network"] == ["40 ms", "what bounds it"]
    assert shown["utilization"] == ["25 %", "of the peak FLOPs, at most"]
    assert shown["donated"] == ["wholly"]
    assert shown["stays in place"] == ["yes"]
    assert "start" not in shown


def test_a_refused_step_shows_the_compilers_reason():
    shown = rows(REFUSED)
    assert "RESOURCE_EXHAUSTED: Ran out of memory" in shown
    assert shown["memory"] == ["40.0 GiB", "of 15.8 GiB on each device, 254 %"]
    assert not {"step", "donated", "temporaries"} & set(shown)


def test_one_device_has_no_network_and_no_places():
    shown = rows(FITS._replace(axes={"data": 1}, traffic=Traffic({}, 0)))
    assert next(iter(shown)) == "Preflight for v5e:2x4: fits"
    assert not {"network", "stays in place"} & set(shown)


def test_what_is_wrong_with_the_state_is_named():
    paths = [f"params/{i}" for i in range(5)]
    state = STATE._replace(copied=paths, moved=paths[:1], whole=["params/9"])
    shown = rows(FITS._replace(state=state))
    assert shown["donated"] == ["not wholly: params/0, params/1, params/2 and 2 more"]
    assert shown["stays in place"] == ["moves: params/0"]
    assert shown["whole on each"] == ["params/9"]
    nothing = FITS._replace(state=STATE._replace(splits_nothing=True))
    assert rows(nothing)["split"] == ["the step's rule splits no parameter"]


def test_loops_and_operations_without_a_count_are_told():
    costs = FITS.costs._replace(uncounted={"while": 2})
    text = repr(FITS._replace(costs=costs, traffic=Traffic({}, 1)))
    assert "{'while': 2}" in text
    assert "loops of unknown length, taken once" in text


def test_a_short_step_is_told_to_take_long_to_start():
    text = repr(FITS._replace(times=Times(1e-6, 2e-6, 1e-6)))
    assert "of a program: tens of microseconds more" in text


def test_html_is_the_text_escaped():
    it = REFUSED._replace(reason="a < b")
    assert "a &lt; b" in it._repr_html_()
    assert it._repr_html_().startswith("<pre")


def test_json_holds_what_is_derived_and_no_functions():
    report = FITS._replace(changes=all_changes(FITS))
    read = json.loads(json.dumps(to_json(report.as_json()), allow_nan=False))
    assert (read["fits"], read["devices"], read["utilization"]) == (True, 8, 0.25)
    assert read["times"]["bound"] == "network"
    assert read["memory"]["temporaries"] == 2 * GIB
    assert read["traffic"]["collectives"]["all-gather"]["count"] == 12
    assert read["chip"]["flops"] == 197e12
    assert {change["what"] for change in read["changes"]} >= {"FSDP", "remat"}


@pytest.mark.parametrize(
    ("verdict", "fits"),
    [
        ("fits", True),
        ("does not fit", False),
        ("does not compile", False),
        ("no answer", None),
        ("lowers", None),
    ],
)
def test_it_fits_does_not_or_that_is_unknown(verdict, fits):
    assert FITS._replace(verdict=verdict).fits is fits


def advice(report, *, has_rule=False, is_wide=True):
    found = advised(report, has_rule=has_rule, is_wide=is_wide)
    return [change.what for change in found]


def test_a_state_that_is_too_large_is_split_or_narrowed():
    full = REFUSED._replace(arguments=24 * GIB)
    assert advice(full) == ["FSDP", "8-bit moments"]
    assert advice(full, has_rule=True) == ["8-bit moments", "larger target"]
    alone = full._replace(axes={"data": 1})
    assert advice(alone) == ["8-bit moments", "larger target"]
    plain = full._replace(state=STATE._replace(params_bytes=3 * GIB))
    assert advice(plain) == ["FSDP"]


def test_activations_that_are_too_large_are_narrowed_or_fewer():
    savers = ["remat", "micro-batches", "smaller batch"]
    assert advice(REFUSED) == ["bfloat16", *savers]
    assert advice(REFUSED, is_wide=False) == savers


def test_a_bound_by_compute_changes_nothing():
    assert advice(FITS._replace(times=Times(0.04, 0.02, 0.01))) == []


def test_a_bound_by_memory_or_network_asks_for_more_work_per_byte():
    assert advice(FITS) == ["larger batch"]
    assert advice(FITS, has_rule=True) == ["bfloat16", "larger batch"]
    memory = FITS._replace(times=Times(0.01, 0.04, 0.02))
    assert advice(memory) == ["bfloat16", "larger batch"]
    assert advice(memory._replace(needed=9 * GIB), is_wide=False) == []


def test_a_state_that_moves_or_is_not_split_is_advised():
    state = STATE._replace(moved=["step"], splits_nothing=True)
    assert advice(FITS._replace(state=state))[:2] == ["smaller min_size", "rule"]


def test_a_short_step_is_better_in_one_program():
    short = FITS._replace(times=Times(3e-6, 1e-6, 1e-6))
    assert advice(short) == ["one program for many steps"]


def test_the_sizes_of_changes():
    values = {change.what: change.value for change in all_changes(FITS)}
    assert values["smaller batch"] == 128
    assert values["larger batch"] == 512
    assert values["8-bit moments"] is fg.quantize_state
    assert "FSDP" not in {c.what for c in all_changes(FITS._replace(axes={"data": 1}))}
