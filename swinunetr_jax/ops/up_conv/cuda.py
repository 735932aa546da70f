"""The first convolutions of a decoder block on an NVIDIA GPU, for large grids, with the two kernels fused into one (see `fuse_kernels`).

The fused kernel is a convolution of cuDNN with 2³ taps and eight times the outputs: 3.4 times fewer multiplications than on the upsampled
grid. A window of the coarse grid, the voxels j - 1 and j along each axis, gives the fine voxels 2 j - 1 and 2 j. In this order a
depth-to-space puts them in place, and a border of one voxel is cut off.
"""

import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops.conv import conv
from swinunetr_jax.ops.fuse_kernels import SAVES_WORK, fuse_kernels_by_order, saves_work
from swinunetr_jax.runtime.dispatch import Implementation
from swinunetr_jax.runtime.promotion import wide_dtype


def fused(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """Returns both results of `ops.up_conv.up_conv`. The kernels are fused in float32 at least."""
    u = up.shape[-1]
    wide = wide_dtype(x.dtype)
    taps = fuse_kernels_by_order(up.astype(wide), kernel[..., :u, :].astype(wide)).astype(x.dtype)
    shortcut_kernel = jnp.einsum("rqsim,mo->irqso", up, shortcut[0, 0, 0, :u])
    y = from_windows(x, taps) + conv(skip, kernel[..., u:, :])
    # This is a matrix product so that the gradients of the kernel and of x read the gradient of the result in the same order.
    coarse = x @ shortcut_kernel.reshape(x.shape[-1], -1)
    return y, depth_to_space(coarse) + conv(skip, shortcut[..., u:, :])


FUSED = Implementation(fused, supports=saves_work, requires=SAVES_WORK)


def from_windows(x: Array, taps: Array) -> Array:
    """Returns the convolution by the taps of `fuse_kernels_by_order`: [b, d, h, w, c] -> [b, 2 d, 2 h, 2 w, o]."""
    taps = taps.reshape(*taps.shape[:4], -1)
    windows = lax.conv_general_dilated(
        x, taps, (1, 1, 1), ((1, 1),) * 3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )  # [b, d + 1, h + 1, w + 1, 8 o]
    return depth_to_space(windows)[:, 1:-1, 1:-1, 1:-1]


def depth_to_space(x: Array) -> Array:
    """Returns [b, 2 d, 2 h, 2 w, c] for [b, d, h, w, (2 2 2 c)]."""
    return rearrange(x, "b d h w (o p q c) -> b (d o) (h p) (w q) c", o=2, p=2, q=2)
