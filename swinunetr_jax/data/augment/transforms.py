"""Turns of an example, and the recipes that put all transforms in order.

Turns come last, though the reference has them before the intensities: no other transform sees where a voxel lies, and as views
they cost nothing until the batch is filled.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from swinunetr_jax.data.augment.crops import CropByLabel, ForegroundCrop, RandomCrop
from swinunetr_jax.data.augment.intensity import MeasureNonzero, NormalizeNonzero, ScaleIntensity, ScaleWindow, ShiftIntensity
from swinunetr_jax.data.augment.random_transform import RandomTransform
from swinunetr_jax.data.prepare.example import Example

Transform = Callable[[Example, np.random.Generator], Example]


@dataclass(frozen=True)
class RandomFlip(RandomTransform):
    """Mirrors along each axis with a probability, independently. The parameters are a truth for each axis; the result is a view."""

    probability: float = 0.5
    axes: tuple[int, ...] = (0, 1, 2)

    def draw(self, rng: np.random.Generator, example: Example) -> tuple[bool, ...]:
        return tuple(bool(rng.random() < self.probability) for _ in self.axes)

    def apply(self, example: Example, parameters: tuple[bool, ...]) -> Example:
        axes = tuple(axis for axis, flip in zip(self.axes, parameters) if flip)
        return {**example, **{key: np.flip(example[key], axes) for key in ("image", "label")}}


@dataclass(frozen=True)
class RandomRotate90(RandomTransform):
    """With a probability 1 … `max_k` quarter turns in the plane of two axes. The parameter is their number; the result is a view.

    Source: MONAI's `RandRotate90`.
    """

    probability: float = 0.1
    max_k: int = 3
    axes: tuple[int, int] = (0, 1)

    def draw(self, rng: np.random.Generator, example: Example) -> int:
        return 1 + int(rng.integers(self.max_k)) if rng.random() < self.probability else 0

    def apply(self, example: Example, parameters: int) -> Example:
        return {**example, **{key: np.rot90(example[key], parameters, self.axes) for key in ("image", "label")}}


def brats_recipe(
    roi: tuple[int, int, int],
    normalize_after_crop: bool = True,
    flip_axes: tuple[int, ...] = (0, 1, 2),
    *,
    pad_foreground: bool = True,
) -> tuple[Transform, ...]:
    """The paper's recipe for BraTS: a crop of the foreground, mirrored, normalised, then brighter and darker.

    Args:
        roi: size of the crop.
        normalize_after_crop: by the crop's own statistics, as the paper's code does; otherwise by the whole case's, as validation
            does in both.
        flip_axes: mirrored along.
        pad_foreground: pad the foreground's box to multiples of `roi` and crop anywhere in that, as the paper's code does; otherwise
            a crop lies within the foreground, and only a foreground that is smaller than the crop is padded.
    """
    measure = () if normalize_after_crop else (MeasureNonzero(),)
    return (
        *measure,
        RandomCrop(roi, inside=ForegroundCrop(roi if pad_foreground else (1, 1, 1))),
        NormalizeNonzero(measured=not normalize_after_crop),
        ScaleIntensity(0.1),
        ShiftIntensity(0.1),
        RandomFlip(0.5, flip_axes),
    )


def ct_recipe(
    roi: tuple[int, int, int],
    *,
    window: tuple[float, float] = (-175.0, 250.0),
    positive: float = 1.0,
    negative: float = 1.0,
    flip: float = 0.2,
    flip_axes: tuple[int, ...] = (0, 1, 2),
    rotate: float = 0.2,
    intensity: float = 0.1,
) -> tuple[Transform, ...]:
    """The recipe for organs in CT (BTCV): crops around labelled and other voxels of the body, windowed, mirrored and turned.

    The window is applied after the crop, to fewer voxels: foreground is what lies above its lower end, which is 0 afterwards.
    A `roi` with unequal sides along x and y is not turned, for quarter turns would change its shape.
    """
    low, high = window
    turn = (RandomRotate90(rotate),) if roi[0] == roi[1] else ()
    return (
        CropByLabel(roi, positive, negative, above=low, inside=ForegroundCrop(above=low)),
        ScaleWindow(low, high),
        ScaleIntensity(0.1, intensity),
        ShiftIntensity(0.1, intensity),
        RandomFlip(flip, flip_axes),
        *turn,
    )
