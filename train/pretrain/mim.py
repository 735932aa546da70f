"""Masked image modelling: the network fills in the masked blocks of a crop, and both its encoder and its decoder learn from it.

Sources: SimMIM (Xie et al. 2022, https://arxiv.org/abs/2111.09886) and, for volumes and whole networks, the masked autoencoder of nnssl
(Wald et al. 2025, https://arxiv.org/abs/2412.17041).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import flax.nnx as nnx
import jax
import jax.numpy as jnp
from jax import Array

from swinunetr_jax import InputError, Task
from swinunetr_jax.training.config import Pretrain
from swinunetr_jax.training.crop_size import crop_size
from swinunetr_jax.training.objective import Batch, training_pass
from swinunetr_jax.training.pretrain.masks import block_mask, block_size, mask_keys
from swinunetr_jax.training.pretrain.self_supervised import SelfSupervised
from swinunetr_jax.weights.params import NetworkConfig


class MaskedImages(SelfSupervised):
    """The mean squared error over the masked voxels of a crop.

    Masked voxels become 0, which after a z-score is the mean of the scan, and with an intensity window its low end. Voxels of the empty
    background and of padding do not count. The loss is the mean over the samples. `fill_mse` is the error if masked voxels are filled with
    the mean of the visible ones, and the explained variance is R² = 1 - loss / fill_mse.

    Args:
        task: the task, with the size of the crop.
        options: the share of the masked blocks and their size.
        seed: the seed of the masks.
    """

    metric = "masked MSE"
    picture = "filled_in.png"
    captions = ("original", "masked", "filled in")

    def __init__(self, task: Task, options: Pretrain, seed: int):
        crop = crop_size(task)
        self.crop, self.block, self.ratio, self.seed = crop, block_size(crop, options.mask_block), options.mask_ratio, seed
        if any(size % self.block for size in crop) or all(size == self.block for size in crop):
            raise InputError(
                f"blocks of {self.block} voxels do not divide a crop of {'×'.join(map(str, crop))} into several: choose another "
                "--pretrain.mask-block, such as 8 or 16."
            )

    def masks(self, samples: Array) -> Array:
        """Returns the masks [b, x, y, z] of samples by their numbers."""
        return jax.vmap(lambda key: block_mask(key, self.crop, self.block, self.ratio))(mask_keys(self.seed, samples))

    def losses(self, model: nnx.Module, batch: Batch, key: Array | None) -> tuple[Array, dict[str, Array]]:
        image, mask = batch["image"], self.masks(batch["sample"])[..., None]
        output = self.filled(model, image, mask, key)
        content = (batch["label"] > 0)[..., None]
        counted = jnp.broadcast_to(mask & content, image.shape)
        error = _mean((output.astype(image.dtype) - image) ** 2, counted, (1, 2, 3, 4))
        visible_mean = _mean(image, jnp.broadcast_to(~mask & content, image.shape), (1, 2, 3), keepdims=True)
        fill_error = _mean((visible_mean - image) ** 2, counted, (1, 2, 3, 4))
        return error.mean(), {"fill_mse": fill_error.mean()}

    def filled(self, model: nnx.Module, image: Array, mask: Array, key: Array | None) -> Array:
        """Returns the network's output for images [b, x, y, z, c] in which masked voxels are 0."""
        visible = jnp.where(mask, jnp.zeros_like(image), image)
        return model(visible) if key is None else training_pass(model, visible, key)  # pyright: ignore[reportCallIssue]

    def numbers(self, loss: float, metrics: Mapping[str, float]) -> dict[str, float]:
        return {"masked R²": 1 - loss / metrics["fill_mse"]} if metrics["fill_mse"] else {}

    def example(self, model: nnx.Module, batch: Batch) -> dict[str, Array]:
        image, mask = batch["image"], self.masks(batch["sample"])[..., None]
        filled = jnp.where(mask, self.filled(model, image, mask, None).astype(image.dtype), image)
        middle = image.shape[3] // 2
        images = (image, jnp.where(mask, jnp.nan, image), filled)
        return {name: values[0, :, :, middle, 0] for name, values in zip(self.captions, images, strict=True)}


def _mean(values: Array, counted: Array, axes: tuple[int, ...], *, keepdims: bool = False) -> Array:
    """Returns the mean over the counted values, or 0 if none is counted."""
    total = jnp.where(counted, values, 0).sum(axes, keepdims=keepdims)
    return total / jnp.maximum(counted.sum(axes, keepdims=keepdims), 1)


@dataclass(frozen=True)
class MaskedImagesFactory:
    """The `ObjectiveFactory` of masked image modelling. Equal factories share one compiled step."""

    options: Pretrain
    seed: int

    def __call__(self, task: Task, config: NetworkConfig, rngs: nnx.Rngs) -> MaskedImages:
        return MaskedImages(task, self.options, self.seed)
