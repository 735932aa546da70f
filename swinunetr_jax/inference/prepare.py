"""From a case's files to the array a network takes: channels by name, one grid, its orientation, its intensities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swinunetr_jax.data.cases import Case
from swinunetr_jax.data.channels import match_channels
from swinunetr_jax.data.nifti import Back, Volume, check_same_grid, read_volume, reorient
from swinunetr_jax.data.transforms import scale_window, zscore_nonzero
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task


@dataclass(frozen=True)
class Prepared:
    """A case ready for a network.

    `array` is [x, y, z, c] in the network's orientation; `back` brings such a grid to the scan's own, which `scan` describes;
    `notes` are things a user should know, such as channels taken on trust.
    """

    array: np.ndarray
    back: Back
    scan: Volume
    notes: tuple[str, ...]


def prepare(case: Case, task: Task, in_channels: int) -> Prepared:
    """Reads a case and makes of it what the task's networks were trained on.

    Raises:
        InputError: a file cannot be read, channels are missing or too many, lie on different grids, are constant, or hold NaN.
    """
    if case.problem:
        raise InputError(case.problem)
    volumes = [read_volume(path) for path in case.images]
    check_same_grid(volumes)
    order, notes = _order(case, volumes, task.channels, in_channels)
    planes = [plane for volume in volumes for plane in _planes(volume)]
    array = np.stack([planes[index] for index in order], axis=-1)
    for index in range(array.shape[-1]):
        if array[..., index].min() == array[..., index].max():
            name = task.channels[index] if task.channels else f"number {index + 1}"
            raise InputError(
                f"{case.images[min(order[index], len(case.images) - 1)]}: channel {name} is constant "
                f"({array[..., index].flat[0]:g} everywhere), expected an image; give the real channel."
            )
    scan = volumes[0]
    array, _, back = reorient(array, scan.affine, task.orientation or scan.orientation)
    if task.intensity == "zscore":
        array = zscore_nonzero(array)
    elif task.intensity == "window":
        array = scale_window(array, *task.window)
    return Prepared(np.ascontiguousarray(array, np.float32), back, scan, notes)


def _order(
    case: Case, volumes: Sequence[Volume], wanted: Sequence[str], in_channels: int
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Which of the case's channels goes where, by name wherever both sides have names."""
    count = sum(len(_planes(volume)) for volume in volumes)
    if wanted and case.channels and len(case.channels) == count:
        return match_channels(case.channels, wanted), ()
    if count != in_channels:
        files = "one file" if len(volumes) == 1 else f"{len(volumes)} files"
        names = f" ({', '.join(wanted)})" if wanted else ""
        raise InputError(
            f"{case.images[0]}: the case has {count} channels in {files}, the network takes {in_channels}{names}; give those."
        )
    if count == 1:
        return (0,), ()
    names = ", ".join(wanted) if wanted else "the order of the files"
    return tuple(range(count)), (f"the files do not tell their channels; taken to be, in order: {names}",)


def _planes(volume: Volume) -> list[np.ndarray]:
    array = volume.array
    return [array] if array.ndim == 3 else [array[..., index] for index in range(array.shape[-1])]
