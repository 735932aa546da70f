"""Chooses network, crop and batch by the memory that a training step needs, which the functions here get from an argument `memory`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from swinunetr_jax import InputError
from swinunetr_jax.training.plan.decisions import Decision, Roi, by, smaller_crop

LEAST_SHARE = 0.25  # of the median scan's voxels; if the crop has fewer, a network that needs less memory is tried
LEAST_BATCH = 2
GIB = 1 << 30


@dataclass(frozen=True)
class NetworkSize:
    """The fields of a network's configuration that decide its memory."""

    feature_size: int = 48
    dtype: Literal["float32", "bfloat16"] = "float32"
    use_checkpoint: bool = False
    use_v2: bool = True

    def __str__(self) -> str:
        remat = ", blocks recomputed in the backward pass" if self.use_checkpoint else ""
        return f"{self.feature_size} features in {self.dtype}{remat}"


@dataclass(frozen=True)
class Step:
    """A training step: its network, crop, and the samples of one group of devices."""

    network: NetworkSize
    roi: Roi
    batch: int


Memory = Callable[[Step], float]
"""Returns the bytes that a step needs on each device, or infinity if it cannot be compiled for the device."""


@dataclass(frozen=True)
class Budget:
    """The devices and their memory.

    Attributes:
        limit: the bytes that a step may need on a device.
        groups: the groups of devices; each computes samples of its own.
        parts: the number of parts that each batch is split into, see `Optim.accumulate`. A group's batch is a multiple of it.
        on_cpu: whether the device is a CPU, where time limits the network before memory does.
    """

    limit: float
    groups: int = 1
    parts: int = 1
    on_cpu: bool = False

    @property
    def least_batch(self) -> int:
        """The smallest batch of a group with at least two samples in all groups together."""
        return math.ceil(max(LEAST_BATCH / self.groups, 1) / self.parts) * self.parts


@dataclass(frozen=True)
class Fixed:
    """The values that the user chose. None leaves a value to the planner."""

    roi: Roi | None = None
    batch: int | None = None
    feature_size: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    use_checkpoint: bool | None = None
    use_v2: bool | None = None


@dataclass(frozen=True)
class Sizes:
    """The result of the search.

    Attributes:
        step: the step that fits.
        refused: the steps that do not fit, on which the choice depends.
        batch: the batch of all groups together.
        decisions: the decisions with their reasons.
    """

    step: Step
    refused: tuple[Step, ...]
    batch: int
    decisions: tuple[Decision, ...]


def choose_sizes(
    memory: Memory, budget: Budget, median: np.ndarray, first: Roi, batch_limit: Callable[[Roi], int], fixed: Fixed | None = None
) -> Sizes:
    """Returns the network, the crop and the batch.

    The first network is the largest one. If the largest crop that fits at the least batch has less than a quarter of the median scan's
    voxels, networks that need less memory are tried: with bfloat16, then also with blocks recomputed in the backward pass, then with 24
    features.

    Args:
        memory: the memory of a step.
        budget: the devices and their memory.
        median: the shape of the median scan, [3].
        first: the largest crop to try.
        batch_limit: crop -> the largest batch that the data allow.
        fixed: the values that the user chose.

    Raises:
        InputError: no step fits.
    """
    fixed = fixed or Fixed()
    first = fixed.roi or first
    least = budget.least_batch if fixed.batch is None else group_batch(fixed.batch, budget.groups)
    refused: list[Step] = []
    rejection = ""
    chosen: tuple[NetworkSize, Roi] | None = None
    networks = _networks(budget, fixed)
    for network in networks:
        crop, larger = _largest_crop(memory, budget.limit, network, first, least, None if fixed.roi else median)
        if larger is not None:
            refused.append(Step(network, larger, least))
        if crop is not None:
            chosen = network, crop
            if fixed.roi or math.prod(crop) >= LEAST_SHARE * math.prod(median) or crop == first:
                break
            share = math.prod(crop) / math.prod(median)
            rejection = (
                f"{network}: the largest crop is {by(crop)} at a batch of {least}, {share:.0%} of the median scan's voxels"
            )
        else:
            rejection = f"{network}: no crop fits at a batch of {least}"
    if chosen is None:
        raise _nothing_fits(memory, budget, networks[-1], first if fixed.roi else _smallest_crop(first, median), least)
    network, crop = chosen
    step, larger_batch, capped = _largest_batch(memory, budget, Step(network, crop, least), batch_limit(crop), fixed.batch)
    if larger_batch is not None:
        refused.append(larger_batch)
    larger_crop = next(
        (candidate for candidate in reversed(refused) if candidate.network == network and candidate.roi != crop), None
    )
    total = fixed.batch or step.batch * budget.groups
    decisions = (
        *_network_decisions(network, fixed, budget, rejection, math.prod(crop) / math.prod(median)),
        _crop_decision(memory, budget, Step(network, crop, least), larger_crop, fixed, median, first),
        _batch_decision(memory, budget, step, total, larger_batch, capped, fixed),
    )
    return Sizes(step, tuple(refused), total, decisions)


def search(holds: Callable[[int], bool], guess: int) -> int:
    """Returns the largest number from 1 on for which `holds` is true, or 0. `holds` must be true for all smaller numbers."""
    number = max(guess, 1)
    if holds(number):
        while holds(number + 1):
            number += 1
        return number
    while number > 1 and not holds(number - 1):
        number -= 1
    return number - 1


def group_batch(batch: int, groups: int) -> int:
    """Returns the number of samples for each group of devices if as many groups as possible share a batch equally."""
    return batch // max(n for n in range(1, groups + 1) if batch % n == 0)


def gib(size: float) -> str:
    """Returns a number of bytes as text, such as 14.7 GiB."""
    return f"{size / GIB:.3g} GiB" if math.isfinite(size) else "more memory than the device has"


def _networks(budget: Budget, fixed: Fixed) -> list[NetworkSize]:
    """Returns the networks in the order in which they are tried. A field that the user chose is never changed."""
    first = NetworkSize(feature_size=12) if budget.on_cpu else NetworkSize()
    chosen = {name: value for name, value in vars(fixed).items() if hasattr(first, name) and value is not None}
    # On a CPU bfloat16 is computed in float32, so that it costs time.
    steps = (
        [("use_checkpoint", True)] if budget.on_cpu else [("dtype", "bfloat16"), ("use_checkpoint", True), ("feature_size", 24)]
    )
    networks = [replace(first, **chosen)]
    for name, value in steps:
        if name not in chosen:
            networks.append(replace(networks[-1], **{name: value}))
    return networks


def _largest_crop(
    memory: Memory, limit: float, network: NetworkSize, first: Roi, batch: int, median: np.ndarray | None
) -> tuple[Roi | None, Roi | None]:
    """Returns the largest crop that fits, and the next larger one, which does not fit; None stands for a crop that does not exist.

    Without `median` only the first crop is tried.
    """
    crop: Roi | None = first
    larger: Roi | None = None
    while crop is not None and memory(Step(network, crop, batch)) > limit:
        larger, crop = crop, None if median is None else smaller_crop(crop, median)
    return crop, larger


def _smallest_crop(first: Roi, median: np.ndarray) -> Roi:
    crop = first
    while (smaller := smaller_crop(crop, median)) is not None:
        crop = smaller
    return crop


def _largest_batch(memory: Memory, budget: Budget, step: Step, most: int, fixed: int | None) -> tuple[Step, Step | None, bool]:
    """Returns (the step with the largest batch that fits, the next one that does not fit or None, whether the data limit the batch)."""
    if fixed is not None:
        return step, None, False
    while True:
        larger = replace(step, batch=step.batch + budget.parts)
        if larger.batch * budget.groups > most:
            return step, None, True
        if memory(larger) > budget.limit:
            return step, larger, False
        step = larger


def _network_decisions(network: NetworkSize, fixed: Fixed, budget: Budget, rejection: str, share: float) -> list[Decision]:
    features = "the smallest network is used on a CPU, because time limits it before memory does" if budget.on_cpu else ""
    reasons = {
        "feature_size": (features or "the width of the published networks", f"{48 if network.feature_size != 48 else 24}"),
        "dtype": (
            "it has the smallest rounding errors",
            "float32" if network.dtype == "bfloat16" else "bfloat16: faster on GPUs and TPUs",
        ),
        "use_checkpoint": ("recomputing blocks costs time", str(not network.use_checkpoint)),
        "use_v2": (
            "residual convolutions raised the mean Dice of six data sets by 1.6 points (nnU-Net Revisited)",
            "False: needed for published weights",
        ),
    }
    standard = NetworkSize(feature_size=12) if budget.on_cpu else NetworkSize()
    decisions = []
    for name, (reason, other) in reasons.items():
        value = getattr(network, name)
        if getattr(fixed, name) is not None:
            reason = "given by the user"
        elif value != getattr(standard, name):
            reason = f"saves memory for the crop, which has {share:.0%} of the median scan's voxels"
            other = f"{getattr(standard, name)}; {rejection}" if rejection else str(getattr(standard, name))
        decisions.append(Decision(f"network.{name}", value, reason, other))
    return decisions


def _crop_decision(
    memory: Memory, budget: Budget, step: Step, larger: Step | None, fixed: Fixed, median: np.ndarray, first: Roi
) -> Decision:
    median_note = f"the median scan has {by(median)} voxels"
    if fixed.roi is not None:
        return Decision("roi", step.roi, f"given by the user; {median_note}", "the planner's own crop was not searched")
    if larger is not None:
        need = f"needs {gib(memory(larger))} at a batch of {larger.batch}, more than {gib(budget.limit)}"
        return Decision(
            "roi",
            step.roi,
            f"the largest crop in the scans' proportions that fits at a batch of {step.batch}; {median_note}",
            f"{by(larger.roi)}: {need}",
        )
    smaller = smaller_crop(first, median)
    other = f"{by(smaller)}: has less context" if smaller else "none: it is the smallest crop that the network supports"
    return Decision(
        "roi",
        step.roi,
        f"the median scan, or 256³ voxels in its proportions, in multiples of 32 along each axis; {median_note}",
        other,
    )


def _batch_decision(
    memory: Memory, budget: Budget, step: Step, total: int, larger: Step | None, capped: bool, fixed: Fixed
) -> Decision:
    need = f"it needs {gib(memory(step))} of {gib(budget.limit)} on each device"
    if fixed.batch is not None:
        return Decision("batch", total, f"given by the user; {need}", "the planner's own batch was not searched")
    if larger is not None:
        other = larger.batch * budget.groups
        return Decision(
            "batch", total, f"the largest that fits: {need}", f"{other}: needs {gib(memory(larger))}, more than the limit"
        )
    more = (step.batch + budget.parts) * budget.groups
    return Decision("batch", total, f"{need}", f"{more}: a step would see more than 5 % of all voxels" if capped else f"{more}")


def _nothing_fits(memory: Memory, budget: Budget, network: NetworkSize, roi: Roi, batch: int) -> InputError:
    need = memory(Step(network, roi, batch))
    return InputError(
        f"no training step fits into {gib(budget.limit)}: a crop of {by(roi)} at a batch of {batch} with {network} needs {gib(need)}; give "
        "more --memory, a smaller --roi, --batch or --network.feature-size, or another --device."
    )
