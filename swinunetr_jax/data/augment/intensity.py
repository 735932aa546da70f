"""Transforms of an example's intensities: normalisation and random brightness, as in MONAI."""

from dataclasses import dataclass

import numpy as np

from swinunetr_jax.data.augment.random_transform import RandomTransform
from swinunetr_jax.data.prepare.example import Example
from swinunetr_jax.data.prepare.intensity import nonzero_statistics, scale_window, zscore_nonzero


@dataclass(frozen=True)
class MeasureNonzero:
    """Adds the image's `nonzero_statistics` to the example for `NormalizeNonzero` after a crop, unless they come from the cache."""

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        return example if "statistics" in example else {**example, "statistics": nonzero_statistics(example["image"])}


@dataclass(frozen=True)
class NormalizeNonzero:
    """Applies `zscore_nonzero` to the image, with the example's 'statistics' if `measured`, otherwise with the image's own."""

    measured: bool = False

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        return {**example, "image": zscore_nonzero(example["image"], example["statistics"] if self.measured else None)}


@dataclass(frozen=True)
class ScaleWindow:
    """Applies `scale_window` to the image."""

    low: float
    high: float

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        return {**example, "image": scale_window(example["image"], self.low, self.high)}


@dataclass(frozen=True)
class ScaleIntensity(RandomTransform[float]):
    """Multiplies the image by 1 + f, with a probability; f is uniform in [-factor, factor] and the same for all channels.

    Source: MONAI's `RandScaleIntensity`.
    """

    factor: float = 0.1
    probability: float = 1.0

    def draw(self, rng: np.random.Generator, example: Example) -> float:
        return rng.uniform(-self.factor, self.factor) if rng.random() < self.probability else 0.0

    def apply(self, example: Example, parameters: float) -> Example:
        return {**example, "image": example["image"] * np.float32(1 + parameters)} if parameters else example


@dataclass(frozen=True)
class ShiftIntensity(RandomTransform[float]):
    """Adds s to all voxels, including zeros, with a probability; s is uniform in [-offset, offset] and the same for all channels.

    Source: MONAI's `RandShiftIntensity`.
    """

    offset: float = 0.1
    probability: float = 1.0

    def draw(self, rng: np.random.Generator, example: Example) -> float:
        return rng.uniform(-self.offset, self.offset) if rng.random() < self.probability else 0.0

    def apply(self, example: Example, parameters: float) -> Example:
        return {**example, "image": example["image"] + np.float32(parameters)} if parameters else example
