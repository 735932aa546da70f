"""Arrays with which loops start."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from swinunetr_jax.runtime.manual_axes import vary_like


def loop_output(shape: tuple[int, ...], source: Array) -> Array:
    """Returns an array with the dtype of `source`, for a loop that overwrites every element of it.

    Its elements are all equal to the first element of `source`, which must be an input of the loop. An array of zeros would be correct,
    too, but XLA shares one array of zeros among all loops of a program, copies it for each of them, and creates the copies long before
    their loops run. An array that depends on the loop's input is created when the loop runs, without a copy.
    """
    return jnp.broadcast_to(source[(0,) * source.ndim], shape)


def loop_zeros(shape: tuple[int, ...], dtype: np.dtype, source: Array) -> Array:
    """Returns zeros, for a loop that adds to them numbers that depend on `source`; inside `jax.shard_map` they have its type."""
    return vary_like(jnp.zeros(shape, dtype), source)
