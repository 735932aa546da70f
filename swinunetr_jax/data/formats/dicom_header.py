"""The headers of DICOM files: the position and the scale factors of each image in them, classic (one image) or multi-frame.

pydicom reads only the attributes named here, so that a patient's name and other personal data are never in memory.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax.data.formats.dicom_files import DicomFiles
from swinunetr_jax.data.formats.dicom_stack import DIRECTION, Plane
from swinunetr_jax.data.formats.libraries import library
from swinunetr_jax.errors import InputError

# The attributes that describe the stored values of the pixels.
PIXEL_TAGS = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
TAGS = [
    *PIXEL_TAGS,
    "SOPClassUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "ImageType",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # of masks, and of a label map
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_LOCALIZER = re.compile(r"locali[sz]er|scout|survey|topogram", re.IGNORECASE)


@dataclass(frozen=True)
class Header:
    """The header of one DICOM file. `image` holds the attributes `TAGS`; `syntax` is the UID of the transfer syntax."""

    file: Path
    image: Any  # a pydicom Dataset, whose attributes are dynamic
    syntax: str

    @property
    def has_pixels(self) -> bool:
        """True if the file holds an image; reports and presentation states hold none."""
        return "Rows" in self.image and "Columns" in self.image

    @property
    def is_localizer(self) -> bool:
        """True if the file states that it is a localizer, which is also called scout, survey or topogram."""
        return any(_LOCALIZER.search(str(word)) for word in _values(self.image.get("ImageType")))


def read_header(opened: DicomFiles, file: Path) -> Header:
    """Returns the header of a file. Raises InputError if it is not DICOM or is truncated."""
    pydicom = library("pydicom", opened.path)
    try:
        with opened.open(file) as stream:
            if _DEFLATED in stream.read(1024):  # pydicom would unpack all of it, without a limit
                raise InputError(f"{file}: the whole file is compressed (deflated), which is not supported; decompress it first.")
            stream.seek(0)
            dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=TAGS)
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    except InputError:
        raise
    except Exception as error:  # pydicom raises many kinds of errors for damaged files; their texts may quote the header
        raise InputError(
            f"{file}: the header cannot be read as DICOM ({type(error).__name__}); it is truncated or damaged, so get it again."
        ) from error
    return Header(file, dataset, syntax)


def planes_of(header: Header) -> list[Plane]:
    """Returns the images of a file with their positions.

    Raises:
        InputError: the file holds colours or a segmentation, states no position or size of pixels, or only a part of the scale factors.
    """
    file, image = header.file, header.image
    if str(image.get("SOPClassUID", "")) in SEGMENTATIONS:
        raise InputError(f"{file}: is a DICOM segmentation, expected a scan; give the folder of the DICOM series of the scan.")
    if _number(image.get("SamplesPerPixel"), 1) != 1 or not str(image.get("PhotometricInterpretation", "MONOCHROME2")).startswith(
        "MONO"
    ):
        raise InputError(f"{file}: is a colour image, expected one number per pixel; give the original series.")
    if "MOSAIC" in _values(image.get("ImageType")):
        raise InputError(f"{file}: is a mosaic, which holds all slices in one picture; convert the series with dcm2niix.")
    if _number(image.get("BitsAllocated"), 0) not in (8, 16, 32):
        raise InputError(f"{file}: has {image.get('BitsAllocated')} bits per pixel, expected 8, 16 or 32; convert it.")
    stored, high = (_number(image.get(name), -1) for name in ("BitsStored", "HighBit"))
    if 0 < stored <= high < _number(image.get("BitsAllocated"), 0):
        raise InputError(
            f"{file}: states {stored:.0f} as BitsStored and {high:.0f} as HighBit, expected {stored - 1:.0f} as HighBit; convert it."
        )
    frames = image.get("PerFrameFunctionalGroupsSequence")
    count = _number(image.get("NumberOfFrames"), 1)
    if not (count >= 1 and count == int(count)):
        raise InputError(
            f"{file}: states {image.get('NumberOfFrames')!r} as NumberOfFrames, expected an integer; export it again."
        )
    shared = (image.get("SharedFunctionalGroupsSequence") or [None])[0]
    if frames is None:
        if count > 1:
            raise InputError(
                f"{file}: holds {count:.0f} frames without their positions (PerFrameFunctionalGroupsSequence), expected a volume; convert "
                "it."
            )
        return [_plane(header, 0, image, image, image, image)]
    if len(frames) != count:
        raise InputError(
            f"{file}: states {count:.0f} frames, but the positions of {len(frames)}; it is damaged, so get it again."
        )
    return [
        _plane(
            header,
            index,
            _group("PlanePositionSequence", frame, shared),
            _group("PlaneOrientationSequence", frame, shared),
            _group("PixelMeasuresSequence", frame, shared),
            _group("PixelValueTransformationSequence", frame, shared),
        )
        for index, frame in enumerate(frames)
    ]


def _group(name: str, frame: Any, shared: Any) -> Any:
    """Returns the item of a frame's functional group, or of the one that all frames share, or an empty one."""
    for groups in (frame, shared):
        if groups is not None and groups.get(name):
            return groups.get(name)[0]
    return {}


def _plane(header: Header, index: int, position: Any, orientation: Any, measures: Any, values: Any) -> Plane:
    file, image = header.file, header.image
    place = _vector(file, "ImagePositionPatient", position.get("ImagePositionPatient"), 3)
    directions = _vector(file, "ImageOrientationPatient", orientation.get("ImageOrientationPatient"), 6)
    rows, columns = _vector(file, "PixelSpacing", measures.get("PixelSpacing"), 2)  # the distance of rows comes first
    x, y = directions[:3], directions[3:]
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(x @ y) > DIRECTION or min(rows, columns) <= 0:
        raise InputError(
            f"{file}: the directions {directions.tolist()} or the pixel size {[float(rows), float(columns)]} are not those of an image; "
            "correct ImageOrientationPatient or PixelSpacing."
        )
    slope, intercept = _scale(header, values)
    thickness = _number(measures.get("SpacingBetweenSlices"), 0) or _number(measures.get("SliceThickness"), 0)
    return Plane(
        file,
        index,
        int(image.Columns),
        int(image.Rows),
        place,
        x / lengths[0],
        y / lengths[1],
        (float(columns), float(rows)),
        abs(thickness) or None,
        slope,
        intercept,
    )


def _scale(header: Header, values: Any) -> tuple[float, float]:
    """Returns the slope and intercept of an image: (1, 0) if the header states neither, except for CT, which needs Hounsfield units."""
    if header.image.get("ModalityLUTSequence"):
        raise InputError(
            f"{header.file}: states a table of its values (ModalityLUTSequence) instead of RescaleSlope and RescaleIntercept, which is not "
            "supported; export the series as enhanced DICOM or convert it."
        )
    stated = [name for name in ("RescaleSlope", "RescaleIntercept") if values.get(name) not in (None, "")]
    if not stated and str(header.image.get("Modality", "")) == "CT":
        raise InputError(
            f"{header.file}: is a CT image without RescaleSlope and RescaleIntercept, so that its values are not Hounsfield units; export "
            "the series again."
        )
    if len(stated) == 1:
        missing = "RescaleIntercept" if stated[0] == "RescaleSlope" else "RescaleSlope"
        raise InputError(
            f"{header.file}: states {stated[0]} but not {missing}, expected both or neither; export the series again."
        )
    slope, intercept = (
        float(_number(values.get(name), default)) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise InputError(
            f"{header.file}: RescaleSlope is {slope} and RescaleIntercept {intercept}, expected finite numbers, and a slope "
            "other than 0; correct them."
        )
    return slope, intercept


def _vector(file: Path, name: str, value: Any, length: int) -> np.ndarray:
    """Returns the numbers of an attribute. Raises InputError if it is missing or does not have this number of finite values."""
    numbers = np.array([_number(part, np.nan) for part in _values(value)], np.float64)
    if numbers.shape != (length,) or not np.isfinite(numbers).all():
        stated = "does not state" if numbers.size == 0 else f"states {numbers.tolist()} as"
        raise InputError(f"{file}: {stated} {name}, expected {length} numbers; give a series of slices with their positions.")
    return numbers


def _values(value: Any) -> Sequence[Any]:
    return [] if value in (None, "") else [value] if isinstance(value, (str, float, int)) else list(value)


def _number(value: Any, default: float) -> float:
    try:
        return default if value in (None, "") else float(value)
    except (TypeError, ValueError):
        return float("nan")
