"""Types and shapes that are stated explicitly, so that JAX has nothing to promote.

A user may forbid that JAX promotes types (`jax_numpy_dtype_promotion="strict"`) or ranks (`jax_numpy_rank_promotion="raise"`).
"""

import jax.numpy as jnp
import numpy as np
from jax import Array


def wide_dtype(*dtypes: np.dtype | str) -> np.dtype:
    """Returns float64 if one of the types is float64, otherwise float32, for sums over many numbers of 16 bits."""
    return np.dtype(np.float64 if any(jnp.dtype(dtype) == np.float64 for dtype in dtypes) else np.float32)


def with_rank(values: Array, ndim: int) -> Array:
    """Returns values [c] as [1, ..., 1, c] with `ndim` axes, for arrays that have more axes before the same last ones."""
    return jnp.expand_dims(values, range(ndim - values.ndim))
