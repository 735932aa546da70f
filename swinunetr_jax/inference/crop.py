"""The boxes of a prediction that is cropped to the foreground."""

import numpy as np

from swinunetr_jax.data.boxes import bounding_box, slices, whole_box


def foreground_box(array: np.ndarray) -> tuple[slice, ...]:
    """Returns the bounding box of the voxels of [x, y, z, c] that are not zero in all channels, or the whole grid if there are none."""
    return slices(bounding_box((array != 0).any(-1)) or whole_box(array.shape[:3]))


def expand_box(box: tuple[slice, ...], sizes: tuple[int, ...], grid: tuple[int, ...]) -> tuple[slice, ...]:
    """Returns a box expanded on both sides to these sizes, as far as the grid allows.

    The windows of a small box then contain voxels of the scan instead of padding. In addition, the boxes of different cases have the same
    few shapes, so that fewer programs are compiled.
    """
    result = []
    for side, size, limit in zip(box, sizes, grid):
        size = min(max(size, side.stop - side.start), limit)
        start = side.start - (size - (side.stop - side.start)) // 2
        start = min(max(start, 0), limit - size)
        result.append(slice(start, start + size))
    return tuple(result)
