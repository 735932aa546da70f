"""Synthetic label maps for `swinunetr evaluate`."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from swinunetr_jax import Task, cli

SHAPE = (14, 12, 11)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def run(*arguments: object) -> Any:
    """Runs `swinunetr evaluate` and returns its exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", *map(str, arguments)])
    return stopped.value.code


def save(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def brats(seed: int = 0, et: int = 4) -> np.ndarray:
    """Returns a label map of nested boxes: whole tumour, core, enhancing tumour."""
    x, y, z = np.random.default_rng(seed).integers(0, 4, 3)
    labels = np.zeros(SHAPE, np.uint8)
    labels[x : x + 8, y : y + 8, z : z + 7] = 2
    labels[x + 1 : x + 6, y + 1 : y + 6, z + 1 : z + 5] = 1
    labels[x + 2 : x + 5, y + 2 : y + 5, z + 2 : z + 4] = et
    return labels


def brats_case(folder: Path, name: str, labels: np.ndarray, modern: bool = False) -> Path:
    """Writes a case with the file names used up to 2022, or since 2023 if `modern`, and returns its label map's path."""
    ends, sep = (("t2f", "t1c", "t1n", "t2w"), "-") if modern else (("flair", "t1ce", "t1", "t2"), "_")
    for end in ends:
        save(folder / name / f"{name}{sep}{end}.nii.gz", np.ones(SHAPE, np.float32))
    return save(folder / name / f"{name}{sep}seg.nii.gz", labels)


def record(folder: Path, task: Task, **cases: Any) -> None:
    """Writes predict.json."""
    (folder / "predict.json").write_text(json.dumps({"settings": {"task": task.to_dict()}, "cases": cases}))


def scores(folder: Path) -> Any:
    return json.loads((folder / "scores.json").read_text())


def nnunet(folder: Path, labels: np.ndarray, **names: Any) -> Path:
    """Writes a data set in nnU-Net's layout with the case `c` and a dataset.json with label names; `order` is the order of the regions."""
    save(folder / "imagesTr/c_0000.nii.gz", np.ones(SHAPE, np.float32))
    save(folder / "labelsTr/c.nii.gz", labels)
    order = names.pop("order", None)
    info = {"channel_names": {"0": "T1"}, "file_ending": ".nii.gz", "numTraining": 1, "labels": {"background": 0, **names}}
    (folder / "dataset.json").write_text(json.dumps(info | ({"regions_class_order": order} if order else {})))
    return folder
