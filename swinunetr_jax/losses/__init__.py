"""Losses of segmentation with MONAI's options and numbers: Dice, Tversky, cross-entropy and focal loss, and `Loss`, which combines them.

Logits are [b, *grid, c], channels last, with any number of spatial axes. Label maps are integers [b, *grid]. They are turned into targets,
0 or 1 in [b, *grid, c], inside the loss, so that the compiler fuses the comparison into the sums instead of storing the targets. All sums
are computed in at least float32, whatever the type of the logits. A mask [b, *grid] is 1 for the voxels that count and 0 for the others,
such as those that were not annotated.
"""

from swinunetr_jax.losses.inputs import ACTIVATIONS, REDUCTIONS
from swinunetr_jax.losses.loss import KINDS, Loss, dice_ce_loss, targets
from swinunetr_jax.losses.overlap import SMOOTH, dice_loss, tversky_loss
from swinunetr_jax.losses.voxelwise import cross_entropy, focal_loss

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "REDUCTIONS",
    "SMOOTH",
    "Loss",
    "cross_entropy",
    "dice_ce_loss",
    "dice_loss",
    "focal_loss",
    "targets",
    "tversky_loss",
]
