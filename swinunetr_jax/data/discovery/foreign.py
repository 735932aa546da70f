"""Files that probably hold scans but cannot be used where they are."""

from pathlib import Path

from swinunetr_jax import files
from swinunetr_jax.data.formats.names import DICOM, is_image

_FORMATS = {
    "a DICOM file": DICOM,
    "a FreeSurfer file": (".mgz", ".mgh"),
    "the image of a pair without its .hdr": (".img",),
    "a MINC file": (".mnc",),
    "a compressed file": (".bz2", ".xz", ".zst"),
}
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
_SIDE_CARS = (
    ".json",
    ".txt",
    ".md5",
    ".sha256",
    ".csv",
    ".tsv",
    ".png",
    ".jpg",
    ".xml",
    ".yaml",
    ".yml",
    ".bval",
    ".bvec",
    ".log",
)


def foreign_format(path: Path) -> str | None:
    """Returns the kind of a file that probably holds a scan in an unsupported format, such as 'a DICOM file', otherwise None."""
    name = path.name.lower()
    if name.endswith(_SIDE_CARS) or is_image(name) or name == "dicomdir":  # a list of the DICOM files on a CD
        return None
    if ".nii" in name:
        return "a file with .nii in its name"
    for kind, endings in _FORMATS.items():
        if name.endswith(endings) and not name.endswith(ARCHIVES):
            return kind
    if "." not in name and is_dicom_file(path):
        return "a DICOM file"
    return None


def is_dicom_file(path: Path) -> bool:
    """Returns whether a file starts like a DICOM file."""
    try:
        if not files.is_file(path):
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
