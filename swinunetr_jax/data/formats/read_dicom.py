"""DICOM: a folder with one series, a multi-frame file, or either of them in a zip."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax import files
from swinunetr_jax.data.formats.dicom_files import DicomFiles, zip_of
from swinunetr_jax.data.formats.dicom_header import Header, planes_of, read_header
from swinunetr_jax.data.formats.dicom_pixels import stored_values
from swinunetr_jax.data.formats.dicom_stack import Plane, stack
from swinunetr_jax.data.formats.libraries import library, short
from swinunetr_jax.data.formats.names import DICOM, PAIR, is_image
from swinunetr_jax.data.formats.scan import Scan
from swinunetr_jax.errors import InputError


def is_dicom_scan(path: Path) -> bool:
    """Returns whether a path is that of a DICOM scan: a folder, a zip or a path into one, or a file that is DICOM by its name or start."""
    if files.is_folder(path) or zip_of(path) is not None or path.name.lower().endswith(DICOM):
        return True
    if is_image(path.name) or path.name.lower().endswith(PAIR):
        return False
    return files.is_file(path) and DicomFiles(path).is_dicom(path)


def open_dicom(path: Path) -> Scan:
    """Returns the scan of one DICOM series.

    Localizers and files without an image are left out, and a note says so.

    Raises:
        InputError: a file is damaged, the files are of several studies or series, or the images are not those of a regular volume.
    """
    if zip_of(path) is None and not files.exists(path):
        raise InputError(f"{path}: does not exist, expected a DICOM file or a folder of them; check the path.")
    with DicomFiles(path) as opened:
        headers = [read_header(opened, file) for file in opened.dicom_files()]
        left_out = opened.left_out
    try:
        used, notes = _one_series(path, headers)
        planes = [plane for header in used for plane in planes_of(header)]
    except InputError:
        raise
    except Exception as error:  # pydicom converts a value only when it is used, and raises many kinds of errors for damaged ones
        raise InputError(
            f"{path}: the header of a file has a value that is not as DICOM requires ({type(error).__name__}); export the series again."
        ) from error
    if left_out:
        plural = "file that is not DICOM was" if len(left_out) == 1 else "files that are not DICOM were"
        notes += (f"{len(left_out)} {plural} left out, such as {short(left_out[0].name)}",)
    ordered, affine = stack(path, planes)
    shape = (planes[0].columns, planes[0].rows, len(ordered))
    by_file = {header.file: header for header in used}

    def voxels() -> np.ndarray:
        return _voxels(path, by_file, ordered, shape)

    return Scan(path, shape, affine, voxels, tuple(dict.fromkeys(plane.file for plane in ordered)), notes)


def read_dicom_header(path: Path) -> Any:
    """Returns the complete header of one of `Volume.slices` as a pydicom Dataset, also if the path leads into a zip.

    It holds personal data, which nothing but a DICOM file may get.

    Raises:
        InputError: the file cannot be read.
    """
    pydicom = library("pydicom", path)
    with DicomFiles(path) as opened, opened.open(path) as stream:
        try:
            return pydicom.dcmread(stream, stop_before_pixels=True)
        except Exception as error:  # pydicom raises many kinds of errors for damaged files
            raise InputError(f"{path}: the header cannot be read as DICOM ({type(error).__name__}); get it again.") from error


def _one_series(path: Path, headers: list[Header]) -> tuple[list[Header], tuple[str, ...]]:
    """Returns the files of the only series, and notes on files that are left out. Raises InputError if there are several series."""
    images = [header for header in headers if header.has_pixels]
    used = [header for header in images if not header.is_localizer]
    notes = []
    if not images:
        raise InputError(
            f"{path}: its DICOM files ({len(headers)}) hold no image, expected a scan; give the folder of its series."
        )
    if not used:
        raise InputError(f"{path}: is a localizer ({len(images)} images), expected a scan; give the folder of another series.")
    if others := len(headers) - len(images):
        notes.append(f"{others} DICOM {'file' if others == 1 else 'files'} without an image (a report or a list) were left out")
    if localizers := len(images) - len(used):
        notes.append(f"{localizers} localizer {'image was' if localizers == 1 else 'images were'} left out")
    levels = (("studies", "StudyInstanceUID"), ("series", "SeriesInstanceUID"), ("frames of reference", "FrameOfReferenceUID"))
    for level, key in levels:  # positions in two frames of reference cannot be compared
        counts = Counter(str(header.image.get(key, "")) for header in used)
        if len(counts) > 1:
            sizes = " and ".join(str(count) for count in list(counts.values())[:4])
            raise InputError(
                f"{path}: holds files of {len(counts)} {level} ({sizes}{', …' * (len(counts) > 4)} files), expected one series; move each "
                "series to a folder of its own."
            )
    return used, tuple(notes)


def _voxels(path: Path, headers: dict[Path, Header], ordered: list[Plane], shape: tuple[int, int, int]) -> np.ndarray:
    """Returns the values of the planes, [x, y, z]: the stored ones where no plane has scale factors, otherwise float32."""
    scaled = any((plane.slope, plane.intercept) != (1, 0) for plane in ordered)
    where: dict[Path, list[tuple[int, Plane]]] = {}
    for index, plane in enumerate(ordered):
        where.setdefault(plane.file, []).append((index, plane))
    volume: np.ndarray | None = None
    with DicomFiles(path) as opened, tempfile.TemporaryDirectory(prefix="swinunetr_jax_") as folder:
        for file, planes in where.items():
            frames = stored_values(opened, headers[file], Path(folder))
            if volume is None:
                dtype = np.float32 if scaled else frames.dtype
                volume = np.empty(shape, dtype, order="F")
            if not scaled and frames.dtype != volume.dtype:
                volume = volume.astype(np.result_type(volume.dtype, frames.dtype))
            for index, plane in planes:
                stored = frames[plane.frame].T
                volume[:, :, index] = stored * plane.slope + plane.intercept if scaled else stored
    assert volume is not None  # there is at least one plane
    return volume
