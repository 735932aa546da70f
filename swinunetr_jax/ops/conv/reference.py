"""Convolutions as the compiler computes them."""

from jax import Array, lax

_DIMENSION_NUMBERS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def conv(x: Array, kernel: Array) -> Array:
    """Returns the convolution with stride 1 and padding that keeps the size: [b, *grid, c_in] -> [b, *grid, c_out]."""
    spatial = x.ndim - 2
    return lax.conv_general_dilated(x, kernel, (1,) * spatial, "SAME", dimension_numbers=_DIMENSION_NUMBERS[spatial])


def patch_conv(x: Array, kernel: Array) -> Array:
    """Returns the convolution with kernel size 2 and stride 2: [b, *grid, c_in] -> [b, *(grid / 2), c_out].

    There is no space-to-depth as on a CPU: on a TPU, the transposition of voxels of few channels would take longer than the arithmetic.
    """
    spatial = x.ndim - 2
    return lax.conv_general_dilated(x, kernel, (2,) * spatial, "VALID", dimension_numbers=_DIMENSION_NUMBERS[spatial])
