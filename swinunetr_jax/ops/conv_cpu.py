"""3³ convolutions on a CPU, float32 first: [b, d, h, w, c_in], [3, 3, 3, c_in, c_out] -> [b, d, h, w, c_out].

XLA's 3-D convolution is three times slower than its 2-D one, so planes go through a loop over depth, each once, through a 2-D
convolution whose outputs are the three depth taps; two partial sums are carried along. Nothing but planes is ever in flight, so they
stay in cache. The gradients have loops of their own: what autodiff makes of the loop takes a minute.

Large planes go through Winograd's F(2, 3) along height and width: 2.25 times fewer multiplications, the same rounding error.
Grids of a few voxels and hundreds of channels are bound by reading the kernel: one matrix product that takes it as it lies.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from swinunetr_jax.ops.loops_cpu import unwritten

FEW_VOXELS = 343  # up to 7³; measured: at 6³ one product is 2 times faster than the loop, at 8³ 1.2 to 1.5 times slower

# Winograd's F(2, 3) (Lavin and Gray 2015): two outputs of a 3-tap filter from four products instead of six
_WINOGRAD_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
WINOGRAD_TILES = 256, 1024  # fewer do not pay; more at a time leave the cache
WINOGRAD_CHANNELS = 16


def conv(x: Array, kernel: Array) -> Array:
    """The fastest of this file's formulations for the size of the grid."""
    return by_patches(x, kernel) if math.prod(x.shape[1:-1]) <= FEW_VOXELS else by_planes(x, kernel)


def by_patches(x: Array, kernel: Array) -> Array:
    """Each voxel's 27 neighbours side by side, and one matrix product, for 3³ kernels."""
    _b, *grid, c = x.shape
    padded = jnp.pad(x, ((0, 0), *[(1, 1)] * 3, (0, 0)))
    corners = itertools.product(range(3), repeat=3)
    shifted = [padded[:, i : i + grid[0], j : j + grid[1], k : k + grid[2]] for i, j, k in corners]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(27 * c, -1)


@jax.custom_vjp
def by_planes(x: Array, kernel: Array) -> Array:
    """A loop over depth with one 2-D convolution each, for 3³ kernels."""
    b, depth, h, w, c = x.shape
    o = kernel.shape[-1]
    if _winograd_pays(x, o):
        transform, of_plane = _WINOGRAD_KERNEL.astype(kernel.dtype), winograd
        taps = jnp.einsum("ph,qw,thwco->pqcto", transform, transform, kernel).reshape(16, c, 3 * o)
    else:
        of_plane = _direct
        taps = kernel.transpose(1, 2, 3, 0, 4).reshape(3, 3, c, 3 * o)

    def step(z: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, below, here = state  # `below` lacks this plane's share of plane z - 1, `here` this plane's and the next one's of z
        shares = of_plane(lax.dynamic_index_in_dim(x, z, 1, keepdims=False), taps)  # [b, h, w, 3 o]
        to_above, to_here, to_below = jnp.split(shares, 3, axis=-1)
        out = lax.dynamic_update_index_in_dim(out, below + to_below, jnp.maximum(z - 1, 0), 1)
        # as if it were the last plane; to write that one behind the loop would copy the whole result
        out = lax.dynamic_update_index_in_dim(out, here + to_here, z, 1)
        return out, here + to_here, to_above

    empty = jnp.zeros((b, h, w, o), x.dtype)
    return lax.fori_loop(0, depth, step, (unwritten((b, depth, h, w, o), x), empty, empty))[0]


def _direct(plane: Array, taps: Array) -> Array:
    return lax.conv_general_dilated(plane, taps, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _winograd_pays(x: Array, outputs: int) -> bool:
    b, _, h, w, c = x.shape
    exact = x.dtype in (jnp.float32, jnp.float64)  # in lower types the transforms would round
    large = b * (h // 2) * (w // 2) >= WINOGRAD_TILES[0] and min(c, outputs) >= WINOGRAD_CHANNELS
    return exact and large and h % 2 == 0 and w % 2 == 0


def winograd(plane: Array, taps: Array) -> Array:
    """A 3² convolution of [b, h, w, c], h and w even, with transformed kernels [16, c, o], some rows of tiles at a time."""
    b, h, w, _ = plane.shape
    padded = jnp.pad(plane, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = _winograd_block(b, h, w)
    blocks = [_winograd_rows(padded[:, start : start + rows + 2], taps) for start in range(0, h, rows)]
    return jnp.concatenate(blocks, axis=1)


def _winograd_block(b: int, h: int, w: int) -> int:
    """How many rows of a plane to take at a time, a divisor of h."""
    return max(r for r in range(2, h + 1, 2) if h % r == 0 and (r == 2 or b * (r // 2) * (w // 2) <= WINOGRAD_TILES[1]))


def _winograd_rows(padded: Array, taps: Array) -> Array:
    b, h, w = padded.shape[0], padded.shape[1] - 2, padded.shape[2] - 2
    inputs = _winograd_inputs(padded)
    m = jnp.einsum("pti,pio->pto", inputs.reshape(16, -1, inputs.shape[-1]), taps).reshape(4, 4, b, h // 2, w // 2, -1)
    m = lax.optimization_barrier(jnp.stack([m[0] + m[1] + m[2], m[1] - m[2] - m[3]], axis=1))  # [4, 2, b, h / 2, w / 2, o]
    pairs = jnp.stack([m[0] + m[1] + m[2], m[1] - m[2] - m[3]], axis=4)  # [2, b, h / 2, w / 2, 2, o]
    return jnp.moveaxis(pairs, 0, 2).reshape(b, h, w, -1)


# Tiles are transformed along height first, then along width. The barrier between keeps the compiler from doing both at once, voxel by
# voxel: the first pass runs along whole rows and the second finds its inputs in cache, which is three times faster.


def _winograd_inputs(padded: Array) -> Array:
    """Transformed inputs of each tile: [b, h + 2, w + 2, c] -> [16, b, h / 2, w / 2, c]."""

    def tiles(a: Array, axis: int) -> list[Array]:
        p = [lax.slice_in_dim(a, start, start + a.shape[axis] - 3, 2, axis) for start in range(4)]
        return [p[0] - p[2], p[1] + p[2], p[2] - p[1], p[1] - p[3]]

    return _both_axes(tiles, padded)


def _winograd_outputs(plane: Array) -> Array:
    """The transpose of what makes outputs of products: [b, h, w, o] -> [16, b, h / 2, w / 2, o]."""

    def tiles(a: Array, axis: int) -> list[Array]:
        even, odd = (lax.slice_in_dim(a, start, None, 2, axis) for start in range(2))
        return [even, even + odd, even - odd, -odd]

    return _both_axes(tiles, plane)


def _both_axes(tiles: Callable[[Array, int], list[Array]], plane: Array) -> Array:
    rows = lax.optimization_barrier(jnp.stack(tiles(plane, 1)))
    both = jnp.stack(tiles(rows, 3), axis=1)
    return both.reshape(16, *both.shape[2:])


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return by_planes(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    mirrored = jnp.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    kernel_gradient = _kernel_gradient_winograd if _winograd_pays(x, dy.shape[-1]) else _kernel_gradient
    return by_planes(dy, mirrored), kernel_gradient(x, dy).astype(kernel.dtype)


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


def _kernel_gradient_winograd(x: Array, dy: Array) -> Array:
    """The same in Winograd's domain, where a plane meets the three of `dy`, kept in a ring, in products over all tiles."""
    b, depth, h, w, c = x.shape
    o = dy.shape[-1]
    rows = _winograd_block(b, h, w)

    def put(ring: Array, z: Array) -> Array:
        plane = lax.dynamic_index_in_dim(dy, jnp.minimum(z, depth - 1), 1, keepdims=False)
        return lax.dynamic_update_index_in_dim(ring, _winograd_outputs(jnp.where(z < depth, plane, 0)), z % 3, 0)

    def step(z: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        ring, sums = state
        ring = put(ring, z + 1)
        padded = jnp.pad(lax.dynamic_index_in_dim(x, z, 1, keepdims=False), ((0, 0), (1, 1), (1, 1), (0, 0)))
        product = jnp.zeros((3, 16, c, o), x.dtype)
        for start in range(0, h, rows):
            inputs = _winograd_inputs(padded[:, start : start + rows + 2]).reshape(16, -1, c)
            outputs = ring[:, :, :, start // 2 : (start + rows) // 2].reshape(3, 16, -1, o)
            product += jnp.stack([jnp.einsum("pti,pto->pio", inputs, outputs[r]) for r in range(3)])
        at = (z + 1 - jnp.arange(3)) % 3  # tap t of plane z went to plane z + 1 - t
        return ring, sums + product[at]

    ring = put(jnp.zeros((3, 16, b, h // 2, w // 2, o), x.dtype), jnp.asarray(0))
    _, sums = lax.fori_loop(0, depth, step, (ring, jnp.zeros((3, 16, c, o), x.dtype)))
    transform = _WINOGRAD_KERNEL.astype(x.dtype)
    return jnp.einsum("ph,qw,tpqco->thwco", transform, transform, sums.reshape(3, 4, 4, c, o))


by_planes.defvjp(_forward, _backward)
