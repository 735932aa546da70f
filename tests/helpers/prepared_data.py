"""Small data sets to prepare, and the recipe of a training on them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from helpers.training_runs import recipe as small_recipe
from swinunetr_jax.training import Recipe


def recipe_of(data: Path | str, **changes: Any) -> Recipe:
    """Returns a recipe for the data set in a folder, or for the prepared one at an address."""
    data = Path(data)
    return replace(small_recipe(data, data.parent / "run"), **{"kind": "brats", "batch": 2, "cache": None, **changes})


def organs(folder: Path, **lists: slice) -> Path:
    """Writes six noisy scans of 20 x 24 x 22 voxels with labels 0 and 1 and their list."""
    rng, entries = np.random.default_rng(0), []
    folder.mkdir()
    for number in range(6):
        image = rng.normal(100, 30, (20, 24, 22)).astype(np.float32)
        for kind, array in (("image", image), ("label", (image > 120).astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.diag([2.0, 1, 1.5, 1])), folder / f"{kind}{number}.nii.gz")
        entries.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"})
    content = {"labels": {"background": 0, "organ": 1}, "modality": {"0": "MRI"}}
    content |= {name: entries[part] for name, part in (lists or {"training": slice(None)}).items()}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
