"""Data sets of small valid cases, whose files a test then damages."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from swinunetr_jax import cli
from swinunetr_jax.data.discovery.cases import Dataset
from swinunetr_jax.data.discovery.formats import find_cases

SHAPE = (7, 6, 5)
LPS = np.diag([-1.0, -1, 1, 1])
ENDS = ("flair", "t1", "t1ce", "t2")


def save(path: Path, array: Any, affine: np.ndarray = LPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array), affine, dtype=np.asarray(array).dtype), path)
    return path


def image(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Returns an image of random positive integers."""
    return np.random.default_rng(seed).integers(1, 900, shape).astype(np.float32)


def label(*values: int, dtype: Any = np.uint8) -> np.ndarray:
    """Returns a label map whose first voxels have these values."""
    array = np.zeros(SHAPE, dtype)
    array.flat[: len(values)] = values
    return array


def brats(root: Path, number: int, *, affine: np.ndarray = LPS, values: Sequence[int] = (1, 2, 2, 4)) -> Path:
    """Writes a valid case of 7 × 6 × 5 voxels of 1 mm³ and returns its folder."""
    folder = root / f"BraTS2021_{number:05d}"
    for c, end in enumerate(ENDS):
        save(folder / f"{folder.name}_{end}.nii.gz", image(4 * number + c), affine)
    save(folder / f"{folder.name}_seg.nii.gz", label(*values), affine)
    return folder


def at(folder: Path, end: str) -> Path:
    """Returns the path of a file of a case of BraTS."""
    return folder / f"{folder.name}_{end}.nii.gz"


def with_voxel(array: np.ndarray, *values: float) -> np.ndarray:
    """Returns the array in float32 with these values in its first voxels."""
    array = array.astype(np.float32)
    array.flat[: len(values)] = values
    return array


def decathlon(root: Path, arrays: Sequence[np.ndarray], maps: Sequence[np.ndarray] | None = None, **info: Any) -> Dataset:
    """Writes a data set of the Decathlon and returns its cases; `info` replaces keys of its dataset.json."""
    entries = []
    for number, array in enumerate(arrays):
        name = f"case_{number}.nii.gz"
        save(root / "imagesTr" / name, array)
        save(root / "labelsTr" / name, maps[number] if maps else label(1))
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    info = {"modality": {"0": "a"}, "labels": {"0": "background", "1": "organ"}, "training": entries} | info
    (root / "dataset.json").write_text(json.dumps(info))
    return find_cases(root)


def run(*arguments: object) -> Any:
    """Runs `swinunetr validate` and returns its exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["validate", *map(str, arguments)])
    return stopped.value.code
