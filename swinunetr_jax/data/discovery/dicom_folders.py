"""Which folders are DICOM scans: a folder of files is one scan, unless it holds several multi-frame files, which are a scan each."""

from pathlib import Path
from typing import Literal

from swinunetr_jax.data.formats.dicom_files import DicomFiles, zip_of
from swinunetr_jax.data.formats.dicom_header import read_header
from swinunetr_jax.data.formats.names import is_image
from swinunetr_jax.errors import InputError

Kind = Literal["series", "files", "localizer"]


def dicom_kind(folder: Path) -> Kind | None:
    """Returns what a folder of DICOM files is: a series, several multi-frame files, or a localizer; None if it is none of them.

    A folder that also holds images in another format is none of them.
    """
    try:
        if any(is_image(entry.name) and not entry.is_dir() for entry in folder.iterdir()):
            return None
        with DicomFiles(folder) as opened:
            return _kind(opened, folder)
    except (OSError, InputError):  # listing the folder, or reading the scan, reports the fault
        return None


def zipped_folders(path: Path) -> tuple[list[Path], list[Path]]:
    """Returns (scans, localizers) in a zip: paths such as study.zip/FLAIR, or the zip itself if it holds one scan.

    Raises:
        InputError: the zip is damaged, or has members that no archive of scans has.
    """
    scans, localizers = [], []
    with DicomFiles(path) as opened:
        for folder in opened.folders():
            kind = _kind(opened, folder)
            if kind == "files":
                scans += [file for file in opened.folder(folder) if opened.is_dicom(file)]
            elif kind is not None:
                (scans if kind == "series" else localizers).append(folder)
    return ([path] if len(scans) == 1 and not localizers else scans), localizers


def is_scan_path(path: Path) -> bool:
    """Returns whether a path may be a scan that is not one file: a folder, or a path into a zip."""
    return (path.is_dir() and not is_image(path.name)) or (zip_of(path) is not None and path != zip_of(path))


def _kind(opened: DicomFiles, folder: Path) -> Kind | None:
    if not opened.holds_dicom(folder):
        return None
    found = [file for file in opened.folder(folder) if opened.is_dicom(file)]
    if not found:  # their names are those of DICOM files, and reading them reports the fault
        return "series"
    try:
        header = read_header(opened, found[0])
    except InputError:
        return "series"
    if len(found) > 1 and int(header.image.get("NumberOfFrames") or 1) > 1:
        return "files"
    return "localizer" if header.is_localizer and _all_localizers(opened, found) else "series"


def _all_localizers(opened: DicomFiles, found: list[Path]) -> bool:
    try:
        return all(read_header(opened, file).is_localizer for file in found)
    except InputError:
        return False
