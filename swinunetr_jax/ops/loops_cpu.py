"""What loops over parts of an array share on a CPU."""

import jax.numpy as jnp
from jax import Array


def unwritten(shape: tuple[int, ...], like: Array) -> Array:
    """An array whose every element a loop will overwrite, in the dtype of `like`.

    Zeros would do, but the compiler shares one array of zeros among all loops of a program, copies it for each and makes the copies
    long before their loops run. A value of the loop's own input ties the array to its place, and nothing is copied.
    """
    return jnp.broadcast_to(like[(0,) * like.ndim], shape)
