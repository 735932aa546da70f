"""Normalisation with PyTorch's numbers: epsilon 1e-5, biased variance, statistics in float32 at least.

If an array is normalised by its own statistics, the gradient is written by hand: it needs the input and three numbers for each mean,
whereas JAX would keep three arrays of the input's size.
"""

import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.ops.norm.moments import EPSILON, Axes, Moments, gradient, grid_axes, moments, normalize
from swinunetr_jax.runtime.dispatch import hand_differentiated
from swinunetr_jax.runtime.promotion import with_rank


def layer_norm(x: Array, scale: Array | None = None, bias: Array | None = None) -> Array:
    """Normalises over the channels of [..., c]; scale and bias [c] are applied if they are given."""
    return normalize_by_own_moments(x, scale, bias, (x.ndim - 1,))


def instance_norm(x: Array) -> Array:
    """Normalises over the grid, for each sample and channel of [b, *grid, c], without scale and bias."""
    return normalize_by_own_moments(x, None, None, grid_axes(x))


def group_norm(x: Array, num_groups: int, scale: Array, bias: Array) -> Array:
    """Normalises over the grid and the channels of a group, for each sample of [b, *grid, c]."""
    groups = x.reshape(*x.shape[:-1], num_groups, x.shape[-1] // num_groups)
    shape = groups.shape[-2:]
    y = normalize_by_own_moments(groups, scale.reshape(shape), bias.reshape(shape), (*grid_axes(x), x.ndim))
    return y.reshape(x.shape)


def batch_norm(x: Array, mean: Array, var: Array, scale: Array, bias: Array) -> Array:
    """Normalises by given statistics [c], which are the running ones in evaluation.

    In training `normalize` is called with those of the batch.
    """
    mean, var = (with_rank(statistic, x.ndim) for statistic in (mean, var))
    return normalize(x, Moments(mean, jnp.zeros_like(mean), var), scale, bias)


def _normalize_by_own_moments(x: Array, scale: Array | None, bias: Array | None, axes: Axes) -> Array:
    """Normalises by the mean and variance of x over `axes`; scale and bias have the shape of the last axes of x."""
    return normalize(x, moments(x, axes), scale, bias)


Saved = tuple[Array, Moments, Array | None, Array | None]


def _forward(x: Array, scale: Array | None, bias: Array | None, axes: Axes) -> tuple[Array, Saved]:
    statistics = moments(x, axes)
    return normalize(x, statistics, scale, bias), (x, statistics, scale, bias)


def _backward(axes: Axes, saved: Saved, dy: Array) -> tuple[Array, Array | None, Array | None]:
    x, statistics, scale, bias = saved
    if scale is None or bias is None:
        return gradient(x, statistics, dy, axes), None, None
    summed_axes = tuple(range(x.ndim - scale.ndim))
    x_wide, dy = x.astype(statistics.var.dtype), dy.astype(statistics.var.dtype)
    dbias = dy.sum(summed_axes).astype(bias.dtype)
    dscale = (dy * (statistics.centre(x_wide) * lax.rsqrt(statistics.var + EPSILON))).sum(summed_axes).astype(scale.dtype)
    dy *= with_rank(scale.astype(dy.dtype), dy.ndim)
    return gradient(x, statistics, dy, axes), dscale, dbias


normalize_by_own_moments = hand_differentiated(_normalize_by_own_moments, nondiff_argnums=(3,))
normalize_by_own_moments.defvjp(_forward, _backward)
