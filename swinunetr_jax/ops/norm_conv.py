"""An instance norm, a leaky ReLU and the 3³ convolution behind them.

The convolution's gradient needs what the convolution read. On an NVIDIA GPU that is made again from the norm's input, which is kept
anyway: one pass, for a tenth of the memory between a training step's passes. Elsewhere it is kept.
"""

import jax
from jax import Array, lax

from swinunetr_jax.ops import norm
from swinunetr_jax.ops.activation import leaky_relu, leaky_relu_gradient
from swinunetr_jax.ops.conv import conv
from swinunetr_jax.platforms import choose


@jax.custom_vjp
def norm_act_conv(x: Array, kernel: Array) -> Array:
    """conv(leaky_relu(instance_norm(x)), kernel) of [b, *grid, c_in] and [*sizes, c_in, c_out]: [b, *grid, c_out]."""
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, ...]]:
    mean, var = norm.moments(x, norm.grid_axes(x))
    z = _act(x, mean, var)
    return conv(z, kernel), (x, mean, var, z, kernel)


def _backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array]:
    x, mean, var, z, kernel = saved
    # the barrier hides from the compiler that it has this value already; what it then does not use it does not keep
    again = {"cuda": lambda z, x, mean, var: _act(lax.optimization_barrier(x), mean, var), "default": lambda z, *_: z}
    z = choose(again, z, x, mean, var)
    dz, dkernel = jax.vjp(conv, z, kernel)[1](dy)
    return norm.gradient(x, mean, var, leaky_relu_gradient(z, dz), norm.grid_axes(x)), dkernel


def _act(x: Array, mean: Array, var: Array) -> Array:
    return leaky_relu(norm.normalize(x, mean, var))


norm_act_conv.defvjp(_forward, _backward)
