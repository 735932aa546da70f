"""Logits from the grid that a network sees to the scan's grid, a few planes at a time, so that whole logits exist on neither.

What is computed from logits (labels, probabilities) is computed where they have arrived: a label map that is resampled itself would have
the edges of the network's voxels. Interpolation is linear; beyond the outermost voxels their values continue.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax.data.nifti import InverseReorient
from swinunetr_jax.data.prepare.resample import InverseResample, interpolated, nearest_index, neighbours
from swinunetr_jax.inference.slab_sum import PIECE_BYTES, Planes

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Seen:
    """Which part of its grid a network saw: `part`, whose results count only inside `box`; `pads` voxels were added before `part`."""

    box: Box
    part: Box
    pads: tuple[int, ...]

    def padded(self, axis: int, index: int) -> int:
        """An index of the padded part from one of the whole grid."""
        return index - self.part[axis].start + self.pads[axis]


@dataclass(frozen=True)
class ScanPlanes:
    """Logits [k, y, z, c] on the device; those at `take` fill the box `where` of the turned scan's grid.

    `valid` says which of these voxels count, where that is not all of them.
    """

    where: Box
    take: Box
    array: jax.Array
    valid: np.ndarray | None = None

    def write(self, part: jax.Array, result: np.ndarray) -> None:
        """Writes what was computed from `array`, voxel by voxel, into a result on the turned scan's grid."""
        found = np.asarray(part)[self.take]
        if self.valid is None:
            result[self.where] = found
        else:
            result[self.where][self.valid] = found[self.valid]


def on_scan_grid(planes: Iterator[Planes], seen: Seen, back: InverseReorient | InverseResample | None) -> Iterator[ScanPlanes]:
    """Brings the finished planes of a sliding window to the scan's grid, as it is before `InverseReorient` turns it.

    Args:
        planes: of one output of `predict_slabs`, from the first on.
        seen: which part of the network's grid they are of.
        back: how that grid lies on the scan's.

    Yields:
        Planes that follow one another and together fill the voxels whose nearest voxel of the network's grid is inside `seen.box`.
    """
    if not isinstance(back, InverseResample):
        return _as_they_are(planes, seen)
    return _axis_by_axis(planes, seen, back) if back.axis_aligned else _through_the_host(planes, seen, back)


def _as_they_are(planes: Iterator[Planes], seen: Seen) -> Iterator[ScanPlanes]:
    own = [slice(seen.padded(axis, side.start), seen.padded(axis, side.stop)) for axis, side in enumerate(seen.box)]
    for piece in planes:
        low, high = max(piece.first, own[0].start), min(piece.first + piece.count, own[0].stop)
        if low < high:
            start, skip = seen.box[0].start + low - own[0].start, piece.skip + low - piece.first
            where = (slice(start, start + high - low), *seen.box[1:])
            yield ScanPlanes(where, (slice(skip, skip + high - low), *own[1:]), piece.array)


def _axis_by_axis(planes: Iterator[Planes], seen: Seen, back: InverseResample) -> Iterator[ScanPlanes]:
    """Each axis of the scan's grid follows one of the network's: two voxels and their shares for each index along it."""
    where, sides = [], []
    for axis, (box, part, size) in enumerate(zip(seen.box, seen.part, back.shape)):
        at = back.along(axis)
        nearest = nearest_index(at, size)
        inside = np.flatnonzero((nearest >= box.start) & (nearest < box.stop))
        if not len(inside):  # the box lies between two voxels of a coarse scan
            return
        where.append(slice(int(inside[0]), int(inside[-1]) + 1))
        low, high, share = neighbours(at[inside] - part.start, part.stop - part.start)
        sides.append((low + seen.pads[axis], high + seen.pads[axis], share.astype(np.float32)))
    (low, high, share), *rest = sides
    rest = [tuple(map(jnp.asarray, side)) for side in rest]
    done, carried, group = 0, None, 0
    for piece in planes:
        start, end = piece.first - piece.skip, piece.first + piece.count
        if carried is None:
            carried = piece.array[0]
            ready_at_once = -(-len(high) * len(piece.array) // int(high[-1] - low[0] + 1)) + 1
            group = min(_group(piece.array, [len(side[0]) for side in rest]), ready_at_once)
        ready = int(np.searchsorted(high, end))  # planes of the scan that need no later one
        while done < ready:
            chosen = np.minimum(np.arange(done, done + group), ready - 1)  # one shape for the program, whatever is ready
            first, second = (np.where(index[chosen] < piece.first, 0, index[chosen] - start + 1) for index in (low, high))
            logits = _interpolate(carried, piece.array, (first, second, share[chosen]), *rest)
            count = min(group, ready - done)
            at = slice(where[0].start + done, where[0].start + done + count)
            yield ScanPlanes((at, *where[1:]), (slice(0, count),), logits)
            done += count
        carried = _plane(piece.array, piece.skip + piece.count - 1)


def _group(array: jax.Array, rest: list[int]) -> int:
    """Planes of the scan's grid to compute at a time."""
    plane = max(rest[0], array.shape[1]) * max(rest[1], array.shape[2]) * array.shape[3] * array.dtype.itemsize
    return max(PIECE_BYTES // plane, 1)


@jax.jit
def _plane(array: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, index, keepdims=False)


@jax.jit
def _interpolate(carried: jax.Array, array: jax.Array, *sides: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """By gathers and not by matrix products, which accelerators round to fewer digits."""
    array = jnp.concatenate([carried[None], array])
    for axis, (low, high, share) in enumerate(sides):
        share = share.astype(array.dtype).reshape(-1, *[1] * (array.ndim - 1 - axis))
        below, above = (jnp.take(array, index, axis, mode="clip") for index in (low, high))
        array = below + (above - below) * share
    return array


def _through_the_host(planes: Iterator[Planes], seen: Seen, back: InverseResample) -> Iterator[ScanPlanes]:
    """For a sheared scan, where a plane of it crosses all planes of the network's grid: these are collected, those are not."""
    inside = tuple(slice(pad, pad + part.stop - part.start) for pad, part in zip(seen.pads, seen.part))
    logits = None
    for piece in planes:
        if logits is None:
            sizes = [side.stop - side.start for side in inside]
            logits = np.empty((*sizes, piece.array.shape[-1]), piece.array.dtype)
        piece.write(piece.array, logits, inside)
    shape, start = back.reorient.shape, np.array([part.start for part in seen.part], float)
    group = min(max(PIECE_BYTES // (shape[1] * shape[2] * logits.shape[-1] * logits.itemsize), 1), shape[0])
    cropped = any(box.stop - box.start < size for box, size in zip(seen.box, back.shape))
    for first in range(0, shape[0], group):
        stop = min(first + group, shape[0])
        matrix = back.matrix
        matrix[:3, 3] += matrix[:3, 0] * first - start
        found = interpolated(logits, matrix, (stop - first, *shape[1:]))
        valid = None
        if cropped:
            valid = np.logical_and.reduce(
                [(at >= box.start) & (at < box.stop) for at, box in zip(back.nearest(first, stop), seen.box)]
            )
        where = (slice(first, stop), slice(0, shape[1]), slice(0, shape[2]))
        yield ScanPlanes(where, (slice(None),), jnp.asarray(found), valid)
