"""Data sets in the layouts that are recognised. Most of their files hold one byte."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from swinunetr_jax.data.discovery.cases import Case, Dataset

SHAPE = (6, 5, 4)
WEIGHTS = ("FLAIR", "T1ce", "T1", "T2")  # the channels of published weights, in their order


def touch(root: Path, *names: str) -> Path:
    """Writes files of one byte and returns their folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def save(path: Path, array: np.ndarray) -> Path:
    """Writes an image of 1 mm voxels in RAS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def ball(start: int) -> np.ndarray:
    """Returns a label map with a box of eight voxels that starts at `start` along the first axis."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[start : start + 2, 1:3, 1:3] = 1
    return labels


def write_list(path: Path, **content: Any) -> Path:
    """Writes the keys and values to a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def case_names(data_set: Dataset) -> list[str]:
    return [case.name for case in data_set.cases]


def write_json(path: Path, content: Any) -> Path:
    """Writes text as it is, and other values as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def brats(root: Path, name: str, ends: str = "_flair _t1 _t1ce _t2 _seg", folder: str | None = None) -> Path:
    return touch(root, *(f"{folder or name}/{name}{end}.nii.gz" for end in ends.split()))


def image_names(case: Case) -> list[str]:
    return [image.name for image in case.images]


def decathlon(root: Path, modality: dict[str, str], count: int = 2) -> Path:
    """Writes a data set of the Decathlon and returns its dataset.json. The data set also has the files that macOS adds."""
    file_names = [f"BRATS_00{i}.nii.gz" for i in range(count)]
    touch(root, *(f"imagesTr/{n}" for n in file_names), *(f"labelsTr/{n}" for n in file_names), "imagesTs/BRATS_900.nii.gz")
    touch(root, *(f"imagesTr/._{n}" for n in file_names))
    training = [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in file_names]
    info = {
        "modality": modality,
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        "training": [{"image": "./imagesTr/._BRATS_000.nii.gz", "label": "./labelsTr/._BRATS_000.nii.gz"}, *training],
        "test": ["./imagesTs/BRATS_900.nii.gz"],
    }
    return write_json(root / "dataset.json", info)
