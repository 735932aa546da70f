"""Boxes of voxels, such as the smallest one that holds the non-zero part of a grid."""

import numpy as np

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (start, stop) along each axis


def bounding_box(mask: np.ndarray, margin: int = 0) -> Box | None:
    """Returns the smallest box that holds every True voxel of `mask`, or None if there is none.

    Args:
        mask: bool [x, y, z].
        margin: voxels by which the box is widened on every side, within the array.
    """
    sides = []
    for axis, size in enumerate(mask.shape):
        along = np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis)))
        if not len(along):
            return None
        sides.append((max(int(along[0]) - margin, 0), min(int(along[-1]) + 1 + margin, size)))
    return sides[0], sides[1], sides[2]


def whole_box(shape: tuple[int, int, int]) -> Box:
    """Returns the box that covers a whole grid of this shape."""
    return (0, shape[0]), (0, shape[1]), (0, shape[2])


def slices(box: Box) -> tuple[slice, slice, slice]:
    """Returns the index that cuts the box out of an array."""
    return slice(*box[0]), slice(*box[1]), slice(*box[2])
