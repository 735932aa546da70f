"""Convolution of each channel with a kernel of its own through the Fourier transform: n log n instead of n² products for n voxels."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.runtime.sharding import shard_rows


def fft_conv(x: Array, kernel: Array, *, circular: bool, channels: int = 0) -> Array:
    """Convolves each channel of a grid with its own kernel, whose middle is the origin. The kernel is flipped, as in mathematics.

    Args:
        x: [b, c, *grid], at least float32, because sums over a whole grid lose too much in 16 bits.
        kernel: [c, *odd sizes], of the type of x. If `circular`, it is not larger than the grid.
        circular: whether the grid is periodic; otherwise there are zeros beyond it.
        channels: the largest number of channels that are computed at a time, which bounds the memory; 0 for all at once.

    Returns:
        [b, c, *grid].
    """
    parts = _parts(x.shape[1], channels)
    if parts == 1:
        return _fft_conv(x, kernel, circular)
    b, c, *grid = x.shape
    pieces = jnp.moveaxis(x.reshape(b, parts, c // parts, *grid), 1, 0)
    kernels = kernel.reshape(parts, c // parts, *kernel.shape[1:])

    @jax.checkpoint  # otherwise the spectra of all parts would be kept for the backward pass
    def convolve(piece: tuple[Array, Array]) -> Array:
        return _fft_conv(*piece, circular)

    return jnp.moveaxis(lax.map(convolve, (pieces, kernels)), 0, 1).reshape(x.shape)


def _fft_conv(x: Array, kernel: Array, circular: bool) -> Array:
    grid = x.shape[2:]
    sizes = tuple(size if circular else fast_length(size + taps // 2) for size, taps in zip(grid, kernel.shape[1:], strict=True))

    def convolve(rows: Array, kernels: Array) -> Array:
        """Returns [rows, *grid] for [rows, *grid] and kernels [c, *sizes], which apply to the rows cyclically."""
        axes = tuple(range(1, rows.ndim))
        spectra = jnp.fft.rfftn(kernels, axes=axes)
        products = jnp.fft.rfftn(rows, sizes, axes).reshape(-1, *spectra.shape) * spectra[None]
        y = jnp.fft.irfftn(products.reshape(-1, *spectra.shape[1:]), sizes, axes)
        return y[(slice(None), *(slice(size) for size in grid))]

    # The compiler does not partition a Fourier transform. Each device therefore gets whole grids of some of the channels.
    rows = x.reshape(-1, *grid)
    return shard_rows(convolve, (rows, _around_origin(kernel, sizes)), ()).reshape(x.shape)


def _around_origin(kernel: Array, sizes: tuple[int, ...]) -> Array:
    """Returns the kernels [c, *k] on periodic grids of these sizes, with their middle at index 0: [c, *sizes]."""
    widths = [(0, size - taps) for size, taps in zip(sizes, kernel.shape[1:], strict=True)]
    padded = jnp.pad(kernel, [(0, 0), *widths])
    return jnp.roll(padded, [-(taps // 2) for taps in kernel.shape[1:]], range(1, kernel.ndim))


def fast_length(size: int) -> int:
    """Returns the smallest number of at least `size` without prime factors above 5, for which Fourier transforms are fast."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def _parts(channels: int, limit: int) -> int:
    """Returns the smallest number of equal parts of the channels with at most `limit` channels each, or 1 without a limit."""
    least = math.ceil(channels / limit) if limit else 1
    return next(parts for parts in range(least, channels + 1) if channels % parts == 0)
