"""Window attention on a TPU: a few windows at a time, so that their tokens × tokens weights stay in the chip's own memory.

All windows at once, XLA writes the weights to memory several times over in float32: half a gigabyte for a 96³ volume's first stage.

Tokens lie on the lanes and the channels of all heads above one another, [n, m, c, t]: a head's channels are then rows that need no
moving, where side by side on the lanes each head would have to be cut out of them. The sum of a row's weights is the product with one
more channel, of ones: as a sum it takes longer than all products together.
"""

import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops.attention_weights import MASKED

# Of the 128 MB that a v5e or v6e has, what the weights of the windows that are worked on may take; in the gradient there are three of them.
CHUNK_BYTES, CHUNK_BYTES_GRADIENT = 80 << 20, 27 << 20


def by_chunks(q: Array, k: Array, v: Array, bias: Array, regions: Array | None) -> Array:
    """A loop over chunks of windows."""
    chunks, of_chunk = _chunks(CHUNK_BYTES, bias, q, k, v, regions=regions)

    def step(index: Array) -> Array:
        q, k, v, regions = of_chunk(index)
        powers = _powers(q, k, bias, regions)
        values = jnp.concatenate([v, jnp.ones_like(v[:, :, :1])], axis=2)
        y = jnp.einsum("nmcs,nmst->nmct", values, powers.astype(v.dtype), preferred_element_type=powers.dtype)
        return (y[:, :, :-1] / y[:, :, -1:]).astype(v.dtype)

    return _joined(lax.map(step, jnp.arange(chunks)))


def gradient(inputs: tuple[Array | None, ...], y: Array, dy: Array) -> tuple[Array | None, ...]:
    """The gradients of `by_chunks`, likewise in a loop that computes the weights again; None for the regions."""
    q, k, v, bias, regions = inputs
    chunks, of_chunk = _chunks(CHUNK_BYTES_GRADIENT, bias, q, k, v, y, dy, regions=regions)

    def step(dbias: Array, index: Array) -> tuple[Array, tuple[Array, ...]]:
        q, k, v, y, dy, regions = of_chunk(index)
        powers = _powers(q, k, bias, regions)
        wide, low = powers.dtype, q.dtype
        ones = jnp.ones((8, powers.shape[2]), low)  # of a single row the compiler makes a sum again
        weights = powers / jnp.einsum("os,nmst->nmot", ones, powers.astype(low), preferred_element_type=wide)[:, :, :1]
        dweights = jnp.einsum("nmcs,nmct->nmst", v, dy, preferred_element_type=wide)
        inner = (y.astype(wide) * dy.astype(wide)).sum(2, keepdims=True)  # sum of weights * dweights
        dlogits = weights * (dweights - inner)
        dq = jnp.einsum("nmcs,nmst->nmct", k, dlogits.astype(low))
        dk = jnp.einsum("nmct,nmst->nmcs", q, dlogits.astype(low))
        dv = jnp.einsum("nmct,nmst->nmcs", dy, weights.astype(low))
        return dbias + dlogits.sum(0), (dq, dk, dv)

    start = jnp.zeros(bias.shape, jnp.promote_types(q.dtype, jnp.float32))
    dbias, parts = lax.scan(step, start, jnp.arange(chunks))
    return *map(_joined, parts), dbias.swapaxes(1, 2).astype(bias.dtype), None


def _powers(q: Array, k: Array, bias: Array, regions: Array | None) -> Array:
    """exp(q kᵀ + bias + mask) up to a factor for each t, [n, m, s, t], of q and k [n, m, c, t], in float32 at least."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("nmcs,nmct->nmst", k, q, preferred_element_type=wide) + bias.swapaxes(1, 2).astype(wide)
    if regions is not None:
        logits += jnp.where(regions[:, :, None] == regions[:, None, :], 0, MASKED).astype(wide)[:, None]
    return jnp.exp(logits - logits.max(2, keepdims=True))


def _chunks(limit: int, bias: Array, *arrays: Array, regions: Array | None):
    """How many chunks there are and a function from a chunk's index to its windows, [n, m, c, t], and their regions.

    A chunk takes one window in so many, not neighbours, so that windows which are spread over devices stay where they are.
    """
    windows = len(arrays[0])
    # the fewest of equal size; a number of windows with few divisors gives chunks far below the limit
    fits = (c for c in range(1, windows) if windows % c == 0 and windows // c * bias.size * 4 <= limit)
    count = next(fits, windows)
    split = [rearrange(a, "(n i) t m c -> n i m c t", i=count) for a in arrays]
    if regions is not None:
        split.append(jnp.tile(regions, (windows // len(regions), 1)).reshape(-1, count, regions.shape[-1]))

    def of_chunk(index: Array) -> list[Array | None]:
        parts = [lax.dynamic_index_in_dim(a, index, 1, keepdims=False) for a in split]
        return parts if regions is not None else [*parts, None]

    return count, of_chunk


def _joined(parts: Array) -> Array:
    """[i, n, m, c, t] -> [(n i), t, m, c]."""
    return rearrange(parts, "i n m c t -> (n i) t m c")
