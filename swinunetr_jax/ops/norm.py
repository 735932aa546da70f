"""Normalisation with PyTorch's numbers: epsilon 1e-5, biased variance, statistics in float32 at least.

The plain one-pass variance E[x²] - E[x]² loses everything on data with a large mean (error 952 at mean 1000 and deviation 1): `moments`
takes a mean off first.

Where the statistics are the input's own, the gradient is written out: it needs the input and two numbers per mean, where autodiff
would keep three arrays of the input's size.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from swinunetr_jax.platforms import choose

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
    """With statistics [c] that are given: the batch's own in training, the running ones in evaluation."""
    return normalize(x, mean, var, scale, bias)


def moments(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over `axes`, kept as axes of size 1, in float32 at least.

    Over channels, in two passes, which cost nothing. Over a grid, in one: sums of x - s and of its square, where s is the mean of a
    sparse sample of the grid. What is left of the mean is then of the size of the deviation, so that nothing cancels.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if axes == (x.ndim - 1,):
        x = x.astype(wide)
        mean = x.mean(axes, keepdims=True)
        return mean, jnp.square(x - mean).mean(axes, keepdims=True)
    sample = sparse_mean(x, axes)
    forms = {"cpu": functools.partial(_means, axes, True), "default": functools.partial(_means, axes, False)}
    rest, squares = choose(forms, x, sample)
    return sample + rest, squares - jnp.square(rest)


def sparse_mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Of a sparse sample of the grid, kept as axes of size 1, in float32 at least, without a gradient: what is near the mean of `x`.

    Taken from `x` as it is: of a float32 copy the compiler would first make all. The first axis goes in full, since on a TPU it
    lies on the lanes, where steps are expensive.
    """
    sparse = x[tuple(slice(None, None, SAMPLE_STEP) if axis in axes[1:] else slice(None) for axis in range(x.ndim))]
    return lax.stop_gradient(sparse.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axes, keepdims=True))


def _means(axes: tuple[int, ...], apart: bool, x: jax.Array, sample: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of x - sample and its square. In one pass, or `apart`: a CPU reads x twice, but would else write x - sample out in between."""
    again = lax.optimization_barrier(x) if apart else x
    centred, centred_again = (a.astype(sample.dtype) - sample for a in (x, again))
    return centred.mean(axes, keepdims=True), jnp.square(centred_again).mean(axes, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _own_statistics(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    return normalize(x, *moments(x, axes), scale, bias)


def _forward(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, axes: tuple[int, ...]):
    mean, var = moments(x, axes)
    return normalize(x, mean, var, scale, bias), (x, mean, var, scale, bias)


def _backward(axes: tuple[int, ...], saved: tuple[jax.Array | None, ...], dy: jax.Array):
    x, mean, var, scale, bias = saved
    if scale is None:
        return gradient(x, mean, var, dy, axes), None, None
    kept = tuple(range(x.ndim - scale.ndim))
    wide, dy = x.astype(mean.dtype), dy.astype(mean.dtype)
    dbias = dy.sum(kept).astype(bias.dtype)
    dscale = (dy * ((wide - mean) * lax.rsqrt(var + EPSILON))).sum(kept).astype(scale.dtype)
    return gradient(x, mean, var, dy * scale.astype(dy.dtype), axes), dscale, dbias


def gradient(x: jax.Array, mean: jax.Array, var: jax.Array, dy: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Of x, from that of `normalize(x, mean, var)`, where mean and var are its own `moments` over `axes`."""
    dtype, inverse = x.dtype, lax.rsqrt(var + EPSILON)
    x, dy = x.astype(mean.dtype), dy.astype(mean.dtype)
    # inverse * (dy - mean(dy) - y * mean(y * dy)), with sums and a last pass that share no array of the input's size: one would live
    # from the forward pass on
    along = dy.mean(axes, keepdims=True)
    slope = jnp.square(inverse) * ((dy * x).mean(axes, keepdims=True) - mean * along)
    dx = inverse * dy - (inverse * slope) * x - inverse * (along - mean * slope)
    return dx.astype(dtype)


_own_statistics.defvjp(_forward, _backward)


def normalize(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array | None = None, bias: jax.Array | None = None
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon), times scale plus bias, in the dtype of `x`."""
    wide = jnp.promote_types(x.dtype, mean.dtype)  # running statistics are float32 even where x is float64
    y = (x.astype(wide) - mean) * lax.rsqrt(var.astype(wide) + EPSILON)
    if scale is not None:
        y = y * scale.astype(y.dtype) + bias.astype(y.dtype)
    return y.astype(x.dtype)
