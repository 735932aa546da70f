"""The decisions that follow from the data alone: voxel size, intensities, the first crop, and the most voxels of a step.

The rules are those of nnU-Net (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z), with sizes that fit Swin UNETR. Sizes
are in voxels along the axes of the fingerprint's orientation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swinunetr_jax.config import SIZE_MULTIPLE
from swinunetr_jax.training.plan.fingerprint import Fingerprint, rounded

Roi = tuple[int, int, int]
Spacing = tuple[float, float, float]

ANISOTROPIC = 3.0  # ratio of voxel sizes, and of numbers of voxels, above which the coarse axis gets finer voxels than its median
COARSE_PERCENTILE = 10  # of the voxel sizes along the coarse axis
FIRST_CROP_VOXELS = 256**3
MOSTLY_ZERO = 0.75  # the box of a scan's non-zero voxels is called small if it has less than this share of the scan
LEAST_LONGEST = 2 * SIZE_MULTIPLE  # one axis of a crop has at least this size, see `SwinUNETRConfig.check_spatial`
PATCH_VOXELS = 2**3  # voxels of one token of the first stage; a smaller structure is less than a token
DATA_SHARE = 0.05  # the largest share of the voxels of all cases that a step may see


@dataclass(frozen=True)
class Decision:
    """One decision of a plan.

    Attributes:
        name: the option of the trainer that it sets, such as "roi".
        value: the option's value.
        reason: why this value was chosen.
        runner_up: the value that would have been next, and why it was not chosen.
    """

    name: str
    value: Any  # a value of JSON, whose type depends on the option
    reason: str
    runner_up: str


def decide_spacing(fingerprint: Fingerprint, given: Spacing | None = None) -> tuple[Spacing, Decision]:
    """Returns the voxel size in mm to which scans are resampled: the median, and a smaller size along an axis that is much coarser.

    Args:
        fingerprint: the facts of the data set.
        given: the voxel size that the user chose, if any.
    """
    median = np.median(fingerprint.spacings, axis=0)
    low, high = fingerprint.spacings.min(axis=0), fingerprint.spacings.max(axis=0)
    same = numbers(low) == numbers(high)
    spread = f"all scans have {numbers(low)} mm" if same else f"the scans have {numbers(low)} to {numbers(high)} mm"
    if given is not None:
        return given, Decision("spacing", given, f"given by the user; {spread}", f"{numbers(median)}: the median of all scans")
    spacing, coarse = median.copy(), _coarse_axis(fingerprint, median)
    reason, runner_up = f"the median of all scans; {spread}", "no resampling: the network does not know the size of a voxel"
    if coarse is not None:
        others = [axis for axis in range(3) if axis != coarse]
        spacing[coarse] = max(np.percentile(fingerprint.spacings[:, coarse], COARSE_PERCENTILE), median[others].max())
        reason = (
            f"the median; only along axis {coarse}, whose voxels are more than {ANISOTROPIC:g} times as large as along the others, it is "
            f"percentile {COARSE_PERCENTILE} of all scans, so that most scans lose no slices; {spread}"
        )
        runner_up = f"{numbers(median)}: the median along every axis, which removes slices from half of the scans"
    chosen = (rounded(spacing[0]), rounded(spacing[1]), rounded(spacing[2]))
    return chosen, Decision("spacing", chosen, reason, runner_up)


def decide_window(
    fingerprint: Fingerprint, given: tuple[float, float] | None = None
) -> tuple[tuple[float, float] | None, Decision]:
    """Returns the intensities that become 0 and 1, for CT, or None for a z-score of each scan and channel.

    Args:
        fingerprint: the facts of the data set.
        given: the intensities that the user chose, if any.
    """
    channels = fingerprint.channels
    low, high = min(channel.low for channel in channels), max(channel.high for channel in channels)
    if given is not None:
        other = f"{low:g} … {high:g}: percentiles 0.5 and 99.5 of the labelled voxels"
        return given, Decision("window", given, "given by the user", other)
    if all(channel.name.upper() == "CT" for channel in channels) and low < high:
        reason = (
            "the channel is called CT, so its values have a unit: percentiles 0.5 and 99.5 of the labelled voxels of all scans become 0 "
            "and 1"
        )
        return (low, high), Decision("window", (low, high), reason, "None: a z-score of each scan, which would lose the unit")
    share = fingerprint.box_share
    zeros = (
        f"zeros are excluded, which matters here: the box of the other voxels covers {share:.0%} of a scan (median)"
        if share < MOSTLY_ZERO
        else f"zeros are always excluded, and matter little here: the box of the other voxels covers {share:.0%} of a scan (median)"
    )
    reason = (
        f"the channels are not all called CT, so their values have no unit: each scan and channel gets a z-score, where {zeros}"
    )
    other = f"{low:g} … {high:g}: a window is for CT, where a value means the same in every scan"
    return None, Decision("window", None, reason, other)


def median_shape(fingerprint: Fingerprint, spacing: Spacing) -> np.ndarray:
    """Returns the median number of voxels along each axis after resampling to `spacing`, [3]."""
    shapes = np.maximum(np.round(fingerprint.shapes * fingerprint.spacings / np.array(spacing)), 1)
    return np.median(shapes, axis=0)


def first_crop(median: np.ndarray, spacing: Spacing) -> Roi:
    """Returns the largest crop to try: equally long in mm along every axis, at most 256³ voxels, and no larger than the median scan.

    Each axis is rounded up to a multiple of 32. Only an axis of 33 to 40 voxels is rounded down, because 64 would be 38 % padding or more
    and 32 cuts off a fifth or less; docs/train.md has measurements of this rule.
    """
    inverse = 1 / np.array(spacing)
    wanted = np.minimum(inverse * (FIRST_CROP_VOXELS / inverse.prod()) ** (1 / 3), median)
    sizes = [_padded(size) for size in wanted]
    if max(sizes) < LEAST_LONGEST:
        sizes[int(np.argmax(median))] = LEAST_LONGEST
    return sizes[0], sizes[1], sizes[2]


def smaller_crop(crop: Roi, median: np.ndarray) -> Roi | None:
    """Returns the next smaller crop: 32 voxels less along the axis that covers most of the median scan. None if there is none.

    Args:
        crop: the crop.
        median: the shape of the median scan, [3].
    """
    candidates = []
    for axis in range(3):
        sizes = list(crop)
        sizes[axis] -= SIZE_MULTIPLE
        if sizes[axis] > 0 and max(sizes) >= LEAST_LONGEST:
            candidates.append((crop[axis] / median[axis], -axis, (sizes[0], sizes[1], sizes[2])))
    return max(candidates)[2] if candidates else None


def batch_limit(fingerprint: Fingerprint, median: np.ndarray, crop: Roi) -> int:
    """Returns the largest batch whose crops hold at most 5 % of the voxels of all cases; it is 2 if that would be less."""
    return max(math.floor(DATA_SHARE * len(fingerprint.cases) * math.prod(median) / math.prod(crop)), 2)


def notes(fingerprint: Fingerprint, spacing: Spacing, crop: Roi) -> list[str]:
    """Returns sentences about the data that the user should know before training."""
    sentences, median = [], median_shape(fingerprint, spacing)
    ratio = max(spacing) / min(spacing)
    if ratio > ANISOTROPIC:
        axis = int(np.argmax(spacing))
        padded = f", which is padded to {SIZE_MULTIPLE}" if median[axis] < SIZE_MULTIPLE else ""
        sentences.append(
            f"the voxels of {numbers(spacing)} mm are {ratio:.1f} times as long along one axis as along another, but Swin UNETR halves "
            f"every axis five times and has no anisotropic kernels; the median scan has {median[axis]:g} voxels along axis {axis}{padded}."
        )
    shapes = np.round(fingerprint.shapes * fingerprint.spacings / np.array(spacing))
    small = int((shapes < np.array(crop)).any(axis=1).sum())
    if small:
        sentences.append(
            f"{small} of {len(shapes)} scans are smaller than the crop of {by(crop)} along some axis and are padded; the median scan has "
            f"{by(median)} voxels."
        )
    rare = _rare_labels(fingerprint)
    if rare:
        sentences.append(f"{rare} in fewer than two cases, so that training and validation cannot both contain every label.")
    sentences += [
        f"label {value} has {voxels:.3g} voxels in the median case that has it, after resampling, which is less than the {PATCH_VOXELS} "
        "voxels of one patch of the network: it may not be learned, and its Dice depends on single voxels."
        for value, voxels in _median_voxels(fingerprint, spacing).items()
        if voxels < PATCH_VOXELS
    ]
    return sentences


def by(shape: Sequence[float] | np.ndarray) -> str:
    """Returns a shape as text, such as 96×96×64."""
    return "×".join(f"{size:g}" for size in shape)


def numbers(values: Sequence[float] | np.ndarray) -> str:
    """Returns numbers as they are given on the command line, such as 1 1 2.5."""
    return " ".join(f"{value:.4g}" for value in values)


def _coarse_axis(fingerprint: Fingerprint, spacing: np.ndarray) -> int | None:
    """Returns the axis with voxels more than three times as long as along the others, and fewer than a third as many, or None."""
    shape = np.median(fingerprint.shapes, axis=0)
    axis = int(np.argmax(spacing))
    others = [other for other in range(3) if other != axis]
    coarse = spacing[axis] > ANISOTROPIC * spacing[others].max() and shape[axis] * ANISOTROPIC < shape[others].min()
    return axis if coarse else None


def _padded(size: float) -> int:
    """Returns the size of a crop along an axis on which `size` voxels are wanted."""
    if SIZE_MULTIPLE < size <= 1.25 * SIZE_MULTIPLE:
        return SIZE_MULTIPLE
    return max(math.ceil(size / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE


def _median_voxels(fingerprint: Fingerprint, spacing: Spacing) -> dict[int, float]:
    """Returns the median number of voxels of each label after resampling to `spacing`, over the cases in which it occurs."""
    by_label: dict[int, list[float]] = {}
    for case in fingerprint.cases:
        for value, voxels in case.voxels.items():
            by_label.setdefault(value, []).append(voxels * math.prod(case.spacing) / math.prod(spacing))
    return {value: float(np.median(counts)) for value, counts in sorted(by_label.items())}


def _rare_labels(fingerprint: Fingerprint) -> str:
    """Returns the labels that occur in one case only, as the start of a sentence, or an empty text."""
    counts: dict[int, int] = {}
    for case in fingerprint.cases:
        for value in case.voxels:
            counts[value] = counts.get(value, 0) + 1
    rare = [str(value) for value, count in sorted(counts.items()) if count < 2]
    return "" if not rare else f"the label {rare[0]} is" if len(rare) == 1 else f"the labels {', '.join(rare)} are"
