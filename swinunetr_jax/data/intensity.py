"""Intensities of a scan, prepared as the reference prepares them. Arrays are [x, y, z, c], channels last, float32."""

import numpy as np


def zscore_nonzero(array: np.ndarray) -> np.ndarray:
    """Per channel: mean 0 and population deviation 1 over the non-zero voxels; zeros stay zero, a deviation of 0 counts as 1.

    Statistics in float64: scanners write values of a million, whose squares float32 cannot add up. Source: MONAI's
    `NormalizeIntensity(nonzero=True, channel_wise=True)`.
    """
    out = np.zeros(array.shape, np.float32)
    for c in range(array.shape[-1]):
        inside = array[..., c] != 0
        values = array[..., c][inside].astype(np.float64)
        if values.size:
            out[..., c][inside] = (values - values.mean()) / (values.std() or 1.0)
    return out


def scale_window(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Intensities from `low` to `high` become 0 to 1, what lies outside is clipped. Source: MONAI's `ScaleIntensityRange`."""
    return np.clip((array.astype(np.float32) - low) / (high - low), 0.0, 1.0).astype(np.float32)
