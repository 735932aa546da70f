"""The estimate that is read from the text of a program for a TPU."""

from tools.tpu_estimate import estimate

PROGRAM = """HloModule jit_f, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %inner = f32[8]{0} negate(%p), backend_config={"window_config":{"estimated_cycles":"999"}}
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%s), index=1
  %f = f32[8]{0:T(128)} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/neg"}, backend_config={"estimated_cycles":"10"}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %f)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %copy = f32[8]{0} copy(%a), metadata={op_name="a"}, backend_config={"window_config":{"estimated_cycles":"5"}}
  %k = f32[8]{0} custom-call(%copy), custom_call_target="tpu_custom_call"
  %g = f32[8]{0} fusion(%k), kind=kCustom, calls=%fused, metadata={op_name="jit(f)/gather"}
  %w = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%w), index=1
}
"""


def test_a_loop_is_counted_for_each_iteration_and_a_fusion_once():
    result = estimate(PROGRAM)
    assert result.cycles == 5 + 7 * 10
    assert result.without_estimate == 2  # the kernel and the gather
    assert result.top(1) == [(70, "f | fusion | f32[8]{0:T(128)} | jit(f)/neg")]
