"""Matrix products over the channels: linear layers, 1³ convolutions, and whatever comes down to them."""

from jax import Array

from swinunetr_jax.ops import dense_cpu
from swinunetr_jax.runtime.dispatch import Implementation, by_platform


def dense(x: Array, kernel: Array) -> Array:
    """[..., c_in] @ [c_in, c_out] -> [..., c_out], all of one dtype."""
    return _dense(x, kernel)


def plain(x: Array, kernel: Array) -> Array:
    return x @ kernel


_dense = by_platform(Implementation(plain), cpu=Implementation(plain, dense_cpu.gradient))
