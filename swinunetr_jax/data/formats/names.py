"""The names of scans in all supported formats. A folder of DICOM files, or a zip of them, is a scan, too."""

import re

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")  # read by SimpleITK
PAIR = (".hdr", ".img")  # Analyze 7.5 and NIfTI pairs
DICOM = (".dcm", ".ima")
ZIP = ".zip"
SINGLE = (*NIFTI, *ITK, ".hdr")  # the file that stands for a scan; DICOM files and zips are examined first
EXPECTED = "expected .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, .hdr with .img, or DICOM files (.dcm, a folder or a zip)"
# Endings of the second file of a scan, by the ending of the file that stands for it.
SECOND_FILES = {
    ".hdr": (".img",),
    ".mhd": (".raw", ".zraw", ".raw.gz"),
    ".nhdr": (".raw", ".raw.gz", ".gz"),
}
_ENDING = re.compile(r"\.(nii(\.gz)?|nrrd|nhdr|mha|mhd|hdr|img|dcm|ima|zip)$", re.IGNORECASE)


def is_image(name: str) -> bool:
    """Returns whether the ending of a file's name is that of a scan: NIfTI, NRRD, MetaImage, or the header of a pair."""
    return name.lower().endswith(SINGLE)


def stem(name: str) -> str:
    """Returns the name of a scan without its ending, such as .nii.gz or .mha."""
    return _ENDING.sub("", name)


def is_second_file(name: str, names: set[str]) -> bool:
    """Returns whether a file holds the voxels of a scan whose header is another one of `names` (in lower case)."""
    name = name.lower()
    return any(
        name.endswith(end) and name.removesuffix(end) + header in names for header, ends in SECOND_FILES.items() for end in ends
    )
