"""Convolution, stride 1, same size out, channels last: 3³ and 1³ kernels in 3-D, 3² and 1² in 2-D.

The formulation of the 3³ kernel is chosen by the platform a program is compiled for: on accelerators the compiler's own, on a CPU
those of `conv_cpu`. The 1³ kernel is a matrix product, but on an NVIDIA GPU with few channels (`conv_cuda`).
"""

import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops import conv_cpu, conv_cuda

_LAYOUT = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def conv(x: Array, kernel: Array) -> Array:
    """Convolves with zero padding that keeps the size.

    Args:
        x: [b, *grid, c_in].
        kernel: [*odd sizes, c_in, c_out].

    Returns:
        [b, *grid, c_out] in the dtype of `x`.
    """
    if all(size == 1 for size in kernel.shape[:-2]):
        matrix = kernel.reshape(kernel.shape[-2:])
        few = len(matrix) <= conv_cuda.FEW_CHANNELS
        return lax.platform_dependent(x, matrix, cuda=conv_cuda.by_channels, default=product) if few else product(x, matrix)
    if kernel.shape[:-2] != (3, 3, 3):
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=conv_cpu.conv, default=plain)


def product(x: Array, kernel: Array) -> Array:
    """Kernel 1: [..., c_in], [c_in, c_out] -> [..., c_out]."""
    return jnp.einsum("...i,io->...o", x, kernel)


def patch_conv(x: Array, kernel: Array) -> Array:
    """Convolves with kernel 2 and stride 2, so that patches do not overlap.

    Args:
        x: [b, *grid, c_in], sizes even.
        kernel: [2, 2, (2,) c_in, c_out].

    Returns:
        [b, *(grid / 2), c_out].
    """
    return lax.platform_dependent(x, kernel, cpu=patches_as_channels, default=strided)


def strided(x: Array, kernel: Array) -> Array:
    """The compiler's own; a transposition of voxels with few channels would cost a TPU more than the arithmetic."""
    return lax.conv_general_dilated(x, kernel, (2,) * (x.ndim - 2), "VALID", dimension_numbers=_LAYOUT[x.ndim - 2])


def patches_as_channels(x: Array, kernel: Array) -> Array:
    """A space-to-depth and one matrix product."""
    pattern = {2: "b (h p) (w q) c -> b h w (p q c)", 3: "b (d o) (h p) (w q) c -> b d h w (o p q c)"}[x.ndim - 2]
    patches = rearrange(x, pattern, **dict.fromkeys("opq"[-(x.ndim - 2) :], 2))
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def plain(x: Array, kernel: Array) -> Array:
    """The compiler's own convolution."""
    return lax.conv_general_dilated(x, kernel, (1,) * (x.ndim - 2), "SAME", dimension_numbers=_LAYOUT[x.ndim - 2])
