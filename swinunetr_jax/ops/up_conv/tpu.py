"""The first convolutions of a decoder block on a TPU, for large grids, with the two kernels fused into one (see `fuse_kernels`).

XLA runs the transposed convolution with kernel size 4 and stride 2 without multiplying the zeros between voxels, and without the
rearrangement of a depth-to-space, which would take longer than the arithmetic. The 1³ shortcut is a 3-kernel that is zero except at its
centre, so that both results are outputs of one convolution.

As in `ops.conv.tpu`, planes are a batch: along depth zeros are put between them, and the four depth taps are input channels.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops.conv.tpu import PLANES_AS_BATCH, fills_the_lanes
from swinunetr_jax.ops.fuse_kernels import fuse_kernels
from swinunetr_jax.runtime.dispatch import Implementation


def _conv_supports(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> bool:
    """Returns whether planes fill the lanes better than channels in the convolution of the skip with the outputs of both kernels."""
    both_kernels = jax.ShapeDtypeStruct((*kernel.shape[:-1], 2 * kernel.shape[-1]), kernel.dtype)
    return fills_the_lanes(skip, both_kernels)


def fused(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """Returns both results of `ops.up_conv.up_conv`."""
    u, outputs = up.shape[-1], kernel.shape[-1]
    kernels = jnp.concatenate([kernel, jnp.pad(shortcut, ((1, 1),) * 3 + ((0, 0),) * 2)], axis=-1)
    y = jax.checkpoint(transposed_conv)(x, fuse_kernels(up, kernels[..., :u, :])) + PLANES_AS_BATCH(skip, kernels[..., u:, :])
    return y[..., :outputs], y[..., outputs:]


FUSED = Implementation(
    fused, supports=_conv_supports, requires=f"a skip and the outputs of both kernels with {PLANES_AS_BATCH.requires}"
)


def transposed_conv(x: Array, kernel: Array) -> Array:
    """Returns the transposed convolution with kernel size 4 and stride 2: [b, d, h, w, c_in] -> [b, 2 d, 2 h, 2 w, c_out]."""
    depth = 2 * x.shape[1]
    spread = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (2, 2, 1), *[(0, 0, 0)] * 3))
    planes = jnp.concatenate([spread[:, tap : tap + depth] for tap in range(4)], axis=-1)
    y = lax.conv_general_dilated(
        rearrange(planes, "b d h w c -> (b d) h w c"),
        rearrange(kernel, "d h w i o -> h w (d i) o"),
        (1, 1),
        [(2, 2)] * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(x.shape[0], depth, *y.shape[1:])
