"""Window attention on an NVIDIA GPU by cuDNN: no weights of tokens × tokens reach memory, neither forward nor in the gradient.

cuDNN adds one bias to all windows and knows no mask beside it whose bias would still get a gradient. So the mask goes into the product:
queries and keys carry their region as further channels, in which a pair of the same region gains 100. By the softmax's shift invariance
that is the -100 of pairs from different regions. Padding has no region and is masked likewise. Logits are then large and positive, which
is the safe side of cuDNN: where they are very negative, some versions return NaN gradients (pytorch/pytorch#196678).
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from swinunetr_jax.ops.attention_weights import MASKED

REGIONS = 8  # regions of a window at most, two along each axis
MULTIPLE = 8  # of tokens and of a head's channels; cuDNN asks for an even number of tokens and whole 16 bytes of channels
MAX_CHANNELS = 128


def fits(q: Array, regions: np.ndarray | None) -> bool:
    """Whether cuDNN takes these arguments: 16-bit types, and nothing that the installed version refuses.

    `regions` are numbered from 0 within each window, [windows, t].
    """
    short = q.dtype in (jnp.bfloat16, jnp.float16)
    few = regions is None or regions.max() < REGIONS
    return short and few and _channels(q.shape[-1]) <= MAX_CHANNELS and _builds(q.shape[1:], q.dtype.name)


def fused(q: Array, k: Array, v: Array, bias: Array, regions: Array | None, implementation: str | None = "cudnn") -> Array:
    """As `attention.plain`, with regions numbered from 0; `implementation` is that of `jax.nn.dot_product_attention`."""
    n, t, m, c = q.shape
    regions = jnp.zeros((1, t), jnp.int8) if regions is None else regions
    regions = lax.optimization_barrier(regions)  # a constant: else XLA spends minutes on computing what follows beforehand
    sign = jax.nn.one_hot(regions, REGIONS, dtype=q.dtype) * (-MASKED) ** 0.5  # [windows, t, 8], exact: 10²
    sign = jnp.broadcast_to(sign[None, :, :, None], (n // len(regions), *regions.shape, m, REGIONS)).reshape(n, t, m, REGIONS)
    channels, tokens = _channels(c) - c, _tokens(t) - t
    q, k = (jnp.pad(jnp.concatenate([a, sign], axis=-1), ((0, 0), (0, tokens), (0, 0), (0, channels - REGIONS))) for a in (q, k))
    v = jnp.pad(v, ((0, 0), (0, tokens), (0, 0), (0, channels)))
    # in the type of q: with a bias in float32, cuDNN's gradients are NaN (jax-ml/jax#32242)
    bias = jnp.pad(bias.astype(q.dtype), ((0, 0), (0, tokens), (0, tokens)))[None]
    return jax.nn.dot_product_attention(q, k, v, bias=bias, scale=1.0, implementation=implementation)[:, :t, :, :c]


def _tokens(t: int) -> int:
    padded = -(-t // MULTIPLE) * MULTIPLE
    return padded + MULTIPLE if padded % 128 == 64 else padded  # the sizes of the NaN gradients above


def _channels(c: int) -> int:
    return -(-(c + REGIONS) // MULTIPLE) * MULTIPLE


@functools.lru_cache(maxsize=64)
def _builds(window: tuple[int, int, int], dtype: str) -> bool:
    """Whether jax has cuDNN at all and, on a machine with a GPU, whether cuDNN has kernels for windows [t, m, c]."""
    t, m, _ = window
    x, bias = jax.ShapeDtypeStruct((2, *window), dtype), jax.ShapeDtypeStruct((m, t, t), dtype)

    def loss(q: Array, k: Array, v: Array, bias: Array) -> Array:
        return fused(q, k, v, bias, None).astype(jnp.float32).sum()

    try:
        traced = jax.jit(jax.grad(loss, (0, 1, 2, 3))).trace(x, x, x, bias)
    except Exception:  # an installation for other platforms
        return False
    if jax.default_backend() != "gpu":
        return True
    try:
        traced.lower().compile()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"cuDNN has no fused attention for windows of {window}, they take more memory and time: {reason}", stacklevel=2
        )
        return False
    return True
