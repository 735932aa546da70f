"""NIfTI files for tests, written by nibabel, and their raw header fields."""

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from swinunetr_jax.data.nifti import Volume

LPS = np.array([[-1.0, 0, 0, 10], [0, -1, 0, 20], [0, 0, 2, -30], [0, 0, 0, 1]])
COUNT = np.arange(24).reshape(2, 3, 4)


def oblique(degrees: float = 25.0) -> np.ndarray:
    """Returns the affine of a grid that is rotated about two axes."""
    a, b = np.deg2rad([degrees, degrees / 2])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return nib.affines.from_matvec(x @ z @ np.diag([0.5, 1.0, 3.0]), [5, -7, 11])


def save(
    path: Path, array: np.ndarray, affine: np.ndarray = LPS, kind: type[nib.Nifti1Image] = nib.Nifti1Image, **fields: Any
) -> Path:
    """Writes an image with nibabel and then overwrites raw header fields, which nibabel would have corrected."""
    nib.save(kind(array, affine, dtype=array.dtype), path)
    return patch(path, **fields) if fields else path


def patch(path: Path, **fields: Any) -> Path:
    """Overwrites raw header fields of a file."""
    compressed = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if compressed else path.read_bytes())
    header = (nib.Nifti1Header if data[0] == 348 % 256 else nib.Nifti2Header)(bytes(data[: data[0] + 256 * data[1]]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[: len(header.binaryblock)] = header.binaryblock
    path.write_bytes(gzip.compress(data) if compressed else data)
    return path


def volume_of(shape: tuple[int, ...] = (2, 3, 4), affine: np.ndarray = LPS, name: str = "a.nii.gz") -> Volume:
    """Returns a volume of zeros whose file does not exist."""
    return Volume(np.zeros(shape, np.float32), np.asarray(affine, np.float64), nib.Nifti1Header(), Path(name))
