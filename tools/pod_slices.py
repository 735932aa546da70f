"""Estimates what the sum of the gradients over several TPU slices costs, from a step that was compiled for several slices.

The compiled sum of an array has three parts: the chips of each slice sum it, and each of them keeps a shard (reduce-scatter, over the fast
links within the slice); each chip's shard is summed over the slices; the chips of a slice exchange the sums (all-gather). In the second
part a chip's host sends the shard through the network of the data centre (DCN), by the compiler's instructions `send` and `recv-done`. The
chip computes in the meantime, until the sum is needed.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.gpu_program import BYTES
from tools.tpu_estimate import schedule

# Bytes per second of a host's network in one direction. Google states 2 × 100 Gbit/s for a host of 8 v5e chips and 4 × 200 Gbit/s for one
# of 8 v6e chips, and 6.4 and 25.6 Tbit/s for their pods of 256 chips, which is the same:
# https://docs.cloud.google.com/tpu/docs/v5e and https://docs.cloud.google.com/tpu/docs/v6e
HOST_BYTES = {"v5e": 25e9, "v6e": 100e9}
CHIPS_OF_HOST = 8


@dataclass(frozen=True)
class Transfer:
    """An array that every chip of a slice sums over the slices.

    Attributes:
        size: the bytes of the chip's shard, with padding.
        ready: the seconds of computation in a step before the shard can be sent.
        needed: the seconds of computation before the sum is needed.
    """

    size: int
    ready: float
    needed: float


@dataclass(frozen=True)
class Slice:
    """The training step on one of several equal slices.

    Attributes:
        topology: the chip and the grid of chips, such as v5e:16x16.
        chips: the number of chips.
        batch: the number of samples.
        compute_seconds: how long a chip computes in a step.
        gradient_seconds: how long the sum of the gradients over the chips of the slice takes.
        gradient_bytes: the bytes of all gradients in float32.
        transfers: the arrays that each chip sums over the slices.
        backward: the seconds of computation at which the backward pass begins and ends.
        host_bytes: the bytes per second of a host's network in one direction.
    """

    topology: str
    chips: int
    batch: int
    compute_seconds: float
    gradient_seconds: float
    gradient_bytes: int
    transfers: tuple[Transfer, ...]
    backward: tuple[float, float]
    host_bytes: float

    @property
    def transfer_bytes(self) -> int:
        """The bytes that a chip sums over the slices."""
        return sum(transfer.size for transfer in self.transfers)


def read_transfers(text: str, cycles_per_second: float) -> tuple[Transfer, ...]:
    """Returns the transfers between slices of a compiled program."""
    transfers, sent, cycles = [], dict[str, tuple[int, float]](), 0
    started: dict[str, str] = {}  # the transfer of each `recv`
    for line, cycles_of_line in schedule(text):
        transfer = re.search(r'_xla_host_transfer_rendezvous="([^"]*)".*_xla_megascale_transfer_type', line)
        if transfer and (send := re.search(r"= \((\w+)\[([\d,]*)\].* send\(", line)):
            size = BYTES[send[1]] * math.prod(int(n) for n in send[2].split(",") if n)
            sent[transfer[1]] = size, cycles / cycles_per_second
        elif transfer and (receive := re.search(r"%?([\w.\-]+) = .* recv\(", line)):
            started[receive[1]] = transfer[1]
        elif (done := re.search(r" recv-done\(%?([\w.\-]+)\)", line)) and done[1] in started:
            transfers.append(Transfer(*sent[started[done[1]]], cycles / cycles_per_second))
        cycles += cycles_of_line
    return tuple(transfers)


def read_backward(text: str, cycles_per_second: float) -> tuple[float, float]:
    """Returns the seconds of computation in a compiled step before the backward pass, and until its end.

    Instructions of the backward pass have names with `transpose(jvp`. The first and the last 2 % of their cycles are not counted, because
    the compiler moves some of them far away from the others.
    """
    lines = schedule(text)
    backward = [cycles * ("transpose(jvp" in (re.findall(r'op_name="([^"]*)"', line) or [""])[0]) for line, cycles in lines]
    done = np.cumsum(backward) / max(sum(backward), 1)
    seconds = np.cumsum([0, *(cycles for _, cycles in lines)]) / cycles_per_second
    start, end = np.searchsorted(done, (0.02, 0.98))
    return float(seconds[start]), float(seconds[min(end + 1, len(lines))])


def transfer_seconds(size: float, slices: int, host_bytes: float) -> float:
    """Returns the seconds in which shards of `size` bytes of each chip of a host are summed over the slices, without any latency.

    Each chip sends and receives each part of its shard once for summing it, and once for distributing the sum, except its own part.
    """
    return 2 * (slices - 1) / slices * size * CHIPS_OF_HOST / host_bytes


def unhidden_seconds(transfers: Sequence[Transfer], slices: int, host_bytes: float) -> float:
    """Returns by how many seconds the transfers make a step longer, because computation has to wait for sums that it needs.

    The network transfers one array after the other, in the order in which they are ready.
    """
    events = [(transfer.ready, False, transfer) for transfer in transfers]
    events += [(transfer.needed, True, transfer) for transfer in transfers]
    waited, network_free, arrival = 0.0, 0.0, dict[int, float]()
    for seconds, is_needed, transfer in sorted(events, key=lambda event: event[:2]):
        now = seconds + waited
        if is_needed:
            waited += max(0.0, arrival[id(transfer)] - now)
        else:
            network_free = max(network_free, now) + transfer_seconds(transfer.size, slices, host_bytes)
            arrival[id(transfer)] = network_free
    return waited


def slice_counts(slices: int) -> list[int]:
    """Returns 1, 2, 4, … and `slices`."""
    return sorted({1 << power for power in range(slices.bit_length())} | {slices})


def expectation(one: Slice, slices: int) -> str:
    """Returns a Markdown table of the expected times for up to `slices` slices, with what is assumed and what is not modelled."""
    head = ["slices", "chips", "batch", "sums between slices ms", "not hidden ms", "step ms", "crops per second"]
    head += ["of perfect scaling", "of perfect scaling if nothing is hidden"]
    lines = [f"{one.topology}, several slices:", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for count in slice_counts(slices):
        between = transfer_seconds(one.transfer_bytes, count, one.host_bytes)
        unhidden = unhidden_seconds(one.transfers, count, one.host_bytes)
        alone = one.compute_seconds + one.gradient_seconds
        cells = [count, count * one.chips, count * one.batch, f"{between * 1e3:.2f}", f"{unhidden * 1e3:.2f}"]
        cells += [f"{(alone + unhidden) * 1e3:.1f}", f"{count * one.batch / (alone + unhidden):.1f}"]
        cells += [f"{one.compute_seconds / (alone + extra):.1%}" for extra in (unhidden, between)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", *_assumptions(one, slices)])


def _assumptions(one: Slice, slices: int) -> list[str]:
    """Returns sentences about what the table assumes and what is not modelled."""
    shard, (start, end) = one.gradient_bytes / one.chips, one.backward
    in_order = sorted(one.transfers, key=lambda transfer: transfer.ready)
    half = np.searchsorted(np.cumsum([transfer.size for transfer in in_order]), one.transfer_bytes / 2)
    enough = "enough" if transfer_seconds(one.transfer_bytes, slices, one.host_bytes) < end - start else "too short"
    return [
        f"- Bytes: the gradients have {one.gradient_bytes / 1e6:.1f} MB in float32, of which each of the {one.chips} chips of a slice "
        f"would have {shard / 1e6:.2f} MB. The compiled step sums {one.transfer_bytes / 1e6:.2f} MB of each chip over the slices, in "
        f"{len(one.transfers)} arrays, some of them in bfloat16, and padded.",
        f"- Network: a host of {CHIPS_OF_HOST} chips sends and receives {one.host_bytes / 1e9:g} GB/s at the same time, and moves each "
        "byte 2 · (n − 1) / n times for n slices.",
        "- Hidden: a sum overlaps with what the compiled schedule computes between the time at which a shard is ready and the time at "
        f"which its sum is needed. Half of the bytes are ready after {in_order[half].ready * 1e3:.1f} of "
        f"{one.compute_seconds * 1e3:.1f} ms. The backward pass lasts from {start * 1e3:.1f} to {end * 1e3:.1f} ms, which would be "
        f"{enough} to hide all sums of {slices} slices if each shard was sent as soon as its gradients are computed.",
        "- Within a slice: the time of the sum is counted in full, as in the table above, although a part of it is hidden.",
        "- Not modelled: latency and other traffic of the network, copies between a chip and its host, the algorithm of the runtime, a "
        "slice that is slower than the others, and reading the data.",
    ]
