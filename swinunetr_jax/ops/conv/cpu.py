"""3³ convolutions on a CPU, mainly for float32: [b, d, h, w, c_in], [3, 3, 3, c_in, c_out] -> [b, d, h, w, c_out].

XLA's 3-D convolution is three times slower than its 2-D one. So a loop over depth applies one 2-D convolution to each plane, which
multiplies it by all three depth taps, and carries two partial sums. It only uses single planes, which stay in cache. The gradients are
computed by loops of their own, because the gradients that JAX derives from the loop take a minute.

Large planes are faster by Winograd's filters (`winograd`). For grids of a few voxels and hundreds of channels, most of the time would be
spent on reading the kernel, so the convolution is one matrix product, which reads the kernel in the order in which it is stored.
"""

import math

import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops.loop_output import loop_output, loop_zeros
from swinunetr_jax.ops.pointwise import dense
from swinunetr_jax.runtime.dispatch import Implementation
from swinunetr_jax.runtime.promotion import wide_dtype

FEW_VOXELS = 343  # up to 7³; measured: at 6³ one product is 2 times faster than the loop, at 8³ 1.2 to 1.5 times slower


def im2col(x: Array, kernel: Array) -> Array:
    """Returns the convolution as one matrix product of each voxel's 27 neighbours."""
    *_, c = x.shape
    # Three slices along each axis are 9 slices instead of 27, each of which XLA compiles by itself. The axis of the last step varies
    # slowest.
    for axis in (3, 2, 1):
        x = _with_neighbours(x, axis)
    return x @ kernel.reshape(27 * c, -1)


def _with_neighbours(x: Array, axis: int) -> Array:
    """Returns [b, d, h, w, 3 c]: the channels of each voxel's previous neighbour along an axis, of the voxel and of the next one."""
    padded = jnp.pad(x, [(1, 1) if dim == axis else (0, 0) for dim in range(x.ndim)])
    return jnp.concatenate([lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(3)], axis=-1)


IM2COL = Implementation(
    im2col,
    supports=lambda x, kernel: math.prod(x.shape[1:-1]) <= FEW_VOXELS,
    requires=f"a grid of at most {FEW_VOXELS} voxels",
)


def by_planes(x: Array, kernel: Array) -> Array:
    """Returns the convolution by a loop over depth, with one 2-D convolution for each plane."""
    b, depth, h, w, c = x.shape
    o = kernel.shape[-1]
    taps = kernel.transpose(1, 2, 3, 0, 4).reshape(3, 3, c, 3 * o)

    def step(z: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # `below` is the sum for plane z - 1 without the contribution of this plane. `here` is the sum for plane z without the
        # contributions of this plane and of the next one.
        out, below, here = state
        plane = lax.dynamic_index_in_dim(x, z, 1, keepdims=False)
        contributions = lax.conv_general_dilated(
            plane, taps, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )  # [b, h, w, 3 o]
        to_above, to_here, to_below = jnp.split(contributions, 3, axis=-1)
        out = lax.dynamic_update_index_in_dim(out, below + to_below, jnp.maximum(z - 1, 0), 1)
        # Each plane is also written as if it were the last one. Writing only the last plane, after the loop, would copy the whole result.
        out = lax.dynamic_update_index_in_dim(out, here + to_here, z, 1)
        return out, here + to_here, to_above

    zeros = loop_zeros((b, h, w, o), x.dtype, x)
    return lax.fori_loop(0, depth, step, (loop_output((b, depth, h, w, o), x), zeros, zeros))[0]


def _by_planes_vjp(inputs: tuple[Array, Array], _y: Array, dy: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    mirrored = jnp.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    return by_planes(dy, mirrored), kernel_gradient(x, dy).astype(kernel.dtype)


BY_PLANES = Implementation(by_planes, _by_planes_vjp)


def kernel_gradient(x: Array, dy: Array) -> Array:
    """Returns the gradient of the kernel, [3, 3, 3, c_in, c_out], in float32 at least.

    It is a loop over depth. Each step multiplies a plane, shifted by three offsets along w, by the three planes of `dy` that it
    contributed to.
    """
    depth, h, w, c = x.shape[1:]
    o = dy.shape[-1]
    wide = wide_dtype(x.dtype)

    def gradient_plane(z: Array) -> Array:
        plane = lax.dynamic_index_in_dim(dy, jnp.clip(z, 0, depth - 1), 1, keepdims=False)
        return jnp.where((z >= 0) & (z < depth), plane, 0)

    def step(z: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        plane = jnp.pad(lax.dynamic_index_in_dim(x, z, 1, keepdims=False), ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = jnp.concatenate([plane[:, :, s : s + w] for s in range(3)], axis=-1)  # [b, h + 2, w, 3 c]
        gradients = jnp.concatenate([gradient_plane(z + 1 - t) for t in range(3)], axis=-1)  # [b, h, w, 3 o]
        return tuple(
            sum_ + jnp.einsum("bhwi,bhwj->ij", shifted[:, s : s + h], gradients, preferred_element_type=wide)
            for s, sum_ in enumerate(sums)
        )

    sums = lax.fori_loop(0, depth, step, (loop_zeros((3 * c, 3 * o), wide, dy),) * 3)
    return jnp.stack(sums).reshape(3, 3, c, 3, o).transpose(3, 0, 1, 2, 4)  # [h, w, c, t, o] -> [t, h, w, c, o]


def space_to_depth(x: Array, kernel: Array) -> Array:
    """Returns the convolution with kernel size 2 and stride 2 as a space-to-depth and one matrix product."""
    pattern = {2: "b (h p) (w q) c -> b h w (p q c)", 3: "b (d o) (h p) (w q) c -> b d h w (o p q c)"}[x.ndim - 2]
    patches = rearrange(x, pattern, **dict.fromkeys("opq"[-(x.ndim - 2) :], 2))
    return dense(patches, kernel.reshape(-1, kernel.shape[-1]))
