"""The weights of window attention, which every formulation that forms them shares."""

import jax
import jax.numpy as jnp
from jax import Array

MASKED = -100.0  # added to the logits of pairs from different regions; the reference's finite value


def attention_weights(q: Array, k: Array, bias: Array, regions: Array | None) -> Array:
    """softmax(q kᵀ + bias + mask), [n, m, t, s], in float32 at least; `regions` is [windows, t]."""
    logits = jnp.einsum("ntmc,nsmc->nmts", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    logits = logits + bias.astype(logits.dtype)
    if regions is not None:
        mask = jnp.where(regions[:, :, None] == regions[:, None, :], 0.0, MASKED).astype(jnp.float32)
        n, m, t, s = logits.shape
        logits = (logits.reshape(-1, len(mask), m, t, s) + mask[:, None]).reshape(n, m, t, s)
    return jax.nn.softmax(logits, axis=-1)
