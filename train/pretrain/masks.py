"""Random masks of blocks. Exactly a fixed number of the blocks of a crop is masked."""

import jax
import jax.numpy as jnp
from jax import Array

MASKS = 2  # the number that separates the keys of masks from others of the same seed
LARGE_CROP, LARGE_BLOCK, SMALL_BLOCK = 96, 16, 8  # voxels


def block_size(crop: tuple[int, ...], given: int | None) -> int:
    """Returns the edge of a block in voxels: the given one, or 16, or 8 if an axis of the crop has fewer than 96 voxels."""
    if given is not None:
        return given
    return LARGE_BLOCK if min(crop) >= LARGE_CROP else SMALL_BLOCK


def masked_blocks(blocks: int, ratio: float) -> int:
    """Returns how many of a number of blocks are masked: at least one, and at least one is visible."""
    return min(max(round(ratio * blocks), 1), blocks - 1)


def mask_keys(seed: int, samples: Array) -> Array:
    """Returns a key for each sample number, [b], which depends on nothing else but the seed."""
    key = jax.random.fold_in(jax.random.key(seed), MASKS)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, samples.astype(jnp.uint32))


def block_mask(key: Array, crop: tuple[int, int, int], block: int, ratio: float) -> Array:
    """Returns a mask [x, y, z] of a crop, whose axes are multiples of `block`. True voxels are masked."""
    x, y, z = (size // block for size in crop)
    order = jax.random.permutation(key, x * y * z)
    masked = (order < masked_blocks(x * y * z, ratio)).reshape(x, 1, y, 1, z, 1)
    return jnp.broadcast_to(masked, (x, block, y, block, z, block)).reshape(crop)
