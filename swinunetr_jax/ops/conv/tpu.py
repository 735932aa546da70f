"""3³ convolutions of large grids on a TPU: [b, d, h, w, c_in], [3, 3, 3, c_in, c_out] -> [b, d, h, w, c_out].

For one volume XLA's own 3-D convolution first cuts the volume into eight overlapping pieces, to get a batch, and joins them afterwards;
for few channels these copies take longer than the arithmetic. Here the planes of the volume are the batch of a 2-D convolution, and the
three depth taps are its input channels. Planes are stored on the lanes, of which 48 channels would fill less than half.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.runtime.dispatch import Implementation

# The smallest number of planes and the largest number of channels. At 48³ with 48 → 48 channels the 2-D convolution is still twice as
# fast as XLA's own 3-D convolution, by the compiler's estimate.
MIN_PLANES, MAX_CHANNELS = 48, 96


def fills_the_lanes(x: Array, kernel: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether planes fill the lanes better than channels would."""
    return x.shape[0] * x.shape[1] >= MIN_PLANES and max(kernel.shape[-2:]) <= MAX_CHANNELS


def planes_as_batch(x: Array, kernel: Array) -> Array:
    """Returns the convolution as one 2-D convolution of all planes, each with its two neighbours."""
    return _conv_planes(_with_neighbours(x), _taps_as_channels(kernel)).reshape(*x.shape[:-1], -1)


def _planes_as_batch_vjp(inputs: tuple[Array, Array], _y: Array, dy: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    mirrored = jnp.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    _, pullback = jax.vjp(lambda taps: _conv_planes(_with_neighbours(x), taps), _taps_as_channels(kernel))
    (dtaps,) = pullback(rearrange(dy, "b d h w c -> (b d) h w c"))
    return planes_as_batch(dy, mirrored), rearrange(dtaps, "h w (d i) o -> d h w i o", d=3)


PLANES_AS_BATCH = Implementation(
    planes_as_batch,
    _planes_as_batch_vjp,
    supports=fills_the_lanes,
    requires=f"at least {MIN_PLANES} planes and at most {MAX_CHANNELS} channels",
)


def _conv_planes(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _with_neighbours(x: Array) -> Array:
    """Returns [(b d), h, w, 3 c]: the channels of the previous plane, of the plane itself and of the next one, zeros beyond the grid."""
    depth = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    planes = jnp.concatenate([padded[:, tap : tap + depth] for tap in range(3)], axis=-1)
    return rearrange(planes, "b d h w c -> (b d) h w c")


def _taps_as_channels(kernel: Array) -> Array:
    return rearrange(kernel, "d h w i o -> h w (d i) o")


def pairs_of_planes(x: Array, kernel: Array) -> Array:
    """Returns the convolution with kernel size 2 and stride 2 as a 2-D convolution whose input channels are those of two planes."""
    planes = rearrange(x, "b (d o) h w c -> (b d) h w (o c)", o=2)
    flat = rearrange(kernel, "o p q i u -> p q (o i) u")
    y = lax.conv_general_dilated(planes, flat, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return rearrange(y, "(b d) h w u -> b d h w u", b=len(x))


PAIRS_OF_PLANES = Implementation(pairs_of_planes, supports=lambda x, kernel: len(x.shape) == 5, requires="a 3-D grid")
