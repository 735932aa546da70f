"""The files that a scan consists of, whose sizes, times and digests show whether the scan has changed."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from swinunetr_jax import files
from swinunetr_jax.data.formats.dicom_files import DicomFiles, zip_of
from swinunetr_jax.data.formats.names import ITK, PAIR
from swinunetr_jax.data.formats.read_itk import second_file
from swinunetr_jax.data.formats.read_pair import both_files


@dataclass(frozen=True)
class ScanStatus:
    """The state of a scan's files: their bytes together, the latest time of modification, and a digest if there are several files."""

    bytes: int
    modified_ns: int
    digest: str | None = None


def scan_files(path: Path) -> list[Path]:
    """Returns the files of the scan in `path`: a file, the two of a pair, the DICOM files of a folder sorted by name, or a zip.

    Raises:
        InputError: a DICOM folder, or the header of a pair, cannot be read.
    """
    name = path.name.lower()
    if (archive := zip_of(path)) is not None:
        return [archive]
    if files.is_folder(path):
        with DicomFiles(path) as opened:
            return opened.dicom_files()
    if not files.is_file(path):
        return [path]
    if name.endswith(PAIR):
        return list(both_files(path))
    second = second_file(path) if name.endswith(ITK) else None
    return [path] if second is None else [path, second]


def scan_status(path: Path) -> ScanStatus:
    """Returns the state of a scan's files. Raises InputError as `scan_files`, and OSError or ValueError if a file does not exist."""
    found = scan_files(path)
    stats = [os.stat(file) for file in found]
    digest = None
    if len(found) > 1:
        hashed = hashlib.sha256()
        for file, status in zip(found, stats):
            hashed.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        digest = hashed.hexdigest()
    return ScanStatus(sum(status.st_size for status in stats), max(status.st_mtime_ns for status in stats), digest)
