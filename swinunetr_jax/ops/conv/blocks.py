"""3³ convolutions of grids in blocks on the lanes of a TPU (see `lane_blocks`)."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops.lane_blocks import BlockedGrid, halo_exchange
from swinunetr_jax.runtime.dispatch import Implementation, Table


def conv_blocks(x: BlockedGrid, kernel: Array) -> BlockedGrid:
    """Returns the convolution of the whole grid with a kernel [3, 3, 3, c_in, c_out]."""
    return BlockedGrid(conv_each_block(halo_exchange(x), kernel), x.counts)


def _conv_blocks_vjp(inputs: tuple[BlockedGrid, Array], _y: BlockedGrid, dy: BlockedGrid) -> tuple[BlockedGrid, Array]:
    """Returns the gradients of `conv_blocks`. JAX would compute gradients of the halos, too, and add each one to its neighbour."""
    x, kernel = inputs
    mirrored = jnp.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    (dkernel,) = jax.vjp(lambda kernel: conv_each_block(halo_exchange(x), kernel), kernel)[1](dy.array)
    return conv_blocks(dy, mirrored), dkernel


CONV_BLOCKS = Table("conv of blocks", Implementation(conv_blocks, _conv_blocks_vjp), {})


def conv_each_block(x: Array, kernel: Array, spread: int = 1, padding: int = 0) -> Array:
    """Convolves each block by itself, without neighbours: [b, n, d, h, w, c_in] -> [b, n, d', h', w', c_out].

    Args:
        x: blocks; d' = spread * (d - 1) + 1 + 2 * padding - (size of the kernel - 1), likewise h' and w'.
        kernel: [*sizes, c_in, c_out].
        spread: the distance between two voxels after zeros were inserted between them. XLA does not multiply these zeros.
        padding: zeros that are added on each side of each axis.
    """
    y = lax.conv_general_dilated(
        rearrange(x, "b n d h w c -> (b n) d h w c"),
        kernel,
        (1, 1, 1),
        [(padding, padding)] * 3,
        lhs_dilation=(spread,) * 3,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    return rearrange(y, "(b n) d h w c -> b n d h w c", b=len(x))
