"""Opens a scan or a label map in any supported format as a `Volume`, with the checks and the memory order of NIfTI files."""

import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from swinunetr_jax.data.formats.names import EXPECTED, ITK, NIFTI, PAIR
from swinunetr_jax.data.formats.read_dicom import is_dicom_scan, open_dicom
from swinunetr_jax.data.formats.read_dicom_seg import read_dicom_seg, segmentation_header
from swinunetr_jax.data.formats.read_itk import open_itk
from swinunetr_jax.data.formats.read_pair import open_pair
from swinunetr_jax.data.formats.scan import Scan, check_scan
from swinunetr_jax.data.nifti import volume as nifti
from swinunetr_jax.data.nifti.memory import header_of_affine
from swinunetr_jax.data.nifti.volume import MAX_BYTES, Volume
from swinunetr_jax.errors import InputError


def read_volume(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, require_finite: bool = True) -> Volume:
    """Returns the image in `path`, float32 [x, y, z] or [x, y, z, c], with scale factors applied.

    Args:
        path: a file (.nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, .hdr), a DICOM file, a folder with one DICOM series, or a zip of one.
        max_bytes: the memory that the image may take.
        require_finite: whether NaN and Inf are errors.

    Raises:
        InputError: the scan is not valid, needs more than `max_bytes` of memory or, if `require_finite`, holds NaN or Inf.
    """
    path = Path(path)
    if _is_nifti(path):
        return nifti.read_volume(path, max_bytes=max_bytes, require_finite=require_finite)
    scan = _open(path, max_bytes)
    array = np.asfortranarray(_voxels(scan), np.float32)
    if require_finite:
        nifti.check_finite(path, array)
    return _volume(scan, array)


def read_labels(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, may_be_part: bool = False) -> Volume:
    """Returns the label map in `path`, [x, y, z], as uint8, or as int32 if a label is above 255.

    It takes the paths of `read_volume`, and if `may_be_part` also a DICOM-SEG, which may cover only a part of its scan (`Volume.is_part`).

    Raises:
        InputError: the file is not valid, is not 3-D, or holds values that are not integers of at least 0.
    """
    path = Path(path)
    if _is_nifti(path):
        return nifti.read_labels(path, max_bytes=max_bytes)
    if is_dicom_scan(path) and (header := segmentation_header(path)) is not None:
        if not may_be_part:
            raise InputError(
                f"{path}: is a DICOM-SEG, which may cover only a part of the scan and number its labels in its own way, expected a label "
                "map for all voxels; convert it to NIfTI on the grid of the scan."
            )
        return read_dicom_seg(path, header, max_bytes)
    scan = _open(path, max_bytes)
    nifti.check_label_shape(path, scan.shape)
    return _volume(scan, nifti.as_labels(path, np.asfortranarray(_voxels(scan))))


def read_geometry(path: str | os.PathLike) -> tuple[tuple[int, ...], np.ndarray, str]:
    """Returns (shape, affine, orientation) of the image in `path` from its headers alone. Takes the paths of `read_volume`."""
    path = Path(path)
    if _is_nifti(path):
        return nifti.read_geometry(path)
    scan = _open(path, None)
    return scan.shape, scan.affine, "".join(nib.aff2axcodes(scan.affine))


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI) and not path.is_dir()


def _open(path: Path, max_bytes: int | None) -> Scan:
    """Returns a scan in another format than NIfTI, whose header has been checked."""
    name = path.name.lower()
    if is_dicom_scan(path):
        scan = open_dicom(path)
    elif name.endswith(ITK):
        scan = open_itk(path)
    elif name.endswith(PAIR):
        scan = open_pair(path)
    else:
        raise InputError(f"{path}: is not a scan in a known format, {EXPECTED}; check the path, or convert the scan.")
    shape = scan.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return check_scan(replace(scan, shape=shape), max_bytes)


def _voxels(scan: Scan) -> np.ndarray:
    try:
        return scan.voxels().reshape(scan.shape, order="F")
    except MemoryError as error:
        raise InputError(f"{scan.path}: {scan.shape} voxels do not fit into memory; crop the image.") from error


def _volume(scan: Scan, array: np.ndarray) -> Volume:
    return Volume(array, scan.affine, header_of_affine(scan.affine), scan.path, scan.slices, scan.notes)
