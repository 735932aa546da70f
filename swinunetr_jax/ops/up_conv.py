"""The first convolutions of a decoder block, on an upsampled grid and a skip side by side.

The formulation is chosen by the platform a program is compiled for: as it reads, but without concatenating, or on large grids with the
two kernels folded into one (`up_conv_cpu`, `up_conv_cuda`, `up_conv_tpu`, `pieces`).
"""

import functools
from collections.abc import Callable

from jax import Array

from swinunetr_jax.ops import conv as conv_op
from swinunetr_jax.ops import pieces, up_conv_cpu, up_conv_cuda, up_conv_tpu
from swinunetr_jax.ops.upsample import upsample
from swinunetr_jax.runtime.dispatch import Implementation, by_platform
from swinunetr_jax.runtime.sharding import HaloOperation, shard_depth_with_halo


def up_conv(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """Both convolutions of concat([upsample(x, up), skip]).

    Args:
        x: [b, *grid, c_in].
        skip: [b, *(2 * grid), u], or in `pieces`, then `x` may be so, too.
        up: transposed convolution, [2, 2, (2,) c_in, u].
        kernel: [3, 3, (3,) 2 u, c_out].
        shortcut: [1, 1, (1,) 2 u, c_out].

    Returns:
        The results of `kernel` and of `shortcut`, each [b, *(2 * grid), c_out].
    """
    if pieces.in_pieces(skip):
        return pieces.up_conv(x, skip, up, kernel, shortcut)
    if x.ndim != 5:
        return plain(x, skip, up, kernel, shortcut)
    return shard_depth_with_halo(_GRIDS, (x, skip), (up, kernel, shortcut))


def _of_grids(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """By the size of the grids that one device has."""
    pays = up_conv_cpu.pays(x.shape, up.shape, kernel.shape), up_conv_tpu.pays(skip.shape, kernel.shape)
    return _up_conv(*pays)(x, skip, up, kernel, shortcut)


def _of_planes(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array, tap: int) -> tuple[Array, None]:
    """What a coarse plane and the plane of the skip at its near side give through the kernel's first (0) or last (2) plane."""
    fine, u = upsample(x, up[1 if tap == 0 else 0]), up.shape[-1]
    return conv_op.plane_conv(fine, kernel[..., :u, :], tap) + conv_op.plane_conv(skip, kernel[..., u:, :], tap), None


def plain(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """As it reads, but for the concatenation: the convolution of two things side by side is the sum of two convolutions."""
    fine, u = upsample(x, up), up.shape[-1]
    return tuple(conv_op.conv(fine, k[..., :u, :]) + conv_op.conv(skip, k[..., u:, :]) for k in (kernel, shortcut))


@functools.cache
def _up_conv(cpu_and_cuda: bool, tpu: bool) -> Callable[..., tuple[Array, Array]]:
    """Folded on the platforms where it pays."""
    forms = {"cpu": Implementation(up_conv_cpu.folded), "cuda": Implementation(up_conv_cuda.folded)} if cpu_and_cuda else {}
    return by_platform(Implementation(plain), **forms, **({"tpu": Implementation(up_conv_tpu.folded)} if tpu else {}))


_GRIDS = HaloOperation(_of_grids, _of_planes)
