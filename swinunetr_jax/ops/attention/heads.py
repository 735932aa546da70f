"""The queries, keys and values of a layer that computes all three at once."""

import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.runtime.dispatch import Implementation, Table, platform_dispatch


def queries_keys_values(qkv: Array, heads: int) -> tuple[Array, Array, Array]:
    """Returns the three thirds of [n, t, 3 * c], each with its channels by head: [n, t, m, c / m]."""
    n, t, channels = qkv.shape
    return platform_dispatch(SPLIT, qkv.reshape(n, t, 3, heads, channels // (3 * heads)))


def _transposed(parts: Array) -> tuple[Array, Array, Array]:
    q, k, v = jnp.moveaxis(parts, 2, 0)
    return q, k, v


def _split(parts: Array) -> tuple[Array, Array, Array]:
    """Returns the three thirds without moving their axis to the front, for which a TPU would copy the whole array once more.

    The gradient of `lax.split` is one concatenation. That of three slices would be a sum of three padded arrays.
    """
    q, k, v = (part.squeeze(2) for part in lax.split(parts, (1, 1, 1), axis=2))
    return q, k, v


SPLIT = Table("queries, keys and values", Implementation(_transposed), {"tpu": (Implementation(_split),)})
