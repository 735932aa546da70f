"""The recipe `msd` with nnU-Net's augmentation on the device and its sampling by class, and no other change."""

from dataclasses import replace

from swinunetr_jax.training import nnunet_augmentation
from swinunetr_jax.training.recipes.msd import RECIPE as MSD

RECIPE = replace(MSD, augment=nnunet_augmentation(), class_share=0.33)
