"""Pairs of a header and an image file, .hdr and .img: Analyze 7.5, SPM's variants of it, and NIfTI pairs, read by nibabel."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np

from swinunetr_jax import files
from swinunetr_jax.data.formats.libraries import short
from swinunetr_jax.data.formats.scan import Scan
from swinunetr_jax.data.nifti.nifti_file import check_kind, size_text
from swinunetr_jax.errors import InputError

_UNKNOWN_SIDES = (
    "an Analyze file does not state the orientation of its axes, which are assumed to point to the left, the front and upwards; compare "
    "left and right with the original scan"
)


def open_pair(path: Path) -> Scan:
    """Returns the scan of a pair. `path` may be either of the two files.

    Raises:
        InputError: one of the files is missing, truncated, or not valid.
    """
    header_path, image_path = both_files(path)
    try:
        image = nib.load(header_path)
        if not isinstance(image, nib.AnalyzeImage):  # SPM's images and NIfTI pairs are subclasses
            raise TypeError(f"it is {type(image).__name__}")
        dtype, offset = image.get_data_dtype(), int(image.header.get_data_offset())
        shape, affine = tuple(int(size) for size in image.shape), np.asarray(image.affine, np.float64)
    except Exception as error:  # nibabel raises many kinds of errors for damaged headers
        raise InputError(
            f"{header_path}: is not the header of an Analyze or NIfTI pair ({short(error)}); get the pair again."
        ) from error
    check_kind(header_path, dtype)
    needed, present = math.prod(shape) * dtype.itemsize + offset, image_path.stat().st_size
    if needed > present:
        raise InputError(
            f"{image_path}: the file has {size_text(present)}, but its header claims {shape} voxels of {dtype.name}; it is truncated or "
            "damaged, so get it again."
        )

    def voxels() -> np.ndarray:
        try:
            return np.asanyarray(image.dataobj)
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(f"{image_path}: cannot be read ({short(error)}); get the pair again.") from error

    return Scan(path, shape, affine, voxels, notes=() if isinstance(image, nib.Nifti1Pair) else (_UNKNOWN_SIDES,))


def both_files(path: Path) -> tuple[Path, Path]:
    """Returns the paths of the header and of the image. Raises InputError if one of them is missing."""
    ending = path.suffix
    upper = ending.isupper()
    pair = [path if ending.lower() == end else path.with_suffix(end.upper() if upper else end) for end in (".hdr", ".img")]
    for file, other in zip(pair, reversed(pair)):
        if not files.is_file(file):
            raise InputError(f"{file}: does not exist, expected beside {other.name}; restore the missing file of the pair.")
    return pair[0], pair[1]
