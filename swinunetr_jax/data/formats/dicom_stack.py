"""The position of DICOM images in space: orders them along their normal, and checks that they make up a regular volume.

The axes of the volume are x = columns (from left to right in the image), y = rows (from top to bottom), and z = images in the order of
their position along the normal, which is the cross product of the x and the y axis (DICOM PS3.3 C.7.6.2.1.1). The axes are
right-handed. This is the order of SimpleITK; dcm2niix flips the y axis.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swinunetr_jax.data.nifti.memory import LPS_TO_RAS
from swinunetr_jax.errors import InputError

DIRECTION = 1e-3  # the largest difference between direction cosines that are equal; headers have at least 4 digits
SPACING = 1e-3  # the largest relative difference between pixel sizes that are equal
GAP = 0.05  # the largest relative difference between the distances of neighbouring images that are equal
TILT = 2e-3  # the largest shift within the plane from image to image, as a fraction of their distance: 0.1 degrees


@dataclass(frozen=True, eq=False)
class Plane:
    """One image: a DICOM file, or a frame of one. Vectors are in mm and point to the left, the back and upwards (LPS).

    `position` is that of the first pixel's centre, `x` and `y` are the directions of increasing columns and rows, and `spacing` is the
    distance of neighbouring columns and rows. `thickness` is only used for a single image. The values are `stored` × `slope` + `intercept`.
    """

    file: Path
    frame: int
    columns: int
    rows: int
    position: np.ndarray
    x: np.ndarray
    y: np.ndarray
    spacing: tuple[float, float]
    thickness: float | None
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def normal(self) -> np.ndarray:
        """The direction of the third axis."""
        return np.cross(self.x, self.y)


def stack(path: Path, planes: Sequence[Plane]) -> tuple[list[Plane], np.ndarray]:
    """Returns (the planes in the order of the third axis, the affine [4, 4] of the volume in RAS).

    Args:
        path: the scan, for messages.
        planes: at least one plane.

    Raises:
        InputError: the planes differ in size, direction or pixel size, or their positions are not those of a regular volume.
    """
    first = planes[0]
    _check_equal(path, planes)
    normal = first.normal
    height = {id(plane): float(plane.position @ normal) for plane in planes}
    ordered = sorted(planes, key=lambda plane: height[id(plane)])
    gap = _gap(path, ordered, [height[id(plane)] for plane in ordered])
    bottom, top = ordered[0], ordered[-1]
    if len(ordered) > 1:
        shift = (top.position - bottom.position) / (len(ordered) - 1) - normal * gap
        if (tilt := float(np.linalg.norm(shift)) / gap) > TILT:
            raise InputError(
                f"{path}: the slices are shifted against each other by {np.linalg.norm(shift):.3g} mm each (a gantry tilt of "
                f"{math.degrees(math.atan(tilt)):.1f}°), expected a rectangular grid; resample it, for example with dcm2niix."
            )
        line = bottom.position + np.outer(np.arange(len(ordered)), (top.position - bottom.position) / (len(ordered) - 1))
        distances = np.linalg.norm(np.array([plane.position for plane in ordered]) - line, axis=1)
        if distances.max() > max(GAP * gap, 0.01) * 2:
            raise InputError(
                f"{path}: {_name(ordered[int(distances.argmax())])} is {distances.max():.3g} mm beside the line through the other slices, "
                "expected a regular volume; give one stack alone."
            )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = first.x * first.spacing[0], first.y * first.spacing[1], normal * gap
    affine[:3, 3] = bottom.position
    return ordered, LPS_TO_RAS @ affine


def _check_equal(path: Path, planes: Sequence[Plane]) -> None:
    """Raises InputError unless all planes have the same size, directions and pixel size."""
    sizes = Counter((plane.columns, plane.rows) for plane in planes)
    if len(sizes) > 1:
        text = " and ".join(f"{count} of {columns}×{rows}" for (columns, rows), count in sizes.most_common(3))
        raise InputError(f"{path}: the images have different sizes ({text} pixels), expected one; give one series alone.")
    first = planes[0]
    for plane in planes:
        if max(np.abs(plane.x - first.x).max(), np.abs(plane.y - first.y).max()) > DIRECTION:
            raise InputError(
                f"{path}: the images have different orientations, such as {first.file.name} and {plane.file.name} (a localizer, or several "
                "stacks), expected parallel slices; give one stack alone."
            )
        if max(abs(a / b - 1) for a, b in zip(plane.spacing, first.spacing)) > SPACING:
            raise InputError(
                f"{path}: the pixels have different sizes, such as {first.spacing} mm in {first.file.name} and {plane.spacing} mm in "
                f"{plane.file.name}, expected one; give one series alone."
            )


def _gap(path: Path, ordered: Sequence[Plane], heights: Sequence[float]) -> float:
    """Returns the distance of neighbouring planes. Raises InputError if it varies, or is unknown for a single plane."""
    if len(ordered) == 1:
        thickness = ordered[0].thickness
        if not thickness:
            raise InputError(f"{path}: holds one slice without a thickness, expected several slices; give the whole series.")
        return thickness
    gaps = np.diff(heights)
    median = float(np.median(gaps))
    if median <= 0 or gaps.min() < 0.01 * median:
        double = int(np.argmin(gaps))
        repeated = len(ordered) - len({round(height, 3) for height in heights})
        raise InputError(
            f"{path}: {repeated} of {len(ordered)} slices are at the position of another one, such as {_name(ordered[double])} and "
            f"{_name(ordered[double + 1])} (several time points, echoes or copies), expected one volume; give one volume alone."
        )
    wrong = np.abs(gaps / median - 1) > GAP
    if wrong.any():
        worst = int(np.argmax(np.abs(gaps - median)))
        raise InputError(
            f"{path}: the distance of {_name(ordered[worst])} and {_name(ordered[worst + 1])} is {gaps[worst]:.4g} mm, and that of other "
            f"slices {median:.4g} mm, expected equal distances; slices are missing, so get the series again or resample it."
        )
    return float(heights[-1] - heights[0]) / (len(ordered) - 1)


def _name(plane: Plane) -> str:
    return f"{plane.file.name} frame {plane.frame + 1}" if plane.frame else plane.file.name
