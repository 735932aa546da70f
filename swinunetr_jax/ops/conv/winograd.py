"""3³ convolutions of large planes on a CPU by Winograd's filters along h and w and a loop over d (Lavin and Gray 2015, arXiv 1509.09308).

F(m, 3) computes m outputs of a 3-tap filter with m + 2 products, in tiles of m + 2 inputs that overlap by 2: transformed inputs times
transformed kernels are transformed outputs. Along two axes F(2, 3) takes 2.25 times fewer multiplications than the direct sum at the same
rounding error. F(4, 3) takes 4 times fewer multiplications and has five times the rounding error (2e-6 of the largest number in float32),
which is small enough for gradients. It is used only for them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from swinunetr_jax.ops.conv import cpu
from swinunetr_jax.ops.loop_output import loop_output, loop_zeros
from swinunetr_jax.runtime.dispatch import Implementation

# Measured: for smaller planes or fewer channels this algorithm is not faster, and more tiles at a time do not fit into the cache.
MIN_PLANE, MIN_CHANNELS = 32 * 32, 16
TILES, GRADIENT_TILES = 1024, 300


class Filters(NamedTuple):
    """The matrices of F(m, 3), whose m results are outputs [m, m + 2] · ((kernel [m + 2, 3] · taps) * (inputs [m + 2, m + 2] · tile))."""

    outputs: np.ndarray
    kernel: np.ndarray
    inputs: np.ndarray

    @property
    def m(self) -> int:
        return len(self.outputs)

    @property
    def n(self) -> int:
        return len(self.inputs)


def filters(*points: Fraction | int) -> Filters:
    """Returns F(m, 3) for m + 1 points by the Cook-Toom construction, which multiplies polynomials at these points and at infinity."""

    def polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
        """Returns the coefficients of the product of (x - root), lowest power first."""
        result = [Fraction(1)]
        for root in roots:
            result = [lower - root * same for lower, same in zip([Fraction(0), *result], [*result, Fraction(0)])]
        return result

    exact = tuple(map(Fraction, points))
    m = len(exact) - 1
    others = [exact[:i] + exact[i + 1 :] for i in range(m + 1)]
    outputs = [[point**power for point in exact] + [power == m - 1] for power in range(m)]
    kernel = [[point**tap / math.prod(point - other for other in rest) for tap in range(3)] for point, rest in zip(exact, others)]
    inputs = [[*polynomial(rest), 0] for rest in others] + [polynomial(exact)]
    return Filters(*(np.array(rows, np.float64) for rows in (outputs, [*kernel, [0, 0, 1]], inputs)))


F2 = filters(0, 1, -1)
# the set of points with the smallest rounding error among a hundred sets
F4 = filters(0, Fraction(11, 16), Fraction(-11, 16), Fraction(3, 2), Fraction(-3, 2))


def _is_profitable(x: Array, kernel: Array) -> bool:
    b, _, h, w, c = x.shape
    is_precise = x.dtype in (jnp.float32, jnp.float64)  # in lower precision the transforms have large rounding errors
    return is_precise and b * h * w >= MIN_PLANE and min(c, kernel.shape[-1]) >= MIN_CHANNELS and fits(F2, x)


def fits(f: Filters, x: Array) -> bool:
    """Returns whether tiles cover the planes of [b, d, h, w, c] exactly."""
    return x.shape[2] % f.m == 0 and x.shape[3] % f.m == 0


def winograd(x: Array, kernel: Array) -> Array:
    """Returns the convolution by F(2, 3): [b, d, h, w, c_in], [3, 3, 3, c_in, c_out] -> [b, d, h, w, c_out]."""
    return conv_with_filters(F2, x, kernel)


def _winograd_vjp(inputs: tuple[Array, Array], _y: Array, dy: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    mirrored = jnp.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    if fits(F4, x):
        dx, dkernel = conv_with_filters(F4, dy, mirrored), kernel_gradient(F4, x, dy)
    else:
        dx, dkernel = conv_with_filters(F2, dy, mirrored), cpu.kernel_gradient(x, dy)
    return dx, dkernel.astype(kernel.dtype)


WINOGRAD = Implementation(
    winograd,
    _winograd_vjp,
    supports=_is_profitable,
    requires=f"float32 or float64, planes of even sizes with at least {MIN_PLANE} voxels and at least {MIN_CHANNELS} channels",
)


def conv_with_filters(f: Filters, x: Array, kernel: Array) -> Array:
    """Returns the convolution by the filters f. Each plane is transformed once and multiplied by all three depth taps."""
    b, depth, h, w, c = x.shape
    o = kernel.shape[-1]
    transform = f.kernel.astype(kernel.dtype)
    taps = jnp.einsum("ph,qw,thwco->pqcto", transform, transform, kernel).reshape(f.n**2, c, 3 * o)

    def step(z: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # `below` is the sum for plane z - 1 without the contribution of this plane. `here` is the sum for plane z without the
        # contributions of this plane and of the next one.
        out, below, here = state
        contributions = _convolve_plane(f, _plane(x, z), taps)  # [b, h, w, 3 o]
        to_above, to_here, to_below = jnp.split(contributions, 3, axis=-1)
        return _put(out, below + to_below, jnp.maximum(z - 1, 0)), here + to_here, to_above

    # The loop has one step more than there are planes, which writes the last plane. Writing it after the loop would copy the whole result.
    start = loop_output((b, depth, h, w, o), x), *[loop_zeros((b, h, w, o), x.dtype, x)] * 2
    return lax.fori_loop(0, depth + 1, step, start)[0]


def kernel_gradient(f: Filters, x: Array, dy: Array) -> Array:
    """Returns the gradient of the kernel, [3, 3, 3, c_in, c_out], from products of transformed planes.

    A plane is multiplied by the three planes of `dy` that it contributed to. These are kept next to one another in a ring buffer, so
    that one product over all tiles gives the three taps.
    """
    b, depth, h, w, c = x.shape
    o = dy.shape[-1]
    rows = _block(f, b, h, w, GRADIENT_TILES)
    tiles = b * (rows // f.m) * (w // f.m)

    def put(ring: Array, z: Array, top: Array) -> Array:
        """Writes plane z of `dy` to its place in the ring."""
        outputs = _outputs_transposed(f, lax.dynamic_slice_in_dim(_plane(dy, z), top, rows, 1))
        return lax.dynamic_update_slice(ring, outputs[:, :, None], (0, 0, z % 3, 0))

    def block(index: Array, sums: Array) -> Array:
        top = index * rows

        def step(z: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            sums, ring = state
            ring = put(ring, z + 1, top)
            inputs = _inputs(f, _with_neighbours(_plane(x, z), top, rows))
            product = jnp.einsum("pti,pto->pio", inputs, ring.reshape(f.n**2, tiles, 3 * o))
            new_sums = lax.dynamic_index_in_dim(sums, z % 3, 0, keepdims=False) + product
            return lax.dynamic_update_index_in_dim(sums, new_sums, z % 3, 0), ring

        ring = put(loop_zeros((f.n**2, tiles, 3, o), x.dtype, dy), jnp.asarray(0), top)
        return lax.fori_loop(0, depth, step, (sums, ring))[0]

    sums = loop_zeros((3, f.n**2, c, 3 * o), x.dtype, dy)
    sums = (block(jnp.asarray(0), sums) if rows == h else lax.fori_loop(0, h // rows, block, sums)).reshape(3, f.n**2, c, 3, o)
    # tap t of plane z contributed to plane z + 1 - t
    taps = [sum(sums[z, :, :, (z + 1 - t) % 3] for z in range(3)) for t in range(3)]
    transform = f.kernel.astype(x.dtype)
    return jnp.einsum("ph,qw,tpqco->thwco", transform, transform, jnp.stack(taps).reshape(3, f.n, f.n, c, o))


# ---- planes


def _plane(x: Array, z: Array) -> Array:
    """Returns plane z, [b, h, w, c], or zeros after the last one."""
    last = x.shape[1] - 1
    return jnp.where(z <= last, lax.dynamic_index_in_dim(x, jnp.minimum(z, last), 1, keepdims=False), 0)


def _put(x: Array, plane: Array, z: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, plane, z, 1)


def _with_neighbours(plane: Array, top: Array, rows: int) -> Array:
    """Returns `rows` rows, the first of which is `top`, with a border of one voxel, zeros beyond the plane: [b, rows + 2, w + 2, c]."""
    sides = ((0, 0), (0, 0), (1, 1), (0, 0))
    h = plane.shape[1]
    if rows == h:
        return jnp.pad(plane, ((0, 0), (1, 1), *sides[2:]))

    def row(index: Array) -> Array:
        return jnp.where((index >= 0) & (index < h), lax.dynamic_slice_in_dim(plane, jnp.clip(index, 0, h - 1), 1, 1), 0)

    inner = lax.dynamic_slice_in_dim(plane, top, rows, 1)
    return jnp.pad(jnp.concatenate([row(top - 1), inner, row(top + rows)], axis=1), sides)


def _block(f: Filters, b: int, h: int, w: int, tiles: int) -> int:
    """Returns how many rows of a plane are computed at a time: a divisor of h and a multiple of the tiles' height."""
    return max(r for r in range(f.m, h + 1, f.m) if h % r == 0 and (r == f.m or b * (r // f.m) * (w // f.m) <= tiles))


def _convolve_plane(f: Filters, plane: Array, taps: Array) -> Array:
    """Convolves a plane [b, h, w, c] with transformed kernels [n², c, o]: [b, h, w, o]."""
    b, h, w, _ = plane.shape
    rows = _block(f, b, h, w, TILES)
    padded = jnp.pad(plane, ((0, 0), (1, 1), (1, 1), (0, 0)))
    blocks = []
    for start in range(0, h, rows):
        inputs = _inputs(f, padded[:, start : start + rows + 2])
        product = jnp.einsum("pti,pio->pto", inputs, taps)
        blocks.append(_outputs(f, product.reshape(f.n, f.n, b, rows // f.m, w // f.m, -1)))
    return jnp.concatenate(blocks, axis=1)


# ---- transforms
# Each transform runs along h first and then along w. The barrier between the two keeps the compiler from computing both at once, voxel by
# voxel: the first pass runs along whole rows, and the second finds its inputs in cache, which is three times faster.


def _inputs(f: Filters, padded: Array) -> Array:
    """Returns the transformed inputs of each tile: [b, h + 2, w + 2, c] -> [n², tiles, c]."""

    def tiles(a: Array, axis: int) -> list[Array]:
        length = a.shape[axis] - f.n + 1
        return _combine(f.inputs, [lax.slice_in_dim(a, start, start + length, f.m, axis) for start in range(f.n)])

    return _both_axes(tiles, padded)


def _outputs(f: Filters, products: Array) -> Array:
    """Returns the outputs from transformed ones: [n, n, b, h / m, w / m, o] -> [b, h, w, o]."""
    b, h, w, o = products.shape[2:]
    rows = lax.optimization_barrier(jnp.stack(_combine(f.outputs, products), axis=3))  # [n, b, h / m, m, w / m, o]
    return jnp.stack(_combine(f.outputs, rows), axis=4).reshape(b, h * f.m, w * f.m, o)


def _outputs_transposed(f: Filters, plane: Array) -> Array:
    """Applies the transpose of `_outputs`: [b, h, w, o] -> [n², tiles, o]."""

    def tiles(a: Array, axis: int) -> list[Array]:
        return _combine(f.outputs.T, [lax.slice_in_dim(a, start, None, f.m, axis) for start in range(f.m)])

    return _both_axes(tiles, plane)


def _both_axes(tiles: Callable[[Array, int], list[Array]], plane: Array) -> Array:
    rows = lax.optimization_barrier(jnp.stack(tiles(plane, 1)))  # [n, b, h / m, w, c]
    transformed = jnp.stack(tiles(rows, 3), axis=1)
    return transformed.reshape(transformed.shape[0] * transformed.shape[1], -1, transformed.shape[-1])


def _combine(matrix: np.ndarray, parts: Sequence[Array] | Array) -> list[Array]:
    """Returns matrix · parts as sums; most entries of the matrix are 0, 1 or -1."""

    def term(factor: float, part: Array) -> Array:
        return part if factor == 1 else -part if factor == -1 else factor * part

    return [functools.reduce(jnp.add, [term(float(k), part) for k, part in zip(row, parts) if k]) for row in matrix]
