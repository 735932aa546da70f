"""Flips and permutations of a volume's axes, and the way back."""

from dataclasses import dataclass

import numpy as np
from nibabel import orientations

from swinunetr_jax.data.nifti.nifti_file import check_affine
from swinunetr_jax.errors import InputError

_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass(frozen=True)
class InverseReorient:
    """The way from a reoriented grid back to the original one."""

    ornt: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """`array` on the new grid, [x, y, z] or [x, y, z, c], brought back exactly; a view."""
        if array.shape[:3] != self.shape:
            raise InputError(
                f"The array to bring back has shape {array.shape}, expected {self.shape} and perhaps channels after it."
            )
        return orientations.apply_orientation(array, np.array(self.ornt))


def reorient(array: np.ndarray, affine: np.ndarray, codes: str = "RAS") -> tuple[np.ndarray, np.ndarray, InverseReorient]:
    """Flip and permute [x, y, z] or [x, y, z, c] so that its axes point to `codes`; nothing is resampled.

    On an oblique grid every axis takes the direction it is closest to. Returns a view, its affine, and the way back.
    """
    if sorted(_AXES.get(c, -1) for c in codes) != [0, 1, 2]:
        raise InputError(f"`codes` is {codes!r}, expected three letters, one of each pair R/L, A/P, S/I, such as 'RAS'.")
    check_affine("`affine`", affine)
    here, there = orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(codes))
    turn, back = orientations.ornt_transform(here, there), orientations.ornt_transform(there, here)
    turned = orientations.apply_orientation(array, turn)
    back = InverseReorient(tuple((int(a), int(f)) for a, f in back), turned.shape[:3])
    return turned, affine @ orientations.inv_ornt_aff(turn, array.shape[:3]), back
