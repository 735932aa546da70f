"""Interpolates logits from the network's grid to the scan's, a few planes at a time, so the logits of a whole grid are never in memory.

Labels and probabilities are computed from the logits on the scan's grid, because a resampled label map would show the edges of the
network's voxels. The interpolation is linear. Beyond the outermost voxels, their values are repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax.data.nifti import InverseReorient
from swinunetr_jax.data.prepare.resample import InverseResample, interpolated, nearest_index, neighbours
from swinunetr_jax.inference.slab_sum import PIECE_BYTES, Planes

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Coverage:
    """The part of the network's grid that the windows cover.

    Attributes:
        box: the box whose results are used.
        covered: the box that the windows cover, which contains `box`.
        pads: the number of voxels of padding before `covered` along each axis.
    """

    box: Slices
    covered: Slices
    pads: tuple[int, ...]

    def padded(self, axis: int, index: int) -> int:
        """Converts an index along an axis of the network's grid to an index of the padded box `covered`."""
        return index - self.covered[axis].start + self.pads[axis]


@dataclass(frozen=True)
class ScanPlanes:
    """Logits of a box of the scan's voxels, in the orientation of the network.

    Attributes:
        where: the box of the scan's voxels.
        take: the part of `array` that fills the box.
        array: logits [k, y, z, c] on the device.
        valid: a mask of the voxels of the box that are used, or None if all of them are.
    """

    where: Slices
    take: Slices
    array: jax.Array
    valid: np.ndarray | None = None

    def write(self, part: jax.Array, result: np.ndarray) -> None:
        """Writes `part`, which was computed from `array` voxel by voxel, into a result of all the scan's voxels."""
        values = np.asarray(part)[self.take]
        if self.valid is None:
            result[self.where] = values
        else:
            result[self.where][self.valid] = values[self.valid]

    def add(self, part: jax.Array, result: np.ndarray) -> None:
        """Adds `part`, which was computed from `array` voxel by voxel, to a result of all the scan's voxels."""
        result[self.where] += np.asarray(part)[self.take]

    def read(self, result: np.ndarray) -> np.ndarray:
        """Returns an array of the shape of `array` with the values of a result [x, y, z, c] at the box."""
        part = np.zeros((*self.array.shape[:3], result.shape[-1]), result.dtype)
        part[self.take] = result[self.where]
        return part


def on_scan_grid(
    planes: Iterator[Planes], coverage: Coverage, back: InverseReorient | InverseResample | None
) -> Iterator[ScanPlanes]:
    """Interpolates the finished planes of a sliding window on the scan's voxels, in the orientation of the network.

    Args:
        planes: all planes of one output of `predict_slabs`, in their order.
        coverage: the part of the network's grid that the planes cover.
        back: the transformation from the network's grid to the scan's.

    Yields:
        Planes in their order, which together fill the voxels whose nearest voxel of the network's grid is inside `coverage.box`.
    """
    if not isinstance(back, InverseResample):
        return _not_resampled(planes, coverage)
    return _axis_by_axis(planes, coverage, back) if back.axis_aligned else _on_host(planes, coverage, back)


def _not_resampled(planes: Iterator[Planes], coverage: Coverage) -> Iterator[ScanPlanes]:
    """Yields the planes for a scan that was not resampled."""
    padded_box = [
        slice(coverage.padded(axis, side.start), coverage.padded(axis, side.stop)) for axis, side in enumerate(coverage.box)
    ]
    for piece in planes:
        low, high = max(piece.first, padded_box[0].start), min(piece.first + piece.count, padded_box[0].stop)
        if low < high:
            start, skip = coverage.box[0].start + low - padded_box[0].start, piece.skip + low - piece.first
            where = (slice(start, start + high - low), *coverage.box[1:])
            yield ScanPlanes(where, (slice(skip, skip + high - low), *padded_box[1:]), piece.array)


def _axis_by_axis(planes: Iterator[Planes], coverage: Coverage, back: InverseResample) -> Iterator[ScanPlanes]:
    """Interpolates along one axis after the other, for a scan whose axes are all parallel to axes of the network's grid."""
    where, sides = [], []
    for axis, (box, covered, size) in enumerate(zip(coverage.box, coverage.covered, back.shape)):
        position = back.along(axis)
        nearest = nearest_index(position, size)
        inside = np.flatnonzero((nearest >= box.start) & (nearest < box.stop))
        if not len(inside):  # the box is between two voxels of a coarse scan
            return
        where.append(slice(int(inside[0]), int(inside[-1]) + 1))
        low, high, share = neighbours(position[inside] - covered.start, covered.stop - covered.start)
        sides.append((low + coverage.pads[axis], high + coverage.pads[axis], share.astype(np.float32)))
    (low, high, share), *rest = sides
    rest = [tuple(map(jnp.asarray, side)) for side in rest]
    done, carried, group = 0, None, 0
    for piece in planes:
        start, end = piece.first - piece.skip, piece.first + piece.count
        if carried is None:
            carried = piece.array[0]
            ready_at_once = -(-len(high) * len(piece.array) // int(high[-1] - low[0] + 1)) + 1
            group = min(_group(piece.array, [len(side[0]) for side in rest]), ready_at_once)
        ready = int(np.searchsorted(high, end))  # the number of planes of the scan that need no later piece
        while done < ready:
            # The number of planes is always the same, so that only one program is compiled.
            scan_planes = np.minimum(np.arange(done, done + group), ready - 1)
            first, second = (
                np.where(index[scan_planes] < piece.first, 0, index[scan_planes] - start + 1) for index in (low, high)
            )
            logits = _interpolate(carried, piece.array, (first, second, share[scan_planes]), *rest)
            count = min(group, ready - done)
            finished = slice(where[0].start + done, where[0].start + done + count)
            yield ScanPlanes((finished, *where[1:]), (slice(0, count),), logits)
            done += count
        carried = _plane(piece.array, piece.skip + piece.count - 1)


def _group(array: jax.Array, rest: list[int]) -> int:
    """Returns the number of planes of the scan's grid to compute at a time."""
    plane = max(rest[0], array.shape[1]) * max(rest[1], array.shape[2]) * array.shape[3] * array.dtype.itemsize
    return max(PIECE_BYTES // plane, 1)


@jax.jit
def _plane(array: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, index, keepdims=False)


@jax.jit
def _interpolate(carried: jax.Array, array: jax.Array, *sides: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """Interpolates with gathers instead of matrix products, which accelerators compute with fewer digits."""
    array = jnp.concatenate([carried[None], array])
    for axis, (low, high, share) in enumerate(sides):
        share = share.astype(array.dtype).reshape(-1, *[1] * (array.ndim - 1 - axis))
        below, above = (jnp.take(array, index, axis, mode="clip") for index in (low, high))
        array = below + (above - below) * share
    return array


def _on_host(planes: Iterator[Planes], coverage: Coverage, back: InverseResample) -> Iterator[ScanPlanes]:
    """Interpolates on the host, for a sheared scan.

    Each plane of such a scan crosses all planes of the network's grid. Therefore all logits on the network's grid are collected first.
    """
    inside = tuple(slice(pad, pad + part.stop - part.start) for pad, part in zip(coverage.pads, coverage.covered))
    logits = None
    for piece in planes:
        if logits is None:
            sizes = [side.stop - side.start for side in inside]
            logits = np.empty((*sizes, piece.array.shape[-1]), piece.array.dtype)
        piece.write(piece.array, logits, inside)
    if logits is None:
        return
    shape, start = back.reorient.shape, np.array([part.start for part in coverage.covered], float)
    group = min(max(PIECE_BYTES // (shape[1] * shape[2] * logits.shape[-1] * logits.itemsize), 1), shape[0])
    cropped = any(box.stop - box.start < size for box, size in zip(coverage.box, back.shape))
    for first in range(0, shape[0], group):
        stop = min(first + group, shape[0])
        matrix = back.matrix
        matrix[:3, 3] += matrix[:3, 0] * first - start
        interpolated_logits = interpolated(logits, matrix, (stop - first, *shape[1:]))
        valid = None
        if cropped:
            valid = np.logical_and.reduce(
                [(index >= box.start) & (index < box.stop) for index, box in zip(back.nearest(first, stop), coverage.box)]
            )
        where = (slice(first, stop), slice(0, shape[1]), slice(0, shape[2]))
        yield ScanPlanes(where, (slice(None),), jnp.asarray(interpolated_logits), valid)
