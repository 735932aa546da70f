"""Normalisation with PyTorch's numbers: epsilon 1e-5, biased variance, statistics in float32 at least.

The plain one-pass variance E[x²] - E[x]² loses everything on data with a large mean (error 952 at mean 1000 and deviation 1), and a mean
of 1000 that is rounded to float32 is itself wrong by a thousandth of a deviation of 0.01. So a mean is kept as two numbers (`Moments`),
and every sum, here and in the gradient, is taken over numbers of the size of the deviation.

Where the statistics are the input's own, the gradient is written out: it needs the input and three numbers per mean, where autodiff
would keep three arrays of the input's size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from swinunetr_jax.runtime.dispatch import choose

EPSILON = 1e-5
SAMPLE_STEP = 5  # along each axis but the first; not a divisor of the usual sizes, so that all phases of a pattern are met


def layer_norm(x: jax.Array, scale: jax.Array | None = None, bias: jax.Array | None = None) -> jax.Array:
    """Over the channels of [..., c]; with scale and bias [c] where given."""
    return _own_statistics(x, scale, bias, (x.ndim - 1,))


def instance_norm(x: jax.Array) -> jax.Array:
    """Over the grid of each sample and channel of [b, *grid, c], without scale and bias."""
    return _own_statistics(x, None, None, grid_axes(x))


def grid_axes(x: jax.Array) -> tuple[int, ...]:
    """Of [b, *grid, c]."""
    return tuple(range(1, x.ndim - 1))


def group_norm(x: jax.Array, num_groups: int, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Over the grid and the channels of a group, for each sample of [b, *grid, c]."""
    groups = x.reshape(*x.shape[:-1], num_groups, x.shape[-1] // num_groups)
    shape = groups.shape[-2:]
    return _own_statistics(groups, scale.reshape(shape), bias.reshape(shape), (*grid_axes(x), x.ndim)).reshape(x.shape)


def batch_norm(x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """With statistics [c] that are given: the running ones, in evaluation. In training, `normalize` takes those of the batch."""
    return normalize(x, Moments(mean, jnp.zeros_like(mean), var), scale, bias)


class Moments(NamedTuple):
    """A mean and a biased variance over some axes, which are kept as axes of size 1, in float32 at least.

    The mean is `near + rest`: a number near it, without a gradient, and what that number lacks. x - near - rest is then exact to
    rounding of the deviations, where x - mean carries the rounding of the mean.
    """

    near: jax.Array
    rest: jax.Array
    var: jax.Array

    @property
    def mean(self) -> jax.Array:
        return self.near + self.rest

    def centre(self, x: jax.Array) -> jax.Array:
        """x minus the mean."""
        return (x - self.near) - self.rest


def moments(x: jax.Array, axes: tuple[int, ...]) -> Moments:
    """Mean and biased variance of `x` over `axes`.

    The mean over channels is computed twice, which costs nothing: of x, and of what is left without it. Over a grid all sums are taken
    in one pass, over x - s and its square, where s is the mean of a sparse sample of the grid. What is left of the mean is then of the
    size of the deviation, so that nothing cancels.
    """
    if axes == (x.ndim - 1,):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        near = lax.stop_gradient(wide.mean(axes, keepdims=True))
    else:
        near = sparse_mean(x, axes)
    forms = {"cpu": functools.partial(_means, axes, axes != (x.ndim - 1,)), "default": functools.partial(_means, axes, False)}
    rest, squares = choose(forms, x, near)
    return Moments(near, rest, squares - jnp.square(rest))


def sparse_mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Of a sparse sample of the grid, kept as axes of size 1, in float32 at least, without a gradient: what is near the mean of `x`.

    Taken from `x` as it is: of a float32 copy the compiler would first make all. The first axis goes in full, since on a TPU it
    lies on the lanes, where steps are expensive.
    """
    sparse = x[tuple(slice(None, None, SAMPLE_STEP) if axis in axes[1:] else slice(None) for axis in range(x.ndim))]
    return lax.stop_gradient(sparse.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axes, keepdims=True))


def _means(axes: tuple[int, ...], apart: bool, x: jax.Array, near: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of x - near and its square. In one pass, or `apart`: a CPU reads x twice, but would else write x - near out in between."""
    # two barriers, or what `normalize` and the gradient compute of x as well would be written out here and kept for them
    once, again = (lax.optimization_barrier((x, near))[0], lax.optimization_barrier(x)) if apart else (x, x)
    return mean(once.astype(near.dtype) - near, axes), mean(jnp.square(again.astype(near.dtype) - near), axes)


def mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The mean over `axes`, kept as axes of size 1.

    The last axis, if it is one of several, comes after the others: a CPU adds up a row of voxels beside one another in many
    sums, and voxel after voxel of interleaved channels in a single one, in which small numbers are lost.
    """
    last = x.ndim - 1
    if len(axes) == 1 or last not in axes:
        return x.mean(axes, keepdims=True)
    return x.mean(tuple(axis for axis in axes if axis != last), keepdims=True).mean(last, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _own_statistics(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    return normalize(x, moments(x, axes), scale, bias)


def _forward(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, axes: tuple[int, ...]):
    statistics = moments(x, axes)
    return normalize(x, statistics, scale, bias), (x, statistics, scale, bias)


def _backward(axes: tuple[int, ...], saved: tuple[jax.Array | Moments | None, ...], dy: jax.Array):
    x, statistics, scale, bias = saved
    if scale is None:
        return gradient(x, statistics, dy, axes), None, None
    kept = tuple(range(x.ndim - scale.ndim))
    wide, dy = x.astype(statistics.var.dtype), dy.astype(statistics.var.dtype)
    dbias = dy.sum(kept).astype(bias.dtype)
    dscale = (dy * (statistics.centre(wide) * lax.rsqrt(statistics.var + EPSILON))).sum(kept).astype(scale.dtype)
    return gradient(x, statistics, dy * scale.astype(dy.dtype), axes), dscale, dbias


def gradient(
    x: jax.Array, statistics: Moments, dy: jax.Array, axes: tuple[int, ...], along_y: jax.Array | None = None
) -> jax.Array:
    """Of x, from that of y = `normalize(x, statistics)`, where these are its own `moments` over `axes`.

    `along_y` is the mean of y * dy where the caller has it.
    """
    dtype, inverse = x.dtype, lax.rsqrt(statistics.var + EPSILON)
    x, dy = x.astype(inverse.dtype), dy.astype(inverse.dtype)
    along = mean(dy, axes)
    if along_y is None:  # a sum over x - near, as x itself may be a thousand times larger than its deviations
        along_y = inverse * (mean(dy * (x - statistics.near), axes) - statistics.rest * along)
    slope = inverse * along_y
    # inverse * (dy - along - y * along_y), with no array of the input's size that the forward pass computes as well: it would be kept
    dx = inverse * dy - (inverse * slope) * (x - statistics.near) - inverse * (along - statistics.rest * slope)
    return dx.astype(dtype)


_own_statistics.defvjp(_forward, _backward)


def normalize(x: jax.Array, statistics: Moments, scale: jax.Array | None = None, bias: jax.Array | None = None) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon), times scale plus bias, in the dtype of `x`."""
    wide = jnp.promote_types(x.dtype, statistics.var.dtype)  # running statistics are float32 even where x is float64
    y = statistics.centre(x.astype(wide)) * lax.rsqrt(statistics.var.astype(wide) + EPSILON)
    if scale is not None:
        y = y * scale.astype(y.dtype) + bias.astype(y.dtype)
    return y.astype(x.dtype)
