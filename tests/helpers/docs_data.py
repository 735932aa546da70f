"""Small synthetic data under the names that the documentation uses, for `check_docs.py`."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from flax import nnx

from swinunetr_jax import SwinUNETR, SwinUNETRConfig
from swinunetr_jax.data import brats
from swinunetr_jax.data.phantom.dataset import write_phantom
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.params import flatten
from swinunetr_jax.weights.torch_file import write_torch_file

CASES = 5  # as many as there are folds


def write_data(folder: Path) -> None:
    """Writes a BraTS data set, one of the Decathlon, the four files of a case, and PyTorch files into a folder."""
    write_phantom(folder / "BraTS2021", cases=CASES, size=(48, 48, 32))
    first = folder / "BraTS2021" / "BraTS2021_00000"
    for channel, ending in brats.NAMING[4].channels.items():
        shutil.copy(first / f"{first.name}{ending}.nii.gz", folder / f"{channel}.nii.gz")
    _write_hippocampus(folder / "Task04_Hippocampus")
    for name, channels in (("model.pt", 4), ("model_swinvit.pt", 1)):
        config = SwinUNETRConfig(in_channels=channels, out_channels=3, feature_size=12, depths=(1, 1, 1, 1), downsample="legacy")
        tensors = to_monai(flatten(SwinUNETR(config, rngs=nnx.Rngs(0))), config)
        if name == "model_swinvit.pt":
            prefix = "swinViT."
            tensors = {f"module.{n.removeprefix(prefix)}": tensor for n, tensor in tensors.items() if n.startswith(prefix)}
        write_torch_file(folder / name, tensors)


def _write_hippocampus(folder: Path) -> None:
    """Writes noise with two brighter boxes, in the layout and the sizes of the Decathlon's hippocampus task."""
    rng, entries = np.random.default_rng(0), []
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for number in range(CASES):
        label = np.zeros((36, 50, 36), np.uint8)
        label[10:20, 12:25, 10:25], label[10:20, 25:38, 10:25] = 1, 2
        image = (rng.normal(100, 10, label.shape) + 40 * label).astype(np.float32)
        name = f"hippocampus_{number + 1:03d}.nii.gz"
        for kind, array in (("imagesTr", image), ("labelsTr", label)):
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / kind / name)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    labels = {"0": "background", "1": "Anterior", "2": "Posterior"}
    description = {"name": "Hippocampus", "modality": {"0": "MRI"}, "labels": labels, "training": entries, "test": []}
    (folder / "dataset.json").write_text(json.dumps(description))
