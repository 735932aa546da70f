"""Flips and permutations of a volume's axes, and their inverse."""

from dataclasses import dataclass, replace

import numpy as np
from nibabel import orientations

from swinunetr_jax.data.nifti.nifti_file import check_affine
from swinunetr_jax.data.nifti.volume import Volume, check_same_grid
from swinunetr_jax.errors import InputError

_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass(frozen=True)
class InverseReorient:
    """Maps arrays from a reoriented grid back to the original one. `shape` is that of the reoriented grid."""

    ornt: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Returns a view of `array`, [x, y, z] or [x, y, z, c] on the reoriented grid, in the original orientation."""
        if array.shape[:3] != self.shape:
            raise InputError(
                f"The array to reorient has shape {array.shape}, expected {self.shape}, optionally followed by channels."
            )
        return orientations.apply_orientation(array, np.array(self.ornt))


def reorient(array: np.ndarray, affine: np.ndarray, codes: str = "RAS") -> tuple[np.ndarray, np.ndarray, InverseReorient]:
    """Flips and permutes [x, y, z] or [x, y, z, c] so that its axes point to `codes`. Nothing is resampled.

    On an oblique grid each axis is assigned to the direction closest to it.

    Returns:
        A view of the array, its affine, and the inverse.
    """
    if sorted(_AXES.get(code, -1) for code in codes) != [0, 1, 2]:
        raise InputError(f"`codes` is {codes!r}, expected three letters, one of each pair R/L, A/P and S/I, such as 'RAS'.")
    check_affine("`affine`", affine)
    current, wanted = orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(codes))
    forward, backward = orientations.ornt_transform(current, wanted), orientations.ornt_transform(wanted, current)
    reoriented = orientations.apply_orientation(array, forward)
    inverse = InverseReorient(tuple((int(axis), int(flip)) for axis, flip in backward), reoriented.shape[:3])
    return reoriented, affine @ orientations.inv_ornt_aff(forward, array.shape[:3]), inverse


def on_grid_of(volume: Volume, like: Volume) -> Volume:
    """Returns the volume with the axes of `like`: flipped or permuted if only the directions of its axes differ, and otherwise as it is.

    For example, DICOM files and the NIfTI files that dcm2niix makes of them have the same voxels in another order. A label map that covers
    only a part of the grid (`Volume.is_part`) is extended by zeros. Nothing is resampled.

    Raises:
        InputError: the voxels are at other places than those of `like`.
    """
    try:
        check_same_grid([like, volume])
        return volume
    except InputError:
        if volume.orientation == like.orientation and not volume.is_part:
            raise
        array, affine, _ = reorient(volume.array, volume.affine, like.orientation)
        turned = replace(volume, array=array, affine=affine)
        if volume.is_part:
            extended = _extended(turned, like)
            if extended is None:
                raise InputError(
                    f"{like.path} and {volume.path} are not on the same grid: the label map covers other voxels than those of the scan; "
                    "give the scan that it was made from, or resample it."
                ) from None
            turned = extended
        try:
            check_same_grid([like, turned])
        except InputError:
            turned = None
        if turned is None:
            raise
        return turned


def _extended(part: Volume, like: Volume) -> Volume | None:
    """Returns a label map on a part of the grid of `like` on all of that grid, or None if it is not inside of the grid."""
    offset = np.linalg.solve(like.affine, part.affine[:, 3])[:3]
    first = np.rint(offset).astype(int)
    shape = like.array.shape[:3]
    if (first < 0).any() or (first + part.array.shape > shape).any():
        return None
    array = np.zeros(shape, part.array.dtype, order="F")
    array[tuple(slice(low, low + size) for low, size in zip(first, part.array.shape))] = part.array
    affine = part.affine.copy()
    affine[:3, 3] -= part.affine[:3, :3] @ first
    return replace(part, array=array, affine=affine, is_part=False)
