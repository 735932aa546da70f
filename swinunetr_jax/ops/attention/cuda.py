"""Window attention on an NVIDIA GPU by cuDNN, which writes no weights of tokens × tokens to memory in the forward or the backward pass.

cuDNN adds one bias to all windows, and with an additional mask it returns no gradient of the bias. Therefore the mask is part of the
product of queries and keys: both get additional channels that encode the region of the token, whose product is 100 for two tokens of the
same region and 0 otherwise. Since a softmax does not change when a constant is added, this equals the mask of -100 between different
regions. Padding has no region and is masked in the same way. The logits are then large and positive, which is safe: where they are very
negative, some versions of cuDNN return gradients that are NaN (pytorch/pytorch#196678).
"""

import functools
import warnings
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from swinunetr_jax.ops.attention.reference import MASKED
from swinunetr_jax.runtime.dispatch import Implementation

REGIONS = 8  # the largest number of regions in a window, two along each axis
# Tokens and the channels of a head are padded to a multiple of 8. cuDNN requires an even number of tokens, and channels of a multiple of
# 16 bytes.
MULTIPLE = 8
MAX_CHANNELS = 128


def supports(q: Array, k: Array, v: Array, bias: Array, regions: np.ndarray | None) -> bool:
    """Returns whether the installed cuDNN takes these inputs; `regions` [windows, t] are numbered from 0 within each window."""
    is_16bit = q.dtype in (jnp.bfloat16, jnp.float16)
    has_few_regions = regions is None or regions.max() < REGIONS
    return is_16bit and has_few_regions and _channels(q.shape[-1]) <= MAX_CHANNELS and _builds(q.shape[1:], q.dtype.name)


def cudnn(
    q: Array, k: Array, v: Array, bias: Array, regions: Array | None, implementation: Literal["xla", "cudnn"] = "cudnn"
) -> Array:
    """Returns the attention, with regions numbered from 0; `implementation` is that of `jax.nn.dot_product_attention`."""
    n, t, m, c = q.shape
    # the labels are a constant: without the barrier, constant folding would take minutes of XLA's compilation
    labels: Array = lax.optimization_barrier(jnp.zeros((1, t), jnp.int8) if regions is None else regions)
    code = jax.nn.one_hot(labels, REGIONS, dtype=q.dtype) * (-MASKED) ** 0.5  # [windows, t, 8], 0 or 10, which are exact
    code = jnp.broadcast_to(code[None, :, :, None], (n // len(labels), *labels.shape, m, REGIONS)).reshape(n, t, m, REGIONS)
    added_channels, added_tokens = _channels(c) - c, _tokens(t) - t
    q, k = (
        jnp.pad(jnp.concatenate([a, code], axis=-1), ((0, 0), (0, added_tokens), (0, 0), (0, added_channels - REGIONS)))
        for a in (q, k)
    )
    v = jnp.pad(v, ((0, 0), (0, added_tokens), (0, 0), (0, added_channels)))
    # The bias gets the type of q, since with a bias in float32 cuDNN's gradients are NaN (jax-ml/jax#32242).
    bias = jnp.pad(bias.astype(q.dtype), ((0, 0), (0, added_tokens), (0, added_tokens)))[None]
    return jax.nn.dot_product_attention(q, k, v, bias=bias, scale=1.0, implementation=implementation)[:, :t, :, :c]


CUDNN = Implementation(
    cudnn,
    supports=supports,
    requires=f"bfloat16 or float16, at most {MAX_CHANNELS - REGIONS} channels for each head, and a cuDNN that has kernels for the shape",
)


def _tokens(t: int) -> int:
    """Returns the padded number of tokens, but never 64 more than a multiple of 128, for which cuDNN's gradients may be NaN."""
    padded = -(-t // MULTIPLE) * MULTIPLE
    return padded + MULTIPLE if padded % 128 == 64 else padded


def _channels(c: int) -> int:
    """Returns the padded number of channels of a head, including those of the regions."""
    return -(-(c + REGIONS) // MULTIPLE) * MULTIPLE


@functools.lru_cache(maxsize=64)
def _builds(window: tuple[int, int, int], dtype: str) -> bool:
    """Returns whether JAX has cuDNN and, on a machine with a GPU, whether cuDNN has kernels for windows [t, m, c]."""
    t, m, _ = window
    x, bias = jax.ShapeDtypeStruct((2, *window), dtype), jax.ShapeDtypeStruct((m, t, t), dtype)

    def loss(q: Array, k: Array, v: Array, bias: Array) -> Array:
        return cudnn(q, k, v, bias, None).astype(jnp.float32).sum()

    try:
        traced = jax.jit(jax.grad(loss, (0, 1, 2, 3))).trace(x, x, x, bias)
    except Exception:  # JAX is installed for other platforms only
        return False
    if jax.default_backend() != "gpu":
        return True
    try:
        traced.lower().compile()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"cuDNN has no fused attention for windows of {window}, which therefore take more memory and time: {reason}",
            stacklevel=2,
        )
        return False
    return True
