"""A 1³ convolution of few channels and the instance norm behind it, without the tensor in between.

The convolution's result y = x W is a handful of multiplications per number, so each pass that needs it, for its statistics, for the norm
and for the gradient, computes it again from the few channels of x and writes it nowhere.

Its statistics are those of y itself, with the mean of x taken off first. They do follow from the mean and the covariance of x, as the
diagonal of Wᵀ cov(x) W, but where channels are nearly equal (two contrasts of one scan) and W takes their difference, that diagonal is
a small difference of large numbers.
"""

import jax
import jax.numpy as jnp
from jax import Array

from swinunetr_jax.ops import norm
from swinunetr_jax.ops.dense import dense
from swinunetr_jax.runtime.dispatch import choose

FEW_CHANNELS = 4  # the modalities of a scan


def conv_instance_norm(x: Array, kernel: Array) -> Array:
    """instance_norm(x @ kernel).

    Args:
        x: [b, *grid, c_in].
        kernel: [c_in, c_out].

    Returns:
        [b, *grid, c_out] in the dtype of `x`.
    """
    return by_channels(x, kernel) if len(kernel) <= FEW_CHANNELS else plain(x, kernel)


def plain(x: Array, kernel: Array) -> Array:
    """One after the other."""
    return norm.instance_norm(dense(x, kernel))


@jax.custom_vjp
def by_channels(x: Array, kernel: Array) -> Array:
    """As `conv_instance_norm`, with the product computed in float32 at least, wherever it is used."""
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array, norm.Moments]]:
    axes = norm.grid_axes(x)
    near = norm.sparse_mean(x, axes)
    y = _product(x, near, kernel)
    rest = norm.mean(y, axes)  # without another sample, as the mean of y is of the size of its deviation
    statistics = norm.Moments(jnp.zeros_like(rest), rest, norm.mean(jnp.square(y), axes) - jnp.square(rest))
    return norm.normalize(y, statistics).astype(x.dtype), (x, kernel, near, statistics)


def _backward(saved: tuple[Array, Array, Array, norm.Moments], dz: Array) -> tuple[Array, Array]:
    x, kernel, near, statistics = saved
    dy = norm.gradient(_product(x, near, kernel), statistics, dz, norm.grid_axes(x)).astype(x.dtype)
    # the mean of dy is 0, so that of x does not matter, but for rounding
    centred = (x - near).astype(x.dtype) if x.dtype.itemsize >= 4 else x
    dkernel = choose({"cpu": _products_by_plane, "default": _products}, centred, dy)
    return dense(dy, kernel.T), dkernel.astype(kernel.dtype)


def _products(x: Array, dy: Array) -> Array:
    """Sums of x[..., i] * dy[..., o] over all voxels, [i, o]."""
    return jnp.einsum("b...i,b...o->io", x, dy, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _products_by_plane(x: Array, dy: Array) -> Array:
    """As `_products`. A CPU adds up all voxels in a row, in which small numbers are lost: those of a plane are few enough."""
    return jnp.einsum("bd...i,bd...o->bdio", x, dy, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32)).sum((0, 1))


by_channels.defvjp(_forward, _backward)


def _product(x: Array, near: Array, kernel: Array) -> Array:
    """(x - near) @ kernel as multiplications and additions, which go into whatever reads the result.

    Of a matrix product the compiler would write the result to memory, and a GPU round its factors.
    """
    x, kernel = x.astype(near.dtype) - near, kernel.astype(near.dtype)
    return sum(x[..., i, None] * kernel[i] for i in range(len(kernel)))
