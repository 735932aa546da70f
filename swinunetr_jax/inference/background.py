"""Finds the windows of a scan that hold nothing but background. A network gives all of them the same result, which is computed once."""

import numpy as np

from swinunetr_jax.inference.plan import Plan


def background_calls(volume: np.ndarray, plan: Plan, batch: int) -> np.ndarray:
    """Returns which calls of a network receive only windows of zeros, bool [rows, calls in a row].

    A prepared scan is zero outside of the patient if its voxels were normalised where they are not zero, or if air is below its window of
    intensities. The padding of a scan is zero, too. Whole calls are considered, so that each window remains in the call that it would
    otherwise be in, and results are equal bit for bit.

    Args:
        volume: the prepared scan [x, y, z, c].
        plan: the positions of the windows on it.
        batch: the number of windows per call.
    """
    depth, height, width = plan.roi
    rows = []
    for row in plan.starts[0]:
        occupied = np.any(plan.pad(volume[row : row + depth]), (0, -1))  # [y, z]
        windows = [occupied[y : y + height, z : z + width].any() for y in plan.starts[1] for z in plan.starts[2]]
        size = min(batch, len(windows))
        rows.append([not any(windows[first : first + size]) for first in range(0, len(windows), size)])
    return np.array(rows)


def background_windows(calls: np.ndarray, plan: Plan, batch: int) -> int:
    """Returns the number of windows in calls that `background_calls` has found."""
    windows = len(plan.starts[1]) * len(plan.starts[2])
    size = min(batch, windows)
    sizes = np.array([min(size, windows - first) for first in range(0, windows, size)])
    return int((calls * sizes).sum())
