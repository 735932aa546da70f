"""Convolutions that keep the size of a grid (3³ and 1³ kernels, 3² and 1² in 2-D), and convolutions of patches that do not overlap."""

from jax import Array

from swinunetr_jax.ops.conv import cpu, reference, tpu, winograd
from swinunetr_jax.ops.conv.blocks import CONV_BLOCKS
from swinunetr_jax.ops.lane_blocks import BlockedGrid, G, array_of, like, map_grid
from swinunetr_jax.ops.pointwise import dense
from swinunetr_jax.runtime.dispatch import Implementation, Table, dispatch
from swinunetr_jax.runtime.sharding import HaloOperation, shard_depth_with_halo

CONV = Table(
    "conv",
    Implementation(reference.conv),
    {"cpu": (cpu.IM2COL, winograd.WINOGRAD, cpu.BY_PLANES), "tpu": (tpu.PLANES_AS_BATCH,)},
)
PATCH_CONV = Table(
    "patch_conv",
    Implementation(reference.patch_conv),
    {"cpu": (Implementation(cpu.space_to_depth),), "tpu": (tpu.PAIRS_OF_PLANES,)},
)


def conv(x: G, kernel: Array) -> G:
    """Convolves with stride 1 and zero padding that keeps the size.

    Args:
        x: [b, *grid, c_in], or such a grid in blocks.
        kernel: [*odd sizes, c_in, c_out].

    Returns:
        [b, *grid, c_out] in the dtype of `x`, in blocks if `x` is.
    """
    if all(size == 1 for size in kernel.shape[:-2]):
        return map_grid(lambda x: dense(x, kernel.reshape(kernel.shape[-2:])), x)
    if isinstance(x, BlockedGrid):
        return dispatch(CONV_BLOCKS, x, kernel)
    if kernel.shape[:-2] != (3, 3, 3):
        return like(x, reference.conv(array_of(x), kernel))
    (y,) = shard_depth_with_halo(HaloOperation(_interior, _edge), (array_of(x),), (kernel,))
    return like(x, y)


def conv_on_one_device(x: Array, kernel: Array) -> Array:
    """Convolves with a 3³ kernel like `conv`, but is never sharded by hand: [b, d, h, w, c_in] -> [b, d, h, w, c_out]."""
    return dispatch(CONV, x, kernel)


def patch_conv(x: Array, kernel: Array) -> Array:
    """Convolves with kernel size 2 and stride 2, so that patches do not overlap.

    Args:
        x: [b, *grid, c_in], sizes even.
        kernel: [2, 2, (2,) c_in, c_out].

    Returns:
        [b, *(grid / 2), c_out].
    """
    return dispatch(PATCH_CONV, x, kernel)


def _interior(x: Array, kernel: Array) -> tuple[Array]:
    return (conv_on_one_device(x, kernel),)


def _edge(plane: Array, kernel: Array, tap: int) -> tuple[Array]:
    return (plane_conv(plane, kernel, tap),)


def plane_conv(plane: Array, kernel: Array, tap: int) -> Array:
    """Convolves a plane [b, h, w, c_in] with one plane of a 3³ kernel: [b, h, w, c_out]."""
    return reference.conv(plane, kernel[tap])
