"""One NIfTI file, read with suspicion: `read_layout` is what its header says, `read_voxels` what follows.

A header is only trusted after its claims were held against the size of the file, so nothing is allocated for a lie. nibabel reads
the header's fields; the voxels are read here, because a gzip checksum is only verified by a reader that goes on to the end.
"""

import gzip
import logging
import math
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from swinunetr_jax.errors import InputError
from swinunetr_jax.files import reason

GZIP_RATIO = 1032  # deflate's limit: 258 bytes from 2 bits
MAX_EXCESS = 1 << 30  # bytes after the last voxel that are decompressed to reach the checksum; more make a bomb
VOXEL_SIZES = (1e-6, 1e6)  # in mm, or in the header's unit: from less than a light wave to more than any table
MAX_SHIFT = 1e9  # of the first voxel, in the same unit: beyond it float32 loses whole metres
_SILENT = logging.Logger("nibabel, unheard", level=logging.CRITICAL + 1)


@dataclass(frozen=True)
class Layout:
    """What a checked header says about its file."""

    header: Any
    stored: tuple[int, ...]  # as in the file, without trailing singletons
    dtype: np.dtype
    offset: int
    slope: float | None
    inter: float | None
    affine: np.ndarray


def read_layout(path: Path, max_bytes: int | None) -> Layout:
    """Check the header of `path` against the file and `max_bytes` before anything is allocated for it."""
    size, packed = _sniff(path)
    with _stream(path, packed) as stream:
        block = stream.read(540)
    header = _header(path, block)
    dims = [int(d) for d in header["dim"]]
    stored = tuple(dims[1 : 1 + dims[0]]) if 1 <= dims[0] <= 7 else ()
    if not stored or min(stored) < 1:
        raise InputError(
            f"{path}: the header's dimensions {dims} make no volume, expected their number and as many sizes of at least 1; "
            "get the file again."
        )
    while len(stored) > 3 and stored[-1] == 1:
        stored = stored[:-1]
    if len(stored) not in (3, 4):
        raise InputError(
            f"{path}: the image has {len(stored)} dimensions {stored}, expected (x, y, z) or (x, y, z, channel); "
            "choose the volume of interest and save that."
        )
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        code = int(header["datatype"])
        raise InputError(
            f"{path}: data type {code} is complex, colour or unknown, expected one real number per voxel; convert it."
        )

    voxels = math.prod(stored)
    offset, least = header["vox_offset"].item(), header.single_vox_offset
    if not math.isfinite(offset) or offset < least:  # 0 too: nibabel reads it as 0, the NIfTI library as 348
        raise InputError(f"{path}: vox_offset is {offset}, expected at least {least}, the end of the header; correct the header.")
    offset = int(offset)
    claimed = voxels * dtype.itemsize + offset
    if claimed > (size * GZIP_RATIO if packed else size):
        raise InputError(
            f"{path}: the file has {_size(size)}{' compressed' * packed}, but its header claims {stored} voxels of {dtype.name} "
            f"from byte {offset} on; it is truncated or damaged, get it again."
        )
    if max_bytes is not None and (need := max(voxels * max(dtype.itemsize, 4), offset)) > max_bytes:
        raise InputError(
            f"{path}: {stored} voxels take {_size(need)} of memory, limit {_size(max_bytes)}; crop it or raise `max_bytes`."
        )

    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or (slope and not np.isfinite(inter)):
        raise InputError(f"{path}: scl_slope is {slope} and scl_inter {inter}, expected finite numbers; correct the header.")
    if slope == 0 or (slope, inter) == (1, 0):  # 0 means "not scaled" in the NIfTI standard
        slope = inter = None
    try:
        with np.errstate(all="ignore"):
            affine = np.array(header.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as error:
        raise InputError(f"{path}: the qform is not a rotation ({error}); correct the header's orientation.") from error
    check_affine(str(path), affine)
    return Layout(header, stored, dtype, offset, slope, inter, affine)


def _sniff(path: Path) -> tuple[int, bool]:
    """(size in bytes, gzip or not) of a file that can be what its name says."""
    packed = packed_name(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a file, expected a NIfTI image; give the path of one .nii or .nii.gz file.")
        with open(path, "rb") as file:
            start = file.read(64)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{path}: cannot be read ({reason(error)}); give an existing .nii or .nii.gz file.") from error
    if not start:
        raise InputError(f"{path}: the file is empty, expected a NIfTI image; get it again.")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise InputError(f"{path}: the file is a web page (HTML or XML), not a NIfTI image; the download failed, get it again.")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: the file is a git-lfs pointer, not the image; run `git lfs pull`.")
    if packed != start.startswith(b"\x1f\x8b"):
        raise InputError(
            f"{path}: the file is {'not ' * packed}gzip-compressed, against its name; rename it, or convert it to NIfTI."
        )
    return status.st_size, packed


def _header(path: Path, block: bytes):
    """nibabel's header from the first bytes of a file, its magic checked."""
    second = block[4:8] if block[8:12] in (b"\r\n\x1a\n", bytes(4)) else b""  # line ends that a transfer as text would change
    kinds = {348: (nib.Nifti1Header, block[344:348], b"n+1\0", b"ni1\0"), 540: (nib.Nifti2Header, second, b"n+2\0", b"ni2\0")}
    for order, endianness in (("little", "<"), ("big", ">")):
        length = int.from_bytes(block[:4], order)
        if length not in kinds:
            continue
        kind, magic, single, pair = kinds[length]
        if len(block) < length:
            raise InputError(f"{path}: the file ends inside its header; it is truncated, get it again.")
        if magic == pair:
            raise InputError(f"{path}: the file is the header of a .hdr/.img pair; convert the pair to one .nii.gz file.")
        if magic != single:
            break
        header = kind(block[:length], endianness, check=False)
        offset = header["vox_offset"].copy()
        header["vox_offset"] = 0  # refused by `read_layout`, not repaired, if it is too low; nibabel cannot look at -inf
        with np.errstate(all="ignore"):
            header.check_fix(_SILENT, error_level=100)  # repairs as in nibabel.load: a missing qfac, negative voxel sizes
        header["vox_offset"] = offset
        return header
    raise InputError(f"{path}: the content is not NIfTI (no n+1 or n+2 in it); convert the image, a new name is not enough.")


def read_voxels(path: Path, layout: Layout, dtype) -> np.ndarray:
    """The voxels of a checked file, scaled, as `dtype`; None, the type of the file, only where it has no scale factor."""
    try:
        array = _stored_voxels(path, layout)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found as Inf
            if layout.slope is None:
                return array.astype(dtype or layout.dtype.newbyteorder("="), copy=False)
            scaled = np.empty(layout.stored, dtype, order="F")
            for k in range(layout.stored[-1]):  # slice by slice: nibabel's scaling makes float64
                scaled[..., k] = apply_read_scaling(array[..., k], layout.slope, layout.inter)
        return scaled
    except MemoryError as error:
        raise InputError(f"{path}: {layout.stored} voxels do not fit into the memory; crop the image.") from error


def _stored_voxels(path: Path, layout: Layout) -> np.ndarray:
    """The voxels as the file has them, in the shape and type of `layout`; a gzip file is read to its end, and so verified."""
    raw = np.empty(math.prod(layout.stored) * layout.dtype.itemsize, np.uint8)
    view, done, packed = memoryview(raw), 0, packed_name(path)
    with _stream(path, packed) as stream:
        ahead = layout.offset
        while ahead and (skipped := len(stream.read(min(ahead, 1 << 18)))):
            ahead -= skipped
        while not ahead and done < len(raw) and (count := stream.readinto(view[done : done + (4 << 20)])):
            done += count
        if done < len(raw):
            raise EOFError
        excess = 0
        while packed and (count := len(stream.read(1 << 18))):  # gzip compares checksum and length only at the end
            excess += count
            if excess > MAX_EXCESS:
                raise InputError(
                    f"{path}: more than {_size(MAX_EXCESS)} follow the last of {layout.stored} voxels, expected the end of the file; "
                    "its header is damaged, get it again."
                )
    return raw.view(layout.dtype).reshape(layout.stored, order="F")


@contextmanager
def _stream(path: Path, packed: bool) -> Iterator[Any]:
    try:
        with gzip.open(path) if packed else open(path, "rb") as stream:
            yield stream
    except EOFError as error:
        raise InputError(f"{path}: the file ends before its last voxel; it is truncated, get it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the compressed data are damaged ({error}); get the file again.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); check the disk and the permissions.") from error


def packed_name(path: Path) -> bool:
    """Whether `path` is named as compressed NIfTI; InputError unless it is named as NIfTI at all."""
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: the name does not end in .nii or .nii.gz; convert the image to NIfTI (a .hdr/.img pair too).")
    return name.endswith(".gz")


def check_affine(name: str, affine: np.ndarray) -> None:
    """InputError naming `name` unless `affine` [4, 4] gives every voxel a place of its own and a size that a scan can have."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        sound = np.isfinite(affine).all() and lengths.min() > 0 and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6
        # An axis may have no direction of its own, although no two are parallel.
        sound = sound and np.isfinite(io_orientation(affine)).all()
    if not sound:
        rows = np.array2string(np.asarray(affine)[:3], precision=4).replace("\n", "")
        raise InputError(f"{name}: the affine {rows} is singular or not finite, so voxels have no place; correct qform or sform.")
    low, high = VOXEL_SIZES
    if lengths.min() < low or lengths.max() > high or np.abs(affine[:3, 3]).max() > MAX_SHIFT:
        sizes, place = (" × ".join(f"{number:.3g}" for number in numbers) for numbers in (lengths, affine[:3, 3]))
        raise InputError(
            f"{name}: voxels of {sizes} mm, the first at {place} mm, are none of a scan, expected {low:g} to {high:g} mm within "
            f"{MAX_SHIFT:g} mm; correct qform or sform."
        )


def _size(count: int) -> str:
    return f"{count} bytes" if count < 10_000 else f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
