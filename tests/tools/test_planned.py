"""Plans are read rightly from text whose sums are known."""

import pytest

from tools import planned
from tools.hlo import num_bytes, parse, sizes


def test_types_are_measured():
    of_tuple = "(f32[8,16]{1,0:T(8,128)}, /*index=1*/bf16[3]{0:T(1024)(128)(2,1)S(1)}, u32[]{:S(8)})"
    assert sizes(of_tuple) == [128, 3, 1]
    assert num_bytes(of_tuple) == 512 + 6 + 4
    assert num_bytes("pred[5]") == num_bytes("f8e4m3fn[5]") == 5
    assert num_bytes("s4[5]") == 3


LOOP = """\
HloModule loop, is_scheduled=true

%inside (p.0: f32[2048,2048]) -> f32[2048,2048] {
  %p.0 = f32[2048,2048]{1,0:T(8,128)} parameter(0)
  ROOT %sine.0 = f32[2048,2048]{1,0:T(8,128)} sine(%p.0), backend_config={"window":{"estimated_cycles":"1000000"}}
}

%body (carried.0: (s32[], f32[2048,2048], s32[])) -> (s32[], f32[2048,2048], s32[]) {
  %carried.0 = (s32[]{:T(128)}, f32[2048,2048]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %step = s32[]{:T(128)} constant(STEP)
  %counter.0 = s32[]{:T(128)} get-tuple-element(%carried.0), index=0
  %copied = s32[]{:T(128)} copy(%counter.0)
  %x.0 = f32[2048,2048]{1,0:T(8,128)} get-tuple-element(%carried.0), index=1
  %limit.0 = s32[]{:T(128)} get-tuple-element(%carried.0), index=2
  %sines = f32[2048,2048]{1,0:T(8,128)} fusion(%x.0), kind=kLoop, calls=%inside, backend_config={"estimated_cycles":"10"}
  %next = s32[]{:T(128)} add(%copied, %step)
  ROOT %carried.1 = (s32[]{:T(128)}, f32[2048,2048]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%next, %sines, %limit.0)
}

%condition (carried.2: (s32[], f32[2048,2048], s32[])) -> pred[] {
  %carried.2 = (s32[]{:T(128)}, f32[2048,2048]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %counter.2 = s32[]{:T(128)} get-tuple-element(%carried.2), index=0
  LIMIT
  ROOT %less = pred[]{:T(512)} compare(%counter.2, %limit.2), direction=LT, metadata={op_name="while/cond/lt"}
}

ENTRY %main (x.1: f32[2048,2048], n.1: s32[]) -> (s32[], f32[2048,2048], s32[]) {
  %x.1 = f32[2048,2048]{1,0:T(8,128)} parameter(0)
  %n.1 = s32[]{:T(128)} parameter(1)
  %start = s32[]{:T(128)} constant(3)
  %end = s32[]{:T(128)} constant(17)
  %first = f32[2048,2048]{1,0:T(8,128)} fusion(%x.1), kind=kLoop, calls=%inside, backend_config={"estimated_cycles":"100"}
  %carried = (s32[]{:T(128)}, f32[2048,2048]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%start, %first, %END)
  ROOT %while = (s32[]{:T(128)}, f32[2048,2048]{1,0}, s32[]) while(%carried), condition=%condition, body=%body
}
"""
OF_CONSTANT = "%limit.2 = s32[]{:T(128)} constant(17)"
OF_CARRIED = "%limit.2 = s32[]{:T(128)} get-tuple-element(%carried.2), index=2"


def loop(step="1", limit=OF_CONSTANT, end="end"):
    return LOOP.replace("STEP", step).replace("LIMIT", limit).replace("END", end)


@pytest.mark.parametrize(
    ("text", "turns", "open_loops"),
    [
        (loop(), 14, 0),
        (loop(step="4"), 4, 0),
        (loop(limit=OF_CARRIED), 14, 0),
        (loop(limit=OF_CARRIED, end="n.1"), 1, 1),
        (loop(step="0"), 1, 1),
        (loop().replace("direction=LT", "direction=NE"), 1, 1),
        (loop().replace("condition=%condition", 'x={"known_trip_count":{"n":"6"}}, condition=%condition'), 6, 0),
    ],
)
def test_loop_counts_as_often_as_it_turns(text, turns, open_loops):
    plan = planned.tpu_cycles(text)
    # The instructions inside a fusion do not count.
    assert plan.amount == 100 + 10 * turns
    assert plan.open_loops == open_loops
    assert plan.missing == {}
    assert [(part.name, part.times, part.amount) for part in plan.parts if part.amount] == sorted(
        [("first", 1, 100), ("sines", turns, 10 * turns)], key=lambda part: -part[2]
    )


BRANCHES = """\
%gathers (p.0: f32[512,2048], i.0: s32[512]) -> f32[512] {
  %p.0 = f32[512,2048]{1,0:T(8,128)} parameter(0)
  %i.0 = s32[512]{0:T(1024)} parameter(1)
  ROOT %gather.0 = f32[512]{0:T(1024)} gather(%p.0, %i.0), offset_dims={}, slice_sizes={1,1}
}

%on_the_sparse_core (p.1: f32[512,2048], i.1: s32[512]) -> f32[512] {
  %p.1 = f32[512,2048]{1,0:T(8,128)} parameter(0)
  %i.1 = s32[512]{0:T(1024)} parameter(1)
  ROOT %gathered = f32[512]{0:T(1024)} fusion(%p.1, %i.1), calls=%gathers, backend_config={"estimated_cycles":"9223372036854775807"}
}, execution_thread="sparsecore"

%cheap (p.2: f32[512,2048]) -> f32[512,2048] {
  %p.2 = f32[512,2048]{1,0:T(8,128)} parameter(0)
  ROOT %copy.2 = f32[512,2048]{0,1:T(8,128)} copy(%p.2), backend_config={"estimated_cycles":"5"}
}

%sorted (p.3: f32[512,2048]) -> f32[512,2048] {
  %p.3 = f32[512,2048]{1,0:T(8,128)} parameter(0)
  ROOT %sort.3 = f32[512,2048]{1,0:T(8,128)} sort(%p.3), dimensions={1}, to_apply=%less
}

%dear (p.4: f32[512,2048]) -> f32[512,2048] {
  %p.4 = f32[512,2048]{1,0:T(8,128)} parameter(0)
  ROOT %call.4 = f32[512,2048]{1,0:T(8,128)} call(%p.4), to_apply=%called
}

%called (p.5: f32[512,2048]) -> f32[512,2048] {
  %p.5 = f32[512,2048]{1,0:T(8,128)} parameter(0)
  ROOT %copy.5 = f32[512,2048]{0,1:T(8,128)} copy(%p.5), backend_config={"estimated_cycles":"9"}
}

ENTRY %main (x.1: f32[512,2048], i.1: s32[512], n.1: s32[]) -> f32[512,2048] {
  %x.1 = f32[512,2048]{1,0:T(8,128)} parameter(0)
  %i.1 = s32[512]{0:T(1024)} parameter(1)
  %n.1 = s32[]{:T(128)} parameter(2)
  %copy-start = (f32[512,2048]{1,0:S(1)}, f32[512,2048]{1,0}, u32[]{:S(2)}) copy-start(%x.1)
  %copy-done = f32[512,2048]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %start = ((f32[512,2048]{1,0:T(8,128)}, s32[512]{0}), f32[512]{0}, u32[]{:S(8)}) call-start(%x.1, %i.1), async_execution_thread="sparsecore", to_apply=%on_the_sparse_core
  %done = f32[512]{0:T(1024)} call-done(%start)
  %allocated = f32[512,2048]{1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %kernel = f32[512,2048]{1,0:T(8,128)} custom-call(%copy-done), custom_call_target="tpu_custom_call"
  %small = f32[512]{0:T(1024)} add(%done, %done)
  ROOT %one = f32[512,2048]{1,0:T(8,128)} conditional(%n.1, %kernel, %kernel, %kernel), branch_computations={%cheap, %dear, %sorted}
}
"""


def test_dearest_branch_counts_and_what_has_no_estimate_is_named():
    plan = planned.tpu_cycles(BRANCHES)
    assert plan.amount == 9
    assert plan.missing == {"gather": 1, "tpu_custom_call": 1, "sort": 1}
    assert plan.open_loops == plan.gathered == 0


def test_two_branches_can_be_named_apart():
    branches = "branch_computations={%cheap, %dear, %sorted}"
    assert branches in BRANCHES
    text = BRANCHES.replace(branches, "true_computation=%cheap, false_computation=%sorted")
    assert planned.tpu_cycles(text).amount == 5


KERNELS = """\
%doubled (p.0: f32[64,1000]) -> bf16[64,1000] {
  %p.0 = f32[64,1000]{1,0} parameter(0)
  %twice = f32[64,1000]{1,0} add(%p.0, %p.0)
  ROOT %rounded = bf16[64,1000]{1,0} convert(%twice)
}

%taken (p.1: bf16[64,1000], i.1: s32[64]) -> (f32[64], f32[64]) {
  %p.1 = bf16[64,1000]{1,0} parameter(0)
  %i.1 = s32[64]{0} parameter(1)
  %wide.1 = f32[64,1000]{1,0} convert(%p.1)
  %gather.1 = f32[64]{0} gather(%wide.1, %i.1), offset_dims={}
  %negative = f32[64]{0} negate(%gather.1)
  ROOT %both = (f32[64]{0}, f32[64]{0}) tuple(%gather.1, %negative)
}

%sliced (p.2: f32[64,1000], i.2: s32[]) -> f32[1,1000] {
  %p.2 = f32[64,1000]{1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %exponential = f32[64,1000]{1,0} exponential(%p.2)
  ROOT %slice = f32[1,1000]{1,0} dynamic-slice(%exponential, %i.2, %zero), dynamic_slice_sizes={1,1000}
}

%updated (p.3: f32[64,1000], row.3: f32[1,1000], i.3: s32[]) -> f32[64,1000] {
  %p.3 = f32[64,1000]{1,0} parameter(0)
  %row.3 = f32[1,1000]{1,0} parameter(1)
  %i.3 = s32[] parameter(2)
  %zero.3 = s32[] constant(0)
  ROOT %update = f32[64,1000]{1,0} dynamic-update-slice(%p.3, %row.3, %i.3, %zero.3)
}

%scattered (p.4: bf16[64,1000], i.4: s32[64], new.4: bf16[64]) -> bf16[64,1000] {
  %p.4 = bf16[64,1000]{1,0} parameter(0)
  %i.4 = s32[64]{0} parameter(1)
  %new.4 = bf16[64]{0} parameter(2)
  ROOT %scatter = bf16[64,1000]{1,0} scatter(%p.4, %i.4, %new.4), to_apply=%add
}

ENTRY %main (x.1: f32[64,1000], i.1: s32[64], n.1: s32[]) -> bf16[64,1000] {
  %x.1 = f32[64,1000]{1,0} parameter(0)
  %i.1 = s32[64]{0} parameter(1)
  %n.1 = s32[] parameter(2)
  %a = bf16[64,1000]{1,0} fusion(%x.1), kind=kLoop, calls=%doubled
  %b = (f32[64]{0}, f32[64]{0}) fusion(%a, %i.1), kind=kLoop, calls=%taken
  %b.0 = f32[64]{0} get-tuple-element(%b), index=0
  %c = ((f32[64,1000]{1,0}, s32[]), f32[1,1000]{1,0}, u32[]) fusion-start(%x.1, %n.1), kind=kLoop, calls=%sliced
  %c.0 = f32[1,1000]{1,0} fusion-done(%c)
  %d = f32[64,1000]{1,0} fusion(%x.1, %c.0, %n.1), kind=kLoop, calls=%updated
  %e = bf16[64]{0} convert(%b.0)
  %g = bf16[64,1000]{1,0} custom-call(%a, %a), custom_call_target="kernel"
  ROOT %f = bf16[64,1000]{1,0} fusion(%g, %i.1, %e), kind=kInput, calls=%scattered
}
"""


def test_kernels_move_what_they_read_and_write():
    plan = planned.gpu_bytes(KERNELS)
    f32, bf16, row, ids = 4 * 64000, 2 * 64000, 4 * 1000, 4 * 64
    assert {part.name: part.amount for part in plan.parts} == {
        "a": f32 + bf16,
        "b": bf16 + ids + 2 * 4 * 64,  # the whole operand of the gather
        "c": row + 4 + row,
        "d": row + 4 + row,
        "e": 4 * 64 + 2 * 64,
        "g": bf16 + bf16,  # an operand that is given twice is read once
        "f": ids + 2 * 64 + 2 * 2 * 64,
    }
    assert plan.amount == sum(part.amount for part in plan.parts)
    assert plan.gathered == bf16
    assert {part.name: part.what for part in plan.parts if part.what != "fusion"} == {
        "b": "gather",
        "c": "fusion-start",
        "e": "convert",
        "f": "scatter",
        "g": "kernel",
    }


def test_module_is_parsed():
    module = parse(KERNELS)
    assert module.entry == "main"
    assert list(module.computations) == ["doubled", "taken", "sliced", "updated", "scattered", "main"]
    start = module.computations["main"]["c"]
    assert (start.op, start.operands, start.called()) == ("fusion-start", ("x.1", "n.1"), ["sliced"])
