"""The DICOM files of a scan: those directly in a folder, one file, or those of a folder in a zip.

A path into a zip, such as study.zip/FLAIR, names a folder in it, and study.zip/FLAIR/1.dcm a file. Nothing is unpacked: files are read in
the zip one after the other.
"""

import io
import os
import stat
import zipfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from swinunetr_jax import files
from swinunetr_jax.data.formats.libraries import short
from swinunetr_jax.data.formats.names import DICOM, ZIP, is_image
from swinunetr_jax.data.nifti.nifti_file import GZIP_RATIO, size_text
from swinunetr_jax.errors import InputError

MAX_MEMBERS = 100_000  # files in a zip
MAX_UNPACKED = 64 << 30  # bytes of all files in a zip together
MAX_FILE = 4 << 30  # bytes of one file, as much as one volume in memory needs
_COMPANIONS = (
    *(".json", ".txt", ".csv", ".tsv", ".xml", ".html", ".pdf", ".png", ".jpg", ".jpeg"),
    *(".bval", ".bvec", ".md5", ".log", ".exe", ".inf", ".ini"),
)


def zip_of(path: Path) -> Path | None:
    """Returns the zip that `path` is or leads into, or None."""
    if ZIP not in str(path).lower():
        return None
    candidates = (part for part in (path, *path.parents) if part.name.lower().endswith(ZIP))
    return next((part for part in candidates if files.is_file(part)), None)


class DicomFiles(AbstractContextManager):
    """Lists and opens files in folders and in a zip, which it keeps open.

    Args:
        path: a folder, a file, a zip, or a path into a zip.

    Raises:
        InputError: the zip is damaged or protected, or has members that no archive of scans has: links, paths outside its folder, or too
            much data.
    """

    def __init__(self, path: Path):
        self.path, self.zip_path = path, zip_of(path)
        self._zip, self._members = None, dict[Path, zipfile.ZipInfo]()
        self.left_out: list[Path] = []  # the files that `dicom_files` left out because they do not start like DICOM
        if self.zip_path is not None:
            try:
                self._zip = zipfile.ZipFile(self.zip_path)
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
                raise InputError(f"{self.zip_path}: the zip cannot be read ({short(error)}); get it again.") from error
            self._members = _checked(self.zip_path, self._zip.infolist())

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def folder(self, folder: Path) -> list[Path]:
        """Returns the files directly in a folder that may be DICOM, sorted by name. Raises OSError if a folder cannot be read."""
        if self._zip is not None:
            found = [path for path in self._members if path.parent == folder]
        else:
            with os.scandir(folder) as entries:
                # A link to a missing file is listed, so that a slice is not lost without a message.
                found = [Path(e.path) for e in entries if e.is_file() or (e.is_symlink() and not e.is_dir())]
        return sorted(path for path in found if _may_be_dicom(path.name))

    def folders(self) -> list[Path]:
        """Returns the folders of a zip that have files directly in them, sorted."""
        return sorted({path.parent for path in self._members})

    def is_dicom(self, path: Path) -> bool:
        """Returns whether a file starts like a DICOM file: with 128 bytes of any content and then DICM."""
        try:
            with self.open(path) as stream:
                return stream.read(132)[128:] == b"DICM"
        except InputError:
            return False

    def open(self, path: Path) -> BinaryIO:
        """Opens a file for reading. Raises InputError if it does not exist or cannot be read."""
        try:
            if self._zip is None:
                if files.exists(path) and not files.is_file(path):
                    raise OSError("it is not a file")
                return open(path, "rb")
            return io.BytesIO(self._zip.read(self._members[path]))  # its size has been checked
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            text = "it is not in the zip" if isinstance(error, KeyError) else short(files.reason(error))
            raise InputError(f"{path}: cannot be read ({text}); get it again.") from error
        except Exception as error:  # zlib.error and lzma.LZMAError
            raise InputError(f"{path}: the compressed data are damaged ({short(error)}); get the zip again.") from error

    def dicom_files(self) -> list[Path]:
        """Returns the DICOM files of the scan `self.path`. Raises InputError if there is none."""
        path = self.path
        if self._zip is not None and path in self._members:
            return [path]
        if self._zip is None and not files.is_folder(path):
            return [path]
        folder = path
        if path == self.zip_path:  # the only folder of the zip with DICOM files stands for the zip
            series = [inner for inner in self.folders() if self.holds_dicom(inner)]
            if len(series) > 1:
                names = ", ".join(str(inner.relative_to(path)) for inner in series[:3])
                raise InputError(
                    f"{path}: holds DICOM files in {len(series)} folders ({names}, …), expected one; give one of them."
                )
            folder = series[0] if series else path
        try:
            listed = self.folder(folder)
            found = [file for file in listed if file.name.lower().endswith(DICOM) or self.is_dicom(file)]
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({files.reason(error)}); check the path and the permissions.") from error
        if not found:
            raise InputError(f"{path}: holds no DICOM files, expected those of one series; give the folder that holds them.")
        self.left_out = sorted(file for file in set(listed) - set(found) if not _is_companion(file))
        return found

    def holds_dicom(self, folder: Path, examined: int = 3) -> bool:
        """Returns whether a folder directly holds DICOM files, by the names of its files, or by the first bytes of a few of them."""
        found = sorted(self.folder(folder), key=_is_companion)
        if any(file.name.lower().endswith(DICOM) for file in found):
            return True
        return any(self.is_dicom(file) for file in found[:examined])


def _may_be_dicom(name: str) -> bool:
    lower = name.lower()
    return not (
        lower.startswith(".") or lower in ("dicomdir", "desktop.ini", "thumbs.db") or lower.endswith(ZIP) or is_image(lower)
    )


def _is_companion(file: Path) -> bool:
    """Returns whether the ending of a file is that of a usual companion of scans. A DICOM file whose name is a number may have it, too."""
    return file.name.lower().endswith(_COMPANIONS)


def _checked(path: Path, members: Iterable[zipfile.ZipInfo]) -> dict[Path, zipfile.ZipInfo]:
    """Returns the files in a zip by their paths. Raises InputError for one that no archive of scans has."""
    found: dict[Path, zipfile.ZipInfo] = {}
    unpacked = packed = 0
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or (parts.parts and ":" in parts.parts[0]) or "\0" in member.filename:
            raise InputError(
                f"{path}: names the file {short(member.filename)!r} outside its own folder, expected scans; do not trust this zip."
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{path}: holds the link {short(member.filename)!r}, expected files; do not trust this zip.")
        if member.is_dir() or "__MACOSX" in parts.parts:
            continue
        if member.flag_bits & 1:
            raise InputError(f"{path}: is protected by a password; unpack it and give the folder.")
        unpacked, packed = unpacked + member.file_size, packed + member.compress_size
        if path.joinpath(*parts.parts) in found:
            raise InputError(
                f"{path}: holds {short(member.filename)!r} twice, expected one file of each name; pack the scans again."
            )
        found[path.joinpath(*parts.parts)] = member
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"{path}: {short(member.filename)!r} is not compressed by deflate, as usual; unpack the zip and give the folder."
            )
        if member.file_size > MAX_FILE or member.file_size > GZIP_RATIO * max(member.compress_size, 1):
            sizes = f"{size_text(member.file_size)} (compressed {size_text(member.compress_size)})"
            raise InputError(
                f"{path}: claims that {short(member.filename)!r} has {sizes}, which no scan has; do not trust this zip."
            )
    if len(found) > MAX_MEMBERS or unpacked > MAX_UNPACKED or packed > os.path.getsize(path):
        raise InputError(
            f"{path}: claims {len(found)} files of {size_text(unpacked)} in {size_text(os.path.getsize(path))}, more than an archive of "
            "scans has; do not trust this zip, or unpack it and give the folder."
        )
    return found
