"""3³ convolutions on a TPU, large grids: [b, d, h, w, c_in], [3, 3, 3, c_in, c_out] -> [b, d, h, w, c_out].

Given one volume, the compiler's own 3-D convolution first cuts it into eight overlapping pieces, to have a batch, and puts it together
again afterwards; for few channels these copies cost more than the arithmetic. Planes are a batch already. They go through a 2-D
convolution whose input channels are the three depth taps, and lie on the lanes, where 48 channels would fill less than half.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

PLANES, CHANNELS = 48, 96  # from so many planes and up to so many channels; at 48³ 48→48 still twice as fast by the estimate


def pays(x: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether planes fill the lanes better than channels would."""
    return x[0] * x[1] >= PLANES and max(kernel[-2:]) <= CHANNELS


@jax.custom_vjp
def by_planes(x: Array, kernel: Array) -> Array:
    """One 2-D convolution of all planes, each beside its two neighbours."""
    return _planes(_beside(x), _flat(kernel)).reshape(*x.shape[:-1], -1)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return by_planes(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    mirrored = jnp.flip(kernel, (0, 1, 2)).swapaxes(-1, -2)
    _, pullback = jax.vjp(lambda flat: _planes(_beside(x), flat), _flat(kernel))
    (dflat,) = pullback(rearrange(dy, "b d h w c -> (b d) h w c"))
    return by_planes(dy, mirrored), rearrange(dflat, "h w (d i) o -> d h w i o", d=3)


by_planes.defvjp(_forward, _backward)


def _planes(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _beside(x: Array) -> Array:
    """[(b d), h, w, 3 c]: the plane before, the plane itself and the one behind, zeros outside."""
    depth = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    near = jnp.concatenate([padded[:, tap : tap + depth] for tap in range(3)], axis=-1)
    return rearrange(near, "b d h w c -> (b d) h w c")


def _flat(kernel: Array) -> Array:
    return rearrange(kernel, "d h w i o -> h w (d i) o")


def patches(x: Array, kernel: Array) -> Array:
    """Kernel 2 and stride 2: pairs of planes as input channels."""
    planes = rearrange(x, "b (d o) h w c -> (b d) h w (o c)", o=2)
    flat = rearrange(kernel, "o p q i u -> p q (o i) u")
    y = lax.conv_general_dilated(planes, flat, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return rearrange(y, "(b d) h w u -> b d h w u", b=len(x))
