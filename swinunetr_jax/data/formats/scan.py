"""A scan whose header has been read and checked, and whose voxels are read on demand. All formats except NIfTI are read as one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swinunetr_jax.data.nifti.nifti_file import check_affine, size_text
from swinunetr_jax.errors import InputError

ORTHOGONAL = 1e-3  # the largest cosine between two axes


@dataclass(frozen=True)
class Scan:
    """A scan with a valid header.

    `shape` is (x, y, z) or (x, y, z, c); `affine` maps indices to mm, with x to the right, y to the front and z upwards. `voxels` reads
    the voxels in this shape with the first axis fastest; it raises InputError. `slices` and `notes` are those of `Volume`.
    """

    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray
    voxels: Callable[[], np.ndarray]
    slices: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def check_scan(scan: Scan, max_bytes: int | None) -> Scan:
    """Returns the scan after the checks that all formats share.

    Raises:
        InputError: it has no three axes, needs more than `max_bytes` of memory, or its axes are impossible or not orthogonal.
    """
    if len(scan.shape) not in (3, 4) or min(scan.shape) < 1:
        raise InputError(
            f"{scan.path}: the image has {len(scan.shape)} axes {scan.shape}, expected (x, y, z) or (x, y, z, channel); save one "
            "volume of it."
        )
    if max_bytes is not None and (needed := 4 * math.prod(scan.shape)) > max_bytes:
        raise InputError(
            f"{scan.path}: {scan.shape} voxels take {size_text(needed)} of memory, but the limit is {size_text(max_bytes)}; crop it or "
            "raise `max_bytes`."
        )
    check_affine(str(scan.path), scan.affine)
    axes = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    if (cosine := np.abs(axes.T @ axes - np.eye(3)).max()) > ORTHOGONAL:
        angle = math.degrees(math.acos(min(cosine, 1)))
        raise InputError(
            f"{scan.path}: two axes of the image enclose an angle of {angle:.1f}°, expected 90°; resample it to a rectangular grid."
        )
    return scan
