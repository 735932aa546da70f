"""Window attention on a TPU: a few windows at a time, so that their tokens × tokens weights stay in the chip's own memory.

All windows at once, XLA writes the weights to memory several times over in float32: half a gigabyte for a 96³ volume's first stage.

Heads stay side by side on the lanes. A head's logits are the product of all channels of a group with those of other heads set to zero,
which costs the matrix unit nothing, since it multiplies 128 at a time anyway, and spares a transposition to 16 channels. Likewise the sum
of a row's weights is the product with one more channel, of ones: a sum along lanes takes longer than all products together.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax

from swinunetr_jax.ops.attention_weights import MASKED

LANES = 128
MAX_CHUNKS = 64


def by_chunks(q: Array, k: Array, v: Array, bias: Array, regions: Array | None) -> Array:
    """A loop over chunks of windows."""
    groups, own = _groups(*q.shape[2:])
    chunks, of_chunk = _chunks(groups, q, k, v, regions=regions)

    def step(index: Array) -> Array:
        q, k, v, regions = of_chunk(index)
        powers = _powers(_logits(q, k, bias, regions, own))
        values = jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)
        y = jnp.einsum("nghts,nsgc->nghtc", powers.astype(v.dtype), values, preferred_element_type=powers.dtype)
        y = jnp.sum(y[..., :-1] / y[..., -1:] * own[:, None], 2).astype(v.dtype)  # each channel from its own head
        return rearrange(y, "n g t c -> n t g c")

    return _joined(lax.map(step, jnp.arange(chunks))).reshape(q.shape)


def gradient(inputs: tuple[Array | None, ...], y: Array, dy: Array) -> tuple[Array | None, ...]:
    """The gradients of `by_chunks`, likewise in a loop that computes the weights again; None for the regions."""
    q, k, v, bias, regions = inputs
    groups, own = _groups(*q.shape[2:])
    chunks, of_chunk = _chunks(groups, q, k, v, y, dy, regions=regions)

    def step(dbias: Array, index: Array) -> tuple[Array, tuple[Array, ...]]:
        q, k, v, y, dy, regions = of_chunk(index)
        powers = _powers(_logits(q, k, bias, regions, own))
        wide, low = powers.dtype, q.dtype
        ones = jnp.ones((powers.shape[-1], 8), low)  # of a single column the compiler makes a sum again
        weights = powers / jnp.einsum("nghts,so->nghto", powers.astype(low), ones, preferred_element_type=wide)[..., :1]
        dy_own = _by_head(dy, own)
        dweights = jnp.einsum("nghtc,nsgc->nghts", dy_own, v, preferred_element_type=wide)
        inner = jnp.einsum("nghtc,ntgc->nght", dy_own, y, preferred_element_type=wide)  # sum of weights * dweights
        dlogits = weights * (dweights - inner[..., None])
        dq = jnp.einsum("nghts,nsgc->nghtc", dlogits.astype(low), k, preferred_element_type=wide)
        dq = rearrange(jnp.sum(dq * own[:, None], 2), "n g t c -> n t g c").astype(low)
        dk = jnp.einsum("nghts,nghtc->nsgc", dlogits.astype(low), _by_head(q, own))
        dv = jnp.einsum("nghts,nghtc->nsgc", weights.astype(low), dy_own)
        return dbias + rearrange(dlogits.sum(0), "g h t s -> (g h) t s"), (dq, dk, dv)

    start = jnp.zeros(bias.shape, jnp.promote_types(q.dtype, jnp.float32))
    dbias, parts = lax.scan(step, start, jnp.arange(chunks))
    return *(_joined(part).reshape(q.shape) for part in parts), dbias.astype(bias.dtype), None


def _logits(q: Array, k: Array, bias: Array, regions: Array | None, own: Array) -> Array:
    """q kᵀ + bias + mask, [n, g, h, t, s], of q and k [n, t, g, c], in float32 at least."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("nghtc,nsgc->nghts", _by_head(q, own), k, preferred_element_type=wide)
    logits += rearrange(bias, "(g h) t s -> g h t s", h=len(own)).astype(wide)
    if regions is None:
        return logits
    return logits + jnp.where(regions[:, :, None] == regions[:, None, :], 0, MASKED).astype(wide)[:, None, None]


def _powers(logits: Array) -> Array:
    """exp(logits) up to a factor per row: weights before they are divided by their sum."""
    return jnp.exp(logits - logits.max(-1, keepdims=True))


def _by_head(x: Array, own: Array) -> Array:
    """[n, t, g, c] -> [n, g, h, t, c], zero but for a head's own channels."""
    return rearrange(x, "n t g c -> n g 1 t c") * own[:, None].astype(x.dtype)


def _groups(heads: int, channels: int) -> tuple[int, Array]:
    """Into how many groups heads go, with room for one channel more on 128 lanes where a group has several, and which channels of a
    group are those of each of its heads, [h, c]."""
    fitting = max(h for h in range(1, heads + 1) if heads % h == 0 and (h == 1 or h * channels < LANES))
    return heads // fitting, jnp.asarray(np.repeat(np.eye(fitting, dtype=np.float32), channels, axis=1))


def _chunks(groups: int, *arrays: Array, regions: Array | None):
    """How many chunks there are and a function from a chunk's index to its windows, [n, t, g, c], and their regions.

    A chunk takes one window in so many, not neighbours, so that windows which are spread over devices stay where they are.
    """
    windows = len(arrays[0])
    count = max(c for c in range(1, MAX_CHUNKS + 1) if windows % c == 0)
    split = [rearrange(a, "(n i) t (g h) c -> n i t g (h c)", i=count, g=groups) for a in arrays]
    if regions is not None:
        split.append(jnp.tile(regions, (windows // len(regions), 1)).reshape(-1, count, regions.shape[-1]))

    def of_chunk(index: Array) -> list[Array | None]:
        parts = [lax.dynamic_index_in_dim(a, index, 1, keepdims=False) for a in split]
        return parts if regions is not None else [*parts, None]

    return count, of_chunk


def _joined(parts: Array) -> Array:
    """[i, n, ...] -> [(n i), ...]."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])
