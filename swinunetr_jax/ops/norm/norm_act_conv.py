"""An instance norm, a leaky ReLU and the 3³ convolution after them.

The gradient of the convolution needs the convolution's input. On an NVIDIA GPU this input is computed again from the norm's input, which
is kept anyway. This takes one pass over memory, and saves a tenth of the arrays that are kept between the forward and the backward pass.
On other platforms the convolution's input is kept.
"""

import jax
from jax import Array, lax

from swinunetr_jax.ops.conv import conv
from swinunetr_jax.ops.lane_blocks import G, Grid, array_of, like
from swinunetr_jax.ops.norm.moments import Moments, gradient, grid_axes, mean, moments, normalize
from swinunetr_jax.ops.pointwise import leaky_relu, leaky_relu_gradient
from swinunetr_jax.runtime.dispatch import Implementation, Table, hand_differentiated, platform_dispatch


@hand_differentiated
def norm_act_conv(x: G, kernel: Array) -> G:
    """Returns conv(leaky_relu(instance_norm(x)), kernel).

    Args:
        x: [b, *grid, c_in], or such a grid in blocks.
        kernel: [*sizes, c_in, c_out].

    Returns:
        [b, *grid, c_out], in blocks if `x` is.
    """
    return _forward(x, kernel)[0]


Saved = tuple[Grid, Moments, Grid, Array]


def _forward(x: G, kernel: Array) -> tuple[G, Saved]:
    array = array_of(x)
    statistics = moments(array, grid_axes(array))
    z = like(x, _norm_act(array, statistics))
    return conv(z, kernel), (x, statistics, z, kernel)


def _backward(saved: Saved, dy: Grid) -> tuple[Grid, Array]:
    x, statistics, conv_input, kernel = saved
    z = platform_dispatch(CONV_INPUT, array_of(conv_input), array_of(x), statistics)
    conv_input_gradient, dkernel = jax.vjp(conv, like(x, z), kernel)[1](dy)
    dz, axes = array_of(conv_input_gradient), grid_axes(z)
    # If y is the norm's result, y * dy is z * dz, because leaky_relu(y) is y times its derivative.
    mean_y_dy = mean(z.astype(statistics.var.dtype) * dz.astype(statistics.var.dtype), axes)
    return like(x, gradient(array_of(x), statistics, leaky_relu_gradient(z, dz), axes, mean_y_dy)), dkernel


norm_act_conv.defvjp(_forward, _backward)


def _norm_act(x: Array, statistics: Moments) -> Array:
    return leaky_relu(normalize(x, statistics))


def _kept(z: Array, x: Array, statistics: Moments) -> Array:
    return z


def _computed_again(z: Array, x: Array, statistics: Moments) -> Array:
    """Returns the convolution's input. The barrier hides from XLA that it equals z, so that z is not used and not kept."""
    return _norm_act(lax.optimization_barrier(x), statistics)


CONV_INPUT = Table("input of norm_act_conv", Implementation(_kept), {"cuda": (Implementation(_computed_again),)})
