"""Shifted windows on a 2-D or 3-D grid (Liu et al. 2021, arXiv 2103.14030, as in MONAI's Swin UNETR): pure functions without parameters.

Letters in shapes: b batch, d h w (or h w) grid, n windows, t tokens of a window, c channels. Index tables and region ids are numpy
constants, since they only depend on shapes.
"""

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from swinunetr_jax.ops.lane_blocks import BlockedGrid, Grid, is_profitable, to_blocks
from swinunetr_jax.runtime.dispatch import Implementation, Table, hand_differentiated, layout_dispatch

Size = tuple[int, ...]

_PARTITION = {
    2: "b (h p) (w q) c -> (b h w) (p q) c",
    3: "b (d o) (h p) (w q) c -> (b d h w) (o p q) c",
}
_REVERSE = {ndim: " -> ".join(reversed(pattern.split(" -> "))) for ndim, pattern in _PARTITION.items()}


def clip_window(grid: Size, window: Size, shift: Size) -> tuple[Size, Size]:
    """Returns the window and the shift for a grid. An axis that is not larger than the window becomes one window without shift."""
    clipped = tuple(min(size, win) for size, win in zip(grid, window))
    shifts = tuple(0 if size <= win else sh for size, win, sh in zip(grid, window, shift))
    return clipped, shifts


def pad_to_windows(x: jax.Array, window: Size) -> jax.Array:
    """Pads [b, *grid, c] with zeros at the high end of each axis of the grid, up to a multiple of the window."""
    pads = [(0, -size % win) for size, win in zip(x.shape[1:-1], window)]
    return jnp.pad(x, [(0, 0), *pads, (0, 0)]) if any(high for _, high in pads) else x


def counts(grid: Size, window: Size) -> Size:
    """Returns the number of windows along each axis of the padded grid."""
    return tuple(-(-size // win) for size, win in zip(grid, window))


def partition(x: jax.Array, window: Size) -> jax.Array:
    """Returns the windows of a grid: [b, *grid, c] -> [b * windows, tokens, c]; windows and tokens are in row-major order."""
    return rearrange(x, _PARTITION[len(window)], **_axes(window))


def reverse(windows: jax.Array, window: Size, grid: Size) -> jax.Array:
    """Inverts `partition`: [b * windows, tokens, c] -> [b, *grid, c]."""
    window_counts = dict(zip("dhw"[-len(grid) :], counts(grid, window)))
    return rearrange(windows, _REVERSE[len(window)], **_axes(window), **window_counts)


def _roll(x: jax.Array, shift: Size) -> jax.Array:
    return jnp.roll(x, shift, tuple(range(1, x.ndim - 1)))


# The gradient of a roll is the opposite roll, which XLA has compiled for the other roll of a block. JAX would derive a sum of padded parts.
roll = hand_differentiated(_roll, nondiff_argnums=(1,))
roll.defvjp(lambda x, shift: (_roll(x, shift), None), lambda shift, _, dy: (_roll(dy, tuple(-sh for sh in shift)),))


def maybe_to_window_blocks(x: jax.Array, window: Size) -> Grid:
    """Returns [b, *grid, c] with one block for each window if the program is for a TPU and the grid has enough windows, or unchanged.

    The blocks are the windows of the padded grid, before any shift.
    """
    return layout_dispatch(WINDOW_BLOCKS, x, window)


def _unchanged(x: jax.Array, window: Size) -> jax.Array:
    return x


def _to_window_blocks(x: jax.Array, window: Size) -> BlockedGrid:
    window_counts = counts(x.shape[1:-1], window)
    return to_blocks(pad_to_windows(x, window), window_counts)


def _has_many_windows(x: jax.Array, window: Size) -> bool:
    window_counts = counts(x.shape[1:-1], window)
    return len(window_counts) == 3 and min(window_counts) > 1 and is_profitable(math.prod(window_counts))


WINDOW_BLOCKS = Table(
    "window_blocks",
    Implementation(_unchanged),
    {
        "tpu": (
            Implementation(
                _to_window_blocks,
                supports=_has_many_windows,
                requires="a 3-D grid of 128 windows or more, none of them clipped, that is not sharded spatially",
            ),
        )
    },
)


@lru_cache(maxsize=32)
def valid_tokens(grid: Size, window: Size) -> np.ndarray | None:
    """Returns which tokens belong to the grid and not to its padding: bool [windows, *window, 1], None if there is no padding."""
    padded = tuple(count * win for count, win in zip(counts(grid, window), window))
    if padded == grid:
        return None
    tokens = np.pad(np.ones(grid, bool), [(0, padded_size - size) for size, padded_size in zip(grid, padded)])
    return rearrange(tokens[None, ..., None], _PARTITION[len(window)], **_axes(window)).reshape(-1, *window, 1)


@lru_cache(maxsize=128)
def region_ids(grid: Size, window: Size, shift: Size) -> np.ndarray | None:
    """Returns the region id of each token of the shifted windows, int32 [windows, tokens], or None if there is no shift.

    Tokens of a window with equal ids were neighbours before the roll, and attend to one another. The grid is the padded one: padding is
    not a region of its own, since tokens attend to it in the reference implementation. An axis without shift is one region.
    """
    if not any(shift):
        return None
    ids = np.zeros((1,) * len(grid), np.int32)
    for axis, (size, win, sh) in enumerate(zip(grid, window, shift)):
        axis_ids = np.zeros(size, np.int32)
        if sh:
            axis_ids[size - win : size - sh] = 1
            axis_ids[size - sh :] = 2
        ids = ids * 3 + axis_ids.reshape([-1 if a == axis else 1 for a in range(len(grid))])
    return rearrange(ids[None, ..., None], _PARTITION[len(window)], **_axes(window))[..., 0]


def token_positions(grid: Size, window: Size, shift: Size) -> np.ndarray:
    """Returns the position in the padded grid of each token of the shifted windows, as an index in row-major order: [windows, tokens]."""
    positions = np.roll(np.arange(math.prod(grid)).reshape(grid), [-sh for sh in shift], range(len(grid)))
    return rearrange(positions[None, ..., None], _PARTITION[len(window)], **_axes(window))[..., 0]


@lru_cache(maxsize=32)
def relative_index(window: Size) -> np.ndarray:
    """Returns the row of the bias table for each pair of tokens of a full window: int32 [tokens, tokens], first axis slowest."""
    coords = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij")).reshape(len(window), -1)
    relative = coords[:, :, None] - coords[:, None, :] + np.reshape(window, (-1, 1, 1)) - 1
    return np.asarray(np.ravel_multi_index(tuple(relative), tuple(2 * win - 1 for win in window)), np.int32)


def _axes(window: Size) -> dict[str, int]:
    return dict(zip("opq"[-len(window) :], window))
