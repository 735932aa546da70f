"""Convolution, stride 1, same size out, channels last: 3³ and 1³ kernels in 3-D, 3² and 1² in 2-D.

The formulation of the 3³ kernel is chosen by the platform a program is compiled for: the compiler's own, on a CPU those of `conv_cpu`,
on a TPU for large grids those of `pieces` and `conv_tpu`. The 1³ kernel is a matrix product.
"""

from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops import conv_cpu, conv_tpu, pieces
from swinunetr_jax.ops.dense import dense
from swinunetr_jax.runtime.dispatch import Implementation, by_platform
from swinunetr_jax.runtime.sharding import HaloOperation, shard_depth_with_halo

_LAYOUT = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def conv(x: Array, kernel: Array) -> Array:
    """Convolves with zero padding that keeps the size.

    Args:
        x: [b, *grid, c_in], or a grid in `pieces`.
        kernel: [*odd sizes, c_in, c_out].

    Returns:
        [b, *grid, c_out] in the dtype of `x`.
    """
    if all(size == 1 for size in kernel.shape[:-2]):
        return dense(x, kernel.reshape(kernel.shape[-2:]))
    if kernel.shape[:-2] != (3, 3, 3):
        return plain(x, kernel)
    if pieces.in_pieces(x):
        return pieces.conv(x, kernel)
    return shard_depth_with_halo(_CUBE, (x,), (kernel,))[0]


def _cube_conv(x: Array, kernel: Array) -> tuple[Array]:
    """The 3³ kernel, by the size of the grid that one device has."""
    return ((_conv_large if conv_tpu.pays(x.shape, kernel.shape) else _conv)(x, kernel),)


def plane_conv(plane: Array, kernel: Array, tap: int) -> Array:
    """What a plane [b, h, w, c_in] gives through one plane of a 3³ kernel: [b, h, w, c_out]."""
    return plain(plane, kernel[tap])


def _edge(plane: Array, kernel: Array, tap: int) -> tuple[Array]:
    return (plane_conv(plane, kernel, tap),)


def patch_conv(x: Array, kernel: Array) -> Array:
    """Convolves with kernel 2 and stride 2, so that patches do not overlap.

    Args:
        x: [b, *grid, c_in], sizes even.
        kernel: [2, 2, (2,) c_in, c_out].

    Returns:
        [b, *(grid / 2), c_out].
    """
    return (_patch_conv if x.ndim == 5 else _patch_conv_2d)(x, kernel)


def strided(x: Array, kernel: Array) -> Array:
    """The compiler's own; a transposition of voxels with few channels would cost a TPU more than the arithmetic."""
    return lax.conv_general_dilated(x, kernel, (2,) * (x.ndim - 2), "VALID", dimension_numbers=_LAYOUT[x.ndim - 2])


def patches_as_channels(x: Array, kernel: Array) -> Array:
    """A space-to-depth and one matrix product."""
    pattern = {2: "b (h p) (w q) c -> b h w (p q c)", 3: "b (d o) (h p) (w q) c -> b d h w (o p q c)"}[x.ndim - 2]
    patches = rearrange(x, pattern, **dict.fromkeys("opq"[-(x.ndim - 2) :], 2))
    return dense(patches, kernel.reshape(-1, kernel.shape[-1]))


def plain(x: Array, kernel: Array) -> Array:
    """The compiler's own convolution."""
    return lax.conv_general_dilated(x, kernel, (1,) * (x.ndim - 2), "SAME", dimension_numbers=_LAYOUT[x.ndim - 2])


_conv = by_platform(Implementation(plain), cpu=Implementation(conv_cpu.conv))
_conv_large = by_platform(Implementation(plain), cpu=Implementation(conv_cpu.conv), tpu=Implementation(conv_tpu.by_planes))
_patch_conv = by_platform(Implementation(strided), cpu=Implementation(patches_as_channels), tpu=Implementation(conv_tpu.patches))
_patch_conv_2d = by_platform(Implementation(strided), cpu=Implementation(patches_as_channels))
_CUBE = HaloOperation(_cube_conv, _edge)
