"""Means and variances, the normalisation by them, and its gradient.

The one-pass variance E[x²] - E[x]² loses all precision if the mean is large (an error of 952 for mean 1000 and deviation 1), and a mean of
1000 that is rounded to float32 is itself wrong by a thousandth of a deviation of 0.01. So a mean is stored as two numbers (`Moments`), and
every sum, here and in the gradient, is taken over numbers of the size of the deviation.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.runtime.dispatch import Implementation, Table, platform_dispatch
from swinunetr_jax.runtime.promotion import wide_dtype, with_rank

EPSILON = 1e-5
# The step of the sparse sample along each axis but the first. It divides none of the usual sizes, so that all phases of a periodic pattern
# are sampled.
SAMPLE_STEP = 5

Axes = tuple[int, ...]


class Moments(NamedTuple):
    """A mean and a biased variance over some axes, which are kept as axes of size 1, in float32 at least.

    The mean is `near + rest`: a number close to the mean, through which no gradient flows, and the difference. x - near - rest is then
    exact up to the rounding of the deviations, whereas x - mean contains the rounding of the mean.
    """

    near: Array
    rest: Array
    var: Array

    @property
    def mean(self) -> Array:
        return self.near + self.rest

    def centre(self, x: Array) -> Array:
        """Returns x minus the mean."""
        return (x - self.near.astype(x.dtype)) - self.rest.astype(x.dtype)


def grid_axes(x: Array) -> Axes:
    """Returns the axes of the grid of [b, *grid, c]."""
    return tuple(range(1, x.ndim - 1))


def moments(x: Array, axes: Axes) -> Moments:
    """Returns the mean and the biased variance of `x` over `axes`.

    Over channels the mean is computed in two steps, the mean of x and the mean of the remainder, which costs little. Over a grid all
    sums are computed in one pass (in two on a CPU), over x - s and its square, where s is the mean of a sparse sample of the grid. The
    remainder of the mean is then of the size of the deviation, so that no digits are lost by cancellation. On a TPU, x in bfloat16 is
    summed without subtracting anything: see `_in_the_pass_before`.
    """
    over_channels = axes == (x.ndim - 1,)
    if over_channels:
        x_wide = x.astype(wide_dtype(x.dtype))
        near = lax.stop_gradient(x_wide.mean(axes, keepdims=True))
    else:
        near = sparse_mean(x, axes)
    near, rest, squares = platform_dispatch(_channel_moments(axes) if over_channels else _grid_moments(axes), x, near)
    return Moments(near, rest, squares - jnp.square(rest))


def sparse_mean(x: Array, axes: Axes) -> Array:
    """Returns the mean of a sparse sample of the grid, with axes of size 1, in float32 at least and without a gradient.

    The sample is taken before the conversion to float32, because a compiler would otherwise convert all of `x` first. Along the
    first of `axes` everything is used, because on a TPU it is on the lanes, where strides are expensive.
    """
    sparse = x[tuple(slice(None, None, SAMPLE_STEP) if axis in axes[1:] else slice(None) for axis in range(x.ndim))]
    return lax.stop_gradient(sparse.astype(wide_dtype(x.dtype)).mean(axes, keepdims=True))


def mean(x: Array, axes: Axes) -> Array:
    """Returns the mean over `axes`, which are kept as axes of size 1.

    If the last axis is one of several, it is summed after the others: a CPU adds adjacent voxels in many partial sums, but it adds
    interleaved channels voxel by voxel in a single sum, in which small numbers are lost.
    """
    last = x.ndim - 1
    if len(axes) == 1 or last not in axes:
        return x.mean(axes, keepdims=True)
    return x.mean(tuple(axis for axis in axes if axis != last), keepdims=True).mean(last, keepdims=True)


# near, the mean of x - near and the mean of its square
Sums = tuple[Array, Array, Array]


def _one_read(axes: Axes, x: Array, near: Array) -> Sums:
    """Returns the means of x - near and of its square in one pass."""
    return near, mean(x.astype(near.dtype) - near, axes), mean(jnp.square(x.astype(near.dtype) - near), axes)


def _two_reads(axes: Axes, x: Array, near: Array) -> Sums:
    """Returns the same means in two passes over x. In one pass a CPU would write x - near to memory in between."""
    # Without the two barriers XLA would write arrays to memory here and keep them, because `normalize` and the gradient compute the same
    # arrays from x.
    x1, x2 = lax.optimization_barrier((x, near))[0], lax.optimization_barrier(x)
    return near, mean(x1.astype(near.dtype) - near, axes), mean(jnp.square(x2.astype(near.dtype) - near), axes)


def _in_the_pass_before(axes: Axes, x: Array, near: Array) -> Sums:
    """Returns the means of x and of its square, for x in bfloat16, with a number of 0 near the mean.

    No number of x is subtracted from x, so a TPU computes these sums in the pass that writes x, for example in a convolution. The digits
    that are lost by cancellation are fewer than those that x does not have: if the mean is r deviations, the rounding of the squares to
    float32 changes the variance by a few times r² · 2^-24 of its size, and the rounding of x has changed x by r · 2^-9 of a deviation.
    """
    x = x.astype(near.dtype)
    rest, squares = mean(x, axes), mean(jnp.square(x), axes)
    return jnp.zeros_like(near), rest, jnp.maximum(squares, jnp.square(rest))  # rounding must not make the variance negative


@functools.lru_cache(maxsize=64)
def _grid_moments(axes: Axes) -> Table:
    two_reads = Implementation(functools.partial(_two_reads, axes))
    return Table(
        "moments", Implementation(functools.partial(_one_read, axes)), {"cpu": (two_reads,), "tpu": (_for_bfloat16(axes),)}
    )


@functools.lru_cache(maxsize=64)
def _channel_moments(axes: Axes) -> Table:
    return Table("moments", Implementation(functools.partial(_one_read, axes)), {"tpu": (_for_bfloat16(axes),)})


def _for_bfloat16(axes: Axes) -> Implementation:
    forward = functools.partial(_in_the_pass_before, axes)
    return Implementation(forward, supports=lambda x, near: x.dtype == jnp.bfloat16, requires="bfloat16")


def normalize(x: Array, statistics: Moments, scale: Array | None = None, bias: Array | None = None) -> Array:
    """Returns (x - mean) / sqrt(var + epsilon), times scale plus bias if they are given, in the dtype of `x`."""
    wide = wide_dtype(x.dtype, statistics.var.dtype)  # running statistics are float32 also if x is float64
    y = statistics.centre(x.astype(wide)) * lax.rsqrt(statistics.var.astype(wide) + EPSILON)
    if scale is not None and bias is not None:
        y = y * with_rank(scale.astype(y.dtype), y.ndim) + with_rank(bias.astype(y.dtype), y.ndim)
    return y.astype(x.dtype)


def gradient(x: Array, statistics: Moments, dy: Array, axes: Axes, mean_y_dy: Array | None = None) -> Array:
    """Returns the gradient of x from that of y = `normalize(x, statistics)`, where the statistics are the `moments` of x over `axes`.

    Args:
        x, dy: the input and the gradient of y.
        mean_y_dy: the mean of y * dy, if the caller has it.
    """
    dtype, inverse = x.dtype, lax.rsqrt(statistics.var + EPSILON)
    x, dy = x.astype(inverse.dtype), dy.astype(inverse.dtype)
    mean_dy = mean(dy, axes)
    if mean_y_dy is None:  # from a sum over x - near, since x itself may be a thousand times larger than its deviations
        mean_y_dy = inverse * (mean(dy * (x - statistics.near), axes) - statistics.rest * mean_dy)
    slope = inverse * mean_y_dy
    # This is inverse * (dy - mean_dy - y * mean_y_dy), but without an array of the input's size that the forward pass computes, too:
    # XLA would keep such an array.
    dx = inverse * dy - (inverse * slope) * (x - statistics.near) - inverse * (mean_dy - statistics.rest * slope)
    return dx.astype(dtype)
