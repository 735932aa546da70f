"""Deep supervision: the coarser grids of the decoder also predict the label map, by heads that exist only during training."""

from dataclasses import replace

from flax import nnx
from jax import numpy as jnp

from swinunetr_jax.losses import Loss
from swinunetr_jax.training import Objective
from swinunetr_jax.training.recipes.phantom import RECIPE as PHANTOM


class DeepSupervision(Objective):
    """The loss at three resolutions with weights 1, 1/2 and 1/4; the heads are parameters of the objective, not of the network."""

    def __init__(self, task, config, rngs):
        self.task, self.loss = task, Loss(kind="dice_ce")
        width = config.feature_size
        self.heads = nnx.List([nnx.Linear(n * width, config.out_channels, rngs=rngs) for n in (1, 2)])

    def __call__(self, model, batch, key):
        logits, intermediates = model.forward(batch["image"], key=key, train=True)
        model.update_batch_stats(intermediates)
        total = finest_loss = self.loss(logits, batch["label"], self.task)
        for level, (head, name) in enumerate(zip(self.heads, ("decoder2", "decoder3")), start=1):
            features, every_nth = intermediates[name].astype(jnp.float32), slice(2**level // 2, None, 2**level)
            label = batch["label"][:, every_nth, every_nth, every_nth]
            total += self.loss(head(features), label, self.task) / 2**level
        return total, {"full_resolution_loss": finest_loss}


RECIPE = replace(PHANTOM, objective=DeepSupervision)
