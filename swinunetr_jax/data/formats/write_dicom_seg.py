"""Writes a label map as a DICOM Segmentation (DICOM-SEG), which refers to the DICOM files of the scan.

The segmentation is binary: each frame is a mask of one segment in one plane. Viewers and PACS read this type, while the newer type
LABELMAP (2024) is known to few of them. The frames are planes of the scan's own files.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.data.formats.libraries import check_library
from swinunetr_jax.data.formats.segment_codes import Concept
from swinunetr_jax.data.formats.segments import PROGRAM, Segment, value_text
from swinunetr_jax.data.formats.source_frames import frame_planes, read_sources
from swinunetr_jax.data.nifti import Volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.version import __version__

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

MAX_NAME = 64  # characters of a DICOM text of the type LO
SERIES_OFFSET = 1000  # is added to the number of the scan's series, so that the result is listed after the scans
_NETWORK = Concept("123110", "DCM", "Artificial Intelligence")  # the family of the algorithm, CID 7162
_GENERIC = "The name of this segment is not in the tables of codes of the program, which states the code of any tissue."


def write_dicom_seg(path: str | os.PathLike, labels: np.ndarray, scan: Volume, segments: Sequence[Segment]) -> Path:
    """Writes a label map as a DICOM-SEG of uncompressed explicit little endian, and returns the path.

    Segments are numbered from 1 in the order of `segments`, also those without a voxel; their descriptions state the values. Planes without
    a voxel of a segment are omitted; if no voxel has a label, the empty planes of all segments are written instead. Patient and study are
    copied from the scan's files. The identifiers of the result are new each time.

    Args:
        path: the file, which ends with .dcm.
        labels: uint8 [x, y, z].
        scan: the scan, which was read from DICOM files.
        segments: the names, colours and codes of the labels.

    Raises:
        InputError: the scan was not read from DICOM files, a file of it has changed or cannot be referred to, a library is missing, or the
            file cannot be written.
    """
    path = Path(path)
    check_library("highdicom", f"{path}: writing DICOM-SEG")
    if not scan.slices:
        raise InputError(
            f"{path}: a DICOM-SEG refers to the DICOM files of the scan, and {scan.path} is none: give the folder of the DICOM series, or "
            "choose nifti or nrrd."
        )
    import highdicom as hd
    from pydicom.config import disable_value_validation

    sources = read_sources(scan.slices)
    numbers = np.zeros(256, np.uint8)
    for number, segment in enumerate(segments, 1):
        numbers[segment.value] = number
    planes = frame_planes(sources, scan)
    masks = numbers[labels].transpose(2, 1, 0)[planes]
    try:
        # Warnings about unusual values would print the patient's name or birth date.
        with warnings.catch_warnings(), disable_value_validation():
            warnings.filterwarnings("ignore", category=UserWarning, module="highdicom")
            dataset = hd.seg.Segmentation(
                source_images=sources,
                pixel_array=masks,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_description(number, segment) for number, segment in enumerate(segments, 1)],
                series_instance_uid=hd.UID(),
                series_number=int(sources[0].get("SeriesNumber") or 0) + SERIES_OFFSET,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer=PROGRAM,
                manufacturer_model_name=PROGRAM,
                software_versions=__version__,
                device_serial_number=__version__,
                content_label="SEGMENTATION",
                content_description="Segmentation by a Swin UNETR",
                series_description=f"Segmentation by {PROGRAM}",
                omit_empty_frames=bool(masks.any()),
                specific_character_set="ISO_IR 192",  # UTF-8, because names of segments may have any letters
            )
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # whose text may hold personal data
        raise InputError(
            f"{path}: the DICOM files of {scan.path} do not allow a DICOM-SEG ({type(error).__name__}), because an attribute of theirs is "
            "missing or invalid; choose nifti or nrrd."
        ) from error
    if "ContentCreatorName" not in dataset:
        dataset.ContentCreatorName = ""  # it must exist and may be empty
    try:
        content = io.BytesIO()  # pydicom replaces the reason of the system for an error of a file by one of its own
        with disable_value_validation():
            dataset.save_as(content, enforce_file_format=True)
        with files.atomic_path(path, ".dcm") as temporary, open(temporary, "wb") as stream:
            stream.write(content.getbuffer())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({files.reason(error)}); give an existing folder with write access and space."
        ) from error
    return path


def _description(number: int, segment: Segment) -> SegmentDescription:
    """Returns the description of a segment."""
    import highdicom as hd
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as Items

    code = segment.code
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=_name(segment.name),
        segmented_property_category=_concept(code.category),
        segmented_property_type=_concept(code.kind),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=f"{PROGRAM} {__version__}", version=__version__, family=_concept(_NETWORK)
        ),
        display_color=hd.color.CIELabColor.from_rgb(*segment.colour),
    )
    if code.modifier is not None:
        modifier = Dataset()
        modifier.update(_concept(code.modifier))
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = Items([modifier])
    description.SegmentDescription = f"{value_text(segment.value)} {_GENERIC}" if code.generic else value_text(segment.value)
    return description


def _concept(concept: Concept) -> CodedConcept:
    from highdicom.sr import CodedConcept

    return CodedConcept(concept.value, concept.scheme, concept.meaning)


def _name(name: str) -> str:
    """Returns a name as a DICOM text, in which a backslash would separate two values."""
    return console.literal(name).replace("\\", "/").strip()[:MAX_NAME] or "segment"
