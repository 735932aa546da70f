"""Augmentation on the device: the transforms of nnU-Net without the gamma of inverted images, and with smaller rotations."""

from dataclasses import replace

from swinunetr_jax.training import Augmentation, Gamma, Rotation, nnunet_augmentation
from swinunetr_jax.training.recipes.phantom import RECIPE as PHANTOM

INVERTED = Gamma(probability=0.1, inverted=True)
KEPT = [transform for transform in nnunet_augmentation().transforms if transform not in (Rotation(), INVERTED)]

RECIPE = replace(PHANTOM, augment=Augmentation((Rotation(degrees=15, probability=0.3), *KEPT)))
