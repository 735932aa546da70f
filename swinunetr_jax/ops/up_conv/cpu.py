"""The first convolutions of a decoder block on a CPU, for large grids, with the two kernels fused into one (see `fuse_kernels`).

A window of the coarse grid is two neighbours along each axis, with zeros beyond the grid; there are D + 1 windows along D voxels. Fine
voxel 2 i + p reads window i + p, so window j contributes to the fine voxels 2 j - 1 (p = 1) and 2 j (p = 0).
"""

from typing import cast

import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.ops.conv import conv_on_one_device
from swinunetr_jax.ops.fuse_kernels import SAVES_WORK, fuse_kernels_by_parity, saves_work
from swinunetr_jax.ops.loop_output import loop_output, loop_zeros
from swinunetr_jax.ops.pointwise import dense
from swinunetr_jax.ops.up_conv.upsample import upsample
from swinunetr_jax.runtime.dispatch import Implementation, hand_differentiated
from swinunetr_jax.runtime.promotion import wide_dtype


def fused(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """Returns both results of `ops.up_conv.up_conv`.

    The kernels are fused in each call, which takes less than one hundredth of a network's time: too little to store fused kernels in
    addition to the parameters.
    """
    u = up.shape[-1]
    kernel_for_up, kernel_for_skip = kernel[..., :u, :], kernel[..., u:, :]
    y = from_windows(x, fuse_kernels_by_parity(up, kernel_for_up)) + conv_on_one_device(skip, kernel_for_skip)
    y_shortcut = upsample(x, jnp.einsum("rqsim,mo->rqsio", up, shortcut[0, 0, 0, :u]))
    return y, y_shortcut + dense(skip, shortcut[0, 0, 0, u:])


FUSED = Implementation(fused, supports=saves_work, requires=SAVES_WORK)


@hand_differentiated
def from_windows(x: Array, kernel: Array) -> Array:
    """Returns the convolution by the fused kernel, in a loop over the coarse planes: [b, d, h, w, c] -> [b, 2 d, 2 h, 2 w, o]."""
    b, depth, h, w, c = x.shape
    o = kernel.shape[-1]
    taps = kernel.transpose(1, 2, 3, 0, 4, 5, 6, 7).reshape(2, 2, c, -1)  # the depth neighbours s become outputs

    def step(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        out, early = state  # `early` is what plane j - 1 contributed to window j
        plane = lax.dynamic_index_in_dim(x, j, 1, keepdims=False)
        contributions = lax.conv_general_dilated(
            plane, taps, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        contributions = contributions.reshape(b, h + 1, w + 1, 2, 2, 4 * o)
        window = early + contributions[..., 1, :, :]
        out = lax.dynamic_update_index_in_dim(out, _interleave(window[..., 1, :], o), jnp.maximum(2 * j - 1, 0), 1)
        out = lax.dynamic_update_index_in_dim(out, _interleave(window[..., 0, :], o), 2 * j, 1)
        # Each window is also written as if it were the last one. Writing only the last one, after the loop, would copy the whole result.
        out = lax.dynamic_update_index_in_dim(out, _interleave(contributions[..., 0, 1, :], o), 2 * j + 1, 1)
        return out, contributions[..., 0, :, :]

    start = loop_output((b, 2 * depth, 2 * h, 2 * w, o), x), loop_zeros((b, h + 1, w + 1, 2, 4 * o), x.dtype, x)
    return lax.fori_loop(0, depth, step, start)[0]


def _interleave(windows: Array, o: int) -> Array:
    """Returns a fine plane from a plane of windows: [b, h + 1, w + 1, (p q o)] -> [b, 2 h, 2 w, o]."""
    b, h, w = windows.shape[0], windows.shape[1] - 1, windows.shape[2] - 1
    parts = windows.reshape(b, h + 1, w + 1, 2, 2, o)
    rows = jnp.stack([parts[:, :h, :, 0], parts[:, 1:, :, 1]], axis=2)  # [b, h, 2, w + 1, q, o]
    return jnp.stack([rows[:, :, :, :w, 0], rows[:, :, :, 1:, 1]], axis=4).reshape(b, 2 * h, 2 * w, o)


def _collect(plane: Array) -> Array:
    """Applies the transpose of `_interleave`: [b, 2 h, 2 w, o] -> [b, h + 1, w + 1, (p q o)]."""
    b, h, w, o = plane.shape[0], plane.shape[1] // 2, plane.shape[2] // 2, plane.shape[3]
    parts = plane.reshape(b, h, 2, w, 2, o)
    padded = [jnp.pad(parts[:, :, p, :, q], ((0, 0), (p, 1 - p), (q, 1 - q), (0, 0))) for p in range(2) for q in range(2)]
    return jnp.concatenate(padded, axis=-1)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return from_windows(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    depth, h, w, c = x.shape[1:]
    o = kernel.shape[-1]
    wide = wide_dtype(x.dtype)
    # plane d contributed to window d as neighbour 1 and to window d + 1 as neighbour 0
    transposed_taps = kernel.transpose(0, 4, 5, 6, 7, 1, 2, 3).reshape(16 * o, 4 * c)

    def window_gradient(j: Array) -> Array:
        """Returns the gradient of the windows j, [b, h + 1, w + 1, (p1 p2 p3 o)]."""
        low = lax.dynamic_index_in_dim(dy, jnp.minimum(2 * j, 2 * depth - 1), 1, keepdims=False)
        high = lax.dynamic_index_in_dim(dy, jnp.maximum(2 * j - 1, 0), 1, keepdims=False)
        low, high = jnp.where(j < depth, low, 0), jnp.where(j > 0, high, 0)
        return jnp.concatenate([_collect(low), _collect(high)], axis=-1)

    def step(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        dx, dkernel, here = state
        above = window_gradient(j + 1)
        window_gradients = jnp.concatenate([above, here], axis=-1)  # neighbour 0 of window j + 1, neighbour 1 of window j
        # window (y, x) reads coarse voxel (y - 1 + s, x - 1 + s)
        contributions = (window_gradients @ transposed_taps).reshape(*window_gradients.shape[:3], 2, 2, c)
        parts = [contributions[:, 1 - p : 1 - p + h, 1 - q : 1 - q + w, p, q] for p in range(2) for q in range(2)]
        dx_plane = cast(Array, sum(parts))
        dx = lax.dynamic_update_index_in_dim(dx, dx_plane.astype(dx.dtype), j, 1)
        x_plane = lax.dynamic_index_in_dim(x, j, 1, keepdims=False)
        padded = [jnp.pad(x_plane, ((0, 0), (1 - p, p), (1 - q, q), (0, 0))) for p in range(2) for q in range(2)]
        product = jnp.einsum("bhwi,bhwj->ij", jnp.concatenate(padded, axis=-1), window_gradients, preferred_element_type=wide)
        return dx, dkernel + product, above

    start = loop_output(x.shape, dy), loop_zeros((4 * c, 16 * o), wide, dy), window_gradient(jnp.asarray(0))
    dx, dkernel, _ = lax.fori_loop(0, depth, step, start)
    dkernel = dkernel.reshape(2, 2, c, 2, 2, 2, 2, o).transpose(3, 0, 1, 2, 4, 5, 6, 7)
    return dx, dkernel.astype(kernel.dtype)


from_windows.defvjp(_forward, _backward)
