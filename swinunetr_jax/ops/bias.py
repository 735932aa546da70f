"""A bias per channel, whose gradient is a sum over all voxels."""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """[..., c] + [c] in the dtype of `x`; the gradient of the bias is summed in float32 at least, and has the bias' dtype.

    Autodiff would sum in the dtype of `x`: of a hundred thousand voxels in bfloat16 most are lost.
    """
    return x + bias.astype(x.dtype)


def _backward(bias: Array, dy: Array) -> tuple[Array, Array]:
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    return dy, dy.sum(range(dy.ndim - 1), dtype=wide).astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _backward)
