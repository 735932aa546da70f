"""An instance norm, a leaky ReLU and the 3³ convolution behind them.

The convolution's gradient needs what the convolution read. On an NVIDIA GPU that is made again from the norm's input, which is kept
anyway: one pass, for a tenth of the memory between a training step's passes. Elsewhere it is kept.
"""

from typing import Any

import jax
from jax import Array, lax

from swinunetr_jax.ops import norm
from swinunetr_jax.ops.activation import leaky_relu, leaky_relu_gradient
from swinunetr_jax.ops.conv import conv
from swinunetr_jax.runtime.dispatch import choose


@jax.custom_vjp
def norm_act_conv(x: Array, kernel: Array) -> Array:
    """conv(leaky_relu(instance_norm(x)), kernel) of [b, *grid, c_in] and [*sizes, c_in, c_out]: [b, *grid, c_out]."""
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Any, ...]]:
    statistics = norm.moments(x, norm.grid_axes(x))
    z = _act(x, statistics)
    return conv(z, kernel), (x, statistics, z, kernel)


def _backward(saved: tuple[Any, ...], dy: Array) -> tuple[Array, Array]:
    x, statistics, z, kernel = saved
    # the barrier hides from the compiler that it has this value already; what it then does not use it does not keep
    again = {"cuda": lambda z, x, statistics: _act(lax.optimization_barrier(x), statistics), "default": lambda z, *_: z}
    z = choose(again, z, x, statistics)
    dz, dkernel = jax.vjp(conv, z, kernel)[1](dy)
    axes = norm.grid_axes(x)
    # for y, the norm's result, and its gradient dy: y * dy is z * dz, as leaky_relu(y) is y times its derivative
    along_y = norm.mean(z.astype(statistics.var.dtype) * dz.astype(statistics.var.dtype), axes)
    return norm.gradient(x, statistics, leaky_relu_gradient(z, dz), axes, along_y), dkernel


def _act(x: Array, statistics: norm.Moments) -> Array:
    return leaky_relu(norm.normalize(x, statistics))


norm_act_conv.defvjp(_forward, _backward)
