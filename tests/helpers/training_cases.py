"""Small training cases and their cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.prepare.cache import PreparedCase, prepare_training_cases
from swinunetr_jax.task import Task

SHAPE = (9, 8, 7)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
BRATS = Task.brats(channels=("FLAIR", "T1"))


def write_case(folder: Path, name: str = "a", seed: int = 0, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = LPS) -> Case:
    """Writes a case of two channels with a border of zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for end in ("flair", "t1"):
        image = np.zeros(shape, np.float32)
        image[2:7, 1:6, 2:5] = rng.gamma(4.0, 90.0, (5, 5, 3))
        paths.append(folder / f"{name}_{end}.nii.gz")
        nib.save(nib.Nifti1Image(image, affine), paths[-1])
    label = np.zeros(shape, np.uint8)
    label[3:5, 2:4, 3] = [[1, 2], [4, 0]]
    nib.save(nib.Nifti1Image(label, affine), folder / f"{name}_seg.nii.gz")
    return Case(name, tuple(paths), ("FLAIR", "T1"), folder / f"{name}_seg.nii.gz")


def prepare(cases: Sequence[Case], folder: Path, task: Task = BRATS, **options: Any) -> list[PreparedCase]:
    """Prepares the cases for training with the cache in this folder."""
    return prepare_training_cases(cases, task, folder, **{"in_channels": 2, **options})
