"""Augmentation of training samples on the device. It needs only JAX and no trainer.

    from swinunetr_jax.augment import nnunet_augmentation
    RECIPE = replace(RECIPE, augment=nnunet_augmentation())

transform     the base classes of transforms
spatial       rotation, scaling, mirroring: matrices
intensity     noise, blur, brightness, contrast, low resolution, gamma
passes        resampling by a matrix
augmentation  all transforms of a sample
"""

from swinunetr_jax.augment.augmentation import (
    Augmentation,
    SampleAugmentation,
    map_samples,
    nnunet_augmentation,
    nnunet_transforms,
)
from swinunetr_jax.augment.intensity import Brightness, Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution
from swinunetr_jax.augment.spatial import Mirror, Rotation, Scaling
from swinunetr_jax.augment.transform import Intensity, Run, Spatial, Transform

__all__ = [
    "Augmentation",
    "Brightness",
    "Contrast",
    "Gamma",
    "GaussianBlur",
    "GaussianNoise",
    "Intensity",
    "LowResolution",
    "Mirror",
    "Rotation",
    "Run",
    "SampleAugmentation",
    "Scaling",
    "Spatial",
    "Transform",
    "map_samples",
    "nnunet_augmentation",
    "nnunet_transforms",
]
