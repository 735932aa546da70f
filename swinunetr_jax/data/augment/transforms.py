"""Flips and rotations of an example, and the recipes that combine all transforms.

The recipes flip and rotate last, although the reference does so before changing intensities. The result is the same, because no other
transform depends on the position of a voxel, and views cost nothing until the batch is filled.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from swinunetr_jax.data.augment.class_share import ClassShare
from swinunetr_jax.data.augment.crops import CropByLabel, ForegroundCrop, RandomCrop, with_class_share
from swinunetr_jax.data.augment.intensity import MeasureNonzero, NormalizeNonzero, ScaleIntensity, ScaleWindow, ShiftIntensity
from swinunetr_jax.data.augment.random_transform import RandomTransform
from swinunetr_jax.data.prepare.example import Example

Transform = Callable[[Example, np.random.Generator], Example]


@dataclass(frozen=True)
class RandomFlip(RandomTransform[tuple[bool, ...]]):
    """Mirrors along each axis independently with a probability. The parameters are a bool for each axis; the result is a view."""

    probability: float = 0.5
    axes: tuple[int, ...] = (0, 1, 2)

    def draw(self, rng: np.random.Generator, example: Example) -> tuple[bool, ...]:
        return tuple(bool(rng.random() < self.probability) for _ in self.axes)

    def apply(self, example: Example, parameters: tuple[bool, ...]) -> Example:
        axes = tuple(axis for axis, flip in zip(self.axes, parameters) if flip)
        return {**example, **{key: np.flip(example[key], axes) for key in ("image", "label")}}


@dataclass(frozen=True)
class RandomRotate90(RandomTransform[int]):
    """Rotates by 1 … `max_k` quarter turns in the plane of two axes, with a probability.

    The parameter is the number of quarter turns; the result is a view. Source: MONAI's `RandRotate90`.
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
    by_class: ClassShare | None = None,
) -> tuple[Transform, ...]:
    """Returns the paper's transforms for BraTS: a crop of the foreground, normalisation, random brightness, and mirroring.

    Args:
        roi: the size of the crop.
        normalize_after_crop: whether to normalise by the statistics of the crop, as the paper's code does, instead of those of the whole
            case. Validation always uses those of the whole case.
        flip_axes: the axes to mirror along.
        pad_foreground: whether to pad the foreground's box to multiples of `roi` and crop anywhere in it, as the paper's code does.
            Otherwise crops are within the foreground, and only a foreground smaller than the crop is padded.
        by_class: the share of the samples that is centred on a class, see `CropByClass`; None centres no sample.
    """
    measure = () if normalize_after_crop else (MeasureNonzero(),)
    return (
        *measure,
        with_class_share(RandomCrop(roi, inside=ForegroundCrop(roi if pad_foreground else (1, 1, 1))), by_class),
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
    ignore: int | None = None,
    by_class: ClassShare | None = None,
) -> tuple[Transform, ...]:
    """Returns the transforms for organs in CT (BTCV): crops around labelled and other voxels, the window, mirroring and rotations.

    The window is applied after the crop, because fewer voxels then need it; the foreground is above its lower end. Crops with
    unequal sides along x and y are not rotated, because quarter turns would change their shape.

    Args:
        roi: the size of the crop.
        window: the intensities that become 0 and 1.
        positive, negative: the odds that a crop is centred on a labelled voxel or on another one.
        flip: the probability of mirroring along each axis.
        flip_axes: the axes to mirror along.
        rotate: the probability of a rotation.
        intensity: the probability of each change of brightness.
        ignore: the label of voxels that were not annotated, around which no crop is taken.
        by_class: the share of the samples that is centred on a class, see `CropByClass`; the others are cropped as if it were None.
    """
    low, high = window
    rotation = (RandomRotate90(rotate),) if roi[0] == roi[1] else ()
    return (
        with_class_share(
            CropByLabel(roi, positive, negative, above=low, inside=ForegroundCrop(above=low), ignore=ignore), by_class
        ),
        ScaleWindow(low, high),
        ScaleIntensity(0.1, intensity),
        ShiftIntensity(0.1, intensity),
        RandomFlip(flip, flip_axes),
        *rotation,
    )
