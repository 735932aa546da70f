"""Normalisation of a scan's intensities for the network, as in MONAI. Arrays are [x, y, z, c], channels last."""

import numpy as np


def nonzero_statistics(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (means, population standard deviations) of the non-zero voxels of each channel, float64 [c].

    A standard deviation of 0 becomes 1. The sums are computed in float64, because scanners write values up to a million, whose squares
    cannot be summed accurately in float32.
    """
    channels = array.shape[-1]
    count, total, squares = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for rows in map(_rows, _slabs(array)):
        count += _per_channel(rows != 0, channels, np.uint32)
        total += _per_channel(rows, channels)
    count = np.maximum(count, 1)
    mean = total / count
    for rows in map(_rows, _slabs(array)):
        centred = rows - _along(rows, mean)
        centred *= rows != 0
        squares += _per_channel(np.square(centred, out=centred), channels)
    deviation = np.sqrt(squares / count)
    return mean, np.where(deviation > 0, deviation, 1.0)


def zscore_nonzero(array: np.ndarray, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Returns the array with mean 0 and population standard deviation 1 over the non-zero voxels of each channel, float32.

    Zeros remain zero, and a standard deviation of 0 counts as 1. Source: MONAI's `NormalizeIntensity(nonzero=True, channel_wise=True)`.

    Args:
        array: [x, y, z, c].
        statistics: (means, standard deviations) to use instead of those of `array`.
    """
    rounded, factor, rest = zscore_terms(nonzero_statistics(array) if statistics is None else statistics)
    out = np.empty_like(array, np.float32)
    for slab, target in zip(_slabs(array), _slabs(out)):
        rows = _rows(slab)
        values = rows - _along(rows, rounded)
        values *= _along(rows, factor)
        values -= _along(rows, rest)
        values[rows == 0] = 0
        target[...] = values.reshape(target.shape)
    return out


def zscore_terms(statistics: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (mean, factor, rest), float32 [c] each, for which (x - mean) · factor - rest is the normalised intensity.

    In float32 this is accurate enough, because `rest` is the rounding error of the mean.
    """
    mean, deviation = statistics
    rounded = mean.astype(np.float32)
    return rounded, (1 / deviation).astype(np.float32), ((mean - rounded) / deviation).astype(np.float32)


def scale_window(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns the array with `low` … `high` scaled to 0 … 1 and other values clipped. Source: MONAI's `ScaleIntensityRange`."""
    return np.clip((array.astype(np.float32) - low) / (high - low), 0.0, 1.0).astype(np.float32)


def _slabs(array: np.ndarray) -> np.ndarray:
    """Returns a view whose first axis is the slowest in memory. Float64 copies of one plane fit in the processor's cache."""
    return np.moveaxis(array, int(np.argmax(np.abs(array.strides[:3]))), 0)


def _rows(slab: np.ndarray) -> np.ndarray:
    """Returns [a, b, c] as [a, b·c], because numpy is several times slower if the last axis has only a few channels."""
    return slab.reshape(len(slab), -1)


def _along(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns one value per channel, repeated along the rows."""
    return np.tile(values, rows.shape[1] // len(values))


def _per_channel(rows: np.ndarray, channels: int, dtype: type = np.float64) -> np.ndarray:
    """Returns the sum [c] of each channel over rows [a, b·c]."""
    return rows.sum(axis=0, dtype=dtype).reshape(-1, channels).sum(axis=0)
