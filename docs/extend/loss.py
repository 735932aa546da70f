"""Another loss: the Dice loss plus a focal term, which counts voxels that are classified badly more than others."""

import jax
import jax.numpy as jnp

from swinunetr_jax.losses import dice_loss, targets
from swinunetr_jax.training import Network, Optim, Phantom, Recipe, Validation

GAMMA = 2.0


def dice_focal(logits, labels, task):
    """The loss of logits [b, x, y, z, outputs] against label maps [b, x, y, z], for outputs that overlap (sigmoid)."""
    wanted = targets(labels, task)
    likelihood = jax.nn.sigmoid(jnp.where(wanted == 1, logits, -logits))
    focal = -((1 - likelihood) ** GAMMA) * jnp.log(likelihood + 1e-6)
    return dice_loss(logits, wanted) + focal.mean()


RECIPE = Recipe(
    kind="phantom",
    steps=240,
    roi=(32, 64, 32),
    orientation="LPS",
    phantom=Phantom(cases=20, size=(96, 96, 64)),
    network=Network(feature_size=12),
    loss=dice_focal,
    optim=Optim(lr=4e-3, warmup=20),
    validation=Validation(every=80, overlap=0.25),
)
