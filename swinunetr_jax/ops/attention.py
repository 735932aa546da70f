"""Attention inside windows, with a bias per pair of tokens and regions that do not see one another."""

import jax
import jax.numpy as jnp
import numpy as np

MASKED = -100.0  # added to the logits of pairs from different regions; the reference's finite value


def window_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    regions: np.ndarray | None = None,
    *,
    drop_rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q kᵀ + bias + mask) v, window by window, with logits and softmax in float32 at least.

    Args:
        q, k, v: [n, t, m, c]: windows (the batch's first sample first), tokens, heads, channels of a head; `q` already scaled.
        bias: [m, t, t].
        regions: [windows, t] region ids of one sample's windows, None where all tokens see one another.
        drop_rate, key: dropout on the attention weights, active where a key is given.

    Returns:
        [n, t, m, c] in the dtype of `v`.
    """
    logits = jnp.einsum("ntmc,nsmc->nmts", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    logits = logits + bias.astype(logits.dtype)
    if regions is not None:
        mask = np.where(regions[:, :, None] == regions[:, None, :], 0.0, MASKED).astype(np.float32)  # [windows, t, t]
        n, m, t, s = logits.shape
        logits = (logits.reshape(-1, len(mask), m, t, s) + mask[:, None]).reshape(n, m, t, s)
    weights = jax.nn.softmax(logits, axis=-1)
    if key is not None and drop_rate > 0:
        keep = jax.random.bernoulli(key, 1 - drop_rate, weights.shape)
        weights = jnp.where(keep, weights / (1 - drop_rate), 0)
    return jnp.einsum("nmts,nsmc->ntmc", weights.astype(v.dtype), v)
