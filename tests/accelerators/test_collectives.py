"""Collectives and their bytes, from texts that compilers made, shortened."""

import pytest

from fngrad.accelerators.collectives import Collective, traffic_of


def program(*lines: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return (
        f"HloModule f\n\n{before}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"
    )


# libtpu 0.0.42 for v5e: a scan of six layers; the forms of groups differ.
LOOP = """
%condition.1 (wide.param: (s32[], f32[8])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(6)
  %wide.param = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%wide.param), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.5), direction=LT
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ag = bf16[1,64,128]{2,1,0:T(8,128)(2,1)} all-gather(%x), channel_id=94, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={1}
  %ar = bf16[8,64]{1,0} all-reduce(%y), channel_id=9, replica_groups=[4,2]<=[8], to_apply=%add
}
"""  # noqa: E501
WHILE = "%w = (s32[], f32[8]{0}) while(%t), condition=%condition.1, body=%body.1"


def test_a_loop_counts_by_the_bound_in_its_condition():
    traffic = traffic_of(program(WHILE, before=LOOP), 8)
    gathered, reduced = 64 * 128 * 2, 8 * 64 * 2
    assert traffic.collectives == {
        "all-gather": Collective(6, 6 * gathered * 3 // 4),
        "all-reduce": Collective(6, 6 * 2 * reduced // 2),
    }
    assert traffic.unknown_loops == 0
    assert traffic.bytes == 6 * (gathered * 3 // 4 + reduced)


def test_the_compilers_trip_count_goes_before_the_condition():
    known = f'{WHILE}, backend_config={{"known_trip_count":{{"n":"5"}}}}'
    traffic = traffic_of(program(known, before=LOOP), 8)
    assert traffic.collectives["all-gather"].count == 5


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    loop = LOOP.replace("constant(6)", "parameter(1)")
    traffic = traffic_of(program(WHILE, before=loop), 8)
    assert traffic.collectives["all-gather"].count == 1
    assert traffic.unknown_loops == 1


def test_loops_inside_of_loops_multiply():
    outer = LOOP.replace(".1", ".2").replace(
        "%ag =", f"{WHILE}\n  %unused = f32[] add(%a, %b)\n  %other ="
    )
    outer = outer.replace("constant(6)", "constant(3)").replace("channel_id=94", "")
    calls = WHILE.replace(".1", ".2")
    traffic = traffic_of(program(calls, before=LOOP + outer), 8)
    assert traffic.collectives["all-gather"].count == 3 * 6 + 3


def test_a_collective_that_overlaps_stands_there_thrice_and_counts_once():
    line = (
        "%a.{} = f32[64]{{0}} all-gather(%x), channel_id=7, replica_groups={{{{0,1}}}}"
    )
    traffic = traffic_of(program(*(line.format(i) for i in range(3))), 2)
    assert traffic.collectives == {"all-gather": Collective(1, 128)}


def test_collectives_without_a_channel_are_all_counted():
    line = "%a.{} = f32[64]{{0}} all-gather(%x), replica_groups={{{{0,1}}}}"
    traffic = traffic_of(program(*(line.format(i) for i in range(3))), 2)
    assert traffic.collectives["all-gather"].count == 3


REDUCE_SCATTER = """
%all-reduce-scatter.6 (input.6: bf16[64,48]) -> bf16[16,48] {
  %all-reduce.1 = bf16[64,48]{1,0:T(8,128)(2,1)} all-reduce(%input.6), channel_id=84, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %dynamic-slice.293 = bf16[16,48]{1,0} dynamic-slice(%all-reduce.1, %i, %zero)
}
"""  # noqa: E501


def test_a_fused_all_reduce_and_slice_is_a_reduce_scatter():
    call = "%f = bf16[16,48]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.6"
    traffic = traffic_of(program(call, before=REDUCE_SCATTER), 8)
    assert traffic.collectives == {
        "reduce-scatter": Collective(1, 64 * 48 * 2 * 3 // 4)
    }


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        ("f32[16]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}", None, 64 * 3),
        ("f32[64]{0} all-to-all(%x), replica_groups={{0,1,2,3}}", None, 64 * 3),
        ("f32[64]{0} all-reduce(%x), replica_groups={}", None, 2 * 256 * 7 // 8),
        (
            "(f32[64]{0}, bf16[8]{0}) all-reduce(%x, %y), replica_groups={{0,1}}",
            None,
            256 + 16,
        ),
        (
            "(f32[16]{0}, f32[64]{0}) all-gather-start(%x), replica_groups=[2,4]<=[8]",
            "all-gather",
            64 * 3,
        ),
        (
            "(bf16[24,64]{1,0:T(8,128)}, bf16[24,64]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) "
            "collective-permute-start(%x), source_target_pairs={{0,2},{2,4}}",
            "collective-permute",
            24 * 64 * 2,
        ),
        ("pred[64]{0} all-gather(%x), replica_groups={{0,1}}", None, 32),
        ("f8e4m3fn[64]{0} all-gather(%x), replica_groups={{0,1}}", None, 32),
    ],
)
def test_bytes_that_each_device_sends(line, kind, sent):
    kind = kind or line.split("(%")[0].split()[-1]
    traffic = traffic_of(program(f"%c = {line}"), 8)
    assert traffic.collectives == {kind: Collective(1, sent)}


def test_the_end_of_an_asynchronous_one_is_not_another():
    done = "%d = f32[64]{0} all-gather-done(%s)"
    assert traffic_of(program(done), 8).collectives == {}


def test_a_program_without_any_exchanges_nothing():
    traffic = traffic_of(program("ROOT %a = f32[8]{0} add(%p, %p)"), 1)
    assert traffic == ({}, 0)
    assert traffic.bytes == 0


def test_a_repeated_collective_counts_as_often_as_its_most_frequent_place():
    again = "%a = bf16[8,64]{1,0} all-reduce(%y), channel_id=9, replica_groups={{0,1}}"
    traffic = traffic_of(program(WHILE, again, before=LOOP), 8)
    assert traffic.collectives["all-reduce"].count == 6
