"""Window attention of all windows at once, and the function for its weights, which other implementations use, too."""

import jax
import jax.numpy as jnp
from jax import Array

from swinunetr_jax.runtime.promotion import wide_dtype

MASKED = -100.0  # added to the logits between different regions; the finite value of the reference implementation


def attention(
    q: Array, k: Array, v: Array, bias: Array, regions: Array | None, drop_rate: float = 0.0, key: Array | None = None
) -> Array:
    """Returns softmax(q kᵀ + bias + mask) v, [n, t, m, c]; tokens of a window with different `regions` [windows, t] are masked."""
    weights = attention_weights(q, k, bias, regions)
    if key is not None:
        keep = jax.random.bernoulli(key, 1 - drop_rate, weights.shape)
        weights = jnp.where(keep, weights / (1 - drop_rate), 0)
    return jnp.einsum("nmts,nsmc->ntmc", weights.astype(v.dtype), v)


def attention_weights(q: Array, k: Array, bias: Array, regions: Array | None) -> Array:
    """Returns softmax(q kᵀ + bias + mask), [n, m, t, s], in float32 at least; `regions` is [windows, t]."""
    logits = jnp.einsum("ntmc,nsmc->nmts", q, k, preferred_element_type=wide_dtype(q.dtype))
    logits = logits + bias[None].astype(logits.dtype)
    if regions is not None:
        mask = jnp.where(regions[:, :, None] == regions[:, None, :], 0.0, MASKED).astype(jnp.float32)
        n, m, t, s = logits.shape
        logits = (logits.reshape(-1, len(mask), m, t, s) + mask[None, :, None]).reshape(n, m, t, s)
    return jax.nn.softmax(logits, axis=-1)
