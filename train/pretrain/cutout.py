"""The two views of a sample in pre-training as by Tang et al. 2022 (https://arxiv.org/abs/2111.14791): a rotation, then two cut-outs.

A view is rotated by a multiple of 90° in the plane of the axes y and z. Then boxes of it are filled with noise, and further boxes with the
content of another sample. A cut-out is complete when the total volume of its boxes has reached a number of voxels that is uniform between 0
and 30 % of the crop. Voxels in several boxes count several times.

Everything random in a view is drawn from a key of its own, so that it does not depend on other samples.

Letters in shapes: n local batches, m samples of each, k boxes.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

MAX_DROP = 0.3  # the largest total volume of the boxes of a cut-out, relative to the crop
MIN_EDGE, MAX_EDGE = 0.05, 0.25  # the edges of a box relative to those of the crop; the upper end is excluded
PLANE = (1, 2)  # the axes of an image [x, y, z, c] in whose plane it is rotated

Size = tuple[int, int, int]


class Boxes(NamedTuple):
    """The boxes of a cut-out: the first voxel and the voxel after the last one along each axis. Boxes after the first `needed` are empty.

    Attributes:
        start: int32 [k, 3].
        stop: int32 [k, 3].
        needed: int32 [].
    """

    start: Array
    stop: Array
    needed: Array


class Draws(NamedTuple):
    """Everything random in a view.

    Attributes:
        turns: int32 [], 0 to 3: the number of rotations by 90°.
        noise_boxes: the boxes that are filled with noise.
        noise_key: the random key of the noise.
        partner: int32 [], the position in the local batch of the sample whose content is taken. No content is taken from the sample
            itself.
        content_boxes: the boxes that are filled with the partner's content.
    """

    turns: Array
    noise_boxes: Boxes
    noise_key: Array
    partner: Array
    content_boxes: Boxes


def draw_view(key: Array, size: Size, local_batch: int) -> Draws:
    """Returns everything random in a view of a crop of this size, whose local batch has `local_batch` samples."""
    number_key, noise_key = jax.random.split(key)
    limit = box_limit(size)
    # All numbers come from one call, because each call takes about a second to compile on a CPU.
    numbers = jax.random.uniform(number_key, (4 + 2 * limit * 6,), jnp.float32)
    turns, partner, *volumes = numbers[:4]
    noise_boxes, content_boxes = (
        boxes_of(volume, corners, size) for volume, corners in zip(volumes, numbers[4:].reshape(2, limit, 2, 3), strict=True)
    )
    return Draws(_integers(turns, 0, 4), noise_boxes, noise_key, _integers(partner, 0, local_batch), content_boxes)


def boxes_of(volume: Array, corners: Array, size: Size) -> Boxes:
    """Returns boxes whose total volume is the first to reach a number of voxels that is uniform between 0 and 30 % of the crop.

    More boxes than needed are drawn at once, instead of one after another until their volume suffices, and the rest is dropped.

    Args:
        volume: a random number [], uniform in [0, 1), for the total volume.
        corners: such numbers [k, 2, 3], for the start and the edge of each box along each axis.
        size: the size of the crop.
    """
    sizes, (least, most) = np.array(size, np.int32), edge_range(size)
    start = _integers(corners[:, 0], 0, sizes - least)
    stop = jnp.minimum(start + _integers(corners[:, 1], least, most), sizes)
    voxels = jnp.prod(stop - start, axis=1)
    is_needed = jnp.cumsum(voxels) - voxels < volume * MAX_DROP * math.prod(size)  # the boxes before it do not suffice
    return Boxes(start, jnp.where(is_needed[:, None], stop, start), is_needed.sum(dtype=jnp.int32))


def _integers(numbers: Array, low: np.ndarray | int, high: np.ndarray | int) -> Array:
    """Returns integers from `low` to `high` - 1 for numbers that are uniform in [0, 1)."""
    extent = jnp.asarray(np.subtract(high, low), jnp.float32)
    return jnp.asarray(low, jnp.int32) + jnp.floor(numbers * extent).astype(jnp.int32)


def edge_range(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least edge of a box along each axis, int32 [3], and the number that it stays below, int32 [3]."""
    sizes = np.array(size)
    return (MIN_EDGE * sizes).astype(np.int32), (MAX_EDGE * sizes).astype(np.int32)


def box_limit(size: Size) -> int:
    """Returns the number of boxes that are drawn at once: more than twice as many as are needed on average for 30 % of the crop.

    In practice the limit is not reached: for crops of 96³ about 125 boxes are needed, with a standard deviation of 9. In crops of fewer
    than 20 voxels along an axis many boxes are empty, and the limit is higher.
    """
    mean_volume = 1.0
    for voxels, least, most in zip(size, *edge_range(size), strict=True):
        start, edge = np.arange(voxels - least)[:, None], np.arange(least, most)
        mean_volume *= float((np.minimum(start + edge, voxels) - start).mean())
    return math.ceil(2 * MAX_DROP * math.prod(size) / mean_volume) + 64


def rotate(image: Array, turns: Array) -> Array:
    """Returns an image [x, y, z, c] after `turns` rotations by 90° from y towards z. y and z must have the same size."""
    image = jnp.where(turns % 2 == 1, jnp.rot90(image, 1, PLANE), image)
    return jnp.where(turns >= 2, jnp.rot90(image, 2, PLANE), image)


def cut_out(images: Array, draws: Draws) -> Array:
    """Returns rotated images [n, m, x, y, z, c] after their cut-outs.

    As in the paper's code, the samples of a local batch are changed one after another. Therefore content comes from a partner before its
    cut-outs if the partner comes later in the local batch, and otherwise from a partner after its cut-outs.

    Args:
        images: the images by local batch.
        draws: their draws, [n, m, …].
    """
    noise_limit, content_limit = draws.noise_boxes.needed.max(), draws.content_boxes.needed.max()

    def body(position: Array, images: Array) -> Array:
        own: Draws = jax.tree.map(lambda values: values[:, position], draws)
        image = lax.dynamic_index_in_dim(images, position, axis=1, keepdims=False)
        image = jax.vmap(partial(_with_noise, limit=noise_limit))(image, own.noise_boxes, own.noise_key)
        partner = jax.vmap(lambda images, index: images[index])(images, own.partner)
        image = jax.vmap(partial(_with_content, limit=content_limit))(image, own.content_boxes, partner, own.partner != position)
        return lax.dynamic_update_index_in_dim(images, image, position, axis=1)

    return lax.fori_loop(0, images.shape[1], body, images)


def noise_of(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Returns the noise of a view before it is scaled, normally distributed."""
    return jax.random.normal(key, shape, jnp.float32).astype(dtype)


def _with_noise(image: Array, boxes: Boxes, key: Array, limit: Array) -> Array:
    """Returns an image [x, y, z, c] whose boxes are filled with noise between 0 and 1.

    The noise of each box is scaled by its own minimum and maximum. All boxes take their part of one array of noise, and the distribution
    of what they show is that of new noise for each box: a voxel shows only the last of its boxes, so that no number is seen twice. Only the
    scales of two boxes are not independent if an extreme of both is a voxel of their overlap.

    Args:
        image: the image.
        boxes: the boxes.
        key: the random key of the noise.
        limit: the number of boxes to go through, which is the same for all images, so that the loop of a batch has one length.
    """
    noise = noise_of(key, image.shape, image.dtype)

    def body(index: Array, image: Array) -> Array:
        inside = _inside(boxes, index, image.shape[:3])[..., None]
        low = jnp.min(noise, where=inside, initial=jnp.inf)
        extent = jnp.max(noise, where=inside, initial=-jnp.inf) - low
        scaled = (noise - low) / jnp.where(extent > 0, extent, 1)  # a box may be empty or have one voxel
        return jnp.where(inside, scaled, image)

    return lax.fori_loop(0, limit, body, image)


def _with_content(image: Array, boxes: Boxes, partner: Array, different: Array, limit: Array) -> Array:
    """Returns an image [x, y, z, c] whose boxes are filled with the content of another one, if `different` is true."""
    nowhere = jnp.zeros(image.shape[:3], bool)
    inside = lax.fori_loop(0, limit, lambda index, mask: mask | _inside(boxes, index, image.shape[:3]), nowhere)
    return jnp.where(inside[..., None] & different, partner, image)


def _inside(boxes: Boxes, index: Array, size: tuple[int, ...]) -> Array:
    """Returns a mask [x, y, z] of a box."""
    mask = jnp.ones((), bool)
    for axis in range(3):
        position = lax.broadcasted_iota(jnp.int32, size, axis)
        mask &= (position >= boxes.start[index, axis]) & (position < boxes.stop[index, axis])
    return mask
