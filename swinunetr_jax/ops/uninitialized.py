"""Arrays for loops on a CPU to write their results into."""

import jax.numpy as jnp
from jax import Array


def uninitialized_like(shape: tuple[int, ...], like: Array) -> Array:
    """Returns an array of the dtype of `like`, whose elements must all be overwritten by a loop.

    An array of zeros would be correct, too, but XLA shares one array of zeros among all loops of a program, copies it for each of them,
    and creates the copies long before their loops run. An array filled with an element of the loop's own input is created when the
    loop runs, without a copy.
    """
    return jnp.broadcast_to(like[(0,) * like.ndim], shape)
