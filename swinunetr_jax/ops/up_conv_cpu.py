"""The first convolutions of a decoder block on a CPU, on large grids.

A transposed convolution and the convolution behind it are one linear map, so the two kernels are multiplied once and each voxel costs 8
taps of the coarse grid instead of 27 of an upsampled one. Neither the upsampled grid nor the concatenation ever exists. Exact but for
rounding.

Folded kernels: a window of the coarse grid is two neighbours per axis (zeros outside), D + 1 of them along D voxels. Fine voxel
2 i + p reads window i + p, so a window feeds the fine voxels 2 j - 1 (p = 1) and 2 j (p = 0).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from swinunetr_jax.ops import conv_cpu
from swinunetr_jax.ops.dense import dense
from swinunetr_jax.ops.loops_cpu import unwritten
from swinunetr_jax.ops.upsample import upsample

# [p, s, t, r], along one axis: tap t of the 3-kernel on fine voxel 2 i + p meets tap r of the upsampling from neighbour s of the window
_ALONG = np.zeros((2, 2, 3, 2), np.float32)
for _p, _s, _t, _r in ((0, 0, 0, 1), (0, 1, 1, 0), (0, 1, 2, 1), (1, 0, 0, 0), (1, 0, 1, 1), (1, 1, 2, 0)):
    _ALONG[_p, _s, _t, _r] = 1
# along all three: rows are neighbours and then parities, columns taps of the upsampling and then of the 3-kernel
_MEET = np.einsum("xatr,ybuq,zcvs->abcxyzrqstuv", _ALONG, _ALONG, _ALONG).reshape(64, 216)


def pays(x: tuple[int, ...], up: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether what is saved on the grid is twice the cost of multiplying the kernels (without the adding up, which is as much)."""
    c, u, o = x[-1], up[-1], kernel[-1]
    fine = 8 * math.prod(x[:-1])
    return fine * (27 * u * o + c * u - 8 * c * o) > 2 * 216 * c * u * o


def folded(x: Array, skip: Array, up: Array, kernel: Array, shortcut: Array) -> tuple[Array, Array]:
    """With the kernels multiplied beforehand.

    That is done again at each call: under one hundredth of a network's time, too little for folded kernels to be kept beside the
    parameters.
    """
    u = up.shape[-1]
    on_up, on_skip = kernel[..., :u, :], kernel[..., u:, :]
    y = from_windows(x, fold(up, on_up)) + conv_cpu.conv(skip, on_skip)
    direct = upsample(x, jnp.einsum("rqsim,mo->rqsio", up, shortcut[0, 0, 0, :u]))
    return y, direct + dense(skip, shortcut[0, 0, 0, u:])


def fold(up: Array, kernel: Array) -> Array:
    """[neighbours s: 2, 2, 2, c_in, parities p: 2, 2, 2, c_out] from the two kernels.

    In arrays of few axes: of the same in eight XLA's newer versions think for ten seconds.
    """
    (c, u), o = up.shape[-2:], kernel.shape[-1]
    pairs = up.reshape(8 * c, u) @ kernel.reshape(27, u, o).swapaxes(0, 1).reshape(u, 27 * o)
    pairs = pairs.reshape(8, c, 27, o).swapaxes(1, 2).reshape(216, c * o)
    folded = (jnp.asarray(_MEET, kernel.dtype) @ pairs).reshape(8, 8, c, o)
    return folded.swapaxes(1, 2).reshape(2, 2, 2, c, 2, 2, 2, o)


@jax.custom_vjp
def from_windows(x: Array, kernel: Array) -> Array:
    """The folded convolution, a loop over the coarse planes: [b, d, h, w, c] -> [b, 2 d, 2 h, 2 w, o]."""
    b, depth, h, w, c = x.shape
    o = kernel.shape[-1]
    taps = kernel.transpose(1, 2, 3, 0, 4, 5, 6, 7).reshape(2, 2, c, -1)  # the depth neighbours s become outputs

    def step(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        out, early = state  # `early`: what plane j - 1 gave to window j
        plane = lax.dynamic_index_in_dim(x, j, 1, keepdims=False)
        shares = lax.conv_general_dilated(plane, taps, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
        shares = shares.reshape(b, h + 1, w + 1, 2, 2, 4 * o)
        window = early + shares[..., 1, :, :]
        out = lax.dynamic_update_index_in_dim(out, _interleave(window[..., 1, :], o), jnp.maximum(2 * j - 1, 0), 1)
        out = lax.dynamic_update_index_in_dim(out, _interleave(window[..., 0, :], o), 2 * j, 1)
        # as if it were the last window; to write that one behind the loop would copy the whole result
        out = lax.dynamic_update_index_in_dim(out, _interleave(shares[..., 0, 1, :], o), 2 * j + 1, 1)
        return out, shares[..., 0, :, :]

    start = unwritten((b, 2 * depth, 2 * h, 2 * w, o), x), jnp.zeros((b, h + 1, w + 1, 2, 4 * o), x.dtype)
    return lax.fori_loop(0, depth, step, start)[0]


def _interleave(windows: Array, o: int) -> Array:
    """A fine plane from a plane of windows: [b, h + 1, w + 1, (p q o)] -> [b, 2 h, 2 w, o]."""
    b, h, w = windows.shape[0], windows.shape[1] - 1, windows.shape[2] - 1
    parts = windows.reshape(b, h + 1, w + 1, 2, 2, o)
    rows = jnp.stack([parts[:, :h, :, 0], parts[:, 1:, :, 1]], axis=2)  # [b, h, 2, w + 1, q, o]
    return jnp.stack([rows[:, :, :, :w, 0], rows[:, :, :, 1:, 1]], axis=4).reshape(b, 2 * h, 2 * w, o)


def _collect(plane: Array) -> Array:
    """The transpose of `_interleave`: [b, 2 h, 2 w, o] -> [b, h + 1, w + 1, (p q o)]."""
    b, h, w, o = plane.shape[0], plane.shape[1] // 2, plane.shape[2] // 2, plane.shape[3]
    parts = plane.reshape(b, h, 2, w, 2, o)
    placed = [jnp.pad(parts[:, :, p, :, q], ((0, 0), (p, 1 - p), (q, 1 - q), (0, 0))) for p in range(2) for q in range(2)]
    return jnp.concatenate(placed, axis=-1)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return from_windows(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    depth, h, w, c = x.shape[1:]
    o = kernel.shape[-1]
    total = jnp.promote_types(x.dtype, jnp.float32)
    # plane d took part in window d as neighbour 1 and in window d + 1 as neighbour 0
    back = kernel.transpose(0, 4, 5, 6, 7, 1, 2, 3).reshape(16 * o, 4 * c)

    def window_gradient(j: Array) -> Array:
        """[b, h + 1, w + 1, (p1 p2 p3 o)] of window j."""
        low = lax.dynamic_index_in_dim(dy, jnp.minimum(2 * j, 2 * depth - 1), 1, keepdims=False)
        high = lax.dynamic_index_in_dim(dy, jnp.maximum(2 * j - 1, 0), 1, keepdims=False)
        low, high = jnp.where(j < depth, low, 0), jnp.where(j > 0, high, 0)
        return jnp.concatenate([_collect(low), _collect(high)], axis=-1)

    def step(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        dx, dkernel, here = state
        above = window_gradient(j + 1)
        both = jnp.concatenate([above, here], axis=-1)  # neighbour 0 of window j + 1, neighbour 1 of window j
        shares = (both @ back).reshape(*both.shape[:3], 2, 2, c)  # window (y, x) feeds coarse voxel (y - 1 + s, x - 1 + s)
        plane = sum(shares[:, 1 - p : 1 - p + h, 1 - q : 1 - q + w, p, q] for p in range(2) for q in range(2))
        dx = lax.dynamic_update_index_in_dim(dx, plane.astype(dx.dtype), j, 1)
        own = lax.dynamic_index_in_dim(x, j, 1, keepdims=False)
        placed = [jnp.pad(own, ((0, 0), (1 - p, p), (1 - q, q), (0, 0))) for p in range(2) for q in range(2)]
        product = jnp.einsum("bhwi,bhwj->ij", jnp.concatenate(placed, axis=-1), both, preferred_element_type=total)
        return dx, dkernel + product, above

    start = unwritten(x.shape, dy), jnp.zeros((4 * c, 16 * o), total), window_gradient(jnp.asarray(0))
    dx, dkernel, _ = lax.fori_loop(0, depth, step, start)
    dkernel = dkernel.reshape(2, 2, c, 2, 2, 2, 2, o).transpose(3, 0, 1, 2, 4, 5, 6, 7)
    return dx, dkernel.astype(kernel.dtype)


from_windows.defvjp(_forward, _backward)
