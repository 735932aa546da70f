"""3³ convolutions on a CPU, float32 first: [b, d, h, w, c_in], [3, 3, 3, c_in, c_out] -> [b, d, h, w, c_out].

XLA's 3-D convolution is three times slower than its 2-D one, so planes go through a loop over depth, each once, through a 2-D
convolution whose outputs are the three depth taps; two partial sums are carried along. Nothing but planes is ever in flight, so they
stay in cache. The gradients have loops of their own: what autodiff makes of the loop takes a minute.

Large planes go through Winograd's filters (`winograd_cpu`). Grids of a few voxels and hundreds of channels are bound by reading the kernel:
one matrix product that takes it as it lies.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.ops import winograd_cpu
from swinunetr_jax.ops.loops_cpu import unwritten

FEW_VOXELS = 343  # up to 7³; measured: at 6³ one product is 2 times faster than the loop, at 8³ 1.2 to 1.5 times slower


def conv(x: Array, kernel: Array) -> Array:
    """The fastest of this file's formulations for the size of the grid."""
    return by_patches(x, kernel) if math.prod(x.shape[1:-1]) <= FEW_VOXELS else by_planes(x, kernel)


def by_patches(x: Array, kernel: Array) -> Array:
    """Each voxel's 27 neighbours side by side, and one matrix product, for 3³ kernels."""
    *_, c = x.shape
    for axis in (3, 2, 1):  # each slice is a kernel to be compiled, and so they are 9, not 27; the last axis done is the slowest
        x = _neighbours(x, axis)
    return x @ kernel.reshape(27 * c, -1)


def _neighbours(x: Array, axis: int) -> Array:
    """Each voxel and the two beside it on an axis, side by side as channels."""
    padded = jnp.pad(x, [(1, 1) if at == axis else (0, 0) for at in range(x.ndim)])
    return jnp.concatenate([lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(3)], axis=-1)


@jax.custom_vjp
def by_planes(x: Array, kernel: Array) -> Array:
    """A loop over depth with one 2-D convolution each, for 3³ kernels."""
    if winograd_cpu.pays(x, kernel.shape[-1]):
        return winograd_cpu.conv(winograd_cpu.EXACT, x, kernel)
    return _by_planes(x, kernel)


def _by_planes(x: Array, kernel: Array) -> Array:
    b, depth, h, w, c = x.shape
    o = kernel.shape[-1]
    taps = kernel.transpose(1, 2, 3, 0, 4).reshape(3, 3, c, 3 * o)

    def step(z: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, below, here = state  # `below` lacks this plane's share of plane z - 1, `here` this plane's and the next one's of z
        plane = lax.dynamic_index_in_dim(x, z, 1, keepdims=False)
        shares = lax.conv_general_dilated(
            plane, taps, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )  # [b, h, w, 3 o]
        to_above, to_here, to_below = jnp.split(shares, 3, axis=-1)
        out = lax.dynamic_update_index_in_dim(out, below + to_below, jnp.maximum(z - 1, 0), 1)
        # as if it were the last plane; to write that one behind the loop would copy the whole result
        out = lax.dynamic_update_index_in_dim(out, here + to_here, z, 1)
        return out, here + to_here, to_above

    empty = jnp.zeros((b, h, w, o), x.dtype)
    return lax.fori_loop(0, depth, step, (unwritten((b, depth, h, w, o), x), empty, empty))[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return by_planes(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    mirrored = jnp.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    fast = winograd_cpu.FAST
    if winograd_cpu.pays(x, dy.shape[-1]) and winograd_cpu.fits(fast, x):
        dx, dkernel = winograd_cpu.conv(fast, dy, mirrored), winograd_cpu.kernel_gradient(fast, x, dy)
    else:
        dx, dkernel = by_planes(dy, mirrored), _kernel_gradient(x, dy)
    return dx, dkernel.astype(kernel.dtype)


def _kernel_gradient(x: Array, dy: Array) -> Array:
    """A loop over depth of matrix products: a plane in three W-shifts against the three planes of `dy` it took part in."""
    depth, h, w, c = x.shape[1:]
    o = dy.shape[-1]
    total = jnp.promote_types(x.dtype, jnp.float32)

    def gradient_plane(z: Array) -> Array:
        plane = lax.dynamic_index_in_dim(dy, jnp.clip(z, 0, depth - 1), 1, keepdims=False)
        return jnp.where((z >= 0) & (z < depth), plane, 0)

    def step(z: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        plane = jnp.pad(lax.dynamic_index_in_dim(x, z, 1, keepdims=False), ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = jnp.concatenate([plane[:, :, s : s + w] for s in range(3)], axis=-1)  # [b, h + 2, w, 3 c]
        near = jnp.concatenate([gradient_plane(z + 1 - t) for t in range(3)], axis=-1)  # [b, h, w, 3 o]
        return tuple(
            sum_ + jnp.einsum("bhwi,bhwj->ij", shifted[:, s : s + h], near, preferred_element_type=total)
            for s, sum_ in enumerate(sums)
        )

    sums = lax.fori_loop(0, depth, step, (jnp.zeros((3 * c, 3 * o), total),) * 3)
    return jnp.stack(sums).reshape(3, 3, c, 3, o).transpose(3, 0, 1, 2, 4)  # [h, w, c, t, o] -> [t, h, w, c, o]


by_planes.defvjp(_forward, _backward)
