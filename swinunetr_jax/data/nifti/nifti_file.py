"""One NIfTI file, read defensively: `read_header` checks the header, `read_voxels` reads the voxels.

The header's claims are compared with the size of the file before any memory is allocated for them. nibabel parses the header's
fields. The voxels are read here, because a gzip checksum is verified only by a reader that continues to the end of the file.
"""

import gzip
import logging
import math
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from swinunetr_jax.errors import InputError
from swinunetr_jax.files import reason

GZIP_RATIO = 1032  # deflate's limit: 258 bytes from 2 bits
MAX_EXCESS = 1 << 30  # bytes after the last voxel that are decompressed to reach the checksum; more count as a gzip bomb
VOXEL_SIZES = (1e-6, 1e6)  # the sizes accepted, in mm or the header's unit
MAX_SHIFT = 1e9  # the position accepted for the first voxel, in the same unit; beyond it float32 cannot resolve metres
_SILENT = logging.Logger("silent nibabel", level=logging.CRITICAL + 1)


@dataclass(frozen=True)
class CheckedHeader:
    """A header that agrees with the size of its file.

    `nifti` is nibabel's header; `shape` is that of the voxels without trailing axes of length 1; `offset` is the position of the first
    voxel in bytes; `slope` and `inter` are the scale factors, or None if the voxels are not scaled.
    """

    nifti: nib.Nifti1Header
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float | None
    inter: float | None
    affine: np.ndarray


def read_header(path: Path, max_bytes: int | None) -> CheckedHeader:
    """Returns the header of `path` after comparing it with the file's size and `max_bytes`. Raises InputError if it is not valid."""
    size, compressed = _sniff(path)
    with _stream(path, compressed) as stream:
        first_bytes = stream.read(540)
    header = _header(path, first_bytes)
    dims = [int(d) for d in header["dim"]]
    shape = tuple(dims[1 : 1 + dims[0]]) if 1 <= dims[0] <= 7 else ()
    if not shape or min(shape) < 1:
        raise InputError(
            f"{path}: the header's dimensions {dims} are not those of a volume, expected the number of dimensions and then a size of at "
            "least 1 for each of them; get the file again."
        )
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise InputError(
            f"{path}: the image has {len(shape)} dimensions {shape}, expected (x, y, z) or (x, y, z, channel); "
            "save one volume of it."
        )
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V")
    check_kind(path, dtype, f"data type {int(header['datatype'])}")
    voxels = math.prod(shape)
    field: Any = header["vox_offset"]  # a float in NIfTI-1, an integer in NIfTI-2
    start, least_offset = field.item(), header.single_vox_offset
    if not math.isfinite(start) or start < least_offset:  # also for 0, which nibabel reads as 0 and the NIfTI library as 348
        raise InputError(
            f"{path}: vox_offset is {start}, expected at least {least_offset}, the end of the header; correct the header."
        )
    offset = int(start)
    claimed_bytes = voxels * dtype.itemsize + offset
    if claimed_bytes > (size * GZIP_RATIO if compressed else size):
        raise InputError(
            f"{path}: the file has {size_text(size)}{' compressed' * compressed}, but its header claims {shape} voxels of {dtype.name} "
            f"from byte {offset} on; it is truncated or damaged, so get it again."
        )
    if max_bytes is not None and (needed_bytes := max(voxels * max(dtype.itemsize, 4), offset)) > max_bytes:
        raise InputError(
            f"{path}: {shape} voxels take {size_text(needed_bytes)} of memory, but the limit is {size_text(max_bytes)}; crop it or "
            "raise `max_bytes`."
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
    return CheckedHeader(header, shape, dtype, offset, slope, inter, affine)


def _sniff(path: Path) -> tuple[int, bool]:
    """Returns (size in bytes, whether it is gzip-compressed) of a file whose first bytes agree with its name."""
    compressed = is_gzip_name(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: it is not a file, expected a NIfTI image; give the path of one .nii or .nii.gz file.")
        with open(path, "rb") as file:
            start = file.read(64)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{path}: cannot be read ({reason(error)}); give an existing .nii or .nii.gz file.") from error
    if not start:
        raise InputError(f"{path}: the file is empty, expected a NIfTI image; get it again.")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise InputError(
            f"{path}: the file is a web page (HTML or XML), not a NIfTI image; the download failed, so get it again."
        )
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: the file is a git-lfs pointer, not the image; run `git lfs pull`.")
    if compressed != start.startswith(b"\x1f\x8b"):
        raise InputError(
            f"{path}: the file is {'not ' * compressed}gzip-compressed, although its name says otherwise; "
            "rename it, or convert it to NIfTI."
        )
    return status.st_size, compressed


def _header(path: Path, block: bytes) -> nib.Nifti1Header:
    """Returns nibabel's header, parsed from the first bytes of a file after checking the magic number."""
    # The magic number of NIfTI-2 ends in bytes that show whether a transfer in text mode has changed the line ends.
    nifti2_magic = block[4:8] if block[8:12] in (b"\r\n\x1a\n", bytes(4)) else b""
    kinds = {
        348: (nib.Nifti1Header, block[344:348], b"n+1\0", b"ni1\0"),
        540: (nib.Nifti2Header, nifti2_magic, b"n+2\0", b"ni2\0"),
    }
    orders: tuple[tuple[Literal["little", "big"], str], ...] = (("little", "<"), ("big", ">"))
    for order, endianness in orders:
        length = int.from_bytes(block[:4], order)
        if length not in kinds:
            continue
        kind, magic, single_magic, pair_magic = kinds[length]
        if len(block) < length:
            raise InputError(f"{path}: the file ends inside its header; it is truncated, so get it again.")
        if magic == pair_magic:
            raise InputError(f"{path}: the file is the header of a .hdr/.img pair; convert the pair to one .nii.gz file.")
        if magic != single_magic:
            break
        header = kind(block[:length], endianness, check=False)
        offset = header["vox_offset"].copy()
        header["vox_offset"] = 0  # `read_header` refuses a low value instead of repairing it; nibabel fails on -inf
        with np.errstate(all="ignore"):
            header.check_fix(_SILENT, error_level=100)  # the repairs of nibabel.load: a missing qfac, negative voxel sizes
        header["vox_offset"] = offset
        return header
    raise InputError(
        f"{path}: the content is not NIfTI (it has neither n+1 nor n+2); convert the image, renaming it is not enough."
    )


def read_voxels(path: Path, header: CheckedHeader, dtype: npt.DTypeLike | None) -> np.ndarray:
    """Returns the scaled voxels of a checked file as `dtype`. For a file without scale factors, None keeps the file's own type."""
    try:
        array = _stored_voxels(path, header)
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow is found later, as Inf
            if header.slope is None:
                return array.astype(dtype or header.dtype.newbyteorder("="), copy=False)
            scaled = np.empty(header.shape, dtype, order="F")
            for index in range(header.shape[-1]):  # slice by slice, because nibabel scales in float64
                scaled[..., index] = apply_read_scaling(array[..., index], header.slope, header.inter)
        return scaled
    except MemoryError as error:
        raise InputError(f"{path}: {header.shape} voxels do not fit into memory; crop the image.") from error


def _stored_voxels(path: Path, header: CheckedHeader) -> np.ndarray:
    """Returns the unscaled voxels, in the shape and type of `header`. A gzip file is read to its end, which verifies its checksum."""
    raw = np.empty(math.prod(header.shape) * header.dtype.itemsize, np.uint8)
    view, bytes_read, compressed = raw.data, 0, is_gzip_name(path)
    with _stream(path, compressed) as stream:
        left_to_skip = header.offset
        while left_to_skip and (skipped := len(stream.read(min(left_to_skip, 1 << 18)))):
            left_to_skip -= skipped
        while (
            not left_to_skip and bytes_read < len(raw) and (count := stream.readinto(view[bytes_read : bytes_read + (4 << 20)]))
        ):
            bytes_read += count
        if bytes_read < len(raw):
            raise EOFError
        excess = 0
        while compressed and (count := len(stream.read(1 << 18))):  # gzip compares the checksum and the length only at the end
            excess += count
            if excess > MAX_EXCESS:
                raise InputError(
                    f"{path}: more than {size_text(MAX_EXCESS)} follow the last of {header.shape} voxels, expected the end of the file; "
                    "its header is damaged, so get it again."
                )
    return raw.view(header.dtype).reshape(header.shape, order="F")


@contextmanager
def _stream(path: Path, compressed: bool) -> Iterator[gzip.GzipFile | BufferedReader]:
    """Opens a file, decompresses it if necessary, and raises InputError for errors of reading."""
    try:
        with gzip.open(path) if compressed else open(path, "rb") as stream:
            yield stream
    except EOFError as error:
        raise InputError(f"{path}: the file ends before its last voxel; it is truncated, so get it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the compressed data are damaged ({error}); get the file again.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); check the disk and the permissions.") from error


def is_gzip_name(path: Path) -> bool:
    """Returns whether the name of `path` ends in .nii.gz. Raises InputError if it ends neither in that nor in .nii."""
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise InputError(
            f"{path}: the name does not end in .nii or .nii.gz; expected a NIfTI file, also in place of a .hdr/.img pair."
        )
    return name.endswith(".gz")


def check_kind(path: Path, dtype: np.dtype, shown: str | None = None) -> None:
    """Raises InputError unless voxels of this type are real numbers. `shown` is the name of the type, for the message."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(
            f"{path}: {shown or f'the data type {dtype}'} is complex, colour or unknown, expected one real number per voxel; convert it."
        )


def check_affine(name: str, affine: np.ndarray) -> None:
    """Raises InputError, whose message starts with `name`, unless `affine` [4, 4] is invertible and has plausible voxel sizes."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        valid = np.isfinite(affine).all() and lengths.min() > 0 and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6
        # nibabel may find no direction for an axis although no two axes are parallel.
        valid = valid and np.isfinite(io_orientation(affine)).all()
    if valid and not (affine.shape == (4, 4) and np.allclose(affine[3], (0, 0, 0, 1), atol=1e-6)):
        raise InputError(f"{name}: the last row of the affine is {affine[-1].tolist()}, expected [0, 0, 0, 1]; correct it.")
    if not valid:
        rows = np.array2string(np.asarray(affine)[:3], precision=4).replace("\n", "")
        raise InputError(
            f"{name}: the affine {rows} is singular or not finite, so that voxels have no position; correct qform or sform."
        )
    low, high = VOXEL_SIZES
    if lengths.min() < low or lengths.max() > high or np.abs(affine[:3, 3]).max() > MAX_SHIFT:
        sizes, position = (" × ".join(f"{number:.3g}" for number in numbers) for numbers in (lengths, affine[:3, 3]))
        raise InputError(
            f"{name}: voxels of {sizes} mm, the first at {position} mm, cannot be those of a scan, expected sizes of {low:g} to "
            f"{high:g} mm and a position within {MAX_SHIFT:g} mm; correct qform or sform."
        )


def size_text(count: int) -> str:
    """Returns a number of bytes as text, such as "4.2 MB"."""
    return f"{count} bytes" if count < 10_000 else f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
