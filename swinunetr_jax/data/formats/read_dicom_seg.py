"""Reads a DICOM Segmentation (DICOM-SEG) as a label map. highdicom arranges its frames in a volume."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax import console
from swinunetr_jax.data.formats.dicom_files import DicomFiles
from swinunetr_jax.data.formats.dicom_header import SEGMENTATIONS, Header, read_header
from swinunetr_jax.data.formats.libraries import check_library
from swinunetr_jax.data.formats.scan import Scan, check_scan
from swinunetr_jax.data.formats.segments import PROGRAM, value_in
from swinunetr_jax.data.nifti.memory import header_of_affine
from swinunetr_jax.data.nifti.volume import Volume
from swinunetr_jax.errors import InputError

RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_NOTED = 8  # segments that the note on a file names


def segmentation_header(path: Path) -> Header | None:
    """Returns the header of the DICOM-SEG that `path` is or holds, or None if it is something else. Raises InputError as `open_dicom`."""
    with DicomFiles(path) as opened:
        found = opened.dicom_files()
        header = read_header(opened, found[0])
    if str(header.image.get("SOPClassUID", "")) not in SEGMENTATIONS:
        return None
    if len(found) > 1:
        raise InputError(
            f"{path}: holds {len(found)} DICOM files, of which {found[0].name} is a segmentation, expected one label map; give one file."
        )
    return header


def read_dicom_seg(path: Path, header: Header, max_bytes: int) -> Volume:
    """Returns the label map of a DICOM-SEG, which may cover only a part of its scan (`Volume.is_part`).

    The label of a segment is its value in the label map from which this program wrote the file, and its number in all other files.

    Raises:
        InputError: the file is damaged or too large, a library is missing, the frames are not those of a regular volume, or a voxel is in
            two segments.
    """
    check_library("highdicom", f"{path}: reading DICOM-SEG")
    import highdicom as hd

    with DicomFiles(path) as opened, opened.open(header.file) as stream, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="highdicom|pydicom")  # they would print personal data
        try:
            dataset = hd.seg.segread(stream)
            frames = dataset.PerFrameFunctionalGroupsSequence if "PerFrameFunctionalGroupsSequence" in dataset else ()
            is_whole = len(frames) == int(dataset.NumberOfFrames) and all(
                _segments_in(frame) <= _numbers(dataset) for frame in frames
            )
            geometry = dataset.get_volume_geometry()
            depth, rows, columns = (0, 0, 0) if geometry is None else map(int, geometry.spatial_shape)
        except Exception as error:  # highdicom raises many kinds of errors for damaged files, whose texts may hold personal data
            raise InputError(_damaged(path, type(error).__name__)) from error
        if not is_whole:
            raise InputError(_damaged(path, "it does not describe all of its frames"))
        if geometry is None:
            raise InputError(
                f"{path}: the frames of this DICOM-SEG are not parallel planes at equal distances; convert it to NIfTI."
            )
        affine = RAS_OF_LPS @ geometry.affine @ np.eye(4)[:, [2, 1, 0, 3]]
        check_scan(Scan(path, (columns, rows, depth), affine, lambda: np.empty(0)), max_bytes)
        try:
            array = dataset.get_volume(combine_segments=True).array
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{path}: the segments of this DICOM-SEG overlap or are fractional ({type(error).__name__}), expected at most one label "
                "for each voxel; convert it to a label map."
            ) from error
        except Exception as error:
            raise InputError(_damaged(path, type(error).__name__)) from error
    if (padding := dataset.get("PixelPaddingValue")) is not None:
        array[array == padding] = 0
    # The voxels of a DICOM-SEG of the type LABELMAP can have any value.
    if not set(np.unique(array).tolist()) <= _numbers(dataset) | {0}:
        raise InputError(_damaged(path, "it does not describe all of its segments"))
    values, names, notes = _labels_of(path, dataset)
    labels = np.asfortranarray(values[array].transpose(2, 1, 0))
    return Volume(labels, affine, header_of_affine(affine), path, notes=notes, names=names, is_part=True)


def _damaged(path: Path, reason: str) -> str:
    return f"{path}: cannot be read as a DICOM-SEG ({reason}); it is damaged, so get it again."


def _numbers(dataset: Any) -> set[int]:
    """Returns the numbers of the segments that a file describes."""
    return {int(number) for number in dataset.segment_numbers}


def _segments_in(frame: Any) -> set[int]:
    """Returns the number of the segment in a frame; none for a DICOM-SEG of the type LABELMAP, whose voxels state it."""
    return {int(item.ReferencedSegmentNumber) for item in frame.get("SegmentIdentificationSequence") or ()}


def _labels_of(path: Path, dataset: Any) -> tuple[np.ndarray, dict[int, str], tuple[str, ...]]:
    """Returns the label of each segment number as an array, the name of each label, and notes."""
    numbers = [number for number in dataset.segment_numbers if number]
    descriptions = [dataset.get_segment_description(number) for number in numbers]
    is_ours = str(dataset.get("ManufacturerModelName", "")) == PROGRAM
    stated = [value_in(str(item.get("SegmentDescription", ""))) if is_ours else None for item in descriptions]
    labels = [number if value is None else value for number, value in zip(numbers, stated)]
    if len(set(labels)) != len(labels):
        raise InputError(f"{path}: two segments of this DICOM-SEG have the same label; get it again.")
    values = np.zeros(max(numbers, default=0) + 1, np.uint8 if max(labels, default=0) < 256 else np.int32)
    values[numbers] = labels
    names = {label: str(item.segment_label) for label, item in zip(labels, descriptions)}
    notes = ()
    if None in stated:
        shown = ", ".join(f"{label} {console.literal(name)}" for label, name in list(names.items())[:MAX_NOTED])
        more = f" and {len(names) - MAX_NOTED} more" * (len(names) > MAX_NOTED)
        notes = (
            f"{path}: the labels are the numbers of the segments, because this DICOM-SEG states no known values: {shown}{more}",
        )
    return values, names, notes
