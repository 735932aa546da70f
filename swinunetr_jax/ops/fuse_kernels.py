"""The kernels of a transposed convolution (kernel size 2, stride 2) and of the 3³ convolution after it, multiplied into one kernel.

Both are linear, so together they are one transposed convolution with kernel size 4 and stride 2, which reads the coarse grid. Each voxel
then costs 8 taps of the coarse grid instead of 27 of the upsampled grid, which is never computed. The results differ only by rounding,
also at the border. There is one form of the kernel for each platform, the one with which the convolution is fastest there.
"""

import math

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax


def saves_work(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> bool:
    """Returns whether the fused kernel saves more than twice the multiplications that fusing costs. Additions are not counted."""
    c, u, o = x.shape[-1], up.shape[-1], kernel.shape[-1]
    fine_voxels = 8 * math.prod(x.shape[:-1])
    return fine_voxels * (27 * u * o + c * u - 8 * c * o) > 2 * 216 * c * u * o


SAVES_WORK = "a grid so large that the fused kernel saves more than twice the multiplications that fusing costs"


# ---- the fused kernel of a transposed convolution

# [e, t, r] along one axis: the product of tap t of the 3-kernel and tap r of the upsampling is a term of tap e of the 4-kernel
_TAPS_OF_4 = np.zeros((4, 3, 2), np.float32)
for _t in range(3):
    for _r in range(2):
        _TAPS_OF_4[_t - _r + 1, _t, _r] = 1


def fuse_kernels(up: Array, kernel: Array) -> Array:
    """Returns the kernel of size 4: [2, 2, 2, c_in, u] and [3, 3, 3, u, c_out] -> [4, 4, 4, c_in, c_out]."""
    taps = jnp.asarray(_TAPS_OF_4, kernel.dtype)
    pairs = jnp.einsum("rqsim,tuvmo->rqstuvio", up, kernel)
    return jnp.einsum("rqstuvio,atr,buq,cvs->abcio", pairs, taps, taps, taps)


# ---- the fused kernels for windows of two coarse voxels along each axis

# [p, s, t, r] along one axis: for the fine voxel 2 i + p, tap t of the 3-kernel reads tap r of the upsampling of neighbour s in the window
_TAPS_OF_WINDOWS = np.zeros((2, 2, 3, 2), np.float32)
for _p, _s, _t, _r in ((0, 0, 0, 1), (0, 1, 1, 0), (0, 1, 2, 1), (1, 0, 0, 0), (1, 0, 1, 1), (1, 1, 2, 0)):
    _TAPS_OF_WINDOWS[_p, _s, _t, _r] = 1
# The same for all three axes: rows are neighbours and then parities, columns are taps of the upsampling and then of the 3-kernel
_TAPS_OF_3D_WINDOWS = np.einsum("xatr,ybuq,zcvs->abcxyzrqstuv", *[_TAPS_OF_WINDOWS] * 3).reshape(64, 216)


def fuse_kernels_by_parity(up: Array, kernel: Array) -> Array:
    """Returns [neighbours s: 2, 2, 2, c_in, parities p of fine voxels: 2, 2, 2, c_out] by matrix products, for a CPU.

    The arrays have few axes, because newer versions of XLA take ten seconds to compile these products for arrays of eight axes.
    """
    (c, u), o = up.shape[-2:], kernel.shape[-1]
    pairs = up.reshape(8 * c, u) @ kernel.reshape(27, u, o).swapaxes(0, 1).reshape(u, 27 * o)
    pairs = pairs.reshape(8, c, 27, o).swapaxes(1, 2).reshape(216, c * o)
    fused = (jnp.asarray(_TAPS_OF_3D_WINDOWS, kernel.dtype) @ pairs).reshape(8, 8, c, o)
    return fused.swapaxes(1, 2).reshape(2, 2, 2, c, 2, 2, 2, o)


def fuse_kernels_by_order(up: Array, kernel: Array) -> Array:
    """Returns [neighbours: 2, 2, 2, c_in, fine voxels of a window in their order: 2, 2, 2, c_out] by a convolution, for a GPU.

    The product of tap t of the kernel and tap r of the upsampling belongs to position r - t. The fused kernel is therefore a convolution of
    one kernel with the other, whose four results along an axis are the kernel of size 4. Results 0 and 1 belong to the later neighbour, and
    results 2 and 3 to the earlier one.
    """
    size_4_kernel = lax.conv_general_dilated(
        jnp.moveaxis(up, -2, 0), kernel, (1, 1, 1), ((2, 2),) * 3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    return rearrange(size_4_kernel, "i (x o) (y p) (z q) c -> x y z i o p q c", x=2, y=2, z=2)[::-1, ::-1, ::-1]
