"""The convolutional blocks (MONAI: `UnetResBlock`, `UnetrUpBlock`), channels last.

Blocks return their output and a flat dict of new running statistics by name, which is empty except for a batch norm in training.
"""

import jax
from flax import nnx
from jax import Array

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.model.layers import Conv, ConvNorm, UpConv
from swinunetr_jax.ops.lane_blocks import G, Grid, map_grid
from swinunetr_jax.ops.pointwise import leaky_relu
from swinunetr_jax.ops.up_conv import up_conv

Stats = dict[str, Array]


class ResBlock(nnx.Module):
    """conv → norm → leaky ReLU → conv → norm, plus the input, then leaky ReLU.

    If the number of channels changes, the input first goes through a convolution with kernel size 1 and a norm.
    """

    def __init__(self, c_in: int, c_out: int, config: SwinUNETRConfig, *, norm: str | None = None, rngs: nnx.Rngs):
        self.conv1 = Conv(c_in, c_out, 3, config, rngs=rngs)
        self.norm1 = ConvNorm(c_out, config, norm)
        self.conv2 = Conv(c_out, c_out, 3, config, rngs=rngs)
        self.norm2 = ConvNorm(c_out, config, norm)
        self.conv3 = Conv(c_in, c_out, 1, config, rngs=rngs) if c_in != c_out else None
        self.norm3 = ConvNorm(c_out, config, norm) if c_in != c_out else None

    def __call__(self, x: G, train: bool = False) -> tuple[G, Stats]:
        """Returns [b, *grid, c_out] for [b, *grid, c_in], and new running statistics."""
        if self.conv3 is None or self.norm3 is None:
            return self.from_first_conv(self.conv1(x), x, {}, train)
        shortcut, stats = self.norm3.after_conv(self.conv3, x, train)
        return self.from_first_conv(self.conv1(x), shortcut, stats, train)

    def from_first_conv(self, y: G, shortcut: G, stats3: Stats, train: bool = False) -> tuple[G, Stats]:
        """Returns the block's output from the result `y` of conv1, the normalised shortcut and its norm's new statistics."""
        y, stats1 = self.norm1.act_conv(self.conv2, y, train)
        y, stats2 = self.norm2(y, train)
        stats = named("norm1", stats1) | named("norm2", stats2) | named("norm3", stats3)
        return map_grid(lambda y, shortcut: leaky_relu(y + shortcut.astype(y.dtype)), y, shortcut), stats


class UpBlock(nnx.Module):
    """Upsamples, concatenates the skip connection's channels and applies a residual block."""

    def __init__(self, c_in: int, c_out: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.dtype = config.dtype
        self.up = UpConv(c_in, c_out, config, rngs=rngs)
        self.block = ResBlock(2 * c_out, c_out, config, rngs=rngs)

    def __call__(self, x: Grid, skip: Grid, train: bool = False) -> tuple[Grid, Stats]:
        """Returns [b, *(2 * grid), c_out] for [b, *grid, c_in] and [b, *(2 * grid), c_out], and new running statistics."""
        conv3, norm3 = self.block.conv3, self.block.norm3
        assert conv3 is not None and norm3 is not None  # the block changes the number of channels
        up, kernel, shortcut_kernel = (layer.kernel[...].astype(self.dtype) for layer in (self.up, self.block.conv1, conv3))
        y, shortcut = up_conv(x.astype(self.dtype), skip.astype(self.dtype), up, kernel, shortcut_kernel)
        y, stats = self.block.from_first_conv(y, *norm3(shortcut, train), train)
        return y, named("block", stats)


def named(prefix: str, values: Stats) -> Stats:
    """Returns the same values with `prefix.` before each name."""
    return {f"{prefix}.{name}": value for name, value in values.items()}


def call_block(block: nnx.Module, *inputs: G, train: bool, remat: bool) -> tuple[G, Stats]:
    """Calls a block. If `remat`, its intermediates are computed again in the backward pass instead of being kept."""

    def call(block: nnx.Module, *inputs: G) -> tuple[G, Stats]:
        return block(*inputs, train=train)

    return (jax.checkpoint(call) if remat else call)(block, *inputs)
