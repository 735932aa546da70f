"""A data set like BraTS, made on the spot for a first run without a download.

It looks like MRI and is learned like MRI, but says nothing of how well a network does on patients.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import nibabel as nib
import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.data import brats
from swinunetr_jax.data.nifti import Volume, write_volume
from swinunetr_jax.data.phantom.images import check_parameters, is_count, phantom_case, spacing_of
from swinunetr_jax.errors import InputError

__all__ = ["phantom_case", "write_phantom"]

RECIPE = 1  # raised when the same parameters give other voxels
RECORD = "phantom.json"


class Record(TypedDict):
    """The parameters of a phantom, in its folder."""

    recipe: int
    size: list[int]
    seed: int
    et_label: int


def write_phantom(
    folder: str | os.PathLike,
    *,
    cases: int,
    size: tuple[int, int, int] = brats.GRID,
    seed: int = 0,
    et_label: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make `folder` hold cases 0 … `cases` - 1 as BraTS 2021 lays them out, or as 2023 does if `et_label` is 3.

    Complete cases of an earlier call with the same parameters stay as they are, so a call that was cut off is completed by the
    next. Every file appears whole. `progress` is called with (cases there, `cases`) after each.

    Raises:
        InputError: the folder holds something else or more cases, cannot be written, or a parameter is out of range.
    """
    folder = Path(folder)
    check_parameters(size, seed, et_label)
    if not is_count(cases) or cases == 0:
        raise InputError(f"`cases` of a phantom is {cases!r}, expected a whole number from 1; correct it.")
    naming = brats.NAMING[et_label]
    try:
        record: Record = {"recipe": RECIPE, "size": [int(n) for n in size], "seed": int(seed), "et_label": int(et_label)}
        _claim(folder, record, cases)
        for index in range(cases):
            stem = naming.case.format(index)
            endings = {**naming.channels, "label": naming.label}
            paths = {channel: folder / stem / f"{stem}{ending}.nii.gz" for channel, ending in endings.items()}
            if not all(files.is_file(path) for path in paths.values()):
                files.make_folder(folder / stem)
                files.remove_stale_temporaries(folder / stem)
                images, labels = phantom_case(index, size=size, seed=seed, et_label=et_label)
                like = _place_of(labels, folder)
                for channel, image in images.items():
                    write_volume(paths[channel], image, like, np.int16)
                write_volume(paths["label"], labels, like, np.uint8)
            if progress is not None:
                progress(index + 1, cases)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be written ({files.reason(error)}); give a folder with write access and space."
        ) from error


def _claim(folder: Path, asked: Record, cases: int) -> None:
    """Make the folder and write what it holds into its record; or check that the record says the same."""
    files.make_folder(folder)
    files.remove_stale_temporaries(folder)
    record = folder / RECORD
    there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if not there:
        files.write_json(record, asked)
        return
    if RECORD not in there:
        first = console.literal(there[0])
        raise InputError(f"{folder}: holds other files, such as {first}, expected an empty folder or a phantom; give another.")
    try:
        found = files.read_json(record, Record, "give another folder, or delete this one")
    except FileNotFoundError as error:  # a link to nothing
        raise InputError(f"{record}: cannot be read, expected the phantom's parameters; give another folder.") from error
    if found != asked:
        raise InputError(f"{folder}: holds a phantom made with {found}, but {asked} is asked for; give another folder.")
    held = [entry for entry in there if files.is_folder(folder / entry)]
    if len(held) > cases:
        raise InputError(f"{folder}: holds {len(held)} cases, but {cases} are asked for; give another folder.")


def _place_of(labels: np.ndarray, folder: Path) -> Volume:
    """The grid in the world as BraTS gives it: voxels of the field's own spacing start at (0, 239, 0) mm, axes L, P, S."""
    spacing = spacing_of(labels.shape)
    shift = [(s - 1) / 2 for s in spacing]
    affine = nib.affines.from_matvec(np.diag([-spacing[0], -spacing[1], spacing[2]]), [0 - shift[0], 239 - shift[1], shift[2]])
    header = nib.Nifti1Header()
    header.set_data_shape(labels.shape)
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header.set_xyzt_units("mm")
    return Volume(labels, affine, header, folder)
