"""Transforms of an example's intensities: normalisation and random brightness, as in the reference."""

from dataclasses import dataclass

import numpy as np

from swinunetr_jax.data.augment.random_transform import RandomTransform
from swinunetr_jax.data.prepare.example import Example
from swinunetr_jax.data.prepare.intensity import nonzero_statistics, scale_window, zscore_nonzero


@dataclass(frozen=True)
class MeasureNonzero:
    """Keeps the image's `nonzero_statistics`, for a `NormalizeNonzero` after a crop; those of a cache are taken as they are."""

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        return example if "statistics" in example else {**example, "statistics": nonzero_statistics(example["image"])}


@dataclass(frozen=True)
class NormalizeNonzero:
    """`zscore_nonzero` of the image; `measured` takes the example's 'statistics' instead of the image's own."""

    measured: bool = False

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        return {**example, "image": zscore_nonzero(example["image"], example["statistics"] if self.measured else None)}


@dataclass(frozen=True)
class ScaleWindow:
    """`scale_window` of the image."""

    low: float
    high: float

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        return {**example, "image": scale_window(example["image"], self.low, self.high)}


@dataclass(frozen=True)
class ScaleIntensity(RandomTransform):
    """With a probability x · (1 + f), f even in ±factor, one draw for all channels. Source: MONAI's `RandScaleIntensity`."""

    factor: float = 0.1
    probability: float = 1.0

    def draw(self, rng: np.random.Generator, example: Example) -> float:
        return rng.uniform(-self.factor, self.factor) if rng.random() < self.probability else 0.0

    def apply(self, example: Example, parameters: float) -> Example:
        return {**example, "image": example["image"] * np.float32(1 + parameters)} if parameters else example


@dataclass(frozen=True)
class ShiftIntensity(RandomTransform):
    """With a probability x + s, s even in ±offset, one draw for all channels, zeros too. Source: MONAI's `RandShiftIntensity`."""

    offset: float = 0.1
    probability: float = 1.0

    def draw(self, rng: np.random.Generator, example: Example) -> float:
        return rng.uniform(-self.offset, self.offset) if rng.random() < self.probability else 0.0

    def apply(self, example: Example, parameters: float) -> Example:
        return {**example, "image": example["image"] + np.float32(parameters)} if parameters else example
