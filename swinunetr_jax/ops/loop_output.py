"""Arrays for loops on a CPU to write their results into."""

import jax.numpy as jnp
from jax import Array


def loop_output(shape: tuple[int, ...], source: Array) -> Array:
    """Returns an array with the dtype of `source`, for a loop that overwrites every element of it.

    Its elements are all equal to the first element of `source`, which must be an input of the loop. An array of zeros would be correct,
    too, but XLA shares one array of zeros among all loops of a program, copies it for each of them, and creates the copies long before
    their loops run. An array that depends on the loop's input is created when the loop runs, without a copy.
    """
    return jnp.broadcast_to(source[(0,) * source.ndim], shape)
