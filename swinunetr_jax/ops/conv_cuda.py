"""Convolution with kernel 1 of few channels on an NVIDIA GPU."""

import jax.numpy as jnp
from jax import Array

FEW_CHANNELS = 4  # the modalities of a scan


def by_channels(x: Array, kernel: Array) -> Array:
    """[..., c_in], [c_in, c_out] -> [..., c_out], as multiplications and additions.

    The compiler puts these into whatever reads the result, a norm for instance. That of a matrix product, many times larger than its
    input, would be written to memory first.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return sum(x[..., i, None].astype(wide) * kernel[i].astype(wide) for i in range(len(kernel))).astype(x.dtype)
