"""The first convolutions of a decoder block on a TPU, on large grids.

A transposed convolution of kernel 2 and stride 2 and a 3-kernel behind it are one transposed convolution of kernel 4 and stride 2, exact
but for rounding, at the border too. The compiler runs it without multiplying the zeros between voxels and without the rearrangement of
a depth-to-space, which costs it more than the arithmetic. The 1³ shortcut is the same with a 3-kernel that is zero but for its middle,
so both are outputs of one convolution.

As in `conv_tpu` planes are a batch: along depth zeros are put between them, and the four depth taps are input channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops import conv_tpu

# [e, t, r]: tap t of the 3-kernel meets tap r of the upsampling in tap e of the 4-kernel
_MEET = np.zeros((4, 3, 2), np.float32)
for _t in range(3):
    for _r in range(2):
        _MEET[_t - _r + 1, _t, _r] = 1


def pays(skip: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """As for a convolution of the skip with the outputs of both kernels."""
    return conv_tpu.pays(skip, (*kernel[:-1], 2 * kernel[-1]))


def folded(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """With the kernels multiplied beforehand."""
    u, outputs = up.shape[-1], kernel.shape[-1]
    both = jnp.concatenate([kernel, jnp.pad(shortcut, ((1, 1),) * 3 + ((0, 0),) * 2)], axis=-1)
    y = jax.checkpoint(transposed)(x, fold(up, both[..., :u, :])) + conv_tpu.by_planes(skip, both[..., u:, :])
    return y[..., :outputs], y[..., outputs:]


def fold(up: Array, kernel: Array) -> Array:
    """[4, 4, 4, c_in, c_out] from [2, 2, 2, c_in, u] and [3, 3, 3, u, c_out]."""
    meet = jnp.asarray(_MEET, kernel.dtype)
    pairs = jnp.einsum("rqsim,tuvmo->rqstuvio", up, kernel)
    return jnp.einsum("rqstuvio,atr,buq,cvs->abcio", pairs, meet, meet, meet)


def transposed(x: Array, kernel: Array) -> Array:
    """Transposed convolution of kernel 4 and stride 2: [b, d, h, w, c_in] -> [b, 2 d, 2 h, 2 w, c_out]."""
    depth = 2 * x.shape[1]
    apart = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (2, 2, 1), *[(0, 0, 0)] * 3))
    near = jnp.concatenate([apart[:, tap : tap + depth] for tap in range(4)], axis=-1)
    y = lax.conv_general_dilated(
        rearrange(near, "b d h w c -> (b d) h w c"),
        rearrange(kernel, "d h w i o -> h w (d i) o"),
        (1, 1),
        [(2, 2)] * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(x.shape[0], depth, *y.shape[1:])
