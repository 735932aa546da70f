"""Leaf layers with PyTorch's exact semantics and initialisation, channels last.

Parameters are stored in `config.param_dtype` and used in `config.dtype`. A layer that is called without a random key is deterministic.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import Tracer

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.ops.conv import conv, patch_conv
from swinunetr_jax.ops.lane_blocks import G, array_of, like, map_grid
from swinunetr_jax.ops.norm import batch_norm, group_norm, instance_norm, layer_norm
from swinunetr_jax.ops.norm.moments import moments, normalize
from swinunetr_jax.ops.norm.norm_act_conv import norm_act_conv
from swinunetr_jax.ops.norm.pointwise_conv_norm import pointwise_conv_norm
from swinunetr_jax.ops.pointwise import add_bias, dense, gelu, leaky_relu

BATCH_NORM_MOMENTUM = 0.1


def uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, dtype: str) -> nnx.Param:
    """Returns a parameter with PyTorch's default initialisation of weights and biases: uniform in ±1/sqrt(fan_in)."""
    return uniform_within(rngs, shape, 1 / math.sqrt(fan_in), dtype)


def uniform_within(rngs: nnx.Rngs, shape: tuple[int, ...], bound: float, dtype: str) -> nnx.Param:
    """Returns a parameter that is uniformly distributed in ±bound."""
    return nnx.Param(
        sample(rngs, lambda r: r.uniform(-bound, bound, shape), jax.random.uniform, shape, -bound, bound).astype(dtype)
    )


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, dtype: str) -> nnx.Param:
    """Returns a parameter that is normally distributed with mean 0."""
    return nnx.Param((std * sample(rngs, lambda r: r.standard_normal(shape), jax.random.normal, shape)).astype(dtype))


def sample(
    rngs: nnx.Rngs, numpy_sample: Callable[[np.random.Generator], np.ndarray], jax_sample: Callable[..., Array], *args: Any
) -> Array:
    """Returns a random array for the next key, sampled by numpy on the host with the key as seed.

    jax.random would compile a program for each of the hundred shapes of a network, which takes half a minute on a CPU. It is used only
    if the constructor itself is traced: by `nnx.eval_shape`, which computes no numbers, or by `jax.jit`, where the numbers differ from
    those that are sampled on the host.
    """
    return sample_for(rngs.params(), numpy_sample, jax_sample, *args)


def sample_for(
    key: Array, numpy_sample: Callable[[np.random.Generator], np.ndarray], jax_sample: Callable[..., Array], *args: Any
) -> Array:
    """Returns the random array of `sample` for a key."""
    if isinstance(key, Tracer):
        return jax_sample(key, args[0], jnp.float32, *args[1:])
    seed = np.asarray(jax.random.key_data(key)).tolist()
    return jnp.asarray(numpy_sample(np.random.Generator(np.random.Philox(seed))), jnp.float32)


class OneKey(nnx.Rngs):
    """Returns the same key for every parameter, for a constructor that is traced for shapes only. Counting keys takes most of that time."""

    def __init__(self) -> None:
        super().__init__()
        self.key = jax.random.key(0)

    def params(self) -> Array:
        return self.key


def split_key(key: Array | None, count: int) -> list[Array | None]:
    """Returns a list of `count` independent keys, or a list of `count` Nones if there is no key."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Sets elements to zero with probability `rate` and scales the others, if a key is given."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def drop_path(x: Array, rate: float, key: Array | None) -> Array:
    """Sets whole samples of [b, ...] to zero with probability `rate` and scales the others, if a key is given."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Linear(nnx.Module):
    """Linear layer over the channels: [..., c_in] -> [..., c_out]."""

    def __init__(self, c_in: int, c_out: int, config: SwinUNETRConfig, *, bias: bool = True, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.kernel = uniform(rngs, (c_in, c_out), c_in, config.param_dtype)
        self.bias = uniform(rngs, (c_out,), c_in, config.param_dtype) if bias else None

    def __call__(self, x: Array) -> Array:
        y = dense(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else add_bias(y, self.bias[...])


class MLP(nnx.Module):
    """linear → GELU → linear, with dropout after both."""

    def __init__(self, width: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        hidden = int(width * config.mlp_ratio)
        self.drop_rate = config.drop_rate
        self.linear1 = Linear(width, hidden, config, rngs=rngs)
        self.linear2 = Linear(hidden, width, config, rngs=rngs)

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        key1, key2 = split_key(key, 2)
        x = dropout(gelu(self.linear1(x)), self.drop_rate, key1)
        return dropout(self.linear2(x), self.drop_rate, key2)


class Conv(nnx.Module):
    """Same-size convolution, stride 1: [b, *grid, c_in] -> [b, *grid, c_out]."""

    def __init__(self, c_in: int, c_out: int, size: int, config: SwinUNETRConfig, *, bias: bool = False, rngs: nnx.Rngs):
        self.dtype = config.dtype
        sizes = (size,) * config.spatial_dims
        fan_in = c_in * math.prod(sizes)
        self.kernel = uniform(rngs, (*sizes, c_in, c_out), fan_in, config.param_dtype)
        self.bias = uniform(rngs, (c_out,), fan_in, config.param_dtype) if bias else None

    def __call__(self, x: G) -> G:
        y = conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        bias = None if self.bias is None else self.bias[...]
        return y if bias is None else map_grid(lambda y: add_bias(y, bias), y)


class PatchConv(nnx.Module):
    """Convolution with kernel size 2 and stride 2, with bias: [b, *grid, c_in] -> [b, *(grid / 2), c_out]."""

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
    """The kernel of a transposed convolution with kernel size 2 and stride 2 without bias, which `ops.up_conv` applies."""

    def __init__(self, c_in: int, c_out: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        sizes = (2,) * config.spatial_dims
        fan_in = c_out * math.prod(sizes)  # for a transposed convolution PyTorch counts the output channels
        self.kernel = uniform(rngs, (*sizes, c_in, c_out), fan_in, config.param_dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the channels of [..., c], with scale and bias."""

    def __init__(self, channels: int, config: SwinUNETRConfig):
        self.dtype = config.dtype
        self.scale = nnx.Param(jnp.ones(channels, config.param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, config.param_dtype))

    def __call__(self, x: Array) -> Array:
        return layer_norm(x.astype(self.dtype), self.scale[...], self.bias[...])


class ConvNorm(nnx.Module):
    """The norm of the convolutional blocks: an instance, group or batch norm, as `config.norm_name` (or `kind`) says.

    A call returns the normalised grid and, for a batch norm in training, its new running statistics by name, otherwise an empty dict.
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

    def __call__(self, x: G, train: bool = False) -> tuple[G, dict[str, Array]]:
        if self.kind == "batch" and train:
            y, running = self._batch_norm_in_training(array_of(x))
            return like(x, y), running
        if self.kind == "instance":
            return map_grid(instance_norm, x), {}
        scale, bias = self.scale[...], self.bias[...]
        if self.kind == "group":
            groups = self.num_groups
            assert groups is not None  # the configuration has checked this
            return map_grid(lambda x: group_norm(x, groups, scale, bias), x), {}
        return map_grid(lambda x: batch_norm(x, self.mean[...], self.var[...], scale, bias), x), {}

    def _batch_norm_in_training(self, x: Array) -> tuple[Array, dict[str, Array]]:
        size = math.prod(x.shape[:-1])
        if size == 1:
            raise InputError("a batch norm in training needs more than one voxel per channel: use a larger volume or batch.")
        statistics, momentum = moments(x, tuple(range(x.ndim - 1))), BATCH_NORM_MOMENTUM
        mean, var = (stat.reshape(-1) for stat in (statistics.mean, statistics.var))
        running = {
            "mean": (1 - momentum) * self.mean[...] + momentum * mean,
            "var": (1 - momentum) * self.var[...] + momentum * var * (size / (size - 1)),  # PyTorch keeps the unbiased variance
            "count": self.count[...] + 1,
        }
        return normalize(x, statistics, self.scale[...], self.bias[...]), running

    def after_conv(self, conv: Conv, x: G, train: bool = False) -> tuple[G, dict[str, Array]]:
        """Returns the norm of conv(x), for a convolution with kernel size 1 without bias."""
        if self.kind != "instance":
            return self(conv(x), train)
        kernel = conv.kernel[...].astype(conv.dtype)
        kernel = kernel.reshape(kernel.shape[-2:])
        return map_grid(lambda x: pointwise_conv_norm(x.astype(conv.dtype), kernel), x), {}

    def act_conv(self, conv: Conv, x: G, train: bool = False) -> tuple[G, dict[str, Array]]:
        """Returns conv(leaky_relu(norm of x)), for a convolution without bias."""
        if self.kind == "instance":
            return norm_act_conv(x.astype(conv.dtype), conv.kernel[...].astype(conv.dtype)), {}
        y, stats = self(x, train)
        return conv(map_grid(leaky_relu, y)), stats
