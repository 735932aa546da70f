"""Resamples arrays from one grid to another: images and logits linearly, label maps by votes.

Resampled images equal those of MONAI's `Spacing` and `SpatialResample`. An array index is the centre of a voxel; outside the outermost
centres the values of the border are repeated (scipy's mode "nearest").
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from swinunetr_jax.data.nifti import InverseReorient

SPACING_TOLERANCE = 1e-3  # mm, for voxel sizes and affines; grids that differ by less count as equal
TIE = 1e-3  # in voxels and in shares of a vote; smaller differences count as ties, because rounding of an affine may cause them
PIECE_VOXELS = 1 << 20  # voxels for which coordinates and votes exist at a time


def spacing_grid(
    shape: tuple[int, ...], affine: np.ndarray, spacing: tuple[float, ...]
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Returns (shape, affine) of the grid with voxels of `spacing` mm along the same axes.

    The first voxel has the position of the old first voxel, and the last one is within half a voxel of the old last one. If exactly half
    a voxel (to a thousandth) would be missing or surplus, the even size is chosen: 24 slices of 3 mm become 36 of 2 mm. A sheared
    grid becomes one with right angles, unless its angles deviate by less than a thousandth of a mm over the whole scan.
    """
    current = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = np.where(np.abs(current - spacing) <= SPACING_TOLERANCE, current, spacing)
    triangle = np.linalg.cholesky(affine[:3, :3].T @ affine[:3, :3]).T
    target = np.eye(4)
    if np.abs((triangle - np.diag(np.diag(triangle))) * np.array(shape)).max() <= SPACING_TOLERANCE:
        target[:3, :3] = affine[:3, :3] * (wanted / current)
    else:
        target[:3, :3] = affine[:3, :3] @ np.linalg.inv(triangle) @ np.diag(wanted)
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in shape), indexing="ij")).reshape(3, -1)
    corner_indices = np.linalg.solve(target[:3, :3], affine[:3, :3] @ corners)
    size = np.ptp(corner_indices, axis=1) + 1
    down = np.floor(size)
    new_shape = np.where(np.abs(size - down - 0.5) <= TIE, down + down % 2, np.round(size)).astype(int)
    first = corner_indices.min(axis=1)
    if np.allclose(first, 0):
        target[:3, 3] = affine[:3, 3]
    else:  # no corner of a sheared grid is the first along all axes, so the centres of both grids coincide
        target[:3, 3] = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3] - target[:3, :3] @ (new_shape / 2)
    return (int(new_shape[0]), int(new_shape[1]), int(new_shape[2])), target


def is_same_grid(shape: tuple[int, ...], affine: np.ndarray, other_shape: tuple[int, ...], other: np.ndarray) -> bool:
    """Returns whether two grids are equal except for rounding."""
    return tuple(shape) == tuple(other_shape) and np.allclose(
        np.linalg.solve(affine, other), np.eye(4), rtol=0, atol=SPACING_TOLERANCE
    )


def resample(array: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """Returns [x, y, z] or [x, y, z, c], linearly interpolated on the grid (`shape`, `target`), in the same data type.

    Coordinates are computed in float64. If the grids are equal, the array itself is returned.
    """
    if is_same_grid(array.shape[:3], affine, shape, target):
        return array
    return interpolated(array, np.linalg.solve(affine, target), tuple(shape))


def interpolated(array: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns [x, y, z] or [x, y, z, c], linearly interpolated at the voxels of another grid.

    Args:
        array: the values.
        matrix: [4, 4], maps indices of the result to indices of `array`.
        shape: the shape of the result, without channels.
    """
    linear = matrix[:3, :3]
    out = np.empty((*shape, *array.shape[3:]), array.dtype)
    for channel in np.ndindex(array.shape[3:]):
        ndimage.affine_transform(
            array[(..., *channel)],
            np.diag(linear) if is_axis_aligned(matrix, shape) else linear,  # the former is much faster
            matrix[:3, 3],  # pyright: ignore[reportArgumentType] - scipy declares no types, and the default is a number
            output=out[(..., *channel)],
            output_shape=shape,
            order=1,
            mode="nearest",
            prefilter=False,
        )
    return out


def is_axis_aligned(matrix: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Returns whether each axis of a grid of this shape follows one axis of the other grid, so that axes can be interpolated separately."""
    linear = matrix[:3, :3]
    return bool(np.abs(linear - np.diag(np.diag(linear))).max() * max(shape) < 1e-9)


def resample_labels(labels: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """Returns a label map [x, y, z] on the grid (`shape`, `target`), with the label that has the largest vote at each voxel.

    A label's vote is its mask, interpolated linearly between the eight surrounding voxels. The result is therefore the argmax of the
    resampled one-hot masks of all labels, which are never stored: memory does not grow with the number of labels.

    Equal votes (to a thousandth) are decided alternately, like the squares of a chessboard: the smallest label wins if the sum of the new
    voxel's indices is even, the largest if it is odd. Where a surface is halfway between two voxels, every vote along it is a tie; because
    this rule favours no side and no label, an object keeps its position and its size. If the grids are equal, the array itself is
    returned.
    """
    if is_same_grid(labels.shape, affine, shape, target):
        return labels
    matrix = np.linalg.solve(affine, target)
    out = np.empty(shape, labels.dtype)
    planes = max(PIECE_VOXELS // max(int(np.prod(shape[1:])), 1), 1)
    for first in range(0, shape[0], planes):
        stop = min(first + planes, shape[0])
        out[first:stop] = _elected(labels, _coordinates(matrix, tuple(shape), first, stop), first)
    return out


def _coordinates(matrix: np.ndarray, shape: tuple[int, ...], first: int, stop: int) -> list[np.ndarray]:
    """Returns the positions of planes `first` to `stop` on the old grid: a float64 array per axis that broadcasts to [planes, y, z]."""
    new = np.ogrid[first:stop, : shape[1], : shape[2]]
    if is_axis_aligned(matrix, shape):
        return [matrix[axis, axis] * new[axis] + matrix[axis, 3] for axis in range(3)]
    return [sum(matrix[axis, other] * new[other] for other in range(3)) + matrix[axis, 3] for axis in range(3)]


def _elected(labels: np.ndarray, coordinates: list[np.ndarray], first: int) -> np.ndarray:
    """Returns the winning labels at these coordinates; `first` is the index of the first plane, which decides ties."""
    sides = [neighbours(at, size) for at, size in zip(coordinates, labels.shape)]
    corners = list(itertools.product((0, 1), repeat=3))
    candidates = [labels[tuple(side[end] for side, end in zip(sides, corner))] for corner in corners]
    elected = candidates[0]
    mixed = np.zeros(elected.shape, bool)
    for other in candidates[1:]:
        mixed |= other != elected
    undecided = np.nonzero(mixed)
    if not len(undecided[0]):
        return elected
    candidates = np.stack([other[undecided] for other in candidates])
    shares = [np.broadcast_to(side[2], mixed.shape)[undecided] for side in sides]
    weights = [np.prod([share if end else 1 - share for share, end in zip(shares, corner)], axis=0) for corner in corners]
    votes = np.stack([sum(weight * (other == label) for weight, other in zip(weights, candidates)) for label in candidates])
    tied = votes >= votes.max(0) - TIE
    smallest = np.where(tied, candidates, np.iinfo(labels.dtype).max).min(0)
    largest = np.where(tied, candidates, 0).max(0)
    even = (first + sum(undecided)) % 2 == 0
    elected[undecided] = np.where(even, smallest, largest)
    return elected


def neighbours(at: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (lower voxel, upper voxel, weight of the upper one) for float64 coordinates along an axis of `size` voxels.

    A coordinate outside the axis is replaced by that of the outermost voxel.
    """
    at = np.clip(at, 0, size - 1)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), at - low


@dataclass(frozen=True, eq=False)
class InverseResample:
    """Maps a resampled grid back to the scan's grid.

    The network sees the resampled grid, which has `shape` and `affine`. The grid before resampling has the affine `source` and the shape
    `reorient.shape`; `reorient` maps it back to the scan's own grid.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    source: np.ndarray
    reorient: InverseReorient

    @property
    def matrix(self) -> np.ndarray:
        """The matrix [4, 4] from indices of the grid before resampling to indices of the resampled grid."""
        return np.linalg.solve(self.affine, self.source)

    @property
    def axis_aligned(self) -> bool:
        """True if logits can be interpolated axis by axis. It is False if the scan's grid is sheared."""
        return is_axis_aligned(self.matrix, self.reorient.shape)

    def along(self, axis: int) -> np.ndarray:
        """Returns the coordinates, on the resampled grid, of the voxels along an axis of the grid before resampling.

        The grids must be axis-aligned.
        """
        return self.matrix[axis, axis] * np.arange(self.reorient.shape[axis]) + self.matrix[axis, 3]

    def nearest(self, first: int, stop: int) -> Iterator[np.ndarray]:
        """Yields for each axis the index of the nearest voxel of the resampled grid, for planes `first` to `stop` [planes, y, z]."""
        for at, size in zip(_coordinates(self.matrix, self.reorient.shape, first, stop), self.shape):
            yield np.broadcast_to(nearest_index(at, size), (stop - first, *self.reorient.shape[1:]))


def nearest_index(at: np.ndarray, size: int) -> np.ndarray:
    """Returns the voxel nearest to coordinates along an axis of `size` voxels; halfway between two voxels it is the upper one."""
    return np.clip(np.floor(at + 0.5).astype(np.int64), 0, size - 1)
