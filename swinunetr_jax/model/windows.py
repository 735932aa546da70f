"""Shifted windows on a 2-D or 3-D grid: pure functions, no parameters (Liu et al. 2021, in the form of MONAI's Swin UNETR).

Letters: b batch, d h w (or h w) grid axes, n windows, t tokens of a window, c channels.
Index tables and region ids are numpy constants, since they depend on shapes alone.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

Size = tuple[int, ...]

_PARTITION = {
    2: "b (h p) (w q) c -> (b h w) (p q) c",
    3: "b (d o) (h p) (w q) c -> (b d h w) (o p q) c",
}
_REVERSE = {ndim: " -> ".join(reversed(pattern.split(" -> "))) for ndim, pattern in _PARTITION.items()}


def clip_window(grid: Size, window: Size, shift: Size) -> tuple[Size, Size]:
    """Where the grid is no larger than the window, the window is the grid and is not shifted; axis by axis."""
    clipped = tuple(min(size, win) for size, win in zip(grid, window))
    shifts = tuple(0 if size <= win else sh for size, win, sh in zip(grid, window, shift))
    return clipped, shifts


def pad_to_windows(x: jax.Array, window: Size) -> jax.Array:
    """Zeros at the high end of each grid axis of [b, *grid, c], up to a multiple of the window."""
    pads = [(0, -size % win) for size, win in zip(x.shape[1:-1], window)]
    return jnp.pad(x, [(0, 0), *pads, (0, 0)]) if any(high for _, high in pads) else x


def counts(grid: Size, window: Size) -> Size:
    """Windows along each axis of the padded grid."""
    return tuple(-(-size // win) for size, win in zip(grid, window))


def partition(x: jax.Array, window: Size) -> jax.Array:
    """[b, *grid, c] -> [b * windows, tokens, c]; windows and tokens in row-major order."""
    return rearrange(x, _PARTITION[len(window)], **_axes(window))


def reverse(windows: jax.Array, window: Size, grid: Size) -> jax.Array:
    """The inverse of `partition`: [b * windows, tokens, c] -> [b, *grid, c]."""
    along = dict(zip("dhw"[-len(grid) :], counts(grid, window)))
    return rearrange(windows, _REVERSE[len(window)], **_axes(window), **along)


@lru_cache(maxsize=32)
def inside(grid: Size, window: Size) -> np.ndarray | None:
    """Which tokens are of the grid and not of its padding: bool [windows, *window, 1], None where there is no padding."""
    padded = tuple(count * win for count, win in zip(counts(grid, window), window))
    if padded == grid:
        return None
    tokens = np.pad(np.ones(grid, bool), [(0, high - size) for size, high in zip(grid, padded)])
    return rearrange(tokens[None, ..., None], _PARTITION[len(window)], **_axes(window)).reshape(-1, *window, 1)


@lru_cache(maxsize=128)
def region_ids(grid: Size, window: Size, shift: Size) -> np.ndarray | None:
    """Which tokens of a shifted window were neighbours before the roll: int32 [windows, tokens], None without a shift.

    Tokens attend to one another where their ids are equal. The grid is the padded one: padding is not a region of its own, the
    reference attends to it. An axis without shift is one region.
    """
    if not any(shift):
        return None
    ids = np.zeros((1,) * len(grid), np.int32)
    for axis, (size, win, sh) in enumerate(zip(grid, window, shift)):
        along = np.zeros(size, np.int32)
        if sh:
            along[size - win : size - sh] = 1
            along[size - sh :] = 2
        ids = ids * 3 + along.reshape([-1 if a == axis else 1 for a in range(len(grid))])
    return rearrange(ids[None, ..., None], _PARTITION[len(window)], **_axes(window))[..., 0]


@lru_cache(maxsize=32)
def relative_index(window: Size) -> np.ndarray:
    """Row of the bias table for each pair of tokens of a full window: int32 [tokens, tokens], first axis slowest."""
    coords = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij")).reshape(len(window), -1)
    relative = coords[:, :, None] - coords[:, None, :] + np.reshape(window, (-1, 1, 1)) - 1
    return np.ravel_multi_index(tuple(relative), tuple(2 * win - 1 for win in window)).astype(np.int32)


def _axes(window: Size) -> dict[str, int]:
    return dict(zip("opq"[-len(window) :], window))
