"""Window attention on a TPU, a few windows at a time, so that their tokens × tokens weights stay in on-chip memory.

If attention were computed for all windows at once, XLA would write the weights to memory several times in float32: half a gigabyte for
the first stage of a 96³ volume.

Arrays are [n, m, c, t], so that the tokens are on the lanes. The channels of a head are then rows that are used in place; with channels
on the lanes each head would have to be cut out of them. The product with the values also computes the sum of each row of weights: the
values have one more channel, which is 1. A separate sum would take longer than all products together.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops.attention.reference import MASKED
from swinunetr_jax.ops.loop_output import loop_zeros
from swinunetr_jax.runtime.dispatch import Implementation
from swinunetr_jax.runtime.promotion import wide_dtype

# The limits for the weights of a chunk in bytes: a v5e or v6e has 128 MB of on-chip memory, and the gradient needs three arrays of the
# size of the weights.
CHUNK_BYTES, CHUNK_BYTES_GRADIENT = 80 << 20, 27 << 20


def chunks(q: Array, k: Array, v: Array, bias: Array, regions: Array | None) -> Array:
    """Returns the attention by a loop over chunks of windows."""
    count, of_chunk = _chunks(CHUNK_BYTES, bias, q, k, v, regions=regions)

    def step(index: Array) -> Array:
        q, k, v, regions = of_chunk(index)
        exps = _exp_logits(q, k, bias, regions)
        values = jnp.concatenate([v, jnp.ones_like(v[:, :, :1])], axis=2)
        y = jnp.einsum("nmcs,nmst->nmct", values, exps.astype(v.dtype), preferred_element_type=exps.dtype)
        return (y[:, :, :-1] / y[:, :, -1:]).astype(v.dtype)

    return _from_chunks(lax.map(step, jnp.arange(count)))


def _chunks_vjp(inputs: tuple[Any, ...], y: Array, dy: Array) -> tuple[Array | None, ...]:
    """Returns the gradients by the same kind of loop, which computes the weights again; None for the regions."""
    q, k, v, bias, regions = inputs
    count, of_chunk = _chunks(CHUNK_BYTES_GRADIENT, bias, q, k, v, y, dy, regions=regions)

    def step(dbias: Array, index: Array) -> tuple[Array, tuple[Array, ...]]:
        q, k, v, y, dy, regions = of_chunk(index)
        exps = _exp_logits(q, k, bias, regions)
        wide, low_dtype = exps.dtype, q.dtype
        ones = jnp.ones((8, exps.shape[2]), low_dtype)  # XLA would turn the product with a single row back into a sum
        weights = exps / jnp.einsum("os,nmst->nmot", ones, exps.astype(low_dtype), preferred_element_type=wide)[:, :, :1]
        dweights = jnp.einsum("nmcs,nmct->nmst", v, dy, preferred_element_type=wide)
        inner = (y.astype(wide) * dy.astype(wide)).sum(2, keepdims=True)  # sum of weights * dweights
        dlogits = weights * (dweights - inner)
        dq = jnp.einsum("nmcs,nmst->nmct", k, dlogits.astype(low_dtype))
        dk = jnp.einsum("nmct,nmst->nmcs", q, dlogits.astype(low_dtype))
        dv = jnp.einsum("nmct,nmst->nmcs", dy, weights.astype(low_dtype))
        return dbias + dlogits.sum(0), (dq, dk, dv)

    start = loop_zeros(bias.shape, wide_dtype(q.dtype), dy)
    dbias, parts = lax.scan(step, start, jnp.arange(count))
    return *map(_from_chunks, parts), dbias.swapaxes(1, 2).astype(bias.dtype), None


CHUNKS = Implementation(chunks, _chunks_vjp)


def _exp_logits(q: Array, k: Array, bias: Array, regions: Array | None) -> Array:
    """Returns exp(q kᵀ + bias + mask) up to a factor for each t, [n, m, s, t], for q and k [n, m, c, t], in float32 at least."""
    wide = wide_dtype(q.dtype)
    logits = jnp.einsum("nmcs,nmct->nmst", k, q, preferred_element_type=wide) + bias.swapaxes(1, 2)[None].astype(wide)
    if regions is not None:
        logits += jnp.where(regions[:, :, None] == regions[:, None, :], 0, MASKED).astype(wide)[:, None]
    return jnp.exp(logits - logits.max(2, keepdims=True))


def _chunks(limit: int, bias: Array, *arrays: Array, regions: Array | None) -> tuple[int, Callable[[Array], list[Any]]]:
    """Returns the number of chunks and a function that maps a chunk's index to its windows of the arrays, [n, m, c, t], and its regions.

    Each of the `count` chunks consists of every `count`-th window, so that windows that are sharded over devices stay on their devices.
    """
    windows = len(arrays[0])
    # There are as few chunks of equal size as the limit allows. If the number of windows has few divisors, they are far smaller than that.
    fitting_counts = (n for n in range(1, windows) if windows % n == 0 and windows // n * bias.size * 4 <= limit)
    count = next(fitting_counts, windows)
    arrays_by_chunk = [rearrange(a, "(n i) t m c -> n i m c t", i=count) for a in arrays]
    if regions is not None:
        arrays_by_chunk.append(jnp.tile(regions, (windows // len(regions), 1)).reshape(-1, count, regions.shape[-1]))

    def of_chunk(index: Array) -> list[Any]:
        parts = [lax.dynamic_index_in_dim(a, index, 1, keepdims=False) for a in arrays_by_chunk]
        return parts if regions is not None else [*parts, None]

    return count, of_chunk


def _from_chunks(parts: Array) -> Array:
    """Returns the windows of all chunks: [i, n, m, c, t] -> [(n i), t, m, c]."""
    return rearrange(parts, "i n m c t -> (n i) t m c")
