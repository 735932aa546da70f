"""A bias per channel, whose gradient is a sum over all voxels."""

import jax
import jax.numpy as jnp
from jax import Array

from swinunetr_jax.platforms import choose


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """[..., c] + [c] in the dtype of `x`; the gradient of the bias is summed in float32 at least, and has the bias' dtype.

    Autodiff would sum in the dtype of `x`: of a hundred thousand voxels in bfloat16 most are lost.
    """
    return x + bias.astype(x.dtype)


def _backward(bias: Array, dy: Array) -> tuple[Array, Array]:
    rows = dy.reshape(-1, dy.shape[-1])
    short = dy.dtype.itemsize < 4
    return dy, choose({"cuda": _by_product, "default": _sum} if short else {"default": _sum}, rows).astype(bias.dtype)


def _sum(rows: Array) -> Array:
    return rows.sum(0, dtype=jnp.promote_types(rows.dtype, jnp.float32))


def _by_product(rows: Array) -> Array:
    """With a row of ones, which is exact in 16 bits: a GPU's sums over many rows of few columns take eight times as long."""
    return jnp.einsum("n,nc->c", jnp.ones(len(rows), rows.dtype), rows, preferred_element_type=jnp.float32)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _backward)
