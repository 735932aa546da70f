"""Reads a case's files into arrays on one grid: channels by name, in the task's orientation and voxel size.

Training and prediction both read cases here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.channels import match_channels
from swinunetr_jax.data.formats import read_labels, read_volume
from swinunetr_jax.data.nifti import InverseReorient, Volume, on_grid_of, reorient
from swinunetr_jax.data.prepare.resample import InverseResample, is_same_grid, resample, resample_labels, spacing_grid
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task


@dataclass(frozen=True, eq=False)
class ReadCase:
    """A case on the grid that a network sees, with the intensities of its files.

    `array` is float32 [x, y, z, c] in `orientation` and the task's voxel size, and `affine` maps its indices to mm. `back` maps that grid
    to the scan's own, which `scan` describes. `notes` are sentences for the user, such as about channels that the files do not name.
    """

    array: np.ndarray
    affine: np.ndarray
    back: InverseReorient | InverseResample
    scan: Volume
    notes: tuple[str, ...]
    orientation: str


def read_case(case: Case, task: Task, in_channels: int) -> ReadCase:
    """Reads the images of a case.

    Raises:
        InputError: a file cannot be read, or the channels are too few or too many, are on different grids, are constant, or hold NaN.
    """
    return arrange(case, read_volumes(case), task, in_channels)


def read_volumes(case: Case) -> list[Volume]:
    """Returns the images of a case, float32. Raises InputError if the case has a problem or a file cannot be read."""
    if case.problem:
        raise InputError(case.problem)
    return [read_volume(path) for path in case.images]


def arrange(case: Case, volumes: Sequence[Volume], task: Task, in_channels: int) -> ReadCase:
    """Arranges the images of a case for the task's networks: its channels in their order, on the grid that they see.

    Args:
        case: the names of the images and of their channels.
        volumes: the images, float32, in the order of `case.images`.
        task: the task of the networks.
        in_channels: the number of channels that the networks take.

    Raises:
        InputError: the channels are too few or too many, are on different grids, or are constant.
    """
    volumes = [volumes[0], *(on_grid_of(volume, volumes[0]) for volume in volumes[1:])]
    order, planes, notes = _ordered(case, volumes, task, in_channels)
    array = np.stack(planes, axis=-1)
    for index in range(array.shape[-1]):
        if array[..., index].min() == array[..., index].max():
            name = task.channels[index] if task.channels else f"number {(case.plane or 0) + index + 1}"
            raise InputError(
                f"{case.images[min(order[index], len(case.images) - 1)]}: channel {name} is constant "
                f"({array[..., index].flat[0]:g} everywhere), expected an image; give the real channel."
            )
    notes = (*notes, *dict.fromkeys(f"{volume.path.name}: {note}" for volume in volumes for note in volume.notes))
    scan = volumes[0]
    orientation = task.orientation or scan.orientation
    array, source, _ = reorient(array, scan.affine, orientation)
    affine, back = network_grid(scan.array.shape[:3], scan.affine, task)
    array = resample(array, source, back.shape, affine)
    return ReadCase(array, affine, back, scan, notes, orientation)


def channels_of(case: Case, volumes: Sequence[Volume], task: Task, in_channels: int) -> dict[str, np.ndarray]:
    """Returns the channels [x, y, z] of a case by name, in the network's order and as they were read, with the arguments of `arrange`."""
    _, planes, _ = _ordered(case, volumes, task, in_channels)
    names = task.channels if len(set(task.channels)) == len(planes) else [f"channel {index + 1}" for index in range(len(planes))]
    return dict(zip(names, planes, strict=True))


def network_grid(
    shape: tuple[int, int, int], affine: np.ndarray, task: Task
) -> tuple[np.ndarray, InverseReorient | InverseResample]:
    """Returns (affine, inverse) of the grid on which the task's networks see a scan of this shape and affine.

    The inverse holds the grid's shape; it is an `InverseReorient` if the scan is not resampled.
    """
    codes = task.orientation or "".join(nib.aff2axcodes(affine))
    _, source, back = reorient(np.broadcast_to(np.uint8(0), shape), affine, codes)
    if task.spacing is None:
        return source, back
    shape, affine = spacing_grid(back.shape, source, task.spacing)
    if is_same_grid(back.shape, source, shape, affine):
        return affine, back
    return affine, InverseResample(shape, affine, source, back)


def read_case_label(case: Case, read: ReadCase) -> np.ndarray:
    """Returns the label map of a case, uint8 [x, y, z] on the grid of `read.array`.

    Raises:
        InputError: the label map is missing, cannot be read, is on another grid than the images, or holds labels above 255.
    """
    if case.label is None:
        raise InputError(f"{case.images[0]}: the case {case.name} has no label map; give one, or leave the case out.")
    labels = on_grid_of(read_labels(case.label), read.scan)
    if labels.array.dtype != np.uint8:
        raise InputError(
            f"{case.label}: label {labels.array.max()} is above 255, the largest label supported; renumber the labels."
        )
    # The scan's affine is used, because the label's own may differ by rounding, which decides the direction of an axis at 45°.
    array, affine, _ = reorient(labels.array, read.scan.affine, read.orientation)
    return resample_labels(array, affine, read.array.shape[:3], read.affine)


def content_map(image: np.ndarray, task: Task) -> np.ndarray:
    """Returns a map of the voxels of an image [x, y, z, c] that show something, uint8 [x, y, z]: 1, or 0 for its empty background.

    Where zeros are excluded from the normalisation they are background. Otherwise no voxel is.
    """
    return (image != 0).any(-1).astype(np.uint8) if task.intensity == "zscore" else np.ones(image.shape[:3], np.uint8)


def _ordered(
    case: Case, volumes: Sequence[Volume], task: Task, in_channels: int
) -> tuple[tuple[int, ...], list[np.ndarray], tuple[str, ...]]:
    """Returns the positions of the network's channels among the case's, these channels [x, y, z], and notes."""
    planes = [plane for volume in volumes for plane in _planes(volume)]
    if case.plane is not None:
        planes = planes[case.plane : case.plane + 1]
    order, notes = _order(case, len(planes), task.channels, in_channels)
    return order, [planes[index] for index in order], notes


def _order(case: Case, count: int, wanted: Sequence[str], in_channels: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns (positions of the network's channels among the case's, notes). Channels are matched by name if both have names."""
    if wanted and case.channels and len(case.channels) == count:
        return match_channels(case.channels, wanted), ()
    if count != in_channels:
        files = "one file" if len(case.images) == 1 else f"{len(case.images)} files"
        names = f" ({', '.join(wanted)})" if wanted else ""
        raise InputError(
            f"{case.images[0]}: the case has {count} channels in {files}, the network takes {in_channels}{names}; give "
            "that number of channels."
        )
    if count == 1:
        return (0,), ()
    names = ", ".join(wanted) if wanted else "the order of the files"
    return tuple(range(count)), (f"the files do not name their channels, which are assumed to be, in order: {names}",)


def _planes(volume: Volume) -> list[np.ndarray]:
    """Returns the channels of a volume, each [x, y, z]."""
    array = volume.array
    return [array] if array.ndim == 3 else [array[..., index] for index in range(array.shape[-1])]
