"""The transposed convolution with kernel size 2 and stride 2: a matrix product and a depth-to-space, since its taps do not overlap."""

import jax
import jax.numpy as jnp
from einops import rearrange

from swinunetr_jax.ops.pointwise import dense

_DEPTH_TO_SPACE = {2: "b h w p q c -> b (h p) (w q) c", 3: "b d h w o p q c -> b (d o) (h p) (w q) c"}


def upsample(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns a grid of twice the size along every spatial axis.

    Args:
        x: [b, *grid, c_in].
        kernel: [2, 2, (2,) c_in, c_out].

    Returns:
        [b, *(2 * grid), c_out].
    """
    taps, (c, u) = kernel.shape[:-2], kernel.shape[-2:]
    y = dense(x, jnp.moveaxis(kernel, -2, 0).reshape(c, -1)).reshape(*x.shape[:-1], *taps, u)
    return rearrange(y, _DEPTH_TO_SPACE[x.ndim - 2])
