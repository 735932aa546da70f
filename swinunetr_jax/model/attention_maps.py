"""The attention weights of a block: how much each token of a window attends to each other token."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from swinunetr_jax.config import STAGES
from swinunetr_jax.errors import InputError
from swinunetr_jax.model import windows
from swinunetr_jax.model.swin import SwinBlock, SwinTransformer, check_input
from swinunetr_jax.model.unetr import SwinUNETR
from swinunetr_jax.ops.attention.reference import attention_weights


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["queries", "keys", "bias", "regions", "voxels"],
    meta_fields=["padded", "grid"],
)
@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention of a block, from which `weights` and `at` compute weights. It is a pytree, which a compiled function can return.

    Attributes:
        queries, keys: [b, windows, tokens, heads, channels of a head]; the queries are scaled.
        bias: the position bias, [heads, tokens, tokens].
        regions: the region of each token, [windows, tokens], or None if the windows are not shifted. Tokens attend to those of their own
            region.
        voxels: the position in the padded grid of each token, as an index in row-major order, [windows, tokens].
        padded: the size of the grid with the padding at the end of each axis.
        grid: the size of the grid of the block without padding. A voxel of it is 2, 4, 8 or 16 voxels of the scan wide, in stages 0 to 3.
    """

    queries: Array
    keys: Array
    bias: Array
    regions: np.ndarray | Array | None
    voxels: np.ndarray | Array
    padded: tuple[int, ...]
    grid: tuple[int, ...]

    @property
    def weights(self) -> Array:
        """All weights, [b, windows, heads, tokens that attend, tokens], whose sums over the last axis are 1; gigabytes for large grids."""
        queries, keys = (array.reshape(-1, *array.shape[2:]) for array in (self.queries, self.keys))
        weights = attention_weights(queries, keys, self.bias, None if self.regions is None else jnp.asarray(self.regions))
        return weights.reshape(*self.queries.shape[:2], *weights.shape[1:])

    def at(self, voxel: tuple[int, ...]) -> Array:
        """Returns the weights with which a voxel attends to all voxels, [b, *grid, heads]; they are 0 outside of its window.

        The sum over the grid is less than 1 if the window has padding, to which tokens attend, too.

        Call it outside of `jax.jit`.

        Args:
            voxel: the position in `grid`.

        Raises:
            InputError: the position is outside of the grid.
        """
        if len(voxel) != len(self.grid) or not all(0 <= index < size for index, size in zip(voxel, self.grid)):
            raise InputError(
                f"the voxel {tuple(voxel)} is not in the block's grid of {self.grid}: give an index along each axis."
            )
        (window,), (token,) = np.nonzero(np.asarray(self.voxels) == np.ravel_multi_index(voxel, self.padded))
        regions = None if self.regions is None else jnp.asarray(self.regions[window : window + 1])
        weights = attention_weights(self.queries[:, window], self.keys[:, window], self.bias, regions)[
            :, :, token
        ]  # [b, heads, tokens]
        b, heads, _ = weights.shape
        values = jnp.zeros((b, np.prod(self.padded), heads), weights.dtype).at[:, self.voxels[window]].set(weights.swapaxes(1, 2))
        return values.reshape(b, *self.padded, heads)[(slice(None), *map(slice, self.grid))]


def attention_maps(model: SwinUNETR | SwinTransformer, x: Array, stage: int, block: int) -> AttentionMaps:
    """Returns the attention of one block in a forward pass. The network is applied without dropout.

    Args:
        model: the network or its encoder.
        x: [b, *grid, in_channels]. For an encoder the grid can have any size.
        stage: the number of the stage, 0 to 3.
        block: the number of the block in its stage; windows of odd blocks are shifted.

    Raises:
        InputError: the network has no such block, the stage is a Hyena stage, or the network cannot take x.
    """
    encoder = model.swin if isinstance(model, SwinUNETR) else model
    if not 0 <= stage < STAGES or not 0 <= block < encoder.config.depths[stage]:
        raise InputError(
            f"the network has no block {block} in stage {stage}: its stages 0 to {STAGES - 1} have {encoder.config.depths} blocks."
        )
    swin_block = encoder.stages[stage].blocks[block]
    if not isinstance(swin_block, SwinBlock):
        raise InputError(f"stage {stage} is a Hyena stage, which has no attention: choose another stage.")
    if isinstance(model, SwinUNETR):
        model.config.check_spatial(tuple(x.shape[1:-1]))
    check_input(x, encoder.config)
    _, grids = encoder(jnp.asarray(x, encoder.config.dtype))
    before = ([f"stage{stage - 1}"] if stage else ["patch_embed"]) + [f"stage{stage}.conv"] * encoder.config.use_v2
    before += [f"stage{stage}.block{index}" for index in range(block)]
    return _maps(swin_block, grids[before[-1]])


def _maps(block: SwinBlock, x: Array) -> AttentionMaps:
    """Returns the attention of a block for its input [b, *grid, c]."""
    grid, axes = x.shape[1:-1], tuple(range(1, x.ndim - 1))
    window, shift = windows.clip_window(grid, block.window, block.shift)
    tokens = jnp.roll(windows.pad_to_windows(block.norm1(x), window), tuple(-sh for sh in shift), axes)
    padded = tokens.shape[1:-1]
    q, k, _, bias = block.attn.operands(windows.partition(tokens, window))
    q, k = (array.reshape(len(x), -1, *array.shape[1:]) for array in (q, k))
    return AttentionMaps(
        q, k, bias, windows.region_ids(padded, window, shift), windows.token_positions(padded, window, shift), padded, grid
    )
