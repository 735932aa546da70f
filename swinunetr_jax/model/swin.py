"""The Swin transformer encoder (MONAI: `SwinTransformer`): WindowAttention → SwinBlock → PatchMerging → Stage → SwinTransformer.
The blocks of Hyena stages are in `hyena.py`.

Grids are [b, *grid, c]. Windows are [n, t, c], with n windows of t tokens.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec

from swinunetr_jax.config import STAGES, SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model import windows
from swinunetr_jax.model.blocks import ResBlock, call_block, named
from swinunetr_jax.model.hyena import HyenaBlock
from swinunetr_jax.model.intermediates import NO_PERTURBATIONS, Perturbations, perturbed, under
from swinunetr_jax.model.layers import MLP, LayerNorm, Linear, PatchConv, drop_path, dropout, normal, split_key
from swinunetr_jax.ops.attention import window_attention
from swinunetr_jax.ops.attention.heads import queries_keys_values
from swinunetr_jax.ops.attention.position_bias import position_bias
from swinunetr_jax.ops.lane_blocks import BlockedGrid, G, array_of, from_blocks, like, map_grid, roll
from swinunetr_jax.ops.norm import layer_norm
from swinunetr_jax.runtime.forward_mode import require_reverse_mode
from swinunetr_jax.runtime.promotion import wide_dtype
from swinunetr_jax.runtime.sharding import auto_sharded

# Offsets (d, h, w) of the eight neighbours that a patch merging concatenates, in the order of its input channels. "legacy", with which
# every published checkpoint was trained, has (0, 1, 0) and (0, 0, 1) twice and neither (1, 1, 0) nor (0, 1, 1).
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
        self.window = config.window
        self.attn_drop_rate, self.drop_rate = config.attn_drop_rate, config.drop_rate
        rows = int(np.prod([2 * win - 1 for win in self.window]))
        self.relative_position_bias = normal(rngs, (rows, heads), BIAS_STD, config.param_dtype)
        self.qkv = Linear(width, 3 * width, config, bias=config.qkv_bias, rngs=rngs)
        self.proj = Linear(width, width, config, rngs=rngs)

    def __call__(self, x: Array, regions: np.ndarray | None, key: Array | None = None) -> Array:
        """Returns [n, t, c] for x [n, t, c] and regions [windows, t] or None (see `windows.region_ids`)."""
        attn_key, proj_key = split_key(key, 2)
        y = window_attention(*self.operands(x), regions, drop_rate=self.attn_drop_rate, key=attn_key)
        return dropout(self.proj(y.reshape(x.shape)), self.drop_rate, proj_key)

    def operands(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """Returns the scaled queries, the keys and the values of windows [n, t, c], [n, t, m, c / m] each, and the bias [m, t, t]."""
        _, t, c = x.shape
        q, k, v = queries_keys_values(self.qkv(x), self.heads)
        # If the window was clipped to fewer tokens, MONAI takes the corner of the full window's bias, although most of its entries then
        # belong to other distances; the published weights were trained in this way.
        bias = position_bias(self.relative_position_bias[...], self.window)[:, :t, :t]
        return q * (c // self.heads) ** -0.5, k, v, bias


class SwinBlock(nnx.Module):
    """norm → (shifted) window attention → residual → norm → MLP → residual."""

    def __init__(self, width: int, heads: int, shifted: bool, drop_path_rate: float, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.window = config.window
        self.shift = tuple(win // 2 if shifted else 0 for win in self.window)
        self.drop_path_rate = drop_path_rate
        self.norm1 = LayerNorm(width, config)
        self.attn = WindowAttention(width, heads, config, rngs=rngs)
        self.norm2 = LayerNorm(width, config)
        self.mlp = MLP(width, config, rngs=rngs)

    def __call__(self, x: G, key: Array | None = None, grid: tuple[int, ...] | None = None) -> G:
        """Returns a grid of the same shape, [b, *grid, c].

        Args:
            x: a grid, or a padded grid whose blocks are its windows.
            key: the random key of dropout. The elements of blocks are in another order than those of a grid, so with the same key the MLP
                drops other elements.
            grid: the sizes of the grid without padding, if `x` is in blocks.
        """
        attn_key, path_key1, mlp_key, path_key2 = split_key(key, 4)
        normed = map_grid(self.norm1, x)
        if isinstance(normed, BlockedGrid):
            y = self._attend_in_blocks(normed, attn_key, grid or normed.shape[1:-1]).array
        else:
            y = self._attend(normed, attn_key)
        x = like(x, array_of(x) + drop_path(y, self.drop_path_rate, path_key1))
        return map_grid(lambda x: x + drop_path(self.mlp(self.norm2(x), mlp_key), self.drop_path_rate, path_key2), x)

    def _attend_in_blocks(self, x: BlockedGrid, key: Array | None, grid: tuple[int, ...]) -> BlockedGrid:
        """Applies window attention to windows that are blocks, without partitioning a grid."""
        padded = tuple(count * win for count, win in zip(x.counts, self.window))
        valid = windows.valid_tokens(grid, self.window)
        if valid is not None:  # the MLP of the previous block and the norm have changed the padding
            x = map_grid(lambda x: jnp.where(valid, x, jnp.zeros((), x.dtype)), x)
        x = roll(x, tuple(-sh for sh in self.shift))
        tokens = x.array.reshape(-1, int(np.prod(self.window)), x.array.shape[-1])
        y = self.attn(tokens, windows.region_ids(padded, self.window, self.shift), key)
        return roll(BlockedGrid(y.reshape(x.array.shape), x.counts), self.shift)

    def _attend(self, x: Array, key: Array | None) -> Array:
        """Applies window attention to a grid."""
        grid = x.shape[1:-1]
        window, shift = windows.clip_window(grid, self.window, self.shift)
        x = windows.pad_to_windows(x, window)  # after the norm, so that padding is zeros; tokens attend to it, as in MONAI
        padded = x.shape[1:-1]
        if any(shift):
            x = windows.roll(x, tuple(-sh for sh in shift))
        y = self.attn(windows.partition(x, window), windows.region_ids(padded, window, shift), key)
        y = windows.reverse(y, window, padded)
        if any(shift):
            y = windows.roll(y, shift)
        return y[tuple(slice(size) for size in (y.shape[0], *grid))]


class PatchMerging(nnx.Module):
    """Halves every axis and doubles the channels: concatenated neighbours → layer norm → linear. Odd sizes are padded with zeros."""

    def __init__(self, width: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.neighbours = NEIGHBOURS_3D[config.downsample] if config.spatial_dims == 3 else NEIGHBOURS_2D
        self.norm = LayerNorm(len(self.neighbours) * width, config)
        self.reduction = Linear(len(self.neighbours) * width, 2 * width, config, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = windows.pad_to_windows(x, (2,) * (x.ndim - 2))
        corners = [x[(slice(None), *(slice(start, None, 2) for start in offset))] for offset in self.neighbours]
        return self.reduction(self.norm(jnp.concatenate(corners, axis=-1)))


class Stage(nnx.Module):
    """Swin blocks, every second one with shifted windows, or Hyena blocks; then a patch merging."""

    def __init__(self, stage: int, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        width = config.stage_width(stage)
        rates = np.linspace(0, config.dropout_path_rate, sum(config.depths))  # one ramp over all blocks of all stages
        first = sum(config.depths[:stage])
        self.remat = config.use_checkpoint
        self.window = config.window
        self.is_hyena = config.hyena[stage]

        def block(index: int) -> SwinBlock | HyenaBlock:
            rate = float(rates[first + index])
            if self.is_hyena:
                return HyenaBlock(width, rate, config, rngs=rngs)
            return SwinBlock(width, config.num_heads[stage], index % 2 == 1, rate, config, rngs=rngs)

        self.blocks = nnx.List(map(block, range(config.depths[stage])))
        self.merge = PatchMerging(width, config, rngs=rngs)

    def __call__(
        self, x: Array, key: Array | None = None, perturbations: Perturbations = NO_PERTURBATIONS
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the merged grid [b, *(grid / 2), 2 c], and every block's output by name, after its perturbation was added."""
        if self.is_hyena:
            return self._hyena_blocks(x, key, perturbations)
        intermediates, grid = {}, x.shape[1:-1]
        without_padding = (slice(None), *map(slice, grid))
        call = jax.checkpoint(SwinBlock.__call__, static_argnums=3) if self.remat else SwinBlock.__call__
        y, features = x, windows.maybe_to_window_blocks(x, self.window)
        for index, (block, block_key) in enumerate(zip(self.blocks, split_key(key, len(self.blocks)))):
            # A stage has blocks of one type.
            features = call(block, features, block_key, grid)  # pyright: ignore[reportArgumentType]
            features = perturbed(features, perturbations.get(f"block{index}"))
            y = intermediates[f"block{index}"] = from_blocks(features)[without_padding]
        return self.merge(y), intermediates

    def _hyena_blocks(self, x: Array, key: Array | None, perturbations: Perturbations) -> tuple[Array, dict[str, Array]]:
        intermediates = {}
        call = jax.checkpoint(HyenaBlock.__call__) if self.remat else HyenaBlock.__call__
        for index, (block, block_key) in enumerate(zip(self.blocks, split_key(key, len(self.blocks)))):
            # A stage has blocks of one type.
            x = call(block, x, block_key)  # pyright: ignore[reportArgumentType]
            x = intermediates[f"block{index}"] = perturbed(x, perturbations.get(f"block{index}"))
        return self.merge(x), intermediates


class PatchEmbed(nnx.Module):
    """Maps patches of 2 voxels along each axis to tokens of `feature_size` channels."""

    def __init__(self, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.drop_rate = config.drop_rate
        self.proj = PatchConv(config.in_channels, config.feature_size, config, rngs=rngs)
        self.norm = LayerNorm(config.feature_size, config) if config.patch_norm else None

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """Returns [b, *(grid / 2), feature_size] for [b, *grid, in_channels]. Odd sizes are padded with zeros at their end, as in MONAI."""
        x = self.proj(windows.pad_to_windows(x, (2,) * (x.ndim - 2)))
        return dropout(x if self.norm is None else self.norm(x), self.drop_rate, key)


class SwinTransformer(nnx.Module):
    """The encoder: a patch embedding and four stages; in v2 there is a residual block before each stage.

    It can be used without the decoder: `features` and `embedding` take volumes of any size. The encoder of a network is `model.swin`.

    Args:
        config: the configuration of the whole network.
        rngs: the random number generator of the initial parameters.
    """

    def __init__(self, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.remat = config.use_checkpoint
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.stages = nnx.List(Stage(stage, config, rngs=rngs) for stage in range(STAGES))
        widths = [config.stage_width(stage) for stage in range(STAGES)] if config.use_v2 else []
        # in MONAI these blocks have an instance norm for every `norm_name`
        self.convs = nnx.List(ResBlock(width, width, config, norm="instance", rngs=rngs) for width in widths)

    def __call__(
        self, x: Array, key: Array | None = None, perturbations: Perturbations = NO_PERTURBATIONS
    ) -> tuple[list[Array], dict[str, Array]]:
        """Returns five feature grids, from half resolution down to 1/32, and every intermediate by name.

        The perturbations are added to the intermediates of their names.
        """
        embed_key, *stage_keys = split_key(key, 1 + STAGES)
        x = perturbed(self.patch_embed(x, embed_key), perturbations.get("patch_embed"))
        features, intermediates = [x], {"patch_embed": x}
        for index, (stage, stage_key) in enumerate(zip(self.stages, stage_keys)):
            if self.convs:
                x, _ = call_block(self.convs[index], x, train=False, remat=self.remat)
                x = intermediates[f"stage{index}.conv"] = perturbed(x, perturbations.get(f"stage{index}.conv"))
            x, stage_intermediates = stage(x, stage_key, under(f"stage{index}", perturbations))
            x = perturbed(x, perturbations.get(f"stage{index}"))
            intermediates |= named(f"stage{index}", stage_intermediates) | {f"stage{index}": x}
            features.append(x)
        return features, intermediates

    def features(self, x: Array, *, normalize: bool | None = None, key: Array | None = None) -> list[Array]:
        """Returns the features of volumes at five scales, as MONAI's `SwinTransformer` does.

        Args:
            x: [b, *grid, in_channels]. The grid can have any size: odd sizes are padded with zeros at their end before they are halved.
            normalize: whether a layer norm without parameters is applied to the features; by default `config.normalize`.
            key: the random key of dropout and stochastic depth; without it the result is deterministic.

        Returns:
            Five arrays, [b, *(grid / 2), c], [b, *(grid / 4), 2 c] to [b, *(grid / 32), 16 c] with c = `config.feature_size`, sizes rounded
            up.

        Raises:
            InputError: x has other axes or channels.
        """
        check_input(x, self.config)
        structure, weights = nnx.split(self)
        x, weights = require_reverse_mode((x, weights))

        def run(x: Array, weights: nnx.State, key: Array | None) -> list[Array]:
            grids = nnx.merge(structure, weights)(jnp.asarray(x, self.config.dtype), key)[0]
            return [layer_norm(grid) for grid in grids] if normalizes else grids

        normalizes = self.config.normalize if normalize is None else normalize
        return auto_sharded(run, x, weights, key, specs=lambda spec: PartitionSpec(*spec[:1]))

    def embedding(self, x: Array) -> Array:
        """Returns one vector for each volume, [b, 16 c]: the mean of the coarsest `features` over their grid.

        Args:
            x: [b, *grid, in_channels] of any size.
        """
        grid = self.features(x)[-1]
        wide = grid.astype(wide_dtype(grid.dtype))
        return wide.mean(range(1, grid.ndim - 1)).astype(grid.dtype)


def check_input(x: Array, config: SwinUNETRConfig) -> None:
    """Raises InputError unless an array has the axes and the channels of a network's input."""
    axes = "[b, d, h, w, c]" if config.spatial_dims == 3 else "[b, h, w, c]"
    if x.ndim != config.spatial_dims + 2:
        raise InputError(f"the network takes {axes}, got shape {tuple(x.shape)}.")
    if x.shape[-1] != config.in_channels:
        raise InputError(
            f"the network has {config.in_channels} input channels, got {x.shape[-1]} in shape {tuple(x.shape)}; channels come last: {axes}."
        )
