"""The objective `swin3`: rotation, contrast and reconstruction, by which Tang et al. 2022 pre-trained the encoder of Swin UNETR.

The paper is https://arxiv.org/abs/2111.14791. The numbers are those of its code, SwinUNETR/Pretrain in the repository
research-contributions of Project MONAI.
"""

import itertools
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig, Task
from swinunetr_jax.model.layers import Conv, Linear
from swinunetr_jax.ops.norm import instance_norm, layer_norm
from swinunetr_jax.ops.pointwise import leaky_relu
from swinunetr_jax.runtime.promotion import wide_dtype
from swinunetr_jax.training.config import Pretrain
from swinunetr_jax.training.crop_size import crop_size
from swinunetr_jax.training.objective import Batch
from swinunetr_jax.training.pretrain.cutout import cut_out, draw_view, rotate
from swinunetr_jax.training.pretrain.self_supervised import SelfSupervised
from swinunetr_jax.weights.params import NetworkConfig

VIEWS = 3  # the number that separates the keys of the views from others of the same seed
CONTRAST_WIDTH = 512
TEMPERATURE = 0.5
ENCODER = "swin."  # prefix of the names of the encoder's weights
UPSAMPLINGS = 5  # from 1/32 of the resolution to all of it


class Reconstruction(nnx.Module):
    """The head that reconstructs the crop: five times convolution → instance norm → leaky ReLU → upsampling, then a convolution."""

    def __init__(self, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        width = config.feature_size
        widths = (*(width * 2**level for level in reversed(range(UPSAMPLINGS))), width)
        self.convs = nnx.List(Conv(c_in, c_out, 3, config, bias=True, rngs=rngs) for c_in, c_out in itertools.pairwise(widths))
        self.out = Conv(width, config.in_channels, 1, config, bias=True, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns images [b, 32 x, 32 y, 32 z, in_channels] for features [b, x, y, z, c]."""
        for conv in self.convs:
            x = upsample(leaky_relu(instance_norm(conv(x))))
        return self.out(x)


def upsample(x: Array) -> Array:
    """Doubles a grid [b, x, y, z, c] by trilinear interpolation between the centres of voxels (PyTorch: `align_corners=False`)."""
    for axis in (1, 2, 3):
        size = x.shape[axis]
        before = jnp.concatenate([lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
        after = jnp.concatenate([lax.slice_in_dim(x, 1, size, axis=axis), lax.slice_in_dim(x, size - 1, size, axis=axis)], axis)
        pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


def contrast_loss(projections: Array) -> Array:
    """Returns the normalised temperature-scaled cross entropy of SimCLR (https://arxiv.org/abs/2002.05709), the mean over all views.

    The loss of view i, whose sample's other view is j, is -log(exp(sim(i, j) / 0.5) / Σ_{k ≠ i} exp(sim(i, k) / 0.5)), where sim is the
    cosine similarity.

    Args:
        projections: [n, 2 m, c], n groups of m samples with two views each, which follow each other. Views of different groups are not
            compared.
    """
    views = projections.shape[1]
    norm = jnp.sqrt(jnp.maximum(jnp.square(projections).sum(-1, keepdims=True), 1e-24))
    unit = projections / norm
    similarity = jnp.einsum("nic,njc->nij", unit, unit, precision=lax.Precision.HIGHEST) / TEMPERATURE
    others = jnp.where(jnp.eye(views, dtype=bool), -jnp.inf, similarity)
    positive = similarity[:, jnp.arange(views), jnp.arange(views) ^ 1]
    return (jax.nn.logsumexp(others, axis=-1) - positive).mean()


class Swin3(SelfSupervised):
    """The sum of three losses of two views of each crop, which are rotated and partly replaced by noise and by the content of another crop.

    1. The cross entropy of the rotation, predicted from the first token of the encoder's last output.
    2. The contrast of views of the same crop with views of other crops, by projections of the second token.
    3. The mean absolute difference between the crop that a head reconstructs from all tokens and the rotated crop, over all voxels.

    The heads are parameters of the objective. The decoder is neither computed nor trained. With `optim.accumulate`, local batches and
    contrast are those of each part of a batch.

    Args:
        task: the task, with the size of the crop.
        config: the configuration of the network.
        options: the size of a local batch, and the views that are contrasted with each other.
        seed: the seed of the views.
        rngs: random numbers for the initial values of the heads.

    Raises:
        InputError: the network, the size of the crop or an option does not permit this objective.
    """

    metric = "pre-training loss"

    def __init__(self, task: Task, config: NetworkConfig, options: Pretrain, seed: int, rngs: nnx.Rngs):
        checked = check(task, config, options)
        self.seed, self.local_batch, self.contrast = seed, options.local_batch, options.contrast
        self.validation_crops, self.validation_cases = 1, max(2, self.local_batch)  # views of different scans are contrasted
        self.dtype, width = jnp.dtype(checked.dtype), checked.stage_width(4)
        self.rotation = Linear(width, 4, checked, rngs=rngs)
        self.projection = Linear(width, CONTRAST_WIDTH, checked, rngs=rngs)
        self.reconstruction = Reconstruction(checked, rngs=rngs)

    def trains(self, name: str) -> bool:
        return name.startswith(ENCODER)

    def losses(self, model: nnx.Module, batch: Batch, key: Array | None) -> tuple[Array, dict[str, Array]]:
        rotated, views, turns = self.views(batch)
        hidden = self._hidden(cast(SwinUNETR, model), views, key)  # the constructor has checked the configuration
        tokens = hidden.reshape(hidden.shape[0], -1, hidden.shape[-1])
        wide = wide_dtype(self.dtype)
        logits = self.rotation(tokens[:, 0]).astype(wide)
        projections = self.projection(tokens[:, 1]).astype(wide)
        reconstructed = self.reconstruction(hidden).astype(wide)
        per_group = 2 * self.local_batch if self.contrast == "local" else len(projections)
        metrics = {
            "rotation_loss": optax.softmax_cross_entropy_with_integer_labels(logits, turns).mean(),
            "contrast_loss": contrast_loss(projections.reshape(-1, per_group, CONTRAST_WIDTH)),
            "reconstruction_loss": jnp.abs(reconstructed - rotated).mean(),
        }
        return sum(metrics.values(), jnp.zeros((), wide)), metrics | {
            "rotation_accuracy": (logits.argmax(-1) == turns).mean(dtype=jnp.float32)
        }

    def views(self, batch: Batch) -> tuple[Array, Array, Array]:
        """Returns the rotated crops [2 b, x, y, z, c], the same after the cut-outs, and the number of rotations by 90° [2 b].

        The two views of a sample follow each other.
        """
        image, local = batch["image"], self.local_batch
        if len(image) % local:
            raise InputError(
                f"{len(image)} samples cannot be divided into local batches of {local}: choose a multiple of it for --batch, or another "
                "--pretrain.local-batch."
            )
        size = (image.shape[1], image.shape[2], image.shape[3])
        draws = jax.vmap(jax.vmap(lambda key: draw_view(key, size, local)))(view_keys(self.seed, batch["sample"]))
        rotated = jax.vmap(jax.vmap(rotate, (None, 0)))(image, draws.turns)  # [b, 2, x, y, z, c]

        def by_local_batch(values: Array) -> Array:
            """[b, 2, …] -> [2 b / local, local, …]"""
            grouped = values.reshape(-1, local, 2, *values.shape[2:])
            return jnp.swapaxes(grouped, 1, 2).reshape(-1, local, *values.shape[2:])

        def by_sample(values: Array) -> Array:
            """[2 b / local, local, …] -> [2 b, …]"""
            grouped = values.reshape(-1, 2, local, *values.shape[2:])
            return jnp.swapaxes(grouped, 1, 2).reshape(-1, *values.shape[2:])

        views = by_sample(cut_out(by_local_batch(rotated), jax.tree.map(by_local_batch, draws)))
        return rotated.reshape(views.shape), views, draws.turns.reshape(-1)

    def _hidden(self, model: SwinUNETR, images: Array, key: Array | None) -> Array:
        """Returns the encoder's last output [b, x/32, y/32, z/32, c] for images [b, x, y, z, c], normalised as for the decoder."""
        features, _ = model.swin(jnp.asarray(images, self.dtype), key)
        return layer_norm(features[-1]) if model.config.normalize else features[-1]


def check(task: Task, config: NetworkConfig, options: Pretrain) -> SwinUNETRConfig:
    """Returns the configuration, which is that of a Swin UNETR. Raises InputError if `Swin3` cannot have these arguments."""
    if not isinstance(config, SwinUNETRConfig):
        raise InputError(f"swin3 trains the encoder of a Swin UNETR, but the network is {config.name}: choose another --task.")
    crop = crop_size(task)
    if crop[1] != crop[2] or max(crop) <= 32:
        raise InputError(
            f"swin3 rotates crops in the plane of their last two axes, which must have the same size, and needs two tokens, so more than "
            f"32 voxels along an axis, but the crops have {'×'.join(map(str, crop))}: choose another --roi, such as 96 96 96."
        )
    least = 2 if options.contrast == "local" else 1
    if options.local_batch < least:
        reason = ", because views are contrasted with those of other samples in it" if least == 2 else ""
        raise InputError(
            f"--pretrain.local-batch is {options.local_batch}, but a local batch must have at least {least} samples{reason}: choose a "
            "larger number."
        )
    return config


def view_keys(seed: int, samples: Array) -> Array:
    """Returns the random keys [b, 2] of the two views of samples with these numbers [b]."""
    base = jax.random.fold_in(jax.random.key(seed), VIEWS)
    of_sample = jax.vmap(jax.random.fold_in, (None, 0))(base, samples.astype(jnp.uint32))
    return jax.vmap(lambda key: jax.random.split(key, 2))(of_sample)


@dataclass(frozen=True)
class Swin3Factory:
    """The `ObjectiveFactory` of `Swin3`. Equal factories share one compiled step."""

    options: Pretrain
    seed: int

    def __call__(self, task: Task, config: NetworkConfig, rngs: nnx.Rngs) -> Swin3:
        return Swin3(task, config, self.options, self.seed, rngs)
