"""The Swin transformer encoder (MONAI: `SwinTransformer`): WindowAttention → SwinBlock → PatchMerging → Stage → SwinTransformer.

Grids are [b, *grid, c], channels last.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from swinunetr_jax.config import STAGES, SwinUNETRConfig
from swinunetr_jax.model import windows
from swinunetr_jax.model.blocks import ResBlock, named, run
from swinunetr_jax.model.layers import LayerNorm, Linear, PatchConv, drop_path, dropout, normal, split_key
from swinunetr_jax.ops import pieces
from swinunetr_jax.ops.activation import gelu
from swinunetr_jax.ops.attention import window_attention
from swinunetr_jax.ops.position_bias import position_bias

# Offsets (d, h, w) of the eight neighbours that a patch merging puts side by side, in the order of its input channels.
# "legacy" takes 101 and 010 and 001 twice or so and never 110 and 011: every published checkpoint was trained with it.
NEIGHBOURS_3D = {
    "legacy": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "merging": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "mergingv2": tuple(itertools.product((0, 1), repeat=3)),
}
NEIGHBOURS_2D = ((0, 0), (1, 0), (0, 1), (1, 1))  # in every mode
BIAS_STD = 0.02


class WindowAttention(nnx.Module):
    """Multi-head attention within windows, with a learned bias per head and relative position."""

    def __init__(self, width: int, heads: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.heads = heads
        self.window = config.window_size
        self.attn_drop_rate, self.drop_rate = config.attn_drop_rate, config.drop_rate
        rows = int(np.prod([2 * win - 1 for win in self.window]))
        self.relative_position_bias = normal(rngs, (rows, heads), BIAS_STD, config.param_dtype)
        self.qkv = Linear(width, 3 * width, config, bias=config.qkv_bias, rngs=rngs)
        self.proj = Linear(width, width, config, rngs=rngs)

    def __call__(self, x: Array, regions: np.ndarray | None, key: Array | None = None) -> Array:
        """x: [n, t, c]; regions: [windows, t] or None."""
        n, t, c = x.shape
        attn_key, proj_key = split_key(key, 2)
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads), 2, 0)  # each [n, t, m, c / m]
        # Where the window was clipped to fewer tokens, the reference takes the corner of the full window's table, although most of
        # its entries then belong to other distances: weights are trained with it.
        bias = position_bias(self.relative_position_bias[...], self.window)[:, :t, :t]
        y = window_attention(q * (c // self.heads) ** -0.5, k, v, bias, regions, drop_rate=self.attn_drop_rate, key=attn_key)
        return dropout(self.proj(y.reshape(n, t, c)), self.drop_rate, proj_key)


class MLP(nnx.Module):
    def __init__(self, width: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        hidden = int(width * config.mlp_ratio)
        self.drop_rate = config.drop_rate
        self.linear1 = Linear(width, hidden, config, rngs=rngs)
        self.linear2 = Linear(hidden, width, config, rngs=rngs)

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        key1, key2 = split_key(key, 2)
        x = dropout(gelu(self.linear1(x)), self.drop_rate, key1)
        return dropout(self.linear2(x), self.drop_rate, key2)


class SwinBlock(nnx.Module):
    """norm → (shifted) window attention → residual → norm → MLP → residual."""

    def __init__(self, width: int, heads: int, shifted: bool, drop_path_rate: float, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.window = config.window_size
        self.shift = tuple(win // 2 if shifted else 0 for win in self.window)
        self.drop_path_rate = drop_path_rate
        self.norm1 = LayerNorm(width, config)
        self.attn = WindowAttention(width, heads, config, rngs=rngs)
        self.norm2 = LayerNorm(width, config)
        self.mlp = MLP(width, config, rngs=rngs)

    def __call__(self, x: Array, key: Array | None = None, grid: tuple[int, ...] | None = None) -> Array:
        """x: [b, *grid, c], or with `grid` given the grid's full windows as pieces, [b, windows, *window, c].

        In pieces a key drops other elements of the MLP's, as their order is another.
        """
        attn_key, path_key1, mlp_key, path_key2 = split_key(key, 4)
        y = self.norm1(x)
        y = self._attend(y, attn_key) if grid is None else self._attend_in_pieces(y, attn_key, grid)
        x = x + drop_path(y, self.drop_path_rate, path_key1)
        return x + drop_path(self.mlp(self.norm2(x), mlp_key), self.drop_path_rate, path_key2)

    def _attend_in_pieces(self, x: Array, key: Array | None, grid: tuple[int, ...]) -> Array:
        """As `_attend`, but nothing is taken apart and put together."""
        counts = windows.counts(grid, self.window)
        padded = tuple(count * win for count, win in zip(counts, self.window))
        inside = windows.inside(grid, self.window)
        x = (
            x if inside is None else jnp.where(inside, x, jnp.zeros((), x.dtype))
        )  # padding, which the MLP and the norm have filled
        x = pieces.roll(x, tuple(-sh for sh in self.shift), counts)
        tokens = x.reshape(-1, int(np.prod(self.window)), x.shape[-1])
        y = self.attn(tokens, windows.region_ids(padded, self.window, self.shift), key)
        return pieces.roll(y.reshape(x.shape), self.shift, counts)

    def _attend(self, x: Array, key: Array | None) -> Array:
        grid = x.shape[1:-1]
        axes = tuple(range(1, x.ndim - 1))
        window, shift = windows.clip_window(grid, self.window, self.shift)
        x = windows.pad_to_windows(x, window)  # after the norm, so padding is zeros; it is attended to, the reference does
        padded = x.shape[1:-1]
        if any(shift):
            x = jnp.roll(x, tuple(-sh for sh in shift), axes)
        y = self.attn(windows.partition(x, window), windows.region_ids(padded, window, shift), key)
        y = windows.reverse(y, window, padded)
        if any(shift):
            y = jnp.roll(y, shift, axes)
        return y[tuple(slice(size) for size in (y.shape[0], *grid))]


class PatchMerging(nnx.Module):
    """Halves every axis and doubles the channels: neighbours side by side → LayerNorm → linear. Odd sizes are padded with zeros."""

    def __init__(self, width: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.neighbours = NEIGHBOURS_3D[config.downsample] if config.spatial_dims == 3 else NEIGHBOURS_2D
        self.norm = LayerNorm(len(self.neighbours) * width, config)
        self.reduction = Linear(len(self.neighbours) * width, 2 * width, config, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = windows.pad_to_windows(x, (2,) * (x.ndim - 2))
        corners = [x[(slice(None), *(slice(start, None, 2) for start in offset))] for offset in self.neighbours]
        return self.reduction(self.norm(jnp.concatenate(corners, axis=-1)))


class Stage(nnx.Module):
    """Swin blocks, every second one shifted, then a patch merging."""

    def __init__(self, stage: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        width = config.stage_width(stage)
        rates = np.linspace(0, config.dropout_path_rate, sum(config.depths))  # one ramp over all blocks of all stages
        first = sum(config.depths[:stage])
        self.remat = config.use_checkpoint
        self.window = config.window_size
        self.blocks = nnx.List(
            SwinBlock(width, config.num_heads[stage], index % 2 == 1, float(rates[first + index]), config, rngs=rngs)
            for index in range(config.depths[stage])
        )
        self.merge = PatchMerging(width, config, rngs=rngs)

    def __call__(self, x: Array, key: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """The merged grid [b, *(grid / 2), 2c], and every block's output by name."""
        seen, grid, cut_from = {}, x.shape[1:-1], None
        counts = windows.counts(grid, self.window)
        # on a TPU, tokens stay in the windows of the blocks without shift, padding among them, where these are many and none is clipped
        if len(grid) == 3 and min(counts) > 1 and pieces.pays(math.prod(counts)):
            x, cut_from = pieces.cut(windows.pad_to_windows(x, self.window), counts), grid
        within = (slice(None), *map(slice, grid))
        run = jax.checkpoint(SwinBlock.__call__, static_argnums=3) if self.remat else SwinBlock.__call__
        for index, (block, block_key) in enumerate(zip(self.blocks, split_key(key, len(self.blocks)))):
            x = run(block, x, block_key, cut_from)
            y = seen[f"block{index}"] = pieces.join(x, counts)[within]
        return self.merge(y), seen


class PatchEmbed(nnx.Module):
    """Patches of 2 voxels per axis to tokens of `feature_size` channels."""

    def __init__(self, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.drop_rate = config.drop_rate
        self.proj = PatchConv(config.in_channels, config.feature_size, config, rngs=rngs)
        self.norm = LayerNorm(config.feature_size, config) if config.patch_norm else None

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        x = self.proj(x)
        return dropout(x if self.norm is None else self.norm(x), self.drop_rate, key)


class SwinTransformer(nnx.Module):
    """The encoder: patch embedding and four stages, each (v2) behind a residual block of its own."""

    def __init__(self, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.remat = config.use_checkpoint
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.stages = nnx.List(Stage(stage, config, rngs=rngs) for stage in range(STAGES))
        widths = [config.stage_width(stage) for stage in range(STAGES)] if config.use_v2 else []
        # the reference gives these blocks an instance norm whatever `norm_name` says
        self.convs = nnx.List(ResBlock(width, width, config, norm="instance", rngs=rngs) for width in widths)

    def __call__(self, x: Array, key: Array | None = None) -> tuple[list[Array], dict[str, Array]]:
        """Five feature grids, from half resolution down to 1/32, and every intermediate by name."""
        embed_key, *stage_keys = split_key(key, 1 + STAGES)
        x = self.patch_embed(x, embed_key)
        features, seen = [x], {"patch_embed": x}
        for index, (stage, stage_key) in enumerate(zip(self.stages, stage_keys)):
            if self.convs:
                x, _ = run(self.convs[index], x, train=False, remat=self.remat)
                seen[f"stage{index}.conv"] = x
            x, inside = stage(x, stage_key)
            seen |= named(f"stage{index}", inside) | {f"stage{index}": x}
            features.append(x)
        return features, seen
