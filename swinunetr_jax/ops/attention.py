"""Attention inside windows, with a bias per pair of tokens and regions that do not see one another.

Two formulations, chosen by the platform a program is compiled for:

- accelerators: all windows at once;
- CPU: a few windows at a time, so that their tokens × tokens weights stay in cache: five times faster. Its gradient computes the
  weights again, likewise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

MASKED = -100.0  # added to the logits of pairs from different regions; the reference's finite value
CHUNK = 1 << 19  # attention weights at a time on a CPU: 2 MB


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
    if key is not None and drop_rate > 0:
        return plain(q, k, v, bias, regions, drop_rate, key)
    regions = None if regions is None else jnp.asarray(regions)
    return lax.platform_dependent(q, k, v, bias, regions, cpu=by_chunks, default=plain)


def plain(
    q: Array, k: Array, v: Array, bias: Array, regions: Array | None, drop_rate: float = 0.0, key: Array | None = None
) -> Array:
    """All windows at once."""
    weights = _weights(q, k, bias, _mask(regions))
    if key is not None:
        keep = jax.random.bernoulli(key, 1 - drop_rate, weights.shape)
        weights = jnp.where(keep, weights / (1 - drop_rate), 0)
    return jnp.einsum("nmts,nsmc->ntmc", weights.astype(v.dtype), v)


def _weights(q: Array, k: Array, bias: Array, mask: Array | None) -> Array:
    """[n, m, t, s]; `mask` is [windows, t, s]."""
    logits = jnp.einsum("ntmc,nsmc->nmts", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    logits = logits + bias.astype(logits.dtype)
    if mask is not None:
        n, m, t, s = logits.shape
        logits = (logits.reshape(-1, len(mask), m, t, s) + mask[:, None]).reshape(n, m, t, s)
    return jax.nn.softmax(logits, axis=-1)


def _mask(regions: Array | None) -> Array | None:
    return None if regions is None else jnp.where(regions[:, :, None] == regions[:, None, :], 0.0, MASKED).astype(jnp.float32)


@jax.custom_vjp
def by_chunks(q: Array, k: Array, v: Array, bias: Array, regions: Array | None) -> Array:
    """A loop over chunks of windows."""

    def chunk(inputs: tuple[Array, ...]) -> Array:
        q, k, v, regions = inputs
        return jnp.einsum("nmts,nsmc->ntmc", _weights(q, k, bias, _mask(regions)).astype(v.dtype), v)

    return _joined(lax.map(chunk, _chunks(bias, q, k, v, regions=regions)))


def _forward(q: Array, k: Array, v: Array, bias: Array, regions: Array | None):
    return by_chunks(q, k, v, bias, regions), (q, k, v, bias, regions)


def _backward(saved: tuple[Array, ...], dy: Array):
    q, k, v, bias, regions = saved

    def step(dbias: Array, inputs: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        q, k, v, dy, regions = inputs
        weights = _weights(q, k, bias, _mask(regions))
        dweights = jnp.einsum("ntmc,nsmc->nmts", dy, v, preferred_element_type=weights.dtype)
        inner = jnp.sum(weights * dweights, axis=-1, keepdims=True)
        dlogits = weights * (dweights - inner)
        low = dlogits.astype(q.dtype)
        dq = jnp.einsum("nmts,nsmc->ntmc", low, k)
        dk = jnp.einsum("nmts,ntmc->nsmc", low, q)
        dv = jnp.einsum("nmts,ntmc->nsmc", weights.astype(dy.dtype), dy)
        return dbias + dlogits.sum(0), (dq, dk, dv)

    total = jnp.zeros(bias.shape, jnp.promote_types(q.dtype, jnp.float32))
    dbias, parts = lax.scan(step, total, _chunks(bias, q, k, v, dy, regions=regions))
    return *map(_joined, parts), dbias.astype(bias.dtype), None


by_chunks.defvjp(_forward, _backward)


def _chunks(bias: Array, *arrays: Array, regions: Array | None) -> tuple[Array | None, ...]:
    """Arrays [n, …] as [chunks, windows of a chunk, …], and the regions of each chunk's windows likewise."""
    windows = len(arrays[0])
    size = max(n for n in _divisors(windows) if n == 1 or n * bias.size <= CHUNK)
    tiled = None if regions is None else jnp.tile(regions, (windows // len(regions), 1))
    split = [None if a is None else a.reshape(windows // size, size, *a.shape[1:]) for a in (*arrays, tiled)]
    return tuple(split)


def _joined(chunks: Array) -> Array:
    return chunks.reshape(-1, *chunks.shape[2:])


@functools.lru_cache(maxsize=64)
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(n for n in range(1, number + 1) if number % n == 0)
