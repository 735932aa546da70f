"""Writes a MONAI bundle: a folder that `monai.bundle` loads and runs, with the same logits.

configs/metadata.json     channels, outputs, versions; under "swinunetr_jax" the configuration and the task, so that reading it back
                          needs no option
configs/inference.json    network_def, preparation, sliding window, labels
models/model.pt           the weights as a state dict
docs/README.md, LICENSE   the model card, and the licence as far as it is stated
scripts/…                 only for networks with the order `legacy` of patch merging, which MONAI from 1.5 on does not have
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from swinunetr_jax import files
from swinunetr_jax.buckets import is_address, path_or_address
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.packages.model_card import NOT_STATED, Card
from swinunetr_jax.task import Task
from swinunetr_jax.version import __version__
from swinunetr_jax.weights.bundle import OURS
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.params import Params
from swinunetr_jax.weights.torch_file import write_torch_file
from swinunetr_jax.weights.weight_file import refuse_existing
from swinunetr_jax.weights.weight_folder import BUNDLE_WEIGHTS

# The versions with which the test of this file loads a bundle.
_MONAI, _TORCH, _NUMPY, _NIBABEL = "1.6.1", "2.13.0", "2.3.5", "5.3.3"
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20220324.json"
_OURS_ALONE = {"num_groups", "dtype", "param_dtype", "use_flash_attention", "use_checkpoint", "downsample"}
_LEGACY_TARGET = "scripts.legacy_swin_unetr.SwinUNETR"
_LEGACY_SCRIPT = '''"""MONAI's SwinUNETR with the patch merging of MONAI 1.4 and earlier, with which the weights were trained.

From 1.5 on, MONAI's "merging" has another order of the eight neighbours, and would compute other results without a message.
"""

import torch
from monai import networks
from torch import nn

# The offsets of the neighbours along the three axes; two of them are taken twice, and two are left out.
ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class LegacyPatchMerging(nn.Module):
    def __init__(self, dim, norm_layer=nn.LayerNorm, spatial_dims=3):
        super().__init__()
        if spatial_dims != 3:
            raise ValueError("the order of neighbours differs only in 3-D")
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x):
        d, h, w = x.shape[1:4]
        x = nn.functional.pad(x, (0, 0, 0, w % 2, 0, h % 2, 0, d % 2))
        x = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in ORDER], dim=-1)
        return self.reduction(self.norm(x))


class SwinUNETR(networks.nets.SwinUNETR):
    def __init__(self, **arguments):
        super().__init__(**arguments, downsample=LegacyPatchMerging)
'''


def write_bundle(
    path: str | os.PathLike,
    config: SwinUNETRConfig,
    params: Params,
    task: Task,
    card: Card,
    readme: Callable[[Mapping[str, str]], str],
    scores: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the folder of a bundle atomically, and returns its path.

    Args:
        path: the folder, which must not exist.
        config: the configuration of the network.
        params: its variables by dotted name.
        task: its task.
        card: the user's statements.
        readme: returns the model card for the SHA-256 of the weight files by name.
        scores: the recorded scores.

    Raises:
        InputError: the folder exists or cannot be written, or is in a bucket.
    """
    path = path_or_address(path)
    if is_address(path):
        raise InputError(
            f"{path} is in a bucket, expected a folder on this machine for a MONAI bundle: copy it there afterwards."
        )
    refuse_existing(path, overwrite=False)
    try:
        with files.atomic_folder(path) as folder:
            for name in ("configs", "models", "docs"):
                (folder / name).mkdir()
            files.write_json(folder / "configs/metadata.json", metadata(config, task, card, scores))
            files.write_json(folder / "configs/inference.json", inference(config, task))
            write_torch_file(folder / BUNDLE_WEIGHTS, to_monai(params, config))
            files.write_text(folder / "docs/README.md", readme({BUNDLE_WEIGHTS: files.digest_of_file(folder / BUNDLE_WEIGHTS)}))
            files.write_text(folder / "LICENSE", f"{card.licence or NOT_STATED}\n")
            if _is_legacy(config):
                (folder / "scripts").mkdir()
                files.write_text(folder / "scripts/__init__.py", "")
                files.write_text(folder / "scripts/legacy_swin_unetr.py", _LEGACY_SCRIPT)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({files.reason(error)}): check the folder and its free space.") from error
    return path


def network_definition(config: SwinUNETRConfig) -> dict[str, Any]:
    """Returns the arguments of MONAI's SwinUNETR with `_target_`, without those that this project alone has."""
    norm = config.norm_name if config.num_groups is None else [config.norm_name, {"num_groups": config.num_groups}]
    values = {name: value for name, value in config.to_dict().items() if name not in _OURS_ALONE} | {"norm_name": norm}
    if _is_legacy(config):
        return {"_target_": _LEGACY_TARGET, **values}
    # All orders are the same in 2-D, where MONAI knows no "legacy".
    downsample = "merging" if config.downsample == "legacy" else config.downsample
    return {"_target_": "SwinUNETR", **values, "downsample": downsample}


def _is_legacy(config: SwinUNETRConfig) -> bool:
    return config.downsample == "legacy" and config.spatial_dims == 3


def metadata(config: SwinUNETRConfig, task: Task, card: Card, scores: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the content of metadata.json."""
    roi = list(task.roi or (96,) * config.spatial_dims)
    channels = task.channels or tuple(f"channel {number}" for number in range(config.in_channels))
    names = [output.name for output in task.outputs]
    window = {"dtype": "float32", "spatial_shape": roi, "is_patch_data": True}
    return {
        "schema": _SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by swinunetr_jax {__version__}"},
        "monai_version": _MONAI,
        "pytorch_version": _TORCH,
        "numpy_version": _NUMPY,
        "required_packages_version": {"nibabel": _NIBABEL, "einops": "0.8.1", "pytorch-ignite": "0.5.3"},
        "name": card.name or "Swin UNETR",
        "task": f"segmentation of {', '.join(names)}",
        "description": card.intended_use or NOT_STATED,
        "authors": NOT_STATED,
        "copyright": card.licence or NOT_STATED,
        "data_source": card.data or NOT_STATED,
        "intended_use": card.intended_use or NOT_STATED,
        "eval_metrics": {} if scores is None else {f"{scores['metric']} {name}": value for name, value in scores["mean"].items()},
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": config.in_channels,
                    "value_range": [0, 1] if task.intensity == "window" else [],
                    "channel_def": {str(number): name for number, name in enumerate(channels)},
                    **window,
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": config.out_channels,
                    "value_range": [0, 1],
                    "channel_def": {str(number): name for number, name in enumerate(names)},
                    **window,
                }
            },
        },
        OURS: {"version": __version__, "config": config.to_dict(), "task": task.to_dict()},
    }


def inference(config: SwinUNETRConfig, task: Task) -> dict[str, Any]:
    """Returns the content of inference.json."""
    is_classes = task.kind == "classes"
    image, prediction = {"keys": "@image_key"}, {"keys": "pred"}
    activation = {"softmax": True} if is_classes else {"sigmoid": True}
    discrete = {"argmax": True} if is_classes else {"threshold": 0.5}
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "$@bundle_root + '/data'",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network_definition(config),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [{**step, **image} for step in _preparation(task)]},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': item} for item in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(task.roi or (96,) * config.spatial_dims),
            "sw_batch_size": 1,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", **prediction, **activation},
                {
                    "_target_": "Invertd",
                    **prediction,
                    "transform": "@preprocessing",
                    "orig_keys": "@image_key",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", **prediction, **discrete},
                {"_target_": "SaveImaged", **prediction, "output_dir": "@output_dir"},
            ],
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": ["$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }


def _preparation(task: Task) -> list[dict[str, Any]]:
    """Returns MONAI's transforms that prepare a scan for the task."""
    steps: list[dict[str, Any]] = [{"_target_": "LoadImaged"}, {"_target_": "EnsureChannelFirstd"}]
    if task.orientation is not None:
        steps.append({"_target_": "Orientationd", "axcodes": task.orientation})
    if task.spacing is not None:
        steps.append({"_target_": "Spacingd", "pixdim": list(task.spacing), "mode": "bilinear"})
    if task.window is not None:
        low, high = task.window
        limits = {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0}
        steps.append({"_target_": "ScaleIntensityRanged", **limits, "clip": True})
    elif task.intensity == "zscore":
        steps.append({"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True})
    return [*steps, {"_target_": "EnsureTyped"}]
