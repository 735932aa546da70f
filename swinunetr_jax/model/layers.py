"""Leaf layers with PyTorch's exact semantics and initialisation, channels last.

Parameters are stored in `config.param_dtype` and used in `config.dtype`. Randomness is given: a layer called without a key is
deterministic.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.ops.activation import leaky_relu
from swinunetr_jax.ops.bias import add_bias
from swinunetr_jax.ops.conv import conv, patch_conv
from swinunetr_jax.ops.conv_norm import conv_instance_norm
from swinunetr_jax.ops.dense import dense
from swinunetr_jax.ops.norm import batch_norm, group_norm, instance_norm, layer_norm, moments, normalize
from swinunetr_jax.ops.norm_conv import norm_act_conv

BATCH_NORM_MOMENTUM = 0.1


def uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, dtype: str) -> nnx.Param:
    """PyTorch's default start for weights and biases alike: uniform in ±1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return nnx.Param(
        draw(rngs, lambda r: r.uniform(-bound, bound, shape), jax.random.uniform, shape, -bound, bound).astype(dtype)
    )


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, dtype: str) -> nnx.Param:
    return nnx.Param((std * draw(rngs, lambda r: r.standard_normal(shape), jax.random.normal, shape)).astype(dtype))


def draw(rngs: nnx.Rngs, on_host: Callable, traced: Callable, *args: Any) -> Array:
    """A random array from the next key: drawn by numpy on the host, seeded by the key.

    jax.random would compile a program for each of the hundred shapes of a network: half a minute on a CPU. It is used only where
    the constructor itself is traced (`nnx.eval_shape`, where no number is drawn, or `jax.jit`, where the numbers are then others).
    """
    key = rngs.params()
    if isinstance(key, jax.core.Tracer):
        return traced(key, args[0], jnp.float32, *args[1:])
    seed = np.asarray(jax.random.key_data(key)).tolist()
    return jnp.asarray(on_host(np.random.Generator(np.random.Philox(seed))), jnp.float32)


def split_key(key: Array | None, count: int) -> list[Array | None]:
    """`count` independent keys, or as many None: no key means deterministic."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes elements with probability `rate` and scales the rest, where a key is given."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def drop_path(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes whole samples of [b, ...] with probability `rate` and scales the rest, where a key is given."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Linear(nnx.Module):
    """[..., c_in] -> [..., c_out]."""

    def __init__(self, c_in: int, c_out: int, config: SwinUNETRConfig, *, bias: bool = True, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.kernel = uniform(rngs, (c_in, c_out), c_in, config.param_dtype)
        self.bias = uniform(rngs, (c_out,), c_in, config.param_dtype) if bias else None

    def __call__(self, x: Array) -> Array:
        y = dense(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else add_bias(y, self.bias[...])


class Conv(nnx.Module):
    """Same-size convolution, stride 1: [b, *grid, c_in] -> [b, *grid, c_out]."""

    def __init__(self, c_in: int, c_out: int, size: int, config: SwinUNETRConfig, *, bias: bool = False, rngs: nnx.Rngs):
        self.dtype = config.dtype
        sizes = (size,) * config.spatial_dims
        fan_in = c_in * math.prod(sizes)
        self.kernel = uniform(rngs, (*sizes, c_in, c_out), fan_in, config.param_dtype)
        self.bias = uniform(rngs, (c_out,), fan_in, config.param_dtype) if bias else None

    def __call__(self, x: Array) -> Array:
        y = conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else add_bias(y, self.bias[...])


class PatchConv(nnx.Module):
    """Convolution with kernel 2 and stride 2, with bias: [b, *grid, c_in] -> [b, *(grid / 2), c_out]."""

    def __init__(self, c_in: int, c_out: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.dtype = config.dtype
        sizes = (2,) * config.spatial_dims
        fan_in = c_in * math.prod(sizes)
        self.kernel = uniform(rngs, (*sizes, c_in, c_out), fan_in, config.param_dtype)
        self.bias = uniform(rngs, (c_out,), fan_in, config.param_dtype)

    def __call__(self, x: Array) -> Array:
        y = patch_conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return add_bias(y, self.bias[...])


class UpConv(nnx.Module):
    """The kernel of a transposed convolution, kernel 2 and stride 2, no bias; `ops.up_conv` uses it."""

    def __init__(self, c_in: int, c_out: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        sizes = (2,) * config.spatial_dims
        fan_in = c_out * math.prod(sizes)  # PyTorch counts the output channels of a transposed convolution
        self.kernel = uniform(rngs, (*sizes, c_in, c_out), fan_in, config.param_dtype)


class LayerNorm(nnx.Module):
    """Over the channels of [..., c], with scale and bias."""

    def __init__(self, channels: int, config: SwinUNETRConfig):
        self.dtype = config.dtype
        self.scale = nnx.Param(jnp.ones(channels, config.param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, config.param_dtype))

    def __call__(self, x: Array) -> Array:
        return layer_norm(x.astype(self.dtype), self.scale[...], self.bias[...])


class ConvNorm(nnx.Module):
    """The norm of the convolutional blocks, by `config.norm_name` (or `kind`): instance, group or batch.

    Returns the normalised tensor and, for a batch norm in training, its new running statistics by name (else an empty dict).
    """

    def __init__(self, channels: int, config: SwinUNETRConfig, kind: str | None = None):
        self.kind = kind or config.norm_name
        self.num_groups = config.num_groups
        if self.kind != "instance":
            self.scale = nnx.Param(jnp.ones(channels, config.param_dtype))
            self.bias = nnx.Param(jnp.zeros(channels, config.param_dtype))
        if self.kind == "batch":
            self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
            self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))
            self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(self, x: Array, train: bool = False) -> tuple[Array, dict[str, Array]]:
        if self.kind == "instance":
            return instance_norm(x), {}
        if self.kind == "group":
            return group_norm(x, self.num_groups, self.scale[...], self.bias[...]), {}
        if not train:
            return batch_norm(x, self.mean[...], self.var[...], self.scale[...], self.bias[...]), {}
        size = math.prod(x.shape[:-1])
        if size == 1:
            raise InputError("a batch norm in training needs more than one voxel per channel: use a larger volume or batch.")
        statistics, step = moments(x, tuple(range(x.ndim - 1))), BATCH_NORM_MOMENTUM
        mean, var = (stat.reshape(-1) for stat in (statistics.mean, statistics.var))
        running = {
            "mean": (1 - step) * self.mean[...] + step * mean,
            "var": (1 - step) * self.var[...] + step * var * (size / (size - 1)),  # PyTorch keeps the unbiased variance
            "count": self.count[...] + 1,
        }
        return normalize(x, statistics, self.scale[...], self.bias[...]), running

    def behind(self, conv: Conv, x: Array, train: bool = False) -> tuple[Array, dict[str, Array]]:
        """The norm of conv(x), for a convolution of kernel 1 without bias."""
        if self.kind != "instance":
            return self(conv(x), train)
        kernel = conv.kernel[...].astype(conv.dtype)
        return conv_instance_norm(x.astype(conv.dtype), kernel.reshape(kernel.shape[-2:])), {}

    def in_front_of(self, conv: Conv, x: Array, train: bool = False) -> tuple[Array, dict[str, Array]]:
        """conv(leaky_relu(norm of x)), for a convolution without bias."""
        if self.kind == "instance":
            return norm_act_conv(x.astype(conv.dtype), conv.kernel[...].astype(conv.dtype)), {}
        y, stats = self(x, train)
        return conv(leaky_relu(y)), stats
