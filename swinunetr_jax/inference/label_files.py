"""The files of label maps: NIfTI, NRRD with the segments of 3D Slicer, and DICOM-SEG. The ending of a name chooses the format."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from swinunetr_jax import files
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.formats.libraries import check_writer
from swinunetr_jax.data.formats.segments import Segment, segments_of
from swinunetr_jax.data.formats.write_dicom_seg import write_dicom_seg
from swinunetr_jax.data.formats.write_nrrd import write_nrrd
from swinunetr_jax.data.nifti import Volume, write_volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.viz.labels import label_colours, label_names

LabelFormat = Literal["nifti", "nrrd", "dicom-seg"]
# 3D Slicer opens a file that ends with .seg.nrrd as a segmentation, and other .nrrd files as a scan.
ENDINGS: dict[LabelFormat, str] = {"nifti": ".nii.gz", "nrrd": ".seg.nrrd", "dicom-seg": ".dcm"}
LABEL_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".dcm")  # of the name of a single file
_NOT_DICOM = (".nii", ".nii.gz", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd")


def write_labels(path: str | os.PathLike, labels: np.ndarray, scan: Volume, task: Task) -> Path:
    """Writes a label map in the format of the path's ending, one of `LABEL_ENDINGS`, and returns the path.

    Args:
        path: the file.
        labels: uint8 [x, y, z] on the scan's grid.
        scan: the scan.
        task: the meaning of the labels, which NRRD and DICOM-SEG state.

    Raises:
        InputError: the file cannot be written in this format, is a file of the scan, or is in the folder of the scan's DICOM files.
    """
    path = Path(path)
    name = path.name.lower()
    if scan.slices and files.is_folder(scan.path) and files.real_path(path.absolute().parent) == files.real_path(scan.path):
        raise InputError(
            f"{path}: is in the folder of the DICOM files of the scan, which can hold nothing but that series; choose another folder."
        )
    if name.endswith((".nii", ".nii.gz")):
        return write_volume(path, labels, scan)
    if files.exists(path) and any(files.exists(source) and path.samefile(source) for source in (scan.path, *scan.slices)):
        raise InputError(
            f"{path}: the result would overwrite the image that it was computed from; choose another folder or name."
        )
    segments = _segments(task)
    write = write_nrrd if name.endswith(".nrrd") else write_dicom_seg
    return write(path, labels, scan, segments)


def check_format(name: str, cases: Sequence[Case]) -> None:
    """Checks before anything is segmented whether label maps can be written.

    Args:
        name: the name of a label map, whose ending states the format.
        cases: the cases. A single one is checked here, while each of several is checked by `check_source` when it is its turn.

    Raises:
        InputError: a library is missing, or the only case was not read from DICOM files and the format needs them.
    """
    check_writer(name)
    if len(cases) == 1:
        check_source(name, cases[0])


def check_source(name: str, case: Case) -> None:
    """Raises InputError if a label map of this name refers to DICOM files, and the case has another format."""
    if _is_dicom(name) and case.images and case.images[0].name.lower().endswith(_NOT_DICOM):
        raise InputError(
            f"{case.images[0]}: a DICOM-SEG refers to the DICOM files of a scan, and this is none: give the folder of the DICOM series, or "
            "choose nifti or nrrd."
        )


def generic_note(task: Task) -> str | None:
    """Returns a sentence on the labels whose names have no code of their own in a DICOM-SEG, or None if there are none."""
    names = [segment.name for segment in _segments(task) if segment.code.generic]
    if not names:
        return None
    return (
        f"the DICOM-SEG states the code of any tissue for {', '.join(names)}, because the tables of codes do not have these names: name "
        "the outputs after organs or findings with --labels, if they are such, or give the task codes (`Output.code`)"
    )


def _segments(task: Task) -> tuple[Segment, ...]:
    """Returns the segments of a task with the names and colours of pictures."""
    names = label_names(task)
    return segments_of(task, names, label_colours(names))


def _is_dicom(name: str) -> bool:
    return name.lower().endswith(ENDINGS["dicom-seg"])
