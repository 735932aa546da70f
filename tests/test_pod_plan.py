"""The plan for a pod: reading a compiled program, and the estimates that follow from it. Nothing is compiled for a TPU here."""

from dataclasses import replace

import pytest

from swinunetr_jax import InputError
from tools import pod_plan
from tools.pod_plan import Options, Program

PROGRAM = """
ENTRY %main (p0: f32[4,8]) -> f32[4,8] {
  %all-reduce.1 = (f32[4,8]{1,0}, bf16[16]{0}) all-reduce(%a, %b), replica_groups={{0,1}}
  %permute = (bf16[2,3]{1,0}, bf16[2,3]{1,0}, u32[], u32[]) collective-permute-start(%c), source_target_pairs={{0,1}}
  %done = bf16[2,3]{1,0} collective-permute-done(%permute)
  %all-gather.2 = s8[10]{0} all-gather(%d), dimensions={0}
  %reduce = (f32[4]{0}, f32[8]{0}) all-reduce-start(%e, %f), replica_groups={{0,1}}
  ROOT %sum = f32[4,8]{1,0} add(%g, %h)
}
"""
STEP = Program(
    topology="v5e:4x4",
    chips=16,
    batch=8,
    spatial_shards=2,
    roi=(128, 128, 128),
    held_bytes=2 << 30,
    temporary_bytes=6 << 30,
    flops=2.5e12,
    schedule_seconds=0.198,
    roofline_seconds=0.1,
    collectives={"all-reduce": (3, 250_000_000)},
    gradient_bytes=200_000_000,
    compile_seconds=1.0,
)


def test_collectives_of_a_program():
    assert pod_plan.read_collectives(PROGRAM) == {
        "all-reduce": (2, 4 * 8 * 4 + 16 * 2 + 4 * 4 + 8 * 4),
        "all-gather": (1, 10),
        "collective-permute": (1, 2 * 3 * 2),
    }
    assert pod_plan.read_collectives("") == {}


def test_gradients_between_chips():
    assert pod_plan.between_chips(STEP, 1) == 0
    assert pod_plan.between_chips(STEP, 2) == pytest.approx(200e6 / 100e9)  # each chip sends and receives half of them, twice
    assert pod_plan.between_chips(replace(STEP, topology="v6e:4x4"), 10**9) == pytest.approx(2 * 200e6 / 224e9)


def test_the_expected_time_for_other_numbers_of_chips():
    lines = pod_plan.expectation(STEP, (2, 16)).splitlines()
    assert lines[-2].split("|")[1:7] == [" 2 ", " 1 ", " 198.0 ", " 2.00 ", " 5.0 ", " 99.0% "]
    assert lines[-1].split("|")[1:3] == [" 16 ", " 8 "]


def test_the_table():
    row = pod_plan.table([STEP]).splitlines()[-1]
    assert "| v5e:4x4 | 128×128×128 | 8 | 2 |" in row and "| 50% |" in row and "all-reduce 3, 250.0" in row


@pytest.mark.parametrize("largest", [0, 1, 3, 7])
@pytest.mark.parametrize("guess", [0, 1, 3, 4, 9])
def test_the_search_finds_the_largest_number_from_any_guess(largest, guess):
    assert pod_plan.search(lambda number: number <= largest, guess) == largest


def test_the_search_starts_where_memory_would_be_full(monkeypatch):
    """A step with crops of 128³ on two chips takes 2 of 16 GiB for arguments and 6 GiB for temporaries on each chip.

    There is room for 14 / 6 of these temporaries, so the search starts with two such crops or with the largest cube below 169³.
    """
    tried = []

    def fits(topology, options, roi, batch):
        tried.append((roi[0], batch))
        return batch <= 3 and roi[0] <= 160

    monkeypatch.setattr(pod_plan, "fits", fits)
    assert pod_plan.largest(STEP, Options(spatial_shards=2)) == (3, 160)
    assert tried == [(160, 1), (192, 1), (128, 2), (128, 3), (128, 4)]


@pytest.mark.parametrize("topology", ["v9z:2x2", "pod"])
def test_a_chip_that_is_not_known_is_refused(topology):
    with pytest.raises(InputError, match=f"the chip of {topology} is not known: take one of v5e, v6e, such as v5e:4x4"):
        pod_plan.compile_step(topology, Options(), roi=(64, 64, 64), batch_per_chip=1)
