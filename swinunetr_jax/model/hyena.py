"""The block of a HyenaND stage (MONAI: `HyenaTransformerBlock`): GlobalKernel → HyenaMixer → HyenaBlock.

Two gates surround a convolution of each channel with a kernel as large as the grid, so that every voxel is connected with every other one
at the cost of a Fourier transform. A small network computes the kernel from coordinates, so the number of parameters does not depend on the
grid. Source: "Native Multi-Dimensional Subquadratic Operators via Input Dependent Long Convolutions" (NeurIPS 2026), and the package
nvsubquadratic 0.2, on which MONAI's network is built.

Everything between the first and the last projection is computed in at least float32, whatever `config.dtype` is. Grids are [b, *grid, c].
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.model.custom import CustomConfig
from swinunetr_jax.model.layers import MLP, LayerNorm, Linear, drop_path, normal, split_key, uniform, uniform_within
from swinunetr_jax.ops.hyena.depthwise_conv import depthwise_conv
from swinunetr_jax.ops.hyena.fft_conv import fft_conv
from swinunetr_jax.ops.norm import group_norm
from swinunetr_jax.runtime.promotion import wide_dtype, with_rank

PROJECTION_STD = 0.02
ATTENUATION = 0.1  # of the narrowest mask one grid point from the middle, and of the widest initial mask at coordinate 1
CHANNELS_AT_A_TIME = 128  # of a global convolution with `hyena_use_chunked_fft`


def coordinates(grid: Sequence[int], config: SwinUNETRConfig) -> list[np.ndarray]:
    """Returns the coordinates of a kernel for a grid along each axis: 0 in the middle, and 1 at the last point of `config.hyena_cache`.

    The kernel of a larger grid has coordinates beyond 1. In MONAI the coordinates also depend on the sizes of earlier inputs if these were
    larger than `hyena_l_cache`. These here are those that MONAI's network has for its first input.
    """
    extents = [(size + 1) // 2 if config.hyena_grid_type == "single" else size for size in grid]
    return [np.arange(1 - extent, extent) / (config.hyena_cache - 1) for extent in extents]


def mask_limits(config: SwinUNETRConfig) -> tuple[float, float]:
    """Returns the smallest and the largest standard deviation of the Gaussian masks."""
    return _std(ATTENUATION, 1 / (config.hyena_cache - 1)), _std(config.hyena_mask_max_attenuation, 1.0)


def _std(attenuation: float, position: float) -> float:
    """Returns the standard deviation of the Gaussian that has this value at this position, and 1 in the middle."""
    return position / math.sqrt(-2 * math.log(attenuation))


class SineLayer(nnx.Module):
    """The parameters of a linear layer [..., c_in] -> [..., c_out] in a network of sine layers."""

    def __init__(self, c_in: int, c_out: int, bound: float, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.kernel = uniform_within(rngs, (c_in, c_out), bound, config.param_dtype)
        self.bias = nnx.Param(jnp.zeros(c_out, config.param_dtype))

    def wide(self, dtype: jnp.dtype) -> tuple[Array, Array]:
        """Returns the kernel and the bias in this type."""
        return self.kernel[...].astype(dtype), self.bias[...].astype(dtype)


class GlobalKernel(nnx.Module):
    """Computes the kernel of the global convolution: a network of sine layers (SIREN) on coordinates, times a Gaussian mask."""

    def __init__(self, width: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.config = config
        dims, features = config.spatial_dims, config.hyena_kernel_mlp_dim
        bound = math.sqrt(6 / features)
        self.embed = SineLayer(dims, features, 2 * math.pi * config.hyena_omega_0 / dims, config, rngs=rngs)
        self.hidden = nnx.List(
            SineLayer(features, features, bound, config, rngs=rngs) for _ in range(max(config.hyena_kernel_layers - 1, 1))
        )
        # divided by the root of the number of points, so that the convolution preserves the scale of its input
        self.out = SineLayer(features, width, bound * config.hyena_cache ** (-dims / 2), config, rngs=rngs)
        least, most = mask_limits(config)
        stds = np.geomspace(min(least, most), min(max(_std(ATTENUATION, 1.0), least), most), width)
        self.std = nnx.Param(jnp.asarray(np.tile(stds, (dims, 1)), config.param_dtype))

    def __call__(self, grid: Sequence[int], dtype: jnp.dtype) -> Array:
        """Returns the kernels [c, *sizes] for a grid, in this type."""
        axes = coordinates(grid, self.config)
        ndim = len(axes) + 1  # the axes of the grid, and the features
        kernel, bias = self.embed.wide(dtype)
        phases = with_rank(bias, ndim)
        for axis, positions in enumerate(axes):  # the layer on all points; an array of their coordinates would be large
            ahead = [1] * (len(axes) - axis)  # of the axes that follow, and of the features
            phases = phases + with_rank(jnp.asarray(positions, dtype).reshape(-1, *ahead), ndim) * with_rank(kernel[axis], ndim)
        features = jnp.sin(phases)
        # the fast products of accelerators have too few digits for sines
        product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
        for layer in self.hidden:
            kernel, bias = layer.wide(dtype)
            features = jnp.sin(product("...i,io->...o", features, kernel) + with_rank(bias, ndim))
        kernel, bias = self.out.wide(dtype)
        values = product("...i,io->o...", features, kernel) + bias.reshape(-1, *[1] * len(axes))
        return values * self._mask(axes, dtype)

    def _mask(self, axes: list[np.ndarray], dtype: jnp.dtype) -> Array:
        """Returns the Gaussian masks, which can be multiplied by kernels [c, *sizes].

        The standard deviations are limited, but their gradients are not changed by that, as in MONAI, which limits the parameters.
        """
        stored = self.std[...].astype(dtype)
        std = stored + lax.stop_gradient(limit_stds(stored, self.config) - stored)
        exponents = [
            jnp.asarray(-0.5 * axis**2, dtype)[None] / jnp.square(std[index])[:, None] for index, axis in enumerate(axes)
        ]
        mask = jnp.exp(exponents[0])
        for exponent in exponents[1:]:
            shape = (mask.shape[0], *[1] * (mask.ndim - 1), exponent.shape[-1])
            mask = mask[..., None] * jnp.exp(exponent).reshape(shape)
        return mask


def limit_stds(std: Array, config: SwinUNETRConfig) -> Array:
    """Returns standard deviations of Gaussian masks within their limits."""
    least, most = mask_limits(config)
    return jnp.minimum(jnp.maximum(std, least), most)


class Projection(Linear):
    """Linear layer without bias, whose initial weights are normally distributed."""

    def __init__(self, c_in: int, c_out: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.kernel = normal(rngs, (c_in, c_out), PROJECTION_STD, config.param_dtype)
        self.bias = None


class ShortConv(nnx.Module):
    """Same-size convolution of each channel by itself: [b, *grid, c] -> [b, *grid, c]."""

    def __init__(self, channels: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        taps = (config.hyena_kernel_size,) * config.spatial_dims
        self.by_fft, self.fft_channels = config.hyena_use_fft_short_conv, config.hyena_short_conv_fft_chunks
        self.kernel = uniform(rngs, (*taps, 1, channels), math.prod(taps), config.param_dtype)

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[..., 0, :].astype(x.dtype)
        if not self.by_fft:
            return depthwise_conv(x, kernel)
        flipped = jnp.moveaxis(jnp.flip(kernel, range(kernel.ndim - 1)), -1, 0)  # `fft_conv` flips it again
        return jnp.moveaxis(fft_conv(jnp.moveaxis(x, -1, 1), flipped, circular=False, channels=self.fft_channels), 1, -1)


def limit_masks(weights: dict[str, Array], config: SwinUNETRConfig | CustomConfig) -> dict[str, Array]:
    """Returns the weights of a network by name, with the standard deviations of all masks within their limits.

    A network limits the values that it uses, but not its parameters. Without this, a parameter that has left the limits would need many
    steps to return to them.
    """
    if not isinstance(config, SwinUNETRConfig) or not config.use_hyena:
        return weights
    limits = {name: limit_stds(value, config) for name, value in weights.items() if name.endswith(".global_kernel.std")}
    return {**weights, **limits}


class HyenaMixer(nnx.Module):
    """projection → short convolution → norms of queries and keys → their product → norm → global convolution → times values → projection.

    The global convolution includes a multiple of its input (`shortcut`).
    """

    def __init__(self, width: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        wide = config.replace(dtype=str(wide_dtype(config.dtype)))
        self.wide_dtype = wide.dtype
        self.circular = config.hyena_fft_padding == "circular"
        self.fft_channels = CHANNELS_AT_A_TIME if config.hyena_use_chunked_fft else 0
        self.qkv = Projection(width, 3 * width, config, rngs=rngs)
        self.short_conv = ShortConv(3 * width, config, rngs=rngs)
        self.q_norm = LayerNorm(width, wide)
        self.k_norm = LayerNorm(width, wide)
        self.gate_norm = LayerNorm(width, wide)  # its parameters are those of a group norm with one group
        self.global_kernel = GlobalKernel(width, config, rngs=rngs)
        self.shortcut = uniform(rngs, (width,), width, config.param_dtype)
        self.proj = Projection(width, width, config, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns [b, *grid, c] for x [b, *grid, c]."""
        q, k, v = jnp.split(self.short_conv(self.qkv(x).astype(self.wide_dtype)), 3, axis=-1)
        gated = group_norm(self.q_norm(q) * self.k_norm(k), 1, self.gate_norm.scale[...], self.gate_norm.bias[...])
        kernel = self.global_kernel(x.shape[1:-1], gated.dtype)
        y = fft_conv(jnp.moveaxis(gated, -1, 1), kernel, circular=self.circular, channels=self.fft_channels)
        y = jnp.moveaxis(y, 1, -1) + with_rank(self.shortcut[...].astype(gated.dtype), gated.ndim) * gated
        return self.proj(y * v)


class HyenaBlock(nnx.Module):
    """norm → mixer → residual → norm → MLP → residual."""

    def __init__(self, width: int, drop_path_rate: float, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.drop_path_rate = drop_path_rate
        self.norm1 = LayerNorm(width, config)
        self.mixer = HyenaMixer(width, config, rngs=rngs)
        self.norm2 = LayerNorm(width, config)
        self.mlp = MLP(width, config, rngs=rngs)

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """Returns a grid of the same shape, [b, *grid, c]. `key` is the random key of dropout."""
        path_key1, mlp_key, path_key2 = split_key(key, 3)
        x = x + drop_path(self.mixer(self.norm1(x)), self.drop_path_rate, path_key1)
        return x + drop_path(self.mlp(self.norm2(x), mlp_key), self.drop_path_rate, path_key2)
