"""Activations whose gradient keeps one array instead of several."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

NEGATIVE_SLOPE = 0.01


@jax.custom_vjp
def leaky_relu(x: Array) -> Array:
    """x where it is positive, else 0.01 x; the derivative at 0 is 0.01, as in PyTorch."""
    return jnp.where(x >= 0, x, NEGATIVE_SLOPE * x)


def leaky_relu_gradient(y: Array, dy: Array) -> Array:
    """From the output, which has the sign of the input, and which the next layer keeps anyway."""
    return jnp.where(y > 0, dy, NEGATIVE_SLOPE * dy)


leaky_relu.defvjp(lambda x: (leaky_relu(x),) * 2, lambda y, dy: (leaky_relu_gradient(y, dy),))


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """The exact GELU, x Φ(x), in float32 at least; by erf, which compilers fuse into one pass (`jax.nn.gelu` keeps an erfc)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _normal_distribution(wide)).astype(x.dtype)


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    x, dy = lax.optimization_barrier((x, dy))  # else the compiler keeps the forward pass' erf to save itself this one
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    return (((_normal_distribution(wide) + wide * density) * dy.astype(wide.dtype)).astype(x.dtype),)


def _normal_distribution(x: Array) -> Array:
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)
