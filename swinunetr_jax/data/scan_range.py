"""The range of the scans that a network was trained on, and how another scan differs from them.

All numbers are those of scans as the network receives them, in the task's orientation and voxel size, but before intensities are
normalised. So a scan whose orientation or voxel size the task changes does not differ in them.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swinunetr_jax.errors import InputError

Range = tuple[float, float]  # the lowest and the highest value
DIRECTIONS = ("left-right", "anterior-posterior", "superior-inferior")
FACTOR = 1.5  # a voxel size or an extent that is beyond the range by more than this factor is unlike those of the training
CONTRAST = 0.5  # the same for mean / deviation of intensities, as a share of the nearer end of the range
DIGITS = 6  # significant digits that are stored


@dataclass(frozen=True)
class ScanFacts:
    """The facts of one scan: its grid, and the intensities of each channel over its voxels that are not zero."""

    orientation: str
    spacing_mm: tuple[float, ...]  # along `DIRECTIONS`
    extent_mm: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class ScanRange:
    """The range of the facts of several scans.

    Attributes:
        orientations: their orientations, sorted, such as ("LPS",).
        spacing_mm: the range of the voxel size along each of `DIRECTIONS`.
        extent_mm: the range of the extent along each of `DIRECTIONS`.
        mean: the range of the mean of each channel.
        deviation: the range of the standard deviation of each channel.
        contrast: the range of mean / deviation of each channel, which does not depend on the scale of the intensities.
    """

    orientations: tuple[str, ...]
    spacing_mm: tuple[Range, ...]
    extent_mm: tuple[Range, ...]
    mean: tuple[Range, ...]
    deviation: tuple[Range, ...]
    contrast: tuple[Range, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ScanRange":
        """Returns the range that `dataclasses.asdict` describes. Raises InputError if the values are not those of a range."""
        try:
            orientations = tuple(map(str, values["orientations"]))
            ranges = {name: tuple((float(low), float(high)) for low, high in values[name]) for name in _NAMES}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"`scans` does not describe the range of scans ({error}).") from error
        channels = len(ranges["mean"])
        sizes = [len(ranges[name]) for name in _NAMES]
        if sizes != [3, 3, channels, channels, channels] or not all(
            -math.inf < low <= high < math.inf for part in ranges.values() for low, high in part
        ):
            raise InputError("`scans` does not describe the range of scans (a number is missing or not finite).")
        return cls(orientations, **ranges)


_NAMES = [field.name for field in dataclasses.fields(ScanRange)[1:]]


def scan_facts(shape: Sequence[int], affine: np.ndarray, statistics: tuple[np.ndarray, np.ndarray]) -> ScanFacts:
    """Returns the facts of a scan.

    Args:
        shape: its voxels along each axis.
        affine: maps indices to mm (RAS), [4, 4].
        statistics: the mean and the standard deviation [c] of its non-zero voxels.
    """
    import nibabel as nib  # here, because it imports scipy, and the command line imports this module for its help

    axes = np.argsort(nib.io_orientation(affine)[:, 0])  # the axis along each direction
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    mean, deviation = (tuple(map(_rounded, values.tolist())) for values in statistics)
    return ScanFacts(
        "".join(nib.aff2axcodes(affine)),
        tuple(_rounded(float(sizes[axis])) for axis in axes),
        tuple(_rounded(float(sizes[axis]) * int(shape[axis])) for axis in axes),
        mean,
        deviation,
    )


def range_of(scans: Sequence[ScanFacts]) -> ScanRange:
    """Returns the range of at least one scan."""

    def ranges(rows: Iterable[Sequence[float]]) -> tuple[Range, ...]:
        return tuple((min(values), max(values)) for values in zip(*rows, strict=True))

    return ScanRange(
        tuple(sorted({scan.orientation for scan in scans})),
        ranges(scan.spacing_mm for scan in scans),
        ranges(scan.extent_mm for scan in scans),
        ranges(scan.mean for scan in scans),
        ranges(scan.deviation for scan in scans),
        ranges(_contrast(scan) for scan in scans),
    )


def merged(ranges: Sequence[ScanRange]) -> ScanRange:
    """Returns the range that contains several ranges of the same channels, such as those of the folds of a cross-validation."""

    def union(name: str) -> tuple[Range, ...]:
        sides = zip(*(getattr(part, name) for part in ranges), strict=True)
        return tuple((min(low for low, _ in side), max(high for _, high in side)) for side in map(list, sides))

    return ScanRange(tuple(sorted({code for part in ranges for code in part.orientations})), *map(union, _NAMES))


def differences(scan: ScanFacts, trained: ScanRange, channels: Sequence[str], *, scaled: bool) -> list[str]:
    """Returns for each way in which a scan is unlike those of the training a text such as "voxels of 5 mm …".

    - The orientation is none of theirs.
    - A voxel size or an extent is more than `FACTOR` below the lowest or above the highest one.
    - The mean of a channel is beyond their range by more than the largest standard deviation. If the network receives z-scores, which
      do not depend on the scale, mean / deviation is compared instead, with a tolerance of `CONTRAST`.

    Args:
        scan: the facts of the scan.
        trained: the range of the scans of the training.
        channels: the names of the channels, which may be empty.
        scaled: whether the network receives z-scores.
    """
    found = []
    if scan.orientation not in trained.orientations:
        found.append(f"the orientation {scan.orientation} (trained on {', '.join(trained.orientations)})")
    for what, sizes, ranges in (
        ("voxels", scan.spacing_mm, trained.spacing_mm),
        ("an extent", scan.extent_mm, trained.extent_mm),
    ):
        for size, (low, high), direction in zip(sizes, ranges, DIRECTIONS):
            if not low / FACTOR <= size <= high * FACTOR:
                found.append(f"{what} of {size:.3g} mm {direction} (trained on {_text((low, high))} mm)")
    for index, (mean, contrast) in enumerate(zip(scan.mean, _contrast(scan))):
        if index >= len(trained.mean):
            break
        name = channels[index] if index < len(channels) else f"channel {index + 1}"
        (low, high), tolerance = trained.mean[index], trained.deviation[index][1]
        if scaled:
            low, high = trained.contrast[index]
            if not low - CONTRAST * abs(low) <= contrast <= high + CONTRAST * abs(high):
                found.append(
                    f"a ratio of mean and standard deviation of {name} of {contrast:.3g} (trained on {_text((low, high))})"
                )
        elif not low - tolerance <= mean <= high + tolerance:
            found.append(f"a mean intensity of {name} of {mean:.4g} (trained on {_text((low, high))})")
    return found


def _contrast(scan: ScanFacts) -> list[float]:
    return [_rounded(mean / deviation) for mean, deviation in zip(scan.mean, scan.deviation, strict=True)]


def _text(ends: Range) -> str:
    low, high = (f"{end:.4g}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _rounded(value: float) -> float:
    """Returns a number with the digits that are stored, so that rounding on another machine does not change it."""
    return float(f"{value:.{DIGITS}g}")
