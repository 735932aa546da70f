"""Images that are in memory as volumes: those of nibabel and of SimpleITK, and arrays with an affine.

SimpleITK is not imported: its images are recognised by their class, and asked for their voxels and geometry.
"""

import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from swinunetr_jax.data.nifti.nifti_file import check_affine
from swinunetr_jax.data.nifti.volume import Volume, first_index
from swinunetr_jax.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # SimpleITK's axes point left and to the back, those of NIfTI right and to the front


def volume_in_memory(image: Any, name: str, affine: np.ndarray | None = None) -> Volume:
    """Returns an image as a volume, float32 [x, y, z] or [x, y, z, c].

    Args:
        image: a nibabel image, a SimpleITK image, or an array [x, y, z] or [x, y, z, c].
        name: its name, for messages.
        affine: for an array, [4, 4]: it maps indices to mm, with x to the right, y to the front and z upwards (RAS, as in NIfTI).

    Raises:
        InputError: the image has no three axes in space, no affine or an impossible one, or holds numbers that are not finite.
    """
    if isinstance(image, SpatialImage):
        array, own, header = np.asarray(image.dataobj), image.affine, _header_of(image)
    elif is_simpleitk(image):
        array, own = _simpleitk(image, name)
        header = None
    else:
        array, own, header = np.asarray(image), affine, None
    if array.dtype.kind not in "biuf":  # such as complex numbers, whose imaginary parts would be lost
        raise InputError(
            f"{name} has the type {type(image).__name__} of {array.dtype}, expected a path, an image of nibabel or SimpleITK, or an array, "
            "with one real number for each voxel."
        )
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise InputError(f"{name} has shape {array.shape}, expected (x, y, z) or (x, y, z, channel).")
    if own is None:
        raise InputError(f"{name} is an array, whose voxel size and orientation are unknown: give `affine`, [4, 4] in mm.")
    try:
        own = np.asarray(own, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"the affine of {name} is not an array of numbers, expected [4, 4].") from error
    if own.shape != (4, 4):
        raise InputError(f"the affine of {name} has shape {own.shape}, expected (4, 4).")
    check_affine(name, own)
    array = np.asfortranarray(array, np.float32)
    if not (finite := np.isfinite(array)).all():
        raise InputError(
            f"{name}: {int((~finite).sum())} of {array.size} voxels are NaN or Inf, the first at {first_index(~finite)}; replace them by 0."
        )
    return Volume(array, own, header_of_affine(own) if header is None else header, Path(name))


def header_of_affine(affine: np.ndarray) -> nib.Nifti1Header:
    """Returns a NIfTI header for an image that has none, with its affine in mm."""
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine).header
    header.set_xyzt_units("mm")
    return header


def is_simpleitk(image: Any) -> bool:
    """Returns whether this is an image of SimpleITK."""
    module = sys.modules.get("SimpleITK")  # an image exists only if its module was imported
    return module is not None and isinstance(image, module.Image)


def _header_of(image: Any) -> nib.Nifti1Header | None:
    """Returns a copy of the header of a NIfTI image that agrees with its affine, or None for other formats."""
    if not isinstance(image, nib.Nifti1Image):  # a Nifti2Image is one, too
        return None
    header, affine = image.header.copy(), image.affine
    if affine is not None and not np.allclose(np.asarray(header.get_best_affine()), affine):
        header.set_sform(affine, code="aligned")
        header.set_qform(affine, code="unknown")
    header.extensions.clear()
    return header


def _simpleitk(image: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the voxels [x, y, z] or [x, y, z, c] of a SimpleITK image, and its affine."""
    if image.GetDimension() != 3:
        raise InputError(f"{name} has {image.GetDimension()} axes, expected three: give one volume.")
    if image.GetPixelIDTypeAsString().startswith("label"):  # SimpleITK ends the process if the voxels of such an image are read
        raise InputError(f"{name} is a LabelMap of SimpleITK, expected a scan: convert it with LabelMapToLabel.")
    array = sys.modules["SimpleITK"].GetArrayFromImage(image)  # [z, y, x] or [z, y, x, c]
    return np.moveaxis(array, (0, 1, 2), (2, 1, 0)), simpleitk_affine(image)


def simpleitk_affine(image: Any) -> np.ndarray:
    """Returns the affine [4, 4] (RAS, in mm) of an image of SimpleITK with three axes, or of a reader that has read its header."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine
