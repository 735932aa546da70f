"""Grids that are divided into blocks, with the blocks on the lanes of a TPU.

A TPU computes on 8 × 128 numbers at a time. If 48 channels, or 96 planes, are on the 128 lanes, many of them are idle, and a convolution
has to move data across lanes. Here a grid [b, d, h, w, c] is divided into n = i * j * k blocks, [b, n, d/i, h/j, w/k, c], which fill the
lanes. No axis of the grid is then on the lanes, so each tap of a kernel just reads from a different address. Only the faces of blocks
move across lanes: before a convolution each block gets a halo of one voxel from its neighbours.

Norms, activations and matrix products over channels compute the same on the array of a `BlockedGrid` as on that of a grid: `map_grid`
applies them to both. The windows of window attention can be blocks, too.

Letters in shapes: b batch, n blocks, d h w grid, c channels.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.runtime.dispatch import Implementation, Table, layout_dispatch
from swinunetr_jax.runtime.sharding import is_spatially_sharded

Counts = tuple[int, ...]  # blocks along each axis; they are numbered with the last axis fastest

LANES = 128
COUNTS = (4, 4, 8)
MIN_CHANNELS = 8  # with fewer channels, one step into blocks is faster by the compiler's estimate than two
MIN_EDGE = 48  # the edge of the smallest grid whose COUNTS blocks do not consist mostly of their halos


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["counts"])
@dataclass(frozen=True)
class BlockedGrid:
    """A grid in blocks: the array [b, n, d, h, w, c], where d h w are the sizes of a block, and the number of blocks along each axis."""

    array: Array
    counts: Counts

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole grid, [b, d, h, w, c]."""
        b, _, *sizes, c = self.array.shape
        return b, *(count * size for count, size in zip(self.counts, sizes)), c

    def astype(self, dtype: str | np.dtype) -> "BlockedGrid":
        return BlockedGrid(self.array.astype(dtype), self.counts)


Grid = Array | BlockedGrid  # [b, *grid, c]
G = TypeVar("G", Array, BlockedGrid, Grid)


def map_grid(function: Callable[..., Array], *grids: G) -> G:
    """Returns the function's result on the arrays of grids. All grids are in the same blocks, or none is in blocks.

    The function must compute the same whether an array has an axis of blocks or not.
    """
    return jax.tree.map(function, *grids)


def array_of(grid: Grid) -> Array:
    """Returns the array of a grid: [b, n, d, h, w, c] if it is in blocks, [b, *grid, c] otherwise."""
    return grid.array if isinstance(grid, BlockedGrid) else grid


def like(grid: G, array: Array) -> G:
    """Returns an array as a grid that is in the same blocks as another grid."""
    return jax.tree.map(lambda _: array, grid)


# ---- into blocks and back
# Axes are rearranged in two steps, w and then d and h, or the other way round, with barriers between them. If XLA rearranges all axes at
# once, or as a part of the next operation, it takes longer: by the schedule for a v5e up to twice as long.


def to_blocks(x: Array, counts: Counts = COUNTS) -> BlockedGrid:
    """Returns [b, d, h, w, c] in blocks. The counts divide the sizes of the grid."""
    i, j, k = counts
    if x.shape[-1] >= MIN_CHANNELS:
        rows = lax.optimization_barrier(rearrange(x, "b (i d) (j h) w c -> b d h c (i j) w", i=i, j=j))
        blocks = rearrange(rows, "b d h c n (k w) -> b (n k) d h w c", k=k)
    else:
        blocks = rearrange(x, "b (i d) (j h) (k w) c -> b (i j k) d h w c", i=i, j=j, k=k)
    return BlockedGrid(lax.optimization_barrier(blocks), counts)


def from_blocks(x: Grid) -> Array:
    """Returns the grid as an array [b, *grid, c]."""
    if not isinstance(x, BlockedGrid):
        return x
    i, j, k = x.counts
    array = lax.optimization_barrier(x.array)
    rows = lax.optimization_barrier(rearrange(array, "b (n k) d h w c -> b d h c n (k w)", k=k))
    return rearrange(rows, "b d h c (i j) w -> b (i d) (j h) w c", i=i, j=j)


def maybe_to_blocks(x: Array) -> Grid:
    """Returns [b, *grid, c] in COUNTS blocks if the program is for a TPU and the grid is large enough, otherwise unchanged."""
    return layout_dispatch(LANE_BLOCKS, x)


def is_profitable(count: int) -> bool:
    """Returns whether operations on a grid in this number of blocks are faster on a TPU than on the grid itself."""
    return count >= LANES and not is_spatially_sharded()


def _is_large(x: Array) -> bool:
    grid = x.shape[1:-1]
    is_divisible = len(grid) == 3 and min(grid) >= MIN_EDGE and not any(size % n for size, n in zip(grid, COUNTS))
    return is_divisible and is_profitable(math.prod(COUNTS))


def whole(x: Array) -> Array:
    """Returns the grid unchanged."""
    return x


LANE_BLOCKS = Table(
    "lane_blocks",
    Implementation(whole),
    {
        "tpu": (
            Implementation(
                to_blocks,
                supports=_is_large,
                requires=f"a 3-D grid of {MIN_EDGE}³ voxels or more, divisible by {COUNTS}, that is not sharded spatially",
            ),
        )
    },
)


# ---- neighbouring blocks


def halo_exchange(x: BlockedGrid) -> Array:
    """Returns [b, n, d + 2, h + 2, w + 2, c]: each block with one voxel of its neighbours on each side, zeros beyond the grid."""
    array = x.array
    for axis in range(3):
        first, last = (lax.slice_in_dim(array, index, index + 1, axis=2 + axis) for index in (0, array.shape[2 + axis] - 1))
        before, after = (_neighbours(part, x.counts, axis, step) for part, step in ((last, -1), (first, 1)))
        array = jnp.concatenate([before, array, after], axis=2 + axis)
    return array


def roll(x: BlockedGrid, shifts: tuple[int, ...]) -> BlockedGrid:
    """Returns `jnp.roll` of the grid, by less than a block along each axis."""
    array = x.array
    for axis, shift in enumerate(shifts):
        if shift == 0:
            continue
        low, high = jnp.split(array, [-shift % array.shape[2 + axis]], axis=2 + axis)
        if shift > 0:
            high = _neighbours(high, x.counts, axis, -1, periodic=True)
        else:
            low = _neighbours(low, x.counts, axis, 1, periodic=True)
        array = jnp.concatenate([high, low], axis=2 + axis)
    return BlockedGrid(array, x.counts)


def _neighbours(part: Array, counts: Counts, axis: int, step: int, *, periodic: bool = False) -> Array:
    """Returns for each block the part of the next one along an axis (step 1) or of the previous one (step -1).

    Beyond the grid there are zeros, or the blocks of its other end if the grid is `periodic`.
    """
    stride, count = math.prod(counts[axis + 1 :]), counts[axis]
    neighbour = np.arange(part.shape[1]) // stride % count + step
    exists = ((neighbour >= 0) & (neighbour < count)).reshape(-1, *[1] * (part.ndim - 2))

    def shifted(blocks: int) -> Array:
        return lax.pad(
            part, jnp.zeros((), part.dtype), [(-blocks, blocks, 0) if dim == 1 else (0, 0, 0) for dim in range(part.ndim)]
        )

    beyond = shifted(step * (1 - count) * stride) if periodic else jnp.zeros((), part.dtype)
    return jnp.where(exists, shifted(step * stride), beyond)
