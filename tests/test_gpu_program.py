"""The reader of compiled GPU programs, on a small program that is written by hand."""

import pytest

from tools.gpu_program import parse, read, table

PROGRAM = """HloModule jit_f

%turned (p: bf16[1,48,24,24,24]) -> bf16[1,24,24,24,48] {
  %p = bf16[1,48,24,24,24]{4,3,2,1,0} parameter(0)
  ROOT %t = bf16[1,24,24,24,48]{4,3,2,1,0} transpose(%p), dimensions={0,2,3,4,1}
}

%voxels (q: bf16[1,24,24,24,48]) -> bf16[12,24,48,48] {
  %q = bf16[1,24,24,24,48]{4,3,2,1,0} parameter(0)
  %s = bf16[24,12,48,48]{3,2,1,0} bitcast(%q)
  ROOT %u = bf16[12,24,48,48]{3,2,1,0} transpose(%s), dimensions={1,0,2,3}
}

ENTRY %main (x: bf16[1,48,24,24,24], k: bf16[48,3,3,3,48]) -> f32[27,3,343,344] {
  %x = bf16[1,48,24,24,24]{4,3,2,1,0} parameter(0)
  %k = bf16[48,3,3,3,48]{4,3,2,1,0} parameter(1)
  %in = bf16[1,24,24,24,48]{4,3,2,1,0} fusion(%x), kind=kInput, calls=%turned
  %conv = (bf16[1,24,24,24,48]{4,3,2,1,0}, u8[1000]{0}) custom-call(%in, %k), custom_call_target="__cudnn$convForward"
  %y = bf16[1,24,24,24,48]{4,3,2,1,0} get-tuple-element(%conv), index=0
  %out = bf16[12,24,48,48]{3,2,1,0} fusion(%y), kind=kLoop, calls=%voxels
  %small = f32[3,343,344]{2,1,0} fusion(%out), kind=kLoop, calls=%voxels
  ROOT %weights = f32[27,3,343,344]{3,2,1,0} custom-call(%small, %small), custom_call_target="__cublas$gemm"
}
"""
VOLUME, KERNEL = 2 * 24**3 * 48, 2 * 27 * 48**2
BIAS, WEIGHTS = 4 * 3 * 343 * 344, 4 * 27 * 3 * 343 * 344


def test_instructions_and_their_users():
    computations, entry = parse(PROGRAM)
    assert (entry, set(computations)) == ("main", {"turned", "voxels", "main"})
    conv = computations["main"]["conv"]
    assert (conv.opcode, conv.operands, conv.users, conv.sizes) == ("custom-call", ["in", "k"], ["y"], [VOLUME, 1000])
    assert computations["main"]["in"].called == "turned"


def test_facts_of_a_program():
    facts = read(PROGRAM)
    traffic = 2 * VOLUME + (VOLUME + KERNEL + VOLUME + 1000) + 2 * VOLUME + (VOLUME + BIAS) + (BIAS + WEIGHTS)
    assert facts.pop("traffic_gb") == pytest.approx(traffic / 1e9)
    assert facts == {
        "convolutions": 1,
        "transposes_next_to_convolutions": 1,  # not the one after it, which moves voxels with all their channels
        "attention_weights_in_memory": 1,  # not the bias, which the windows share
        "largest_result_mb": WEIGHTS / 1e6,
        "largest_result": "f32[27,3,343,344]",
        "kernels": 5,
    }


def test_the_table_has_a_line_for_each_program():
    row = {"target": "h200", "work": "forward", "size": 96, "temporaries_gb": 0.5, "held_gb": 0.25} | read(PROGRAM)
    head, rule, *lines = table([row, row]).splitlines()
    assert len(lines) == 2
    assert head.count("|") == rule.count("|") == lines[0].count("|")
    assert lines[0].startswith("| h200 | forward | 96³ | 0.50 | 0.25 | f32[27,3,343,344] 38 MB | 1 | 1 | 1 | 5 |")
