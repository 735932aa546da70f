"""The convolutional blocks (MONAI: `UnetResBlock`, `UnetrUpBlock`), channels last.

Blocks return their output and a flat dict of new running statistics by name, empty but for a batch norm in training.
"""

import jax
from flax import nnx
from jax import Array

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.model.layers import Conv, ConvNorm, UpConv
from swinunetr_jax.ops.activation import leaky_relu
from swinunetr_jax.ops.up_conv import up_conv

Stats = dict[str, Array]


class ResBlock(nnx.Module):
    """conv → norm → lrelu → conv → norm, plus the input, then lrelu.

    Where the channels change, the input passes a 1×1 convolution and a norm of its own first.
    """

    def __init__(self, c_in: int, c_out: int, config: SwinUNETRConfig, *, norm: str | None = None, rngs: nnx.Rngs):
        self.conv1 = Conv(c_in, c_out, 3, config, rngs=rngs)
        self.norm1 = ConvNorm(c_out, config, norm)
        self.conv2 = Conv(c_out, c_out, 3, config, rngs=rngs)
        self.norm2 = ConvNorm(c_out, config, norm)
        self.conv3 = Conv(c_in, c_out, 1, config, rngs=rngs) if c_in != c_out else None
        self.norm3 = ConvNorm(c_out, config, norm) if c_in != c_out else None

    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Stats]:
        shortcut, stats = (x, {}) if self.conv3 is None else self.norm3.behind(self.conv3, x, train)
        return self.rest(self.conv1(x), shortcut, stats, train)

    def rest(self, y: Array, shortcut: Array, stats3: Stats, train: bool = False) -> tuple[Array, Stats]:
        """What follows conv1, whose result `y` is; `shortcut` is added in the end, `stats3` came with its norm."""
        y, stats1 = self.norm1.in_front_of(self.conv2, y, train)
        y, stats2 = self.norm2(y, train)
        stats = named("norm1", stats1) | named("norm2", stats2) | named("norm3", stats3)
        return leaky_relu(y + shortcut.astype(y.dtype)), stats


class UpBlock(nnx.Module):
    """Upsamples, puts the skip's channels behind and runs a residual block."""

    def __init__(self, c_in: int, c_out: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.up = UpConv(c_in, c_out, config, rngs=rngs)
        self.block = ResBlock(2 * c_out, c_out, config, rngs=rngs)

    def __call__(self, x: Array, skip: Array, train: bool = False) -> tuple[Array, Stats]:
        kernels = (layer.kernel[...].astype(self.dtype) for layer in (self.up, self.block.conv1, self.block.conv3))
        y, shortcut = up_conv(x.astype(self.dtype), skip.astype(self.dtype), *kernels)
        y, stats = self.block.rest(y, *self.block.norm3(shortcut, train), train)
        return y, named("block", stats)


def named(prefix: str, values: Stats) -> Stats:
    """The same values with `prefix.` before each name."""
    return {f"{prefix}.{name}": value for name, value in values.items()}


def run(block: nnx.Module, *inputs: Array, train: bool, remat: bool) -> tuple[Array, Stats]:
    """Calls a block, recomputing its inside in the backward pass where asked."""

    def call(block: nnx.Module, *inputs: Array) -> tuple[Array, Stats]:
        return block(*inputs, train=train)

    return (jax.checkpoint(call) if remat else call)(block, *inputs)
