"""Boxes of voxels, such as the smallest one that contains the non-zero part of a grid."""

import numpy as np

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (start, stop) along each axis


def bounding_box(mask: np.ndarray, margin: int = 0) -> Box | None:
    """Returns the smallest box that contains every True voxel of `mask`, or None if no voxel is True.

    Args:
        mask: bool [x, y, z].
        margin: voxels by which the box is widened on every side, within the array.
    """
    ranges = []
    for axis, size in enumerate(mask.shape):
        indices = np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis)))
        if not len(indices):
            return None
        ranges.append((max(int(indices[0]) - margin, 0), min(int(indices[-1]) + 1 + margin, size)))
    return ranges[0], ranges[1], ranges[2]


def whole_box(shape: tuple[int, int, int]) -> Box:
    """Returns the box that covers an entire grid of this shape."""
    return (0, shape[0]), (0, shape[1]), (0, shape[2])


def slices(box: Box) -> tuple[slice, slice, slice]:
    """Returns the index that cuts the box out of an array."""
    return slice(*box[0]), slice(*box[1]), slice(*box[2])
