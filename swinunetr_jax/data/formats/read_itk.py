"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) files, read by SimpleITK."""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax import files
from swinunetr_jax.data.formats.libraries import library, short
from swinunetr_jax.data.formats.scan import Scan
from swinunetr_jax.data.nifti.memory import simpleitk_affine
from swinunetr_jax.data.nifti.nifti_file import GZIP_RATIO, size_text
from swinunetr_jax.errors import InputError

_HEADER_BYTES = 1 << 16  # a header that is longer is not examined for the name of its second file
# The line that names the file with the voxels; LOCAL (in any case) means that they follow in the same file.
_SECOND = {
    ".mhd": re.compile(rb"^\s*ElementDataFile\s*[=:]\s*(.*?)\s*$", re.MULTILINE),
    ".mha": re.compile(rb"^\s*ElementDataFile\s*[=:]\s*(.*?)\s*$", re.MULTILINE),
    ".nhdr": re.compile(rb"^\s*data ?file\s*:\s*(.*?)\s*$", re.MULTILINE | re.IGNORECASE),
    ".nrrd": re.compile(rb"^\s*data ?file\s*:\s*(.*?)\s*$", re.MULTILINE | re.IGNORECASE),
}
_COLOURS = ("RGB-color", "RGBA-color", "3-color", "4-color", "HSV-color", "XYZ-color")


def open_itk(path: Path) -> Scan:
    """Returns the scan in an NRRD or MetaImage file.

    Raises:
        InputError: the file or its second file cannot be read, or holds colours, complex numbers, or more or less than three axes in space.
    """
    if not files.is_file(path):
        raise InputError(f"{path}: does not exist or is not a file, expected an NRRD or MetaImage file; check the path.")
    present = sum(os.path.getsize(file) for file in (path, *_existing_second_file(path)))
    sitk = library("SimpleITK", path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO" if path.suffix.lower() in (".mha", ".mhd") else "NrrdImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: the header is damaged or of another format ({_reason(error)}); get the file again.") from error
    size, channels = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) != 3:
        raise InputError(
            f"{path}: the image has {len(size)} axes {tuple(size)}, expected three in space; save each volume of it as a file."
        )
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    kinds = {reader.GetMetaData(key) for key in reader.GetMetaDataKeys() if key.startswith("NRRD_kinds")}
    if "complex" in kind or kinds & set(_COLOURS):
        text = "complex numbers" if "complex" in kind else "colours"
        raise InputError(f"{path}: the image holds {text}, expected one real number per voxel; convert it.")
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        # SimpleITK converts the other spaces with anatomical directions to LPS, and takes the axes of any space for LPS.
        space = reader.GetMetaData("NRRD_space") if reader.HasMetaDataKey("NRRD_space") else "none"
        if space != "left-posterior-superior":
            raise InputError(
                f"{path}: the header states no position in the body (its space is {short(space)}), expected 'space', such as "
                "left-posterior-superior, and 'space directions'; save it with them, for example from 3D Slicer."
            )
        if units := [unit for unit in _units(path) if unit not in ("mm", "")]:
            raise InputError(
                f"{path}: the unit of length is {short(units[0])}, expected mm; save it with 'space directions' in mm."
            )
    shape = (*size, channels) if channels > 1 else tuple(size)
    if (claimed := math.prod(shape)) > present * GZIP_RATIO:  # voxels have at least one byte
        raise InputError(
            f"{path}: the file has {size_text(present)}, but its header claims {shape} voxels ({size_text(claimed)} or more); it is "
            "truncated or damaged, so get it again."
        )

    def voxels() -> np.ndarray:
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise InputError(f"{path}: the voxels cannot be read ({_reason(error)}); get the file again.") from error
        return np.moveaxis(array, (0, 1, 2), (2, 1, 0))

    return Scan(path, shape, simpleitk_affine(reader), voxels)


def _units(path: Path) -> list[str]:
    """Returns the units of the axes in space that the header of an NRRD file states, which SimpleITK ignores."""
    with open(path, "rb") as stream:
        header = re.split(rb"\r?\n\r?\n", stream.read(_HEADER_BYTES), maxsplit=1)[0]
    line = re.search(rb"^space units\s*:(.*)$", header, re.MULTILINE)
    return [unit.decode("utf-8", "replace") for unit in re.findall(rb'"([^"]*)"', line[1])] if line else []


def second_file(path: Path) -> Path | None:
    """Returns the path of the file with the voxels according to the header in `path`, or None if they follow in the same file.

    Raises:
        InputError: the header cannot be read, or names several files or one outside its folder.
    """
    try:
        with open(path, "rb") as stream:
            header = stream.read(_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({files.reason(error)}); check the path and the permissions.") from error
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        header = re.split(rb"\r?\n\r?\n", header, maxsplit=1)[0]  # voxels may follow
    match = _SECOND[path.suffix.lower()].search(header)
    name = match[1].decode("utf-8", "surrogateescape") if match else "LOCAL"
    if name.upper() == "LOCAL":
        return None
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(
            f"{path}: the voxels are in several files ({short(name)!r}), expected one; save it as one .mha or .nrrd file."
        )
    other = os.path.normpath(os.path.join(path.parent, name))
    if os.path.isabs(name) or os.path.relpath(other, path.parent).startswith(".."):
        raise InputError(
            f"{path}: the voxels are in {short(name)!r}, outside the folder of the header; put both files into one folder."
        )
    return Path(other)


def _existing_second_file(path: Path) -> list[Path]:
    """Returns the file with the voxels if it is another one than the header. Raises InputError if it is missing."""
    second = second_file(path)
    if second is None:
        return []
    if not files.is_file(second):
        raise InputError(
            f"{path}: its voxels are in {short(second.name)}, which does not exist; restore that file beside the header."
        )
    return [second]


def _reason(error: Exception) -> str:
    """Returns the last line of an error of SimpleITK, which says what is wrong, without addresses of objects and source files."""
    # The last line can be the reason of the operating system for another call, such as "Reason: Success".
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Reason: ")]
    return re.sub(r"^ITK ERROR: |\w+\(0x[0-9a-f]+\): ", "", short(lines[-1])).rstrip(".") if lines else type(error).__name__
