"""The first convolutions of a decoder block, which read the concatenation of an upsampled grid and a skip connection."""

from typing import overload

from jax import Array

from swinunetr_jax.ops.conv import plane_conv
from swinunetr_jax.ops.lane_blocks import BlockedGrid, Grid, array_of
from swinunetr_jax.ops.up_conv import cpu, cuda, reference, tpu
from swinunetr_jax.ops.up_conv.blocks import up_conv_blocks
from swinunetr_jax.ops.up_conv.upsample import upsample
from swinunetr_jax.runtime.dispatch import Implementation, Table, dispatch
from swinunetr_jax.runtime.sharding import HaloOperation, shard_depth_with_halo

UP_CONV = Table(
    "up_conv",
    Implementation(reference.up_conv),
    {"cpu": (cpu.FUSED,), "cuda": (cuda.FUSED,), "tpu": (tpu.FUSED,)},
)


@overload
def up_conv(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]: ...
@overload
def up_conv(x: Grid, skip: BlockedGrid, up: Array, kernel: Array, shortcut: Array) -> tuple[BlockedGrid, BlockedGrid]: ...
@overload
def up_conv(x: Grid, skip: Grid, up: Array, kernel: Array, shortcut: Array) -> tuple[Grid, Grid]: ...
def up_conv(x: Grid, skip: Grid, up: Array, kernel: Array, shortcut: Array) -> tuple[Grid, Grid]:
    """Returns both convolutions of concat([upsample(x, up), skip]).

    Args:
        x: [b, *grid, c_in], in blocks only if `skip` is.
        skip: [b, *(2 * grid), u], or such a grid in blocks.
        up: the kernel of the transposed convolution, [2, 2, (2,) c_in, u].
        kernel: [3, 3, (3,) 2 u, c_out].
        shortcut: [1, 1, (1,) 2 u, c_out].

    Returns:
        The results of `kernel` and of `shortcut`, each [b, *(2 * grid), c_out], in blocks if `skip` is.
    """
    if isinstance(skip, BlockedGrid):
        return up_conv_blocks(x, skip, up, kernel, shortcut)
    x = array_of(x)
    if x.ndim != 5:
        return reference.up_conv(x, skip, up, kernel, shortcut)
    y, y_shortcut = shard_depth_with_halo(HaloOperation(_interior, _edge), (x, skip), (up, kernel, shortcut))
    return y, y_shortcut


def _interior(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    return dispatch(UP_CONV, x, skip, up, kernel, shortcut)


def _edge(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array, tap: int) -> tuple[Array, None]:
    """Returns what a plane of `x` and one of `skip` add to the plane next to them through the kernel's first (0) or last (2) plane."""
    fine_plane, u = upsample(x, up[1 if tap == 0 else 0]), up.shape[-1]
    return plane_conv(fine_plane, kernel[..., :u, :], tap) + plane_conv(skip, kernel[..., u:, :], tap), None
