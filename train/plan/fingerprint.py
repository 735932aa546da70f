"""The facts of a data set from which a training run is planned, computed from NumPy arrays and stored as JSON.

The statistics of intensities are those of nnU-Net (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z), computed over the
labelled voxels of all cases together.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from swinunetr_jax import files
from swinunetr_jax.data.boxes import Box, bounding_box, whole_box

# The number of intensities per channel that are kept, over all cases together. The error of a percentile's rank is then below 0.01 %.
# nnU-Net keeps ten times as many, which would take gigabytes for several channels.
SAMPLES = 10**7
PERCENTILES = (0.5, 50.0, 99.5)
DIGITS = 6  # significant digits that are stored, so that rounding on another machine does not change the digest
_ALL_NEIGHBOURS = np.ones((3, 3, 3))


@dataclass(frozen=True)
class CaseFacts:
    """The facts of one case, on its own grid in the fingerprint's orientation.

    Attributes:
        name: the case's name.
        shape: voxels along each axis.
        spacing: the size of a voxel in mm along each axis.
        box: the smallest box that holds all voxels that are not zero in some channel.
        box_share: the share of the scan that is in the box.
        voxels: the voxels of each label except 0.
        components: the connected components of each label except 0; voxels that share a face, an edge or a corner are connected.
    """

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    box: Box
    box_share: float
    voxels: dict[int, int]
    components: dict[int, int]


@dataclass(frozen=True)
class ChannelFacts:
    """The intensities of one channel in the labelled voxels of all cases.

    Attributes:
        name: the channel's name, or its number if the data set names none.
        mean, deviation: their mean and their standard deviation.
        low, median, high: their 0.5th, 50th and 99.5th percentile.
        samples: how many intensities these numbers come from.
    """

    name: str
    mean: float
    deviation: float
    low: float
    median: float
    high: float
    samples: int


@dataclass(frozen=True)
class Fingerprint:
    """The facts of a data set.

    Attributes:
        orientation: the directions of the axes to which all of its numbers refer, such as RAS.
        channels: the facts of each channel.
        cases: the facts of each case.
    """

    orientation: str
    channels: tuple[ChannelFacts, ...]
    cases: tuple[CaseFacts, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 of all facts, which identifies the data set. It does not depend on where the files are."""
        return files.digest_of_json(dataclasses.asdict(self))

    @property
    def shapes(self) -> np.ndarray:
        """The shapes of all cases, [case, 3]."""
        return np.array([case.shape for case in self.cases], np.float64)

    @property
    def spacings(self) -> np.ndarray:
        """The voxel sizes of all cases in mm, [case, 3]."""
        return np.array([case.spacing for case in self.cases], np.float64)

    @property
    def box_share(self) -> float:
        """The median share of a scan that the box of its non-zero voxels covers."""
        return float(np.median([case.box_share for case in self.cases]))


@dataclass(frozen=True, eq=False)
class MeasuredCase:
    """The facts of one case, and the intensities that were drawn from its labelled voxels, float32 [drawn, channel]."""

    facts: CaseFacts
    intensities: np.ndarray


def measure_case(
    name: str, image: np.ndarray, label: np.ndarray, spacing: Sequence[float], *, number: int, cases: int
) -> MeasuredCase:
    """Returns the facts of a case.

    Args:
        name: the name of the case.
        image: [x, y, z, c].
        label: the label map [x, y, z], integers.
        spacing: the size of a voxel in mm along each axis.
        number: the number of the case, which seeds the choice of intensities.
        cases: the number of all cases, which share the number of intensities.
    """
    shape = (label.shape[0], label.shape[1], label.shape[2])
    box = bounding_box((image != 0).any(-1)) or whole_box(shape)
    inside = math.prod(stop - start for start, stop in box)
    values, counts = np.unique(label, return_counts=True)
    voxels = {int(value): int(count) for value, count in zip(values, counts) if value != 0}
    boxes = ndimage.find_objects(label)
    components = {value: _components(label[boxes[value - 1]] == value) for value in voxels}
    facts = CaseFacts(
        name=name,
        shape=shape,
        spacing=(rounded(spacing[0]), rounded(spacing[1]), rounded(spacing[2])),
        box=box,
        box_share=rounded(inside / label.size),
        voxels=voxels,
        components=components,
    )
    return MeasuredCase(facts, _draw(image[label > 0], number, SAMPLES // max(cases, 1)))


def combine(cases: Sequence[MeasuredCase], channels: Sequence[str], orientation: str) -> Fingerprint:
    """Returns the fingerprint of a data set from its cases, in their order.

    Args:
        cases: the measured cases.
        channels: the names of the channels.
        orientation: the orientation in which the cases were measured.
    """
    facts = []
    for index, name in enumerate(channels):
        values = np.concatenate([case.intensities[:, index] for case in cases])
        if not len(values):
            values = np.zeros(1, np.float32)
        low, median, high = np.percentile(values, PERCENTILES)
        mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
        numbers = map(rounded, (mean, deviation, low, median, high))
        facts.append(ChannelFacts(name, *numbers, samples=len(values)))
    return Fingerprint(orientation, tuple(facts), tuple(case.facts for case in cases))


def rounded(value: float) -> float:
    """Returns a number with as many significant digits as are stored."""
    return float(f"{value:.{DIGITS}g}")


def _components(mask: np.ndarray) -> int:
    """Returns the number of connected components of a mask [x, y, z]."""
    parts = np.empty(mask.shape, np.int32)
    return int(ndimage.label(mask, _ALL_NEIGHBOURS, output=parts))  # pyright: ignore[reportArgumentType] - the count, as `output` is given


def _draw(values: np.ndarray, number: int, most: int) -> np.ndarray:
    """Returns at most `most` rows of [voxel, channel], drawn with replacement if there are more, as float32."""
    if len(values) > most:
        values = values[np.random.default_rng(number).integers(0, len(values), most)]
    return values.astype(np.float32)
