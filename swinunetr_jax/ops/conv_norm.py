"""A 1³ convolution of few channels and the instance norm behind it, without the tensor in between.

Mean and variance of y = x W follow from the mean and the covariance of the input's few channels: mean(x) W and the diagonal of
Wᵀ cov(x) W. So no statistics are taken of the many channels of the result, which is one more 1³ convolution of the input, with a bias.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.ops.dense import dense
from swinunetr_jax.ops.norm import EPSILON, grid_axes, instance_norm, sparse_mean

FEW_CHANNELS = 4  # the modalities of a scan


def conv_instance_norm(x: Array, kernel: Array) -> Array:
    """instance_norm(x @ kernel).

    Args:
        x: [b, *grid, c_in].
        kernel: [c_in, c_out].

    Returns:
        [b, *grid, c_out] in the dtype of `x`.
    """
    return by_covariance(x, kernel) if len(kernel) <= FEW_CHANNELS else plain(x, kernel)


def plain(x: Array, kernel: Array) -> Array:
    """One after the other."""
    return instance_norm(dense(x, kernel))


def by_covariance(x: Array, kernel: Array) -> Array:
    """With the norm in the kernel, computed in float32 at least."""
    if x.dtype.itemsize >= 4:
        # changes nothing but rounding: the kernel's gradient is a sum over x itself. In 16 bits this would round x once more.
        x = x - sparse_mean(x, grid_axes(x))
    mean, covariance = channel_moments(x)
    wide = kernel.astype(mean.dtype)
    # in sums, as no product may round the few numbers on which all depends; the variance is one of squares but for rounding, which must
    # not turn that of a constant volume negative
    var = jnp.maximum((wide[:, None] * covariance[..., None] * wide).sum((1, 2)), 0)
    scaled = wide * lax.rsqrt(var + EPSILON)[:, None]
    return _affine(x, scaled, -(mean[..., None] * scaled).sum(1))


def channel_moments(x: Array) -> tuple[Array, Array]:
    """Mean [b, c] and biased covariance [b, c, c] of the channels over the grid of [b, *grid, c], in float32 at least."""
    axes = grid_axes(x)
    sample = sparse_mean(x, axes)  # so that nothing cancels: see `norm.moments`
    centred = x.astype(sample.dtype) - sample
    rest = centred.mean(axes)
    channels = range(x.shape[-1])
    # as sums over products of two channels: of a matrix product a GPU would round the factors
    products = {(i, j): (centred[..., i] * centred[..., j]).mean(axes) for i in channels for j in range(i + 1)}
    squares = jnp.stack([jnp.stack([products[max(i, j), min(i, j)] for j in channels], -1) for i in channels], -2)
    return sample.reshape(rest.shape) + rest, squares - rest[:, :, None] * rest[:, None, :]


@jax.custom_vjp
def _affine(x: Array, kernel: Array, bias: Array) -> Array:
    """[b, *grid, i], [b, i, o], [b, o] -> [b, *grid, o] as multiplications and additions, which go into whatever reads the result."""
    per_sample = (len(x), *(1,) * (x.ndim - 2), -1)
    y = bias.reshape(per_sample)
    for i in range(x.shape[-1]):
        y = y + x[..., i, None].astype(y.dtype) * kernel[:, i].reshape(per_sample)
    return y.astype(x.dtype)


def _affine_gradient(inputs: tuple[Array, Array, Array], dy: Array) -> tuple[Array, Array, Array]:
    """By matrix products over the voxels, one for the kernel and the bias."""
    x, kernel, bias = inputs
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
    sums = jnp.einsum("b...i,b...o->bio", jnp.concatenate([x, ones], -1), dy, preferred_element_type=bias.dtype)
    return jnp.einsum("b...o,bio->b...i", dy, kernel.astype(dy.dtype)).astype(x.dtype), sums[:, :-1], sums[:, -1]


_affine.defvjp(lambda *inputs: (_affine(*inputs), inputs), _affine_gradient)
