"""The reference implementation of `up_conv`, which sums two convolutions instead of concatenating their inputs."""

from jax import Array

from swinunetr_jax.ops.conv import conv
from swinunetr_jax.ops.up_conv.upsample import upsample


def up_conv(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """Returns both results of `ops.up_conv.up_conv`: the convolution of a concatenation is the sum of two convolutions."""
    fine, u = upsample(x, up), up.shape[-1]
    y, y_shortcut = (conv(fine, taps[..., :u, :]) + conv(skip, taps[..., u:, :]) for taps in (kernel, shortcut))
    return y, y_shortcut
