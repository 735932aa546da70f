"""Reads NIfTI volumes, and checks that several are on the same grid.

Arrays keep the axis order of the file, [x, y, z] or [x, y, z, c], and its memory order (x fastest). Every function raises
InputError with one sentence that names the file; nifti_file.py decides which files are valid.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from swinunetr_jax.data.nifti.nifti_file import read_header, read_voxels
from swinunetr_jax.errors import InputError

MAX_BYTES = 8 << 30
# A fraction of the longest side. float32 may round a qform near 180° by this much, and a real shift is at least one voxel.
GRID_TOLERANCE = 1e-3
LABEL_TOLERANCE = 1e-4  # an integer that is stored with a scale factor may be read as 0.9999999


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and their position.

    `affine` maps (x, y, z) indices to mm; `header` is that of the NIfTI file, without extensions, or one that was made for a scan in
    another format. `slices` holds the DICOM files of the scan in the order of the third axis, or the one multi-frame file.
    `notes` are sentences for the user about the scan, such as on an assumed orientation. `names` are those of the labels, if the file
    states them. `is_part` is True for a label map that may cover only a part of its scan's grid, as a DICOM-SEG does, with 0 elsewhere.
    """

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header  # also a Nifti2Header, which is a subclass
    path: Path
    slices: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    is_part: bool = False

    @property
    def spacing(self) -> tuple[float, ...]:
        """The voxel sizes in mm."""
        return tuple(float(size) for size in voxel_sizes(self.affine))

    def without_voxels(self) -> "Volume":
        """Returns the volume with an array of zeros on the same grid, which takes no memory."""
        return replace(self, array=np.broadcast_to(np.uint8(0), self.array.shape[:3]))

    @property
    def orientation(self) -> str:
        """The direction that each axis points to, such as 'RAS' or 'LPS'; the closest one if the grid is oblique."""
        return "".join(nib.aff2axcodes(self.affine))


def read_volume(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, require_finite: bool = True) -> Volume:
    """Returns the image in `path` (.nii or .nii.gz), float32 [x, y, z] or [x, y, z, c], with the file's scale factors applied.

    Raises:
        InputError: the file is not a valid NIfTI file, needs more than `max_bytes` of memory or, if `require_finite`, holds NaN or Inf.
    """
    path = Path(path)
    header = read_header(path, max_bytes)
    array = read_voxels(path, header, np.float32)
    if require_finite:
        check_finite(path, array)
    return Volume(array, header.affine, header.nifti, path)


def read_labels(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> Volume:
    """Returns the label map in `path`, [x, y, z], as uint8, or as int32 if a label is above 255.

    Raises:
        InputError: the file is not a valid NIfTI file, is not 3-D, or holds values that are not integers of at least 0.
    """
    path = Path(path)
    header = read_header(path, max_bytes)
    check_label_shape(path, header.shape)
    array = read_voxels(path, header, None if header.slope is None else np.float64)
    return Volume(as_labels(path, array), header.affine, header.nifti, path)


def read_geometry(path: str | os.PathLike) -> tuple[tuple[int, ...], np.ndarray, str]:
    """Returns (shape, affine, orientation) of the image in `path` from its header alone."""
    header = read_header(Path(path), None)
    return header.shape, header.affine, "".join(nib.aff2axcodes(header.affine))


def check_same_grid(volumes: Sequence[Volume]) -> None:
    """Raises InputError unless all volumes have the first one's grid. Channels are not compared.

    Two affines count as equal if no corner of the grid moves by more than a thousandth of its longest side.
    """
    for other in volumes[1:]:
        first = volumes[0]
        shapes = first.array.shape[:3], other.array.shape[:3]
        pair = f"{first.path} and {other.path} are not on the same grid"
        if shapes[0] != shapes[1]:
            raise InputError(f"{pair}: their shapes are {shapes[0]} and {shapes[1]}; resample one onto the other.")
        corners = np.array([(*corner, 1) for corner in itertools.product(*((0, length - 1) for length in shapes[0]))])
        distance = np.linalg.norm(corners @ (first.affine - other.affine).T, axis=1).max()
        if not distance <= GRID_TOLERANCE * max(size * length for size, length in zip(first.spacing, shapes[0], strict=True)):
            spacings = [tuple(round(size, 4) for size in volume.spacing) for volume in (first, other)]
            raise InputError(
                f"{pair}: their corners are up to {distance:.3g} mm apart (orientation {first.orientation} and {other.orientation}, "
                f"spacing {spacings[0]} and {spacings[1]}); resample one onto the other."
            )


def check_label_shape(path: Path, shape: tuple[int, ...]) -> None:
    """Raises InputError unless this is the shape of a label map."""
    if len(shape) != 3:
        raise InputError(f"{path}: the label map has shape {shape}, expected 3-D; merge its channels into one map.")


def as_labels(path: Path, array: np.ndarray) -> np.ndarray:
    """Returns the voxels of a label map as uint8, or as int32 if a label is above 255.

    Raises:
        InputError: a voxel is not an integer of at least 0.
    """
    check_finite(path, array)
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        bad = np.abs(array - rounded) > LABEL_TOLERANCE
        if bad.any():
            first = first_index(bad)
            raise InputError(
                f"{path}: label {array[first]:g} at voxel {first} is not an integer, expected a label map; if it was resampled, resample "
                "it by nearest neighbour."
            )
        array = rounded
    low, high = array.min(), array.max()
    if low < 0 or high >= 2**31:
        raise InputError(f"{path}: label {low if low < 0 else high:.0f} is outside 0 … 2147483647; renumber the labels.")
    return array.astype(np.uint8 if high < 256 else np.int32, copy=False)


def check_finite(path: Path, array: np.ndarray) -> None:
    """Raises InputError if a voxel is NaN or Inf."""
    if array.dtype.kind == "f" and (bad := ~np.isfinite(array)).any():
        count = int(bad.sum())
        raise InputError(
            f"{path}: {count} of {array.size} voxels are NaN or Inf, the first at {first_index(bad)}; replace them by 0."
        )


def first_index(bad: np.ndarray) -> tuple[int, ...]:
    """Returns the index of the first True value."""
    return tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
