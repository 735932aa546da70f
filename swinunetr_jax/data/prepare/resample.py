"""Arrays from one grid to another: voxels of a wanted size, and back. Images and logits linearly, label maps by their votes.

Numbers of images are those of MONAI's `Spacing` and `SpatialResample`. An array index is a voxel's centre; beyond the outermost centres
the border's value continues (scipy's mode "nearest").
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from swinunetr_jax.data.nifti import InverseReorient

SPACING_TOLERANCE = 1e-3  # mm, and the tolerance on affines: what is closer stays as it is
TIE = 1e-3  # voxels, and shares of a vote: what is closer to a tie than rounding of an affine can decide is a tie
PIECE_VOXELS = 1 << 20  # what is computed for each voxel exists for so many voxels at a time


def spacing_grid(shape: tuple[int, ...], affine: np.ndarray, spacing: tuple[float, ...]) -> tuple[tuple[int, ...], np.ndarray]:
    """(shape, affine) of the grid with voxels of `spacing` mm along the same axes, its first voxel where the old one is.

    The last voxel lies within half a voxel of the old last one. Where exactly half a voxel would be missing or too much, within a
    thousandth, the size is the even one of the two: 24 slices of 3 mm become 36 of 2 mm. A sheared grid becomes one with right angles;
    angles that differ from right ones by less than a thousandth of a mm over the whole scan stay as they are.
    """
    here = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = np.where(np.abs(here - spacing) <= SPACING_TOLERANCE, here, spacing)
    triangle = np.linalg.cholesky(affine[:3, :3].T @ affine[:3, :3]).T
    target = np.eye(4)
    if np.abs((triangle - np.diag(np.diag(triangle))) * np.array(shape)).max() <= SPACING_TOLERANCE:
        target[:3, :3] = affine[:3, :3] * (wanted / here)
    else:
        target[:3, :3] = affine[:3, :3] @ np.linalg.inv(triangle) @ np.diag(wanted)
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in shape), indexing="ij")).reshape(3, -1)
    inside = np.linalg.solve(target[:3, :3], affine[:3, :3] @ corners)
    size = np.ptp(inside, axis=1) + 1
    down = np.floor(size)
    new = np.where(np.abs(size - down - 0.5) <= TIE, down + down % 2, np.round(size)).astype(int)
    first = inside.min(axis=1)
    if np.allclose(first, 0):
        target[:3, 3] = affine[:3, 3]
    else:  # no corner of a sheared grid is the first along all axes: the middles are laid on one another
        target[:3, 3] = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3] - target[:3, :3] @ (new / 2)
    return tuple(int(size) for size in new), target


def is_same_grid(shape: tuple[int, ...], affine: np.ndarray, other_shape: tuple[int, ...], other: np.ndarray) -> bool:
    """Whether two grids are the same but for rounding, so that arrays on one are arrays on the other."""
    return tuple(shape) == tuple(other_shape) and np.allclose(
        np.linalg.solve(affine, other), np.eye(4), rtol=0, atol=SPACING_TOLERANCE
    )


def resample(array: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """[x, y, z] or [x, y, z, c] linearly interpolated on the grid (`shape`, `target`).

    Coordinates in float64. The data type stays; the same grid gives the same array.
    """
    if is_same_grid(array.shape[:3], affine, shape, target):
        return array
    return interpolated(array, np.linalg.solve(affine, target), tuple(shape))


def interpolated(array: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[x, y, z] or [x, y, z, c] linearly interpolated; `matrix` [4, 4] takes indices of the result, of this shape, to those of `array`."""
    turn = matrix[:3, :3]
    out = np.empty((*shape, *array.shape[3:]), array.dtype)
    for channel in np.ndindex(array.shape[3:]):
        ndimage.affine_transform(
            array[(..., *channel)],
            np.diag(turn) if is_straight(matrix, shape) else turn,  # the former is much faster
            matrix[:3, 3],
            output=out[(..., *channel)],
            output_shape=shape,
            order=1,
            mode="nearest",
            prefilter=False,
        )
    return out


def is_straight(matrix: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether each axis of a grid of this shape follows one axis of the other grid, so that each can be interpolated by itself."""
    turn = matrix[:3, :3]
    return bool(np.abs(turn - np.diag(np.diag(turn))).max() * max(shape) < 1e-9)


def resample_labels(labels: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """A label map [x, y, z] on the grid (`shape`, `target`): at each voxel the label with the largest vote.

    A label's vote is its mask, interpolated linearly between the eight voxels around, so the result is the argmax of all labels' resampled
    one-hot masks, which exist nowhere: memory does not grow with the number of labels. Votes that are equal (within a thousandth) are
    decided in turn, like the squares of a chessboard: the smallest of the labels wins where the sum of the new voxel's indices is even,
    the largest where it is odd. So neither a side nor a label gains by ties, which along a face halfway between two voxels are the rule:
    an object stays where it is and as large as it is. The same grid gives the same array.
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
    """Where planes `first` to `stop` lie on the old grid, one float64 array per axis that broadcasts to [planes, y, z]."""
    new = np.ogrid[first:stop, : shape[1], : shape[2]]
    if is_straight(matrix, shape):
        return [matrix[axis, axis] * new[axis] + matrix[axis, 3] for axis in range(3)]
    return [sum(matrix[axis, other] * new[other] for other in range(3)) + matrix[axis, 3] for axis in range(3)]


def _elected(labels: np.ndarray, coordinates: list[np.ndarray], first: int) -> np.ndarray:
    sides = [neighbours(at, size) for at, size in zip(coordinates, labels.shape)]
    corners = list(itertools.product((0, 1), repeat=3))
    around = [labels[tuple(side[end] for side, end in zip(sides, corner))] for corner in corners]
    elected = around[0]
    mixed = np.zeros(elected.shape, bool)
    for other in around[1:]:
        mixed |= other != elected
    where = np.nonzero(mixed)
    if not len(where[0]):
        return elected
    around = np.stack([other[where] for other in around])
    shares = [np.broadcast_to(side[2], mixed.shape)[where] for side in sides]
    weights = [np.prod([share if end else 1 - share for share, end in zip(shares, corner)], axis=0) for corner in corners]
    votes = np.stack([sum(weight * (other == label) for weight, other in zip(weights, around)) for label in around])
    tied = votes >= votes.max(0) - TIE
    smallest = np.where(tied, around, np.iinfo(labels.dtype).max).min(0)
    largest = np.where(tied, around, 0).max(0)
    even = (first + sum(where)) % 2 == 0
    elected[where] = np.where(even, smallest, largest)
    return elected


def neighbours(at: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower voxel, upper voxel, the upper one's share) for coordinates along an axis of `size` voxels, float64.

    A coordinate outside counts as the outermost voxel.
    """
    at = np.clip(at, 0, size - 1)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), at - low


@dataclass(frozen=True, eq=False)
class InverseResample:
    """How a resampled grid lies on the grid it was computed from, and how that one becomes the scan's grid again.

    The network sees the resampled grid, which has `shape` and `affine`. The grid before resampling has the affine `source` and the shape
    `reorient.shape`; `reorient` turns it into the scan's own grid.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    source: np.ndarray
    reorient: InverseReorient

    @property
    def matrix(self) -> np.ndarray:
        """[4, 4], from indices of the grid it was made of to indices of the resampled grid."""
        return np.linalg.solve(self.affine, self.source)

    @property
    def straight(self) -> bool:
        """Whether logits come back axis by axis; otherwise the scan's grid is sheared."""
        return is_straight(self.matrix, self.reorient.shape)

    def along(self, axis: int) -> np.ndarray:
        """Coordinates on the resampled grid of the voxels along an axis of the grid it was made of; for straight grids."""
        return self.matrix[axis, axis] * np.arange(self.reorient.shape[axis]) + self.matrix[axis, 3]

    def nearest(self, first: int, stop: int) -> Iterator[np.ndarray]:
        """For each axis the index of the nearest voxel of the resampled grid, for planes `first` to `stop` [planes, y, z]."""
        for at, size in zip(_coordinates(self.matrix, self.reorient.shape, first, stop), self.shape):
            yield np.broadcast_to(nearest_index(at, size), (stop - first, *self.reorient.shape[1:]))


def nearest_index(at: np.ndarray, size: int) -> np.ndarray:
    """The voxel that coordinates along an axis of `size` voxels belong to; halfway it is the upper one."""
    return np.clip(np.floor(at + 0.5).astype(np.int64), 0, size - 1)
