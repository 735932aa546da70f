"""Attention inside windows, with a bias for each pair of tokens and a mask between the regions of a shifted window."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from swinunetr_jax.ops.attention import cpu, cuda, reference, tpu
from swinunetr_jax.runtime.dispatch import Implementation, Table, select
from swinunetr_jax.runtime.sharding import shard_rows

WINDOW_ATTENTION = Table(
    "window_attention",
    Implementation(reference.attention),
    {"cpu": (cpu.CHUNKS,), "cuda": (cuda.CUDNN,), "tpu": (tpu.CHUNKS,)},
)


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
    """Returns softmax(q kᵀ + bias + mask) v for each window, with logits and softmax in float32 at least.

    The mask is -100 between tokens of different regions, as in the reference implementation of Swin transformers.

    Args:
        q, k, v: [n, t, m, c]: windows (those of the first sample first), tokens, heads, channels of a head; `q` is already scaled.
        bias: [m, t, t].
        regions: region ids [windows, t] of one sample's windows, None if all tokens of a window attend to one another.
        drop_rate, key: dropout on the attention weights, applied if a key is given.

    Returns:
        [n, t, m, c] in the dtype of `v`.
    """
    labels = None if regions is None else relabel_regions(regions)
    traced_labels = None if labels is None else jnp.asarray(labels)
    if key is not None and drop_rate > 0:
        return reference.attention(q, k, v, bias, traced_labels, drop_rate, key)
    attention = select(WINDOW_ATTENTION, q, k, v, bias, labels)
    return shard_rows(
        lambda q, k, v, labels, bias: attention(q, k, v, bias, labels), rows=(q, k, v, traced_labels), shared=(bias,)
    )


def relabel_regions(regions: np.ndarray) -> np.ndarray:
    """Returns region ids [windows, t] renumbered from 0 within each window, int8; implementations only compare ids within a window."""
    return np.stack([np.unique(window, return_inverse=True)[1].reshape(-1) for window in np.asarray(regions)]).astype(np.int8)
