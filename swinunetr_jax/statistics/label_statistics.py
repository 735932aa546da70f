"""The statistics of each label of a label map: volume, connected components, bounding box, and intensities of the scan."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.ndimage import generate_binary_structure, label

from swinunetr_jax.data.boxes import Box, bounding_box, slices
from swinunetr_jax.task import Task

NEIGHBOURS = generate_binary_structure(
    3, 3
)  # 26: voxels that share a face, an edge or a corner are connected, as in `postprocess`
Millimetres = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # (low, high) along each axis


@dataclass(frozen=True)
class Intensities:
    """The intensities of a channel inside a label, in the units of the scan: mean, population standard deviation, and so on."""

    mean: float
    standard_deviation: float
    minimum: float
    maximum: float
    median: float


@dataclass(frozen=True)
class LabelStatistics:
    """The statistics of one output of a task: a class, or a region with all of its labels.

    Attributes:
        output: the name of the output.
        labels: the values in the label map that belong to it.
        voxels: the number of its voxels.
        volume_ml: its volume.
        components: the number of its connected components.
        largest_component_ml: the volume of the largest one.
        box_voxels: (start, stop) of the smallest box that contains it, along each axis of the label map, where stop is not included; None
            without a voxel.
        box_mm: (low, high) of the faces of this box's voxels in mm, along the axes to the right, to the front and upwards (RAS).
        intensities: by channel; None without a voxel.
    """

    output: str
    labels: tuple[int, ...]
    voxels: int
    volume_ml: float
    components: int
    largest_component_ml: float
    box_voxels: Box | None
    box_mm: Millimetres | None
    intensities: dict[str, Intensities | None]


def label_statistics(
    labels: np.ndarray, affine: np.ndarray, task: Task, channels: Mapping[str, np.ndarray]
) -> tuple[LabelStatistics, ...]:
    """Returns the statistics of each output of a task except the background, in the order of the outputs.

    Args:
        labels: the label map [x, y, z].
        affine: maps indices to mm, with x to the right, y to the front and z upwards, [4, 4].
        task: the meaning of the labels.
        channels: the images [x, y, z] by name.
    """
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    result = []
    for output in task.outputs:
        if not output.value:
            continue
        values = task.labels_of(output)
        mask = np.isin(labels, values)
        box = bounding_box(mask)
        inside = mask[slices(box)] if box else np.zeros((1, 1, 1), bool)
        sizes = _component_sizes(inside)
        voxels = int(sizes.sum())
        result.append(
            LabelStatistics(
                output=output.name,
                labels=values,
                voxels=voxels,
                volume_ml=_rounded(voxels * voxel_ml),
                components=len(sizes),
                largest_component_ml=_rounded(int(sizes.max(initial=0)) * voxel_ml),
                box_voxels=box,
                box_mm=_millimetres(box, affine) if box else None,
                intensities={name: _intensities(image[slices(box)][inside]) if box else None for name, image in channels.items()},
            )
        )
    return tuple(result)


def _component_sizes(mask: np.ndarray) -> np.ndarray:
    """Returns the numbers of voxels of the connected components."""
    # scipy declares no types; the result is a pair, because no output array is given
    components, _ = cast("tuple[np.ndarray, int]", label(mask, NEIGHBOURS))
    return np.bincount(components[mask])[1:] if mask.any() else np.zeros(0, np.int64)


def _millimetres(box: Box, affine: np.ndarray) -> Millimetres:
    """Returns the extent in mm of the voxels of a box, whose faces are half a voxel beyond their centres."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((start - 0.5, stop - 0.5) for start, stop in box))])
    points = (corners @ affine.T)[:, :3]
    low, high = (tuple(map(_rounded, side.tolist())) for side in (points.min(0), points.max(0)))
    return (low[0], high[0]), (low[1], high[1]), (low[2], high[2])


def _intensities(values: np.ndarray) -> Intensities:
    """Returns the statistics of intensities, computed in float64."""
    values = values.astype(np.float64)
    numbers = (values.mean(), values.std(), values.min(), values.max(), np.median(values))
    return Intensities(*(float(f"{number:.7g}") for number in numbers))  # float32 has seven digits


def _rounded(value: float) -> float:
    return round(value, 3)
