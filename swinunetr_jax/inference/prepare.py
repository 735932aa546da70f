"""Reads the files of a case as an array for a network, on the task's grid and with the task's intensities."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.nifti import InverseReorient, Volume
from swinunetr_jax.data.prepare.intensity import scale_window, zscore_nonzero
from swinunetr_jax.data.prepare.read_case import arrange, channels_of, read_volumes
from swinunetr_jax.data.prepare.resample import InverseResample
from swinunetr_jax.task import Task


@dataclass(frozen=True)
class Prepared:
    """A case as an array for a network.

    Attributes:
        array: [x, y, z, c] in the network's orientation and voxel size.
        back: the transformation from the array's grid back to the scan's.
        scan: the first channel's file, whose grid the results get.
        notes: sentences for the user, for example about channels whose names could not be verified.
        channels: the channels [x, y, z] by name in the network's order, as they were read.
    """

    array: np.ndarray
    back: InverseReorient | InverseResample
    scan: Volume
    notes: tuple[str, ...]
    channels: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """The memory of all arrays in bytes."""
        return self.array.nbytes + sum(channel.nbytes for channel in self.channels.values())


def prepare(case: Case, task: Task, in_channels: int) -> Prepared:
    """Returns a case in the form that the task's networks were trained with.

    Raises:
        InputError: a file cannot be read, the number of channels is wrong, or channels have different grids, are constant or contain NaN.
    """
    return prepare_volumes(case, read_volumes(case), task, in_channels)


def prepare_volumes(case: Case, volumes: Sequence[Volume], task: Task, in_channels: int) -> Prepared:
    """Returns a case whose images are in memory in the form of `prepare`, with the arguments and errors of `arrange`."""
    loaded = arrange(case, volumes, task, in_channels)
    channels = channels_of(case, volumes, task, in_channels)
    return Prepared(normalized(loaded.array, task), loaded.back, loaded.scan, loaded.notes, channels)


def normalized(array: np.ndarray, task: Task) -> np.ndarray:
    """Returns a complete scan [x, y, z, c] with the task's intensities, float32."""
    if task.intensity == "zscore":
        array = zscore_nonzero(array)
    elif task.window is not None:  # a task has a window only with this intensity
        array = scale_window(array, *task.window)
    return np.ascontiguousarray(array, np.float32)
