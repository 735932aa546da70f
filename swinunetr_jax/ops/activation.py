"""Activations whose gradient keeps one array instead of several."""

import jax
import jax.numpy as jnp
from jax import Array, lax

NEGATIVE_SLOPE = 0.01


@jax.custom_vjp
def leaky_relu(x: Array) -> Array:
    """x where it is positive, else 0.01 x."""
    return jnp.where(x >= 0, x, NEGATIVE_SLOPE * x)


# The output has the sign of the input, and the next layer keeps it anyway.
leaky_relu.defvjp(lambda x: (leaky_relu(x),) * 2, lambda y, dy: (jnp.where(y >= 0, dy, NEGATIVE_SLOPE * dy),))


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """The exact GELU, x Φ(x)."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    x, dy = lax.optimization_barrier((x, dy))  # else the compiler keeps the forward pass' erf to save itself this one
    return jax.vjp(lambda x: jax.nn.gelu(x, approximate=False), x)[1](dy)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)
