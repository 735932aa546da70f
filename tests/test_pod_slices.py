"""The plan for several slices: reading a program that was compiled for two, and the arithmetic of its sums. Nothing is compiled here."""

from dataclasses import replace

import pytest
from test_pod_plan import STEP

from swinunetr_jax import InputError
from tools import pod_plan, pod_slices
from tools.pod_slices import Slice, Transfer, read_backward, read_transfers, transfer_seconds, unhidden_seconds

# Two sums over slices, and a transfer to the host that is no such sum, in the format of libtpu 0.0.42.
PROGRAM = """HloModule jit_step, is_scheduled=true

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0:T(128)} fusion(%x), kind=kLoop, calls=%g, metadata={op_name="jit(f)/transpose(jvp())/a"}, backend_config={"estimated_cycles":"500"}
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %forward = f32[8]{0} fusion(%p), kind=kLoop, calls=%g, metadata={op_name="jit(f)/jvp()/a"}, backend_config={"estimated_cycles":"1000"}
  %backward = f32[8]{0} fusion(%p), kind=kLoop, calls=%g, metadata={op_name="jit(f)/transpose(jvp())/a"}, backend_config={"estimated_cycles":"2000"}
  %send.1 = (bf16[54,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%bitcast.1, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.7_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %loop = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body, metadata={op_name="jit(f)/transpose(jvp())/while"}
  %send.2 = (f32[1,1,128]{2,1,0:T(1,128)}, u32[], token[]) send(%psum, %after-all), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="psum.9_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %log = (f32[99]{0}, u32[], token[]) send(%loss, %after-all), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="log"}
  %recv.2 = (f32[1,1,128]{2,1,0:T(1,128)}, u32[], token[]) recv(%after-all), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="psum.9_0",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (bf16[54,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) recv(%after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.7_0",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=2, is_host_transfer=true
  %recv-done.1 = (bf16[54,8,128]{2,1,0:T(8,128)(2,1)}, token[]) recv-done(%recv.1), channel_id=2, is_host_transfer=true
  %update = f32[8]{0} fusion(%p), kind=kLoop, calls=%g, metadata={op_name="jit(f)/add"}, backend_config={"estimated_cycles":"3000"}
  %recv-done.2 = (f32[1,1,128]{2,1,0:T(1,128)}, token[]) recv-done(%recv.2), channel_id=3, is_host_transfer=true
}
"""  # noqa: E501
# Chips of a v5e have 3.125 GB/s each: for two slices 3.125 MB take 1 ms.
ONE = Slice(
    topology="v5e:4x4",
    chips=16,
    batch=16,
    compute_seconds=0.098,
    gradient_seconds=0.002,
    gradient_bytes=80_000_000,
    transfers=(Transfer(3_125_000, 0.080, 0.083), Transfer(12_500_000, 0.090, 0.091)),
    backward=(0.030, 0.085),
    host_bytes=25e9,
)


def test_transfers_of_a_program():
    assert read_transfers(PROGRAM, cycles_per_second=1000) == (Transfer(54 * 8 * 128 * 2, 3, 5), Transfer(128 * 4, 5, 8))
    assert read_transfers("", cycles_per_second=1000) == ()


def test_the_backward_pass_of_a_program():
    assert read_backward(PROGRAM, cycles_per_second=1000) == (1, 5)
    assert read_backward("", cycles_per_second=1000) == (0, 0)


def test_the_seconds_of_a_sum_over_slices():
    assert transfer_seconds(3_125_000, 1, 25e9) == 0
    assert transfer_seconds(3_125_000, 2, 25e9) == pytest.approx(0.001)
    assert transfer_seconds(3_125_000, 4, 25e9) == pytest.approx(0.0015)
    assert transfer_seconds(3_125_000, 2, pod_slices.HOST_BYTES["v6e"]) == pytest.approx(0.00025)


@pytest.mark.parametrize(
    ("transfers", "waited"),
    [
        ([(3_125_000, 0.010, 0.011)], 0),  # 1 ms of transfer in 1 ms of computation
        ([(3_125_000, 0.010, 0.0104)], 0.0006),
        ([(3_125_000, 0.010, 0.010)], 0.001),  # nothing is hidden
        ([(3_125_000, 0.010, 0.0115), (3_125_000, 0.010, 0.0115)], 0.0005),  # both share the network
        # The first wait of 1 ms delays the second transfer by 1 ms, too, so that as much of it is hidden as before.
        ([(6_250_000, 0.010, 0.011), (3_125_000, 0.012, 0.0125)], 0.0015),
    ],
)
def test_computation_waits_for_sums_that_are_not_hidden(transfers, waited):
    given = [Transfer(*transfer) for transfer in transfers]
    assert unhidden_seconds(given, 2, 25e9) == pytest.approx(waited)
    assert unhidden_seconds(given[::-1], 2, 25e9) == pytest.approx(waited)
    assert unhidden_seconds(given, 1, 25e9) == 0


def test_the_expected_time_for_several_slices():
    lines = pod_slices.expectation(ONE, 4).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:7]]
    assert rows == [
        ["1", "16", "16", "0.00", "0.00", "100.0", "160.0", "98.0%", "98.0%"],
        ["2", "32", "32", "5.00", "3.00", "103.0", "310.7", "95.1%", "93.3%"],
        ["4", "64", "64", "7.50", "5.00", "105.0", "609.5", "93.3%", "91.2%"],
    ]
    text = "\n".join(lines[7:])
    assert "80.0 MB in float32, of which each of the 16 chips of a slice would have 5.00 MB" in text
    assert "sums 15.62 MB of each chip over the slices, in 2 arrays" in text
    assert "a host of 8 chips sends and receives 25 GB/s" in text and "Not modelled: latency" in text
    assert "Half of the bytes are ready after 90.0 of 98.0 ms" in text
    assert "from 30.0 to 85.0 ms, which would be enough to hide all sums of 4 slices" in text
    slow = pod_slices.expectation(replace(ONE, host_bytes=2.5e9), 4)
    assert "which would be too short to hide all sums of 4 slices" in slow


@pytest.mark.parametrize(("slices", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])])
def test_the_numbers_of_slices_in_the_table(slices, counts):
    assert pod_slices.slice_counts(slices) == counts


def test_several_slices_are_planned_from_a_program_for_two(monkeypatch, capsys):
    compiled = []

    def compile_step(topology, options, *, roi, batch_per_chip, slices):
        compiled.append((topology, slices))
        return replace(STEP, chips=32, batch=16, slices=slices, transfers=ONE.transfers, backward=ONE.backward)

    monkeypatch.setattr(pod_plan, "compile_step", compile_step)
    pod_plan.main(pod_plan.Options(topology=("v5e:4x4",), slices=3))
    printed = capsys.readouterr().out
    # 198 ms of computation, and 16 chips sum 200 MB in 3.75 ms.
    assert compiled == [("v5e:4x4", 2)] and "| 2 × v5e:4x4 |" in printed
    assert "| 1 | 16 | 8 | 0.00 | 0.00 | 201.8 |" in printed and "| 3 | 48 | 24 | 6.67 | 4.33 | 206.1 |" in printed
    with pytest.raises(InputError, match="--slices is 0, expected 1 or more"):
        pod_plan.main(pod_plan.Options(slices=0))
