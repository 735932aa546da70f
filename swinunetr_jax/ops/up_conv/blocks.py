"""The first convolutions of a decoder block on grids in blocks on the lanes of a TPU (see `lane_blocks`)."""

import jax
import jax.numpy as jnp
from jax import Array

from swinunetr_jax.ops.conv.blocks import CONV_BLOCKS, conv_each_block
from swinunetr_jax.ops.fuse_kernels import fuse_kernels
from swinunetr_jax.ops.lane_blocks import BlockedGrid, Grid, halo_exchange, to_blocks
from swinunetr_jax.ops.pointwise import dense
from swinunetr_jax.runtime.dispatch import dispatch


def up_conv_blocks(x: Grid, skip: BlockedGrid, up: Array, kernel: Array, shortcut: Array) -> tuple[BlockedGrid, BlockedGrid]:
    """Returns both results of `ops.up_conv.up_conv`, in the blocks of `skip`; a fused kernel upsamples `x` and convolves it."""
    x, u = x if isinstance(x, BlockedGrid) else to_blocks(x, skip.counts), up.shape[-1]
    fine = jax.checkpoint(_transposed_conv)(x, fuse_kernels(up, kernel[..., :u, :]))
    shortcut = shortcut.reshape(shortcut.shape[-2:])
    coarse_kernel = jnp.flip(up @ shortcut[:u], (0, 1, 2))  # in the order of the taps of a transposed convolution
    y = fine + dispatch(CONV_BLOCKS, skip, kernel[..., u:, :]).array
    y_shortcut = conv_each_block(x.array, coarse_kernel, spread=2, padding=1) + dense(skip.array, shortcut[u:])
    return BlockedGrid(y, skip.counts), BlockedGrid(y_shortcut, skip.counts)


def _transposed_conv(x: BlockedGrid, kernel: Array) -> Array:
    """Returns the transposed convolution with kernel size 4 and stride 2. JAX derives its gradient: halos of a coarse grid cost little."""
    return conv_each_block(halo_exchange(x), kernel, spread=2)
