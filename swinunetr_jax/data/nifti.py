"""NIfTI volumes: read, compared, turned, and written whole or not at all.

Arrays keep the axis order of the file, [x, y, z] or [x, y, z, c], and its memory order (x fastest). Every function raises
InputError with one sentence that names the file; what makes a file unsound is decided in nifti_file.py.
"""

import contextlib
import gzip
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations

from swinunetr_jax import files
from swinunetr_jax.data.nifti_file import check_affine, packed_name, read_layout, read_voxels
from swinunetr_jax.errors import InputError

MAX_BYTES = 8 << 30
GRID_TOLERANCE = 1e-3  # of the longest side: a qform near 180° loses that much in float32, a real shift is a voxel or more
LABEL_TOLERANCE = 1e-4  # integers stored with a scale factor come back as 0.9999999
COMPRESSION = 4  # half the size of level 3 on sparse label maps, a third of the time of level 6
_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
WRITABLE = ("uint8", "int16", "uint16", "int32", "float32")  # what every viewer reads; int64 is not


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie: `affine` maps (x, y, z) indices to mm; `header` is the file's own, without extensions."""

    array: np.ndarray
    affine: np.ndarray
    header: Any
    path: Path

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel sizes in mm."""
        return tuple(float(s) for s in nib.affines.voxel_sizes(self.affine))

    @property
    def orientation(self) -> str:
        """Where each axis points to, closest first for oblique grids: 'RAS', 'LPS', …"""
        return "".join(nib.aff2axcodes(self.affine))


def read_volume(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES, require_finite: bool = True) -> Volume:
    """The image in `path` (.nii or .nii.gz), float32 [x, y, z] or [x, y, z, c], with the file's scale factors applied.

    Raises InputError for anything but a sound NIfTI file, and, unless `require_finite` is off, for NaN or Inf voxels.
    """
    path = Path(path)
    layout = read_layout(path, max_bytes)
    array = read_voxels(path, layout, np.float32)
    if require_finite:
        _check_finite(path, array)
    return Volume(array, layout.affine, layout.header, path)


def read_labels(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> Volume:
    """The label map in `path`, uint8 [x, y, z], or int32 with labels above 255. InputError for anything but whole numbers ≥ 0."""
    path = Path(path)
    layout = read_layout(path, max_bytes)
    if len(layout.stored) != 3:
        raise InputError(f"{path}: the label map has shape {layout.stored}, expected 3-D; merge its channels into one map.")
    array = read_voxels(path, layout, None if layout.slope is None else np.float64)
    _check_finite(path, array)
    if array.dtype.kind == "f":
        whole = np.rint(array)
        bad = np.abs(array - whole) > LABEL_TOLERANCE
        if bad.any():
            first = _first(bad)
            raise InputError(
                f"{path}: label {array[first]:g} at voxel {first} is not a whole number; expected a label map, resampled by "
                "nearest neighbour if at all."
            )
        array = whole
    low, high = array.min(), array.max()
    if low < 0 or high >= 2**31:
        raise InputError(f"{path}: label {low if low < 0 else high:.0f} is outside 0 … 2147483647; renumber the labels.")
    return Volume(array.astype(np.uint8 if high < 256 else np.int32, copy=False), layout.affine, layout.header, path)


def read_geometry(path: str | os.PathLike) -> tuple[tuple[int, ...], np.ndarray, str]:
    """(shape, affine, orientation) of `path` from its header alone."""
    layout = read_layout(Path(path), None)
    return layout.stored, layout.affine, "".join(nib.aff2axcodes(layout.affine))


def check_same_grid(volumes: Sequence[Volume]) -> None:
    """Raise InputError unless all volumes lie on the first one's grid; channels are not looked at.

    Affines count as equal if no corner of the grid moves by more than a thousandth of its longest side.
    """
    for other in volumes[1:]:
        one = volumes[0]
        shapes = one.array.shape[:3], other.array.shape[:3]
        pair = f"{one.path} and {other.path} do not lie on the same grid"
        if shapes[0] != shapes[1]:
            raise InputError(f"{pair}: their shapes are {shapes[0]} and {shapes[1]}; resample one onto the other.")
        corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in shapes[0]))])
        apart = np.linalg.norm(corners @ (one.affine - other.affine).T, axis=1).max()
        if not apart <= GRID_TOLERANCE * max(s * n for s, n in zip(one.spacing, shapes[0], strict=True)):
            spacings = [tuple(round(s, 4) for s in v.spacing) for v in (one, other)]
            raise InputError(
                f"{pair}: corners lie {apart:.3g} mm apart (orientation {one.orientation} and {other.orientation}, spacing "
                f"{spacings[0]} and {spacings[1]}); resample one onto the other."
            )


@dataclass(frozen=True)
class Back:
    """The way from a reoriented grid back to the original one."""

    ornt: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """`array` on the new grid, [x, y, z] or [x, y, z, c], brought back exactly; a view."""
        if array.shape[:3] != self.shape:
            raise InputError(
                f"The array to bring back has shape {array.shape}, expected {self.shape} and perhaps channels after it."
            )
        return orientations.apply_orientation(array, np.array(self.ornt))


def reorient(array: np.ndarray, affine: np.ndarray, codes: str = "RAS") -> tuple[np.ndarray, np.ndarray, Back]:
    """Flip and permute [x, y, z] or [x, y, z, c] so that its axes point to `codes`; nothing is resampled.

    On an oblique grid every axis takes the direction it is closest to. Returns a view, its affine, and the way back.
    """
    if sorted(_AXES.get(c, -1) for c in codes) != [0, 1, 2]:
        raise InputError(f"`codes` is {codes!r}, expected three letters, one of each pair R/L, A/P, S/I, such as 'RAS'.")
    check_affine("`affine`", affine)
    here, there = orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(codes))
    turn, back = orientations.ornt_transform(here, there), orientations.ornt_transform(there, here)
    turned = orientations.apply_orientation(array, turn)
    back = Back(tuple((int(a), int(f)) for a, f in back), turned.shape[:3])
    return turned, affine @ orientations.inv_ornt_aff(turn, array.shape[:3]), back


def write_volume(path: str | os.PathLike, array: np.ndarray, like: Volume, dtype=np.uint8) -> Path:
    """Write [x, y, z] or [x, y, z, c] on the grid of `like`: its affine, qform, sform, codes and units, bit for bit.

    Everything in the header that spoke of the source's values is reset. The file appears under its name only when complete, and
    equal arrays give equal bytes. InputError if the shape differs, a value does not fit `dtype`, or the folder is not writable.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if dtype.name not in WRITABLE:
        raise InputError(f"{path}: the data type {dtype.name} is not written; choose one of {', '.join(WRITABLE)}.")
    packed, array = packed_name(path), np.asarray(array)
    if array.shape[:3] != like.array.shape[:3] or array.ndim not in (3, 4):
        raise InputError(f"{path}: the array has shape {array.shape}, but the grid of {like.path} is {like.array.shape[:3]}.")
    voxels = _fitting(path, array, dtype)

    try:
        if files.exists(path) and files.exists(like.path) and os.path.samefile(path, like.path):
            raise InputError(f"{path}: this would overwrite the image the result comes from; choose another folder or name.")
        # No file name and no time in the gzip header: they would make equal results differ.
        with (
            files.atomic_path(path, ".nii.gz" if packed else ".nii") as temporary,
            open(temporary, "xb") as file,
            gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) if packed else contextlib.nullcontext(file) as stream,
        ):
            _result_header(like, array.shape, dtype).write_to(stream)  # with the four bytes that say "no extensions"
            for k in range(array.shape[-1]):
                stream.write(voxels[..., k].tobytes("F"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({files.reason(error)}); give an existing folder with write access and space."
        ) from error
    return path


def _result_header(like: Volume, shape: tuple[int, ...], dtype: np.dtype):
    header = like.header.as_byteswapped("<")
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_data_offset(header.single_vox_offset)
    header.set_slope_inter(1, 0)
    zeros = ("cal_min", "cal_max", "glmin", "glmax", "toffset", "intent_code", "intent_p1", "intent_p2", "intent_p3")
    # The free texts can hold a patient's name or the source's file name.
    texts = ("intent_name", "aux_file", "db_name", "data_type")
    for field, value in [*((z, 0) for z in zeros), *((t, b"") for t in texts), ("descrip", b"swinunetr_jax")]:
        if field in header:
            header[field] = value
    return header


def _fitting(path: Path, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        voxels = array.astype(dtype, copy=False)
        bad = ~np.isfinite(voxels) if dtype.kind == "f" else voxels != array
    if bad.any():
        first = _first(bad)
        raise InputError(
            f"{path}: value {array[first]} at voxel {first} does not fit {dtype.name}; check it or choose another type."
        )
    return voxels


def _check_finite(path: Path, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and (bad := ~np.isfinite(array)).any():
        count = int(bad.sum())
        raise InputError(f"{path}: {count} of {array.size} voxels are NaN or Inf, the first at {_first(bad)}; replace them by 0.")


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
