"""Writes a synthetic data set like BraTS, for a first run without a download.

The images resemble MRI and can be learned like MRI, but results on them say nothing about results on patients.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec

from swinunetr_jax import console, files
from swinunetr_jax.data import brats
from swinunetr_jax.data.nifti import Volume, write_volume
from swinunetr_jax.data.phantom.images import check_parameters, is_count, phantom_case, spacing_of
from swinunetr_jax.errors import InputError

__all__ = ["phantom_case", "write_phantom"]

VERSION = 1  # increased when the same parameters give other voxels; the record calls it "recipe"
RECORD = "phantom.json"


class Record(TypedDict):
    """The content of phantom.json: the parameters of the phantom in that folder."""

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
    """Writes cases 0 … `cases` - 1 into a folder, named as in BraTS 2021, or as in BraTS 2023 if `et_label` is 3.

    Complete cases of an earlier call with the same parameters are kept, so that an interrupted call is completed by the next one. Files
    are written completely or not at all.

    Args:
        folder: the folder; it is created if necessary.
        cases: the number of cases.
        size: voxels along x, y and z.
        seed: the seed of all cases.
        et_label: the enhancing tumour's label, 4 or 3.
        progress: called after each case with the number of cases written and `cases`.

    Raises:
        InputError: the folder holds other files or more cases, cannot be written, or a parameter is out of range.
    """
    folder = Path(folder)
    check_parameters(size, seed, et_label)
    if not is_count(cases) or cases == 0:
        raise InputError(f"`cases` of a phantom is {cases!r}, expected an integer of at least 1; correct it.")
    naming = brats.NAMING[et_label]
    try:
        record: Record = {"recipe": VERSION, "size": [int(n) for n in size], "seed": int(seed), "et_label": int(et_label)}
        _claim(folder, record, cases)
        for index in range(cases):
            stem = naming.case.format(index)
            endings = {**naming.channels, "label": naming.label}
            paths = {channel: folder / stem / f"{stem}{ending}.nii.gz" for channel, ending in endings.items()}
            if not all(files.is_file(path) for path in paths.values()):
                files.make_folder(folder / stem)
                files.remove_stale_temporaries(folder / stem)
                images, labels = phantom_case(index, size=size, seed=seed, et_label=et_label)
                like = _volume_of(labels, folder)
                for channel, image in images.items():
                    write_volume(paths[channel], image, like, np.int16)
                write_volume(paths["label"], labels, like, np.uint8)
            if progress is not None:
                progress(index + 1, cases)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be written ({files.reason(error)}); give a folder with write access and space."
        ) from error


def _claim(folder: Path, expected: Record, cases: int) -> None:
    """Creates the folder with a record of the parameters, or checks that an existing record has the same parameters."""
    files.make_folder(folder)
    files.remove_stale_temporaries(folder)
    record = folder / RECORD
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if not names:
        files.write_json(record, expected)
        return
    if RECORD not in names:
        first = console.literal(names[0])
        raise InputError(
            f"{folder}: holds other files, such as {first}, expected an empty folder or a phantom; give another folder."
        )
    try:
        stored = files.read_json(record, Record, "give another folder, or delete this one")
    except FileNotFoundError as error:  # a broken link
        raise InputError(f"{record}: cannot be read, expected the phantom's parameters; give another folder.") from error
    if stored != expected:
        raise InputError(f"{folder}: holds a phantom made with {stored}, expected {expected}; give another folder.")
    existing = [name for name in names if files.is_folder(folder / name)]
    if len(existing) > cases:
        raise InputError(f"{folder}: holds {len(existing)} cases, expected at most {cases}; give another folder.")


def _volume_of(labels: np.ndarray, folder: Path) -> Volume:
    """Returns the labels as a volume that fills the field of view of BraTS. Its axes point to L, P and S.

    With voxels of 1 mm the first voxel is at (0, 239, 0) mm.
    """
    spacing = spacing_of(labels.shape)
    shift = [(size - 1) / 2 for size in spacing]
    affine = from_matvec(np.diag([-spacing[0], -spacing[1], spacing[2]]), [0 - shift[0], 239 - shift[1], shift[2]])
    header = nib.Nifti1Header()
    header.set_data_shape(labels.shape)
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header.set_xyzt_units("mm")
    return Volume(labels, affine, header, folder)
