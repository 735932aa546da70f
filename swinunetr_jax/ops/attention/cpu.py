"""Window attention on a CPU, a few windows at a time, so that their tokens × tokens weights stay in cache.

This is five times faster than computing all windows at once. In the shapes, n is windows, m heads, t and s tokens, and c channels of a
head.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.ops.attention.reference import attention_weights
from swinunetr_jax.ops.loop_output import loop_output, loop_zeros
from swinunetr_jax.runtime.dispatch import Implementation
from swinunetr_jax.runtime.promotion import wide_dtype

CHUNK = 1 << 19  # the largest number of attention weights at a time: 2 MB in float32


def chunks(q: Array, k: Array, v: Array, bias: Array, regions: Array | None) -> Array:
    """Returns the attention by a loop over chunks of windows."""

    def chunk(part: Part, outputs: tuple[Array, ...]) -> tuple[Array, ...]:
        weights = attention_weights(part(q), part(k), bias, part.regions(regions))
        y = jnp.einsum("nmts,nmsc->nmtc", weights.astype(v.dtype), part(v).swapaxes(1, 2))
        return (part.put(outputs[0], y.swapaxes(1, 2)),)

    return _loop(chunk, len(q), bias, (loop_output(v.shape, v),))[0]


def _chunks_vjp(inputs: tuple[Any, ...], _y: Array, dy: Array) -> tuple[Array | None, ...]:
    """Returns the gradients by the same kind of loop, which computes the weights again; None for the regions."""
    q, k, v, bias, regions = inputs

    def chunk(part: Part, outputs: tuple[Array, ...]) -> tuple[Array, ...]:
        weights = attention_weights(part(q), part(k), bias, part.regions(regions))
        # The parts are [n, m, t, c], because XLA would otherwise transpose arrays of t × t.
        part_q, part_k, part_v, part_dy = (part(a).swapaxes(1, 2) for a in (q, k, v, dy))
        dweights = jnp.einsum("nmtc,nmsc->nmts", part_dy, part_v, preferred_element_type=weights.dtype)
        # sum(y * dy) is mathematically the same sum, but is rounded differently than dweights. If one weight is 1, the difference must be
        # zero, and rounding errors would remain instead.
        dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
        rounded = dlogits.astype(q.dtype)
        part_gradients = (
            jnp.einsum("nmts,nmsc->nmtc", rounded, part_k),
            jnp.einsum("nmts,nmtc->nmsc", rounded, part_q),
            jnp.einsum("nmts,nmtc->nmsc", weights.astype(dy.dtype), part_dy),
        )
        *gradients, dbias = outputs
        return *(part.put(a, values.swapaxes(1, 2)) for a, values in zip(gradients, part_gradients)), dbias + dlogits.sum(0)

    zero_dbias = loop_zeros(bias.shape, wide_dtype(q.dtype), dy)
    dq, dk, dv, dbias = _loop(chunk, len(q), bias, (*(loop_output(a.shape, dy) for a in (q, k, v)), zero_dbias))
    return dq, dk, dv, dbias.astype(bias.dtype), None


CHUNKS = Implementation(chunks, _chunks_vjp)


class Part(NamedTuple):
    """Consecutive windows: the first one and their number."""

    start: Array
    size: int

    def __call__(self, a: Array) -> Array:
        """Returns these windows of an array [n, ...]."""
        return lax.dynamic_slice_in_dim(a, self.start, self.size)

    def put(self, a: Array, values: Array) -> Array:
        """Returns an array [n, ...] with the values of these windows replaced."""
        return lax.dynamic_update_slice_in_dim(a, values.astype(a.dtype), self.start, 0)

    def regions(self, regions: Array | None) -> Array | None:
        """Returns the regions of these windows; `regions` [windows, t] are those of one sample."""
        return None if regions is None else regions[(self.start + jnp.arange(self.size)) % len(regions)]


def _loop(
    chunk: Callable[[Part, tuple[Array, ...]], tuple[Array, ...]], windows: int, bias: Array, outputs: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Calls `chunk`, which writes its windows into the outputs, for all windows, as many at a time as fit into the cache."""
    size = max(n for n in _divisors(windows) if n == 1 or n * bias.size <= CHUNK)
    return lax.fori_loop(0, windows // size, lambda index, outputs: chunk(Part(index * size, size), outputs), outputs)


@functools.lru_cache(maxsize=64)
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(n for n in range(1, number + 1) if number % n == 0)
