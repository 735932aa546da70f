"""Reads the files of a case as an array for a network, on the task's grid and with the task's intensities."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.nifti import InverseReorient, Volume
from swinunetr_jax.data.prepare.intensity import nonzero_statistics, scale_window, zscore_nonzero
from swinunetr_jax.data.prepare.read_case import ReadCase, arrange, channels_of, read_volumes
from swinunetr_jax.data.prepare.resample import InverseResample
from swinunetr_jax.data.scan_range import differences, scan_facts
from swinunetr_jax.task import Task

Statistics = tuple[np.ndarray, np.ndarray]  # the means and the standard deviations of the channels, [c] each


@dataclass(frozen=True)
class Prepared:
    """A case as an array for a network.

    Attributes:
        array: [x, y, z, c] in the network's orientation and voxel size.
        back: the transformation from the array's grid back to the scan's.
        scan: the first channel's file, whose grid the results get.
        notes: sentences for the user, for example about channels whose names could not be verified.
        channels: the channels [x, y, z] by name in the network's order, as they were read.
        warnings: sentences on how the scan is unlike those that the networks were trained on.
    """

    array: np.ndarray
    back: InverseReorient | InverseResample
    scan: Volume
    notes: tuple[str, ...]
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

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
    statistics = nonzero_statistics(loaded.array) if task.intensity == "zscore" or task.scans is not None else None
    array = normalized(loaded.array, task, statistics)
    return Prepared(array, loaded.back, loaded.scan, loaded.notes, channels, _warnings(loaded, task, statistics))


def _warnings(loaded: ReadCase, task: Task, statistics: Statistics | None) -> tuple[str, ...]:
    """Returns a sentence if a scan is unlike those that the task's networks were trained on, as far as that is known."""
    if task.scans is None or statistics is None:
        return ()
    facts = scan_facts(loaded.array.shape, loaded.affine, statistics)
    found = differences(facts, task.scans, task.channels, scaled=task.intensity == "zscore")
    return (f"the scan is unlike those that the network was trained on: it has {', '.join(found)}",) if found else ()


def normalized(array: np.ndarray, task: Task, statistics: Statistics | None = None) -> np.ndarray:
    """Returns a complete scan [x, y, z, c] with the task's intensities, float32. `statistics` are its `nonzero_statistics`, if known."""
    if task.intensity == "zscore":
        array = zscore_nonzero(array, statistics)
    elif task.window is not None:  # a task has a window only with this intensity
        array = scale_window(array, *task.window)
    return np.ascontiguousarray(array, np.float32)
