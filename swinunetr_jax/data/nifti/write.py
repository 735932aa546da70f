"""Writes arrays as NIfTI files on the grid of another volume. A file is written completely or not at all."""

import contextlib
import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from swinunetr_jax import files
from swinunetr_jax.data.nifti.nifti_file import is_gzip_name
from swinunetr_jax.data.nifti.volume import Volume, first_index
from swinunetr_jax.errors import InputError

COMPRESSION = 4  # sparse label maps take half the space of level 3, and a third of the time of level 6
WRITABLE = ("uint8", "int16", "uint16", "int32", "float32")  # the types that every viewer reads, unlike int64


def write_volume(path: str | os.PathLike, array: np.ndarray, like: Volume, dtype: npt.DTypeLike = np.uint8) -> Path:
    """Writes [x, y, z] or [x, y, z, c] on the grid of `like`, with its affine, qform, sform, codes and units bit for bit.

    Header fields that describe the values of `like` are reset. The file appears under its name only when it is complete, and equal
    arrays give equal bytes.

    Raises:
        InputError: the shapes differ, a value does not fit `dtype`, or the file cannot be written.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if dtype.name not in WRITABLE:
        raise InputError(f"{path}: the data type {dtype.name} is not supported; choose one of {', '.join(WRITABLE)}.")
    compressed, array = is_gzip_name(path), np.asarray(array)
    if array.shape[:3] != like.array.shape[:3] or array.ndim not in (3, 4):
        raise InputError(f"{path}: the array has shape {array.shape}, but the grid of {like.path} is {like.array.shape[:3]}.")
    voxels = _converted(path, array, dtype)

    try:
        if files.exists(path) and files.exists(like.path) and os.path.samefile(path, like.path):
            raise InputError(
                f"{path}: the result would overwrite the image that it was computed from; choose another folder or name."
            )
        # The gzip header holds neither a file name nor a time, which would make equal results differ.
        with (
            files.atomic_path(path, ".nii.gz" if compressed else ".nii") as temporary,
            open(temporary, "xb") as file,
            gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) if compressed else contextlib.nullcontext(file) as stream,
        ):
            _result_header(like, array.shape, dtype).write_to(stream)  # includes the four bytes that mean "no extensions"
            for index in range(array.shape[-1]):
                stream.write(voxels[..., index].tobytes("F"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({files.reason(error)}); give an existing folder with write access and space."
        ) from error
    return path


def _result_header(like: Volume, shape: tuple[int, ...], dtype: np.dtype) -> nib.Nifti1Header:
    """Returns the header of `like` for an array of this shape and type, without the fields that describe the voxels of `like`."""
    header = like.header.as_byteswapped("<")
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_data_offset(header.single_vox_offset)
    header.set_slope_inter(1, 0)
    zeros = ("cal_min", "cal_max", "glmin", "glmax", "toffset", "intent_code", "intent_p1", "intent_p2", "intent_p3")
    # Free text may hold a patient's name or a file name.
    texts = ("intent_name", "aux_file", "db_name", "data_type")
    for field, value in [*((name, 0) for name in zeros), *((name, b"") for name in texts), ("descrip", b"swinunetr_jax")]:
        if field in header:
            header[field] = value
    return header


def _converted(path: Path, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns the array as `dtype`. Raises InputError if that changes a value."""
    with np.errstate(all="ignore"):
        voxels = array.astype(dtype, copy=False)
        bad = ~np.isfinite(voxels) if dtype.kind == "f" else voxels != array
    if bad.any():
        first = first_index(bad)
        raise InputError(
            f"{path}: value {array[first]} at voxel {first} does not fit {dtype.name}; check it or choose another type."
        )
    return voxels
