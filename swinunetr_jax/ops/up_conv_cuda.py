"""The first convolutions of a decoder block on an NVIDIA GPU, on large grids.

As on a CPU a transposed convolution and the 3³ convolution behind it become one, here cuDNN's with 2³ taps and eight times the outputs:
3.4 times fewer multiplications than on the upsampled grid, which does not exist. A window of the coarse grid, the voxels j - 1 and j along
each axis, gives the fine voxels 2 j - 1 and 2 j. In this order they lie where a depth-to-space puts them, but for a border of one voxel.
"""

import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops import conv as conv_op

_LAYOUT = ("NDHWC", "DHWIO", "NDHWC")


def folded(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """With the kernels multiplied beforehand, in float32 at least."""
    u = up.shape[-1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    taps = fold(up.astype(wide), kernel[..., :u, :].astype(wide)).astype(x.dtype)
    direct = jnp.einsum("rqsim,mo->irqso", up, shortcut[0, 0, 0, :u])
    y = from_windows(x, taps) + conv_op.conv(skip, kernel[..., u:, :])
    # as a matrix, so that its gradient reads the result's gradient in the order in which that of x does
    coarse = x @ direct.reshape(x.shape[-1], -1)
    return y, depth_to_space(coarse) + conv_op.conv(skip, shortcut[..., u:, :])


def fold(up: Array, kernel: Array) -> Array:
    """[neighbours: 2, 2, 2, c_in, fine voxels of a window: 2, 2, 2, c_out] from the two kernels.

    Tap t of the kernel meets tap r of the upsampling at r - t: a convolution of one with the other, whose four results along an axis are
    the kernel of a transposed convolution of size 4. Of them 0 and 1 belong to the later neighbour, 2 and 3 to the earlier one.
    """
    four = lax.conv_general_dilated(jnp.moveaxis(up, -2, 0), kernel, (1, 1, 1), ((2, 2),) * 3, dimension_numbers=_LAYOUT)
    return rearrange(four, "i (x o) (y p) (z q) c -> x y z i o p q c", x=2, y=2, z=2)[::-1, ::-1, ::-1]


def from_windows(x: Array, taps: Array) -> Array:
    """The folded convolution: [b, d, h, w, c], taps of `fold` -> [b, 2 d, 2 h, 2 w, o]."""
    taps = taps.reshape(*taps.shape[:4], -1)
    windows = lax.conv_general_dilated(
        x, taps, (1, 1, 1), ((1, 1),) * 3, dimension_numbers=_LAYOUT
    )  # [b, d + 1, h + 1, w + 1, 8 o]
    return depth_to_space(windows)[:, 1:-1, 1:-1, 1:-1]


def depth_to_space(x: Array) -> Array:
    return rearrange(x, "b d h w (o p q c) -> b (d o) (h p) (w q) c", o=2, p=2, q=2)
