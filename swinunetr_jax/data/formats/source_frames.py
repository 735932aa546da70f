"""The frames of a DICOM series that a result refers to, in the order of its files, and where they are on the grid of the scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from swinunetr_jax.data.formats.read_dicom import read_dicom_header
from swinunetr_jax.data.nifti import Volume
from swinunetr_jax.errors import InputError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes point left and to the back
TOLERANCE = 0.05  # the distance in voxels by which a frame may be beside the grid, as positions in DICOM have few digits
# Attributes that may be empty but must exist; some anonymised files lack them.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID", "Rows", "Columns")


def read_sources(paths: Sequence[Path]) -> list[Dataset]:
    """Returns the headers of the files of a series, in their order, without their voxels.

    Raises:
        InputError: a file cannot be read, or lacks an attribute without which nothing can refer to it.
    """
    sources = []
    for path in paths:
        source = read_dicom_header(path)
        missing = [name for name in _NEEDED if not source.get(name)]
        if missing:
            raise InputError(
                f"{path}: has no {' and no '.join(missing)}, without which a DICOM-SEG cannot refer to it; choose nifti or nrrd."
            )
        for name in _MAY_BE_EMPTY:
            if name not in source:
                setattr(source, name, "")
        if source.PatientSex not in ("M", "F", "O"):  # the only values that DICOM allows
            source.PatientSex = ""
        sources.append(source)
    return sources


def frame_planes(sources: Sequence[Dataset], scan: Volume) -> list[int]:
    """Returns the index of the plane [x, y] of the scan's array that each frame of its files shows.

    Raises:
        InputError: a frame is not a plane of the scan's grid, in which x are the columns and y the rows of a frame.
    """
    shape, to_voxels = scan.array.shape[:3], np.linalg.inv(scan.affine)
    planes = []
    for affine, (rows, columns) in _frames(sources, scan.path):
        matrix = to_voxels @ LPS_TO_RAS @ affine  # indices of the frame (column, row, 0) to voxels
        corners = np.array([[0, 0, 0, 1], [columns - 1, 0, 0, 1], [0, rows - 1, 0, 1]])
        plane = round(float(matrix[2, 3])) if np.isfinite(matrix).all() else -1
        expected = corners[:, :3] + [0, 0, plane]
        on_grid = np.abs((corners @ matrix.T)[:, :3] - expected).max() <= TOLERANCE
        if not (on_grid and 0 <= plane < shape[2] and (columns, rows) == shape[:2]):
            raise InputError(
                f"{scan.path}: the frames of its DICOM files are not the planes of the scan's array, so that a DICOM-SEG cannot refer to "
                "them; choose nifti or nrrd."
            )
        planes.append(plane)
    if sorted(planes) != list(range(shape[2])):
        raise InputError(
            f"{scan.path}: its DICOM files have {len(planes)} frames, and the scan has {shape[2]} planes, so that a DICOM-SEG cannot refer "
            "to them; choose nifti or nrrd."
        )
    return planes


def _frames(sources: Sequence[Dataset], path: Path) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Returns for each frame its affine, which maps (column, row, 0) to mm (left, back, up), and its numbers of rows and columns."""
    frames = []
    for source in sources:
        groups: list[Dataset | None] = [None]
        if "PerFrameFunctionalGroupsSequence" in source:
            groups = list(source.PerFrameFunctionalGroupsSequence)
        for group in groups:
            try:
                position = _value(source, group, "PlanePositionSequence", "ImagePositionPatient")
                along = _value(source, group, "PlaneOrientationSequence", "ImageOrientationPatient")
                spacing = _value(source, group, "PixelMeasuresSequence", "PixelSpacing")
            except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
                raise InputError(
                    f"{path}: a DICOM file of the scan states no position, orientation or pixel spacing; choose nifti or nrrd."
                ) from error
            affine = np.eye(4)
            affine[:3, 0], affine[:3, 1] = along[:3] * spacing[1], along[3:] * spacing[0]
            affine[:3, 3] = position
            frames.append((affine, (int(source.Rows), int(source.Columns))))
    return frames


def _value(source: Dataset, group: Dataset | None, sequence: str, name: str) -> np.ndarray:
    """Returns an attribute of a frame, which a multi-frame file states for each frame or once for all of them."""
    if group is None:
        return np.array(getattr(source, name), np.float64)
    shared = source.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in source else group
    holder = group if sequence in group else shared
    return np.array(getattr(getattr(holder, sequence)[0], name), np.float64)
