"""NIfTI volumes: how they are read, and whether several lie on one grid.

Arrays keep the axis order of the file, [x, y, z] or [x, y, z, c], and its memory order (x fastest). Every function raises
InputError with one sentence that names the file; nifti_file.py decides which files are sound.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from swinunetr_jax.data.nifti.nifti_file import read_layout, read_voxels
from swinunetr_jax.errors import InputError

MAX_BYTES = 8 << 30
GRID_TOLERANCE = 1e-3  # of the longest side: a qform near 180° loses that much in float32, a real shift is a voxel or more
LABEL_TOLERANCE = 1e-4  # integers stored with a scale factor come back as 0.9999999


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie: `affine` maps (x, y, z) indices to mm; `header` is the file's own, without extensions."""

    array: np.ndarray
    affine: np.ndarray
    header: Any
    path: Path

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel sizes in mm."""
        return tuple(float(s) for s in nib.affines.voxel_sizes(self.affine))

    @property
    def orientation(self) -> str:
        """Where each axis points to, closest first for oblique grids: 'RAS', 'LPS', …"""
        return "".join(nib.aff2axcodes(self.affine))


def read_volume(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, require_finite: bool = True) -> Volume:
    """The image in `path` (.nii or .nii.gz), float32 [x, y, z] or [x, y, z, c], with the file's scale factors applied.

    Raises InputError for anything but a sound NIfTI file, and, unless `require_finite` is off, for NaN or Inf voxels.
    """
    path = Path(path)
    layout = read_layout(path, max_bytes)
    array = read_voxels(path, layout, np.float32)
    if require_finite:
        _check_finite(path, array)
    return Volume(array, layout.affine, layout.header, path)


def read_labels(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> Volume:
    """The label map in `path`, uint8 [x, y, z], or int32 with labels above 255. InputError for anything but whole numbers ≥ 0."""
    path = Path(path)
    layout = read_layout(path, max_bytes)
    if len(layout.stored) != 3:
        raise InputError(f"{path}: the label map has shape {layout.stored}, expected 3-D; merge its channels into one map.")
    array = read_voxels(path, layout, None if layout.slope is None else np.float64)
    _check_finite(path, array)
    if array.dtype.kind == "f":
        whole = np.rint(array)
        bad = np.abs(array - whole) > LABEL_TOLERANCE
        if bad.any():
            first = first_index(bad)
            raise InputError(
                f"{path}: label {array[first]:g} at voxel {first} is not a whole number; expected a label map, resampled by "
                "nearest neighbour if at all."
            )
        array = whole
    low, high = array.min(), array.max()
    if low < 0 or high >= 2**31:
        raise InputError(f"{path}: label {low if low < 0 else high:.0f} is outside 0 … 2147483647; renumber the labels.")
    return Volume(array.astype(np.uint8 if high < 256 else np.int32, copy=False), layout.affine, layout.header, path)


def read_geometry(path: str | os.PathLike) -> tuple[tuple[int, ...], np.ndarray, str]:
    """(shape, affine, orientation) of `path` from its header alone."""
    layout = read_layout(Path(path), None)
    return layout.stored, layout.affine, "".join(nib.aff2axcodes(layout.affine))


def check_same_grid(volumes: Sequence[Volume]) -> None:
    """Raise InputError unless all volumes lie on the first one's grid; channels are not looked at.

    Affines count as equal if no corner of the grid moves by more than a thousandth of its longest side.
    """
    for other in volumes[1:]:
        one = volumes[0]
        shapes = one.array.shape[:3], other.array.shape[:3]
        pair = f"{one.path} and {other.path} do not lie on the same grid"
        if shapes[0] != shapes[1]:
            raise InputError(f"{pair}: their shapes are {shapes[0]} and {shapes[1]}; resample one onto the other.")
        corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in shapes[0]))])
        apart = np.linalg.norm(corners @ (one.affine - other.affine).T, axis=1).max()
        if not apart <= GRID_TOLERANCE * max(s * n for s, n in zip(one.spacing, shapes[0], strict=True)):
            spacings = [tuple(round(s, 4) for s in v.spacing) for v in (one, other)]
            raise InputError(
                f"{pair}: corners lie {apart:.3g} mm apart (orientation {one.orientation} and {other.orientation}, spacing "
                f"{spacings[0]} and {spacings[1]}); resample one onto the other."
            )


def _check_finite(path: Path, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and (bad := ~np.isfinite(array)).any():
        count = int(bad.sum())
        raise InputError(
            f"{path}: {count} of {array.size} voxels are NaN or Inf, the first at {first_index(bad)}; replace them by 0."
        )


def first_index(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
