"""Matrix products over the channels: linear layers, 1³ convolutions, and whatever comes down to them."""

from jax import Array, lax

from swinunetr_jax.ops import dense_cpu


def dense(x: Array, kernel: Array) -> Array:
    """[..., c_in] @ [c_in, c_out] -> [..., c_out]."""
    return lax.platform_dependent(x, kernel, cpu=dense_cpu.dense, default=plain)


def plain(x: Array, kernel: Array) -> Array:
    return x @ kernel
