"""A grid as many small ones, on the lanes of a TPU: [b, d, h, w, c] <-> [b, n, d/i, h/j, w/k, c] for n = i * j * k pieces.

A TPU computes on 8 × 128 numbers at a time. With 48 channels, or 96 planes, on the 128 lanes a good part of them is idle, and a
convolution has to move data across lanes. Pieces fill the lanes, and the grid's axes are free of them: a tap of a kernel is another
address. Only faces cross lanes: before a convolution each piece takes a border of one voxel from its neighbours.

To all else a grid in pieces is a grid with one more axis: norms, activations and matrix products over channels take it as it is. `conv`
and `up_conv` know it by that axis. Windows of attention are pieces, too.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops.dense import dense
from swinunetr_jax.ops.up_conv_tpu import fold
from swinunetr_jax.runtime.dispatch import targets
from swinunetr_jax.runtime.sharding import is_spatially_sharded

Counts = tuple[int, int, int]  # pieces along each axis, numbered with the last axis fastest

LANES = 128
COUNTS = (4, 4, 8)
LEAST = 48  # edge of the smallest grid of which COUNTS pieces are not mostly border


def pays(count: int) -> bool:
    """Whether to keep so many pieces of a volume apart."""
    return count >= LANES and targets("tpu") and not is_spatially_sharded()


def split(x: Array) -> Array:
    """A volume [b, d, h, w, c] in COUNTS pieces, where that pays; all else as it is."""
    large = x.ndim == 5 and min(x.shape[1:-1]) >= LEAST and not any(size % n for size, n in zip(x.shape[1:-1], COUNTS))
    return cut(x) if large and pays(math.prod(COUNTS)) else x


def cut(x: Array, counts: Counts = COUNTS) -> Array:
    """[b, d, h, w, c] -> [b, i * j * k, d/i, h/j, w/k, c]."""
    pieces = rearrange(x, "b (i d) (j h) (k w) c -> b (i j k) d h w c", **dict(zip("ijk", counts)))
    return lax.optimization_barrier(pieces)  # or the compiler rearranges later what it could have computed in pieces


def join(x: Array, counts: Counts = COUNTS) -> Array:
    """The volume [b, d, h, w, c], of pieces or of a volume."""
    if not in_pieces(x):
        return x
    return rearrange(lax.optimization_barrier(x), "b (i j k) d h w c -> b (i d) (j h) (k w) c", **dict(zip("ijk", counts)))


def in_pieces(x: Array) -> bool:
    """Whether x is [b, n, d, h, w, c]: no other array of the network has six axes."""
    return x.ndim == 6


@jax.custom_vjp
def conv(x: Array, kernel: Array) -> Array:
    """The convolution of the volume, [b, n, d, h, w, c_in] and [3, 3, 3, c_in, c_out].

    Autodiff would convolve to a gradient with a border, and add each border to the neighbours.
    """
    return _alone(_with_border(x), kernel)


def _conv_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv(x, kernel), (x, kernel)


def _conv_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    mirrored = jnp.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    (dkernel,) = jax.vjp(lambda kernel: _alone(_with_border(x), kernel), kernel)[1](dy)
    return conv(dy, mirrored), dkernel


conv.defvjp(_conv_forward, _conv_backward)


def up_conv(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """`ops.up_conv.up_conv` of a skip in pieces: what is upsampled goes through the kernels multiplied beforehand (see `up_conv_tpu`)."""
    x, u = x if in_pieces(x) else cut(x), up.shape[-1]
    fine = jax.checkpoint(_transposed)(x, fold(up, kernel[..., :u, :]))
    shortcut = shortcut.reshape(shortcut.shape[-2:])
    coarse = jnp.flip(up @ shortcut[:u], (0, 1, 2))  # as the taps of a transposed convolution lie
    return fine + conv(skip, kernel[..., u:, :]), _alone(x, coarse, spread=2, padding=1) + dense(skip, shortcut[u:])


def _transposed(x: Array, kernel: Array) -> Array:
    """Transposed convolution of kernel 4 and stride 2. Its gradient is autodiff's: its borders are coarse."""
    return _alone(_with_border(x), kernel, spread=2)


def _alone(x: Array, kernel: Array, spread: int = 1, padding: int = 0) -> Array:
    """Each piece convolved by itself, which takes a kernel's reach off its sizes: [b, n, d, h, w, c_in] -> [b, n, d', h', w', c_out].

    Before, its voxels are spread apart by zeros, which are not multiplied, and padded.
    """
    y = lax.conv_general_dilated(
        rearrange(x, "b n d h w c -> (b n) d h w c"),
        kernel,
        (1, 1, 1),
        [(padding, padding)] * 3,
        lhs_dilation=(spread,) * 3,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    return rearrange(y, "(b n) d h w c -> b n d h w c", b=len(x))


def _with_border(x: Array) -> Array:
    """[b, n, d, h, w, c] -> [b, n, d + 2, h + 2, w + 2, c]: one voxel of the neighbours on each side, zeros where there is none."""
    for axis in range(3):
        first, last = (lax.slice_in_dim(x, at, at + 1, axis=2 + axis) for at in (0, x.shape[2 + axis] - 1))
        before, behind = (_neighbours(face, COUNTS, axis, step, around=False) for face, step in ((last, -1), (first, 1)))
        x = jnp.concatenate([before, x, behind], axis=2 + axis)
    return x


def roll(x: Array, shifts: tuple[int, int, int], counts: Counts) -> Array:
    """`jnp.roll` of the grid of [b, n, d, h, w, c] by less than a piece along each axis."""
    for axis, shift in enumerate(shifts):
        if shift == 0:
            continue
        low, high = jnp.split(x, [-shift % x.shape[2 + axis]], axis=2 + axis)
        if shift > 0:
            high = _neighbours(high, counts, axis, -1, around=True)
        else:
            low = _neighbours(low, counts, axis, 1, around=True)
        x = jnp.concatenate([high, low], axis=2 + axis)
    return x


def _neighbours(part: Array, counts: Counts, axis: int, step: int, around: bool) -> Array:
    """Of each piece what the next one along an axis has, or with step -1 the one before.

    Beyond the grid zeros, or `around` the grid it goes on at its other end.
    """
    stride, count = math.prod(counts[axis + 1 :]), counts[axis]
    place = np.arange(part.shape[1]) // stride % count + step
    exists = ((place >= 0) & (place < count)).reshape(-1, *[1] * (part.ndim - 2))

    def further(pieces: int) -> Array:
        return lax.pad(
            part, jnp.zeros((), part.dtype), [(-pieces, pieces, 0) if dim == 1 else (0, 0, 0) for dim in range(part.ndim)]
        )

    beyond = further(step * (1 - count) * stride) if around else jnp.zeros((), part.dtype)
    return jnp.where(exists, further(step * stride), beyond)
