"""Arrays from one grid to another: voxels of a wanted size, and back. Numbers as MONAI's `Spacing` and `SpatialResample`."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from swinunetr_jax.data.nifti import Back

SPACING_TOLERANCE = 1e-3  # mm, and the tolerance on affines: what is closer stays as it is


def spacing_grid(shape: tuple[int, ...], affine: np.ndarray, spacing: tuple[float, ...]) -> tuple[tuple[int, ...], np.ndarray]:
    """(shape, affine) of the grid with voxels of `spacing` mm along the same axes, its first voxel where the old one is.

    The last voxel lies within half a voxel of the old last one. A sheared grid becomes one with right angles.
    """
    here = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = np.where(np.abs(here - spacing) <= SPACING_TOLERANCE, here, spacing)
    triangle = np.linalg.cholesky(affine[:3, :3].T @ affine[:3, :3]).T
    target = np.eye(4)
    target[:3, :3] = affine[:3, :3] @ np.linalg.inv(triangle) @ np.diag(wanted)
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in shape), indexing="ij")).reshape(3, -1)
    inside = np.linalg.solve(target[:3, :3], affine[:3, :3] @ corners)
    new = np.round(np.ptp(inside, axis=1) + 1).astype(int)
    first = inside.min(axis=1)
    if np.allclose(first, 0):
        target[:3, 3] = affine[:3, 3]
    else:  # no corner of a sheared grid is the first along all axes: the middles are laid on one another
        target[:3, 3] = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3] - target[:3, :3] @ (new / 2)
    return tuple(int(size) for size in new), target


def resample(
    array: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray, *, nearest: bool = False
) -> np.ndarray:
    """[x, y, z] or [x, y, z, c] on the grid (`shape`, `target`): linear, or the nearest voxel; outside, the border's value goes on.

    Coordinates in float64. The data type stays; the same grid gives the same array.
    """
    matrix = np.linalg.solve(affine, target)
    if array.shape[:3] == tuple(shape) and np.allclose(matrix, np.eye(4), rtol=0, atol=SPACING_TOLERANCE):
        return array
    turn, offset = matrix[:3, :3], matrix[:3, 3]
    straight = np.abs(turn - np.diag(np.diag(turn))).max() * max(shape) < 1e-9  # then each axis is done for itself, much faster
    out = np.empty((*shape, *array.shape[3:]), array.dtype)
    for channel in np.ndindex(array.shape[3:]):
        ndimage.affine_transform(
            array[(..., *channel)],
            np.diag(turn) if straight else turn,
            offset,
            output=out[(..., *channel)],
            output_shape=shape,
            order=0 if nearest else 1,
            mode="nearest",
            prefilter=False,
        )
    return out


@dataclass(frozen=True, eq=False)
class ResampledBack:
    """The way back from a resampled grid (`shape`, `affine`) to the grid it was made of (`source`), and from there to the scan's."""

    shape: tuple[int, ...]
    affine: np.ndarray
    source: np.ndarray
    back: Back

    def apply(self, array: np.ndarray) -> np.ndarray:
        """[x, y, z] or [x, y, z, c] on the scan's own grid: whole numbers (labels) by the nearest voxel, floats linearly."""
        nearest = array.dtype.kind != "f"
        return self.back.apply(resample(array, self.affine, self.back.shape, self.source, nearest=nearest))
