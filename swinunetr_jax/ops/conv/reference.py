"""Convolutions as the compiler computes them."""

import jax.numpy as jnp
from jax import Array, lax

_DIMENSION_NUMBERS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def conv(x: Array, kernel: Array) -> Array:
    """Returns the convolution with stride 1 and padding that keeps the size: [b, *grid, c_in] -> [b, *grid, c_out]."""
    spatial = x.ndim - 2
    for axis in range(spatial):
        if x.shape[1 + axis] == 2 and kernel.shape[axis] > 1:
            x, kernel = _taps_as_channels(x, kernel, axis)
    return lax.conv_general_dilated(x, kernel, (1,) * spatial, "SAME", dimension_numbers=_DIMENSION_NUMBERS[spatial])


def _taps_as_channels(x: Array, kernel: Array, axis: int) -> tuple[Array, Array]:
    """Returns a grid and a kernel with the same convolution, in which the kernel's size along an axis is 1.

    Each voxel has the channels of all voxels that the kernel reads along this axis. XLA (JAX 0.10.2 and 0.12.0) computes wrong numbers for
    a convolution along an axis of two voxels that two devices share, if the mesh has other axes too. Which axes are shared is not known
    while a function is traced, so every axis of two voxels is treated in this way.
    """
    taps, size = kernel.shape[axis], x.shape[1 + axis]
    pads = [(taps // 2, taps // 2) if number == 1 + axis else (0, 0) for number in range(x.ndim)]
    padded = jnp.pad(x, pads)
    shifted = [lax.slice_in_dim(padded, tap, tap + size, axis=1 + axis) for tap in range(taps)]
    by_tap = jnp.moveaxis(kernel, axis, -3)  # [*other axes, taps, c_in, c_out]
    flat = by_tap.reshape(*by_tap.shape[:-3], -1, kernel.shape[-1])
    return jnp.concatenate(shifted, axis=-1), jnp.expand_dims(flat, axis)


def patch_conv(x: Array, kernel: Array) -> Array:
    """Returns the convolution with kernel size 2 and stride 2: [b, *grid, c_in] -> [b, *(grid / 2), c_out].

    There is no space-to-depth as on a CPU: on a TPU, the transposition of voxels of few channels would take longer than the arithmetic.
    """
    spatial = x.ndim - 2
    return lax.conv_general_dilated(x, kernel, (2,) * spatial, "VALID", dimension_numbers=_DIMENSION_NUMBERS[spatial])
