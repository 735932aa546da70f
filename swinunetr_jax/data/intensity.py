"""Intensities of a scan, prepared and varied as the reference does it. Arrays are [x, y, z, c], channels last, float32."""

from dataclasses import dataclass

import numpy as np

from swinunetr_jax.data.example import Example, RandomTransform


def nonzero_statistics(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per channel: mean and population deviation over the non-zero voxels, float64 [c]; a deviation of 0 counts as 1.

    In float64: scanners write values of a million, whose squares float32 cannot add up.
    """
    channels = array.shape[-1]
    count, total, squares = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for rows in map(_rows, _slabs(array)):
        count += _per_channel(rows != 0, channels, np.uint32)
        total += _per_channel(rows, channels)
    count = np.maximum(count, 1)
    mean = total / count
    for rows in map(_rows, _slabs(array)):
        apart = rows - _along(rows, mean)
        apart *= rows != 0
        squares += _per_channel(np.square(apart, out=apart), channels)
    deviation = np.sqrt(squares / count)
    return mean, np.where(deviation > 0, deviation, 1.0)


def zscore_nonzero(array: np.ndarray, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Per channel: mean 0 and population deviation 1 over the non-zero voxels; zeros stay zero, a deviation of 0 counts as 1.

    `statistics` (means, deviations) go before those of `array`. Source: MONAI's `NormalizeIntensity(nonzero=True,
    channel_wise=True)`.
    """
    mean, deviation = nonzero_statistics(array) if statistics is None else statistics
    # float32 from here on is exact enough, with what rounding the mean leaves behind taken off at the end
    rounded = mean.astype(np.float32)
    factor, rest = (1 / deviation).astype(np.float32), ((mean - rounded) / deviation).astype(np.float32)
    out = np.empty_like(array, np.float32)
    for slab, target in zip(_slabs(array), _slabs(out)):
        rows = _rows(slab)
        values = rows - _along(rows, rounded)
        values *= _along(rows, factor)
        values -= _along(rows, rest)
        values[rows == 0] = 0
        target[...] = values.reshape(target.shape)
    return out


def scale_window(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Intensities from `low` to `high` become 0 to 1, what lies outside is clipped. Source: MONAI's `ScaleIntensityRange`."""
    return np.clip((array.astype(np.float32) - low) / (high - low), 0.0, 1.0).astype(np.float32)


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


def _slabs(array: np.ndarray) -> np.ndarray:
    """A view to go through plane by plane, along the axis that is slowest in memory: float64 copies of a plane stay in the cache."""
    return np.moveaxis(array, int(np.argmax(np.abs(array.strides[:3]))), 0)


def _rows(slab: np.ndarray) -> np.ndarray:
    """[a, b, c] as [a, b·c]: numpy is several times slower on loops over a few channels."""
    return slab.reshape(len(slab), -1)


def _along(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.tile(values, rows.shape[1] // len(values))


def _per_channel(rows: np.ndarray, channels: int, dtype: type = np.float64) -> np.ndarray:
    return rows.sum(axis=0, dtype=dtype).reshape(-1, channels).sum(axis=0)
