"""Intensities of a scan as the network takes them, normalised as the reference does it. Arrays are [x, y, z, c], channels last."""

import numpy as np


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
