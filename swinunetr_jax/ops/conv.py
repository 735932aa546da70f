"""Convolution, stride 1, same size out, channels last: 3³ and 1³ kernels in 3-D, 3² and 1² in 2-D.

The formulation of the 3³ kernel is chosen by the platform a program is compiled for: the compiler's own, on a CPU those of `conv_cpu`,
on a TPU for large grids that of `conv_tpu`.
"""

import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops import conv_cpu, conv_tpu

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
        return jnp.einsum("...i,io->...o", x, kernel.reshape(kernel.shape[-2:]))
    if kernel.shape[:-2] != (3, 3, 3):
        return plain(x, kernel)
    on_tpu = conv_tpu.by_planes if conv_tpu.pays(x.shape, kernel.shape) else plain
    return lax.platform_dependent(x, kernel, cpu=conv_cpu.conv, tpu=on_tpu, default=plain)


def patch_conv(x: Array, kernel: Array) -> Array:
    """Convolves with kernel 2 and stride 2, so that patches do not overlap.

    Args:
        x: [b, *grid, c_in], sizes even.
        kernel: [2, 2, (2,) c_in, c_out].

    Returns:
        [b, *(grid / 2), c_out].
    """
    on_tpu = conv_tpu.patches if x.ndim == 5 else strided
    return lax.platform_dependent(x, kernel, cpu=patches_as_channels, tpu=on_tpu, default=strided)


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
