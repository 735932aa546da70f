"""From a case's files to the array a network takes: read on the task's grid, with the task's intensities."""

from dataclasses import dataclass

import numpy as np

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.nifti import InverseReorient, Volume
from swinunetr_jax.data.prepare.intensity import scale_window, zscore_nonzero
from swinunetr_jax.data.prepare.read_case import read_case
from swinunetr_jax.data.prepare.resample import InverseResample
from swinunetr_jax.task import Task


@dataclass(frozen=True)
class Prepared:
    """A case ready for a network.

    `array` is [x, y, z, c] in the network's orientation and voxel size; `back` says how that grid lies on the scan's own, which `scan`
    describes; `notes` are things a user should know, such as channels taken on trust.
    """

    array: np.ndarray
    back: InverseReorient | InverseResample
    scan: Volume
    notes: tuple[str, ...]


def prepare(case: Case, task: Task, in_channels: int) -> Prepared:
    """Reads a case and makes of it what the task's networks were trained on.

    Raises:
        InputError: a file cannot be read, channels are missing or too many, lie on different grids, are constant, or hold NaN.
    """
    read = read_case(case, task, in_channels)
    return Prepared(normalized(read.array, task), read.back, read.scan, read.notes)


def normalized(array: np.ndarray, task: Task) -> np.ndarray:
    """A whole scan [x, y, z, c] with the task's intensities, float32."""
    if task.intensity == "zscore":
        array = zscore_nonzero(array)
    elif task.intensity == "window":
        array = scale_window(array, *task.window)
    return np.ascontiguousarray(array, np.float32)
