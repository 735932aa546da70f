"""A 1³ convolution of few channels and the instance norm after it, without storing the convolution's result.

Each number of the result y = x W takes only a few multiplications. So each pass that needs y (for its statistics, for the norm and for the
gradient) computes it again from the few channels of x and does not write it to memory.

The statistics are computed from y itself, after the mean of x is subtracted. The variance could be computed from the covariance of x, as
the diagonal of Wᵀ cov(x) W, but if channels are nearly equal (two contrasts of one scan) and W takes their difference, that diagonal is a
small difference of large numbers.
"""

from typing import cast

import jax.numpy as jnp
from jax import Array

from swinunetr_jax.ops.norm import instance_norm
from swinunetr_jax.ops.norm.moments import Moments, gradient, grid_axes, mean, normalize, sparse_mean
from swinunetr_jax.ops.pointwise import dense
from swinunetr_jax.runtime.dispatch import Implementation, Table, hand_differentiated, platform_dispatch
from swinunetr_jax.runtime.promotion import wide_dtype, with_rank

FEW_CHANNELS = 4  # the modalities of a scan


def pointwise_conv_norm(x: Array, kernel: Array) -> Array:
    """Returns instance_norm(x @ kernel).

    Args:
        x: [b, *grid, c_in].
        kernel: [c_in, c_out].

    Returns:
        [b, *grid, c_out] in the dtype of `x`.
    """
    return by_channels(x, kernel) if len(kernel) <= FEW_CHANNELS else reference(x, kernel)


def reference(x: Array, kernel: Array) -> Array:
    """Returns the norm of the stored result of the convolution."""
    return instance_norm(dense(x, kernel))


@hand_differentiated
def by_channels(x: Array, kernel: Array) -> Array:
    """Returns instance_norm(x @ kernel). Each pass computes the product again, in float32 at least."""
    return _forward(x, kernel)[0]


Saved = tuple[Array, Array, Array, Moments]


def _forward(x: Array, kernel: Array) -> tuple[Array, Saved]:
    axes = grid_axes(x)
    near = sparse_mean(x, axes)
    y = _product(x, near, kernel)
    rest = mean(y, axes)  # no second sample is needed, since the mean of y is of the size of its deviation
    statistics = Moments(jnp.zeros_like(rest), rest, mean(jnp.square(y), axes) - jnp.square(rest))
    return normalize(y, statistics).astype(x.dtype), (x, kernel, near, statistics)


def _backward(saved: Saved, dz: Array) -> tuple[Array, Array]:
    x, kernel, near, statistics = saved
    dy = gradient(_product(x, near, kernel), statistics, dz, grid_axes(x)).astype(x.dtype)
    # the mean of dy is 0, so that the mean of x only adds rounding errors
    centred = (x - near).astype(x.dtype) if x.dtype.itemsize >= 4 else x
    dkernel = platform_dispatch(KERNEL_GRADIENT, centred, dy)
    return dense(dy, kernel.T), dkernel.astype(kernel.dtype)


by_channels.defvjp(_forward, _backward)


def _product(x: Array, near: Array, kernel: Array) -> Array:
    """Returns (x - near) @ kernel as multiplications and additions, which are fused with the operations that read the result.

    XLA would write the result of a matrix product to memory, and a GPU would round its factors.
    """
    x, kernel = x.astype(near.dtype) - near, kernel.astype(near.dtype)
    return cast(Array, sum(x[..., i, None] * with_rank(kernel[i], x.ndim) for i in range(len(kernel))))


def _in_one_sum(x: Array, dy: Array) -> Array:
    """Returns the sums of x[..., i] * dy[..., o] over all voxels, [i, o]."""
    return jnp.einsum("b...i,b...o->io", x, dy, preferred_element_type=wide_dtype(x.dtype))


def _plane_by_plane(x: Array, dy: Array) -> Array:
    """Returns the same sums. A CPU adds all voxels one after another and so loses small numbers; a plane has few enough voxels."""
    return jnp.einsum("bd...i,bd...o->bdio", x, dy, preferred_element_type=wide_dtype(x.dtype)).sum((0, 1))


KERNEL_GRADIENT = Table(
    "kernel gradient of pointwise_conv_norm", Implementation(_in_one_sum), {"cpu": (Implementation(_plane_by_plane),)}
)
