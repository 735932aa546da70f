"""Attention inside windows, with a bias per pair of tokens and regions that do not see one another.

The formulation is chosen by the platform a program is compiled for: all windows at once here, those of a CPU in `attention_cpu`, of a
TPU in `attention_tpu`, of an NVIDIA GPU in `attention_cuda`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from swinunetr_jax.ops import attention_cpu, attention_cuda, attention_tpu
from swinunetr_jax.ops.attention_weights import attention_weights
from swinunetr_jax.runtime.dispatch import Implementation, by_platform
from swinunetr_jax.runtime.sharding import shard_rows


def window_attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array,
    regions: np.ndarray | None = None,
    *,
    drop_rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """softmax(q kᵀ + bias + mask) v, window by window, with logits and softmax in float32 at least.

    Args:
        q, k, v: [n, t, m, c]: windows (the batch's first sample first), tokens, heads, channels of a head; `q` already scaled.
        bias: [m, t, t].
        regions: [windows, t] region ids of one sample's windows, None where all tokens see one another.
        drop_rate, key: dropout on the attention weights, active where a key is given.

    Returns:
        [n, t, m, c] in the dtype of `v`.
    """
    ranked = None if regions is None else ranks(regions)
    traced = None if ranked is None else jnp.asarray(ranked)
    if key is not None and drop_rate > 0:
        return plain(q, k, v, bias, traced, drop_rate, key)
    attention = _attention_short if attention_cuda.fits(q, ranked) else _attention
    return shard_rows(lambda q, k, v, regions, bias: attention(q, k, v, bias, regions), (q, k, v, traced), (bias,))


def ranks(regions: np.ndarray) -> np.ndarray:
    """Region ids as numbers from 0 within each window, int8 [windows, t]: all that a formulation needs of them."""
    return np.stack([np.unique(window, return_inverse=True)[1].reshape(-1) for window in np.asarray(regions)]).astype(np.int8)


def plain(
    q: Array, k: Array, v: Array, bias: Array, regions: Array | None, drop_rate: float = 0.0, key: Array | None = None
) -> Array:
    """All windows at once; `regions` are numbered within each window, or in any way that tells them apart there."""
    weights = attention_weights(q, k, bias, regions)
    if key is not None:
        keep = jax.random.bernoulli(key, 1 - drop_rate, weights.shape)
        weights = jnp.where(keep, weights / (1 - drop_rate), 0)
    return jnp.einsum("nmts,nsmc->ntmc", weights.astype(v.dtype), v)


_FORMS = {
    "cpu": Implementation(attention_cpu.by_chunks, attention_cpu.gradient),
    "tpu": Implementation(attention_tpu.by_chunks, attention_tpu.gradient),
}
_attention = by_platform(Implementation(plain), **_FORMS)
_attention_short = by_platform(Implementation(plain), cuda=Implementation(attention_cuda.fused), **_FORMS)
