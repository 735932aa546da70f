"""Deep supervision: the decoder's coarser grids also predict the label map, by heads that exist only during training.

The method is that of Lee et al. 2015 (https://arxiv.org/abs/1409.5185), and weights and labels are those of nnU-Net.
"""

from dataclasses import dataclass
from typing import cast

import jax.numpy as jnp
from flax import nnx
from jax import Array

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig, Task
from swinunetr_jax.training.objective import Batch, LossFunction, Objective
from swinunetr_jax.weights.params import NetworkConfig

# The intermediates of Swin UNETR at 1/2, 1/4 and 1/8 of the full resolution, and their channels in units of `feature_size`. The decoder's
# coarsest grid, decoder5 at 1/16, has weight 0, as in nnU-Net, and therefore no head.
GRIDS = {"decoder2": 1, "decoder3": 2, "decoder4": 4}


def resolution_weights(count: int) -> tuple[float, ...]:
    """Returns the weights of a number of resolutions, the finest first: 1, 1/2, 1/4, … divided by their sum."""
    weights = [0.5**level for level in range(count)]
    return tuple(weight / sum(weights) for weight in weights)


def coarse_labels(labels: Array, step: int) -> Array:
    """Returns the label map at 1/step of the resolution, by nearest neighbour: [b, x, y, z] -> [b, x/step, y/step, z/step]."""
    return labels[:, step // 2 :: step, step // 2 :: step, step // 2 :: step]


class DeepSupervision(Objective):
    """The weighted sum of a loss at full, 1/2, 1/4 and 1/8 resolution.

    Each coarser grid has a 1×1×1 convolution that returns logits. These heads are parameters of the objective, so that the network and its
    checkpoint are the same as without deep supervision. The metric `full_resolution_loss` is comparable to the loss of such a run.

    Args:
        loss: (logits, labels, task) -> a number.
        task: the meaning of the outputs.
        config: the configuration of the network.
        rngs: random numbers for the initial values of the heads.
    """

    def __init__(self, loss: LossFunction, task: Task, config: NetworkConfig, rngs: nnx.Rngs):
        if not isinstance(config, SwinUNETRConfig):
            raise InputError(
                f"deep supervision needs the decoder of a Swin UNETR, but the network is {config.name}: leave out --deep-supervision."
            )
        self.loss, self.task = loss, task
        self.heads = nnx.List(
            [
                nnx.Linear(width * config.feature_size, config.out_channels, dtype=jnp.dtype(config.dtype), rngs=rngs)
                for width in GRIDS.values()
            ]
        )

    def __call__(self, model: nnx.Module, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        network = cast(SwinUNETR, model)  # the constructor has checked the configuration
        logits, intermediates = network.forward(batch["image"], key=key, train=True)
        network.update_batch_stats(intermediates)
        first, *others = resolution_weights(1 + len(GRIDS))
        finest = self.loss(logits, batch["label"], self.task)
        total = first * finest
        for level, (name, head, weight) in enumerate(zip(GRIDS, self.heads, others, strict=True), start=1):
            total += weight * self.loss(head(intermediates[name]), coarse_labels(batch["label"], 2**level), self.task)
        return total, {"full_resolution_loss": finest}


@dataclass(frozen=True)
class DeepSupervisionFactory:
    """The `ObjectiveFactory` of deep supervision with a loss. Equal factories share one compiled step."""

    loss: LossFunction

    def __call__(self, task: Task, config: NetworkConfig, rngs: nnx.Rngs) -> DeepSupervision:
        return DeepSupervision(self.loss, task, config, rngs)
