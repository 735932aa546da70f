"""The configuration of a network, read off its tensors under MONAI's names.

What tensors cannot tell is asked for: the neighbour order of patch merging (the tensors are the same in all modes, the numbers that
come out are not) and the number of groups of a group norm. `normalize` leaves no trace either and is taken as True.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from swinunetr_jax.config import STAGES, SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.windows import relative_index

_TABLE = "swinViT.layers{}.0.blocks.0.attn.relative_position_bias_table"
_INDEX = "swinViT.layers1.0.blocks.0.attn.relative_position_index"


def infer_config(tensors: Mapping[str, np.ndarray], path: str, **given: Any) -> SwinUNETRConfig:
    """The configuration of the network that these tensors belong to.

    Args:
        tensors: by MONAI's names; the encoder alone will do where `out_channels` is given.
        path: the file's name, for messages.
        given: configuration fields, used instead of what the tensors say. Where they contradict it, loading fails later, tensor by
            tensor with both shapes.

    Raises:
        InputError: where something that tensors cannot tell was not given.
    """
    fields: dict[str, Any] = {}
    embed = _tensor(tensors, "swinViT.patch_embed.proj.weight", path)
    if embed.ndim not in (4, 5):
        raise InputError(f"{path}: the patch embedding has {embed.ndim} axes, expected 4 (2-D) or 5 (3-D).")
    width = fields["feature_size"] = embed.shape[0]
    fields["in_channels"], fields["spatial_dims"] = embed.shape[1], embed.ndim - 2
    if "out.conv.conv.bias" in tensors:
        fields["out_channels"] = len(tensors["out.conv.conv.bias"])
    elif "out_channels" not in given:
        raise InputError(f"{path} has no output layer (an encoder alone?): give `out_channels`, the number of outputs wanted.")
    fields["depths"] = tuple(_depth(tensors, stage, path) for stage in range(1, STAGES + 1))
    fields["num_heads"] = tuple(_tensor(tensors, _TABLE.format(stage), path).shape[1] for stage in range(1, STAGES + 1))
    hidden = _tensor(tensors, "swinViT.layers1.0.blocks.0.mlp.linear1.weight", path).shape[0]
    fields["mlp_ratio"] = hidden / width
    fields["qkv_bias"] = "swinViT.layers1.0.blocks.0.attn.qkv.bias" in tensors
    fields["patch_norm"] = "swinViT.patch_embed.norm.weight" in tensors
    fields["use_v2"] = any(name.startswith("swinViT.layers1c.") for name in tensors)
    if "window_size" not in given:
        fields["window_size"] = _window(tensors, fields["spatial_dims"], path)
    if "norm_name" not in given and "num_groups" not in given:
        fields["norm_name"] = _norm(tensors, path)
    elif "num_groups" in given:
        fields["norm_name"] = "group"
    if "downsample" not in given:
        fields["downsample"] = _downsample(fields["spatial_dims"], path)
    return SwinUNETRConfig.from_dict(fields | given)


def _tensor(tensors: Mapping[str, np.ndarray], name: str, path: str) -> np.ndarray:
    if name not in tensors:
        raise InputError(f"{path} is not a complete Swin UNETR: {name!r} is missing.")
    return tensors[name]


def _depth(tensors: Mapping[str, np.ndarray], stage: int, path: str) -> int:
    pattern = re.compile(rf"swinViT\.layers{stage}\.0\.blocks\.(\d+)\.")
    blocks = {int(match[1]) for match in map(pattern.match, tensors) if match}
    if not blocks or blocks != set(range(len(blocks))):
        raise InputError(f"{path} is not a complete Swin UNETR: the blocks of stage {stage} are {sorted(blocks)}.")
    return len(blocks)


def _window(tensors: Mapping[str, np.ndarray], spatial_dims: int, path: str) -> tuple[int, ...]:
    """The window whose index table is the file's; without that buffer, the one cube that fits the bias table."""
    rows = _tensor(tensors, _TABLE.format(1), path).shape[0]
    index = tensors.get(_INDEX)
    sides = [side for side in range(1, rows + 1) if rows % (2 * side - 1) == 0]
    fitting = [w for w in itertools.product(sides, repeat=spatial_dims) if math.prod(2 * side - 1 for side in w) == rows]
    if index is not None:
        fitting = [w for w in fitting if math.prod(w) == len(index) and np.array_equal(relative_index(w), index)]
    cubes = [w for w in fitting if len(set(w)) == 1]
    if len(fitting) == 1 or (index is None and cubes):
        return (cubes or fitting)[0]
    some = " or ".join(map(str, fitting[:6])) or "none"
    raise InputError(f"{path}: its tensors do not tell the attention window ({some} would fit): give `window_size`.")


def _norm(tensors: Mapping[str, np.ndarray], path: str) -> str:
    prefix = next((p for p in ("encoder1.layer.norm1.", "encoder10.layer.norm1.") if f"{p}weight" in tensors), None)
    if prefix is None:
        return "instance"
    if f"{prefix}running_mean" in tensors:
        return "batch"
    raise InputError(
        f"{path} was trained with a group norm, and tensors do not tell the number of groups: give "
        "`norm_name=('group', {'num_groups': n})` (on the command line `--num-groups n`)."
    )


def _downsample(spatial_dims: int, path: str) -> str:
    if spatial_dims == 2:
        return "merging"  # in 2-D all modes are the same
    raise InputError(
        f"{path} does not say in which order its patch merging takes neighbours, and the wrong one gives wrong segmentations without "
        "any other sign: give `downsample`. Choose 'legacy' for every published Swin UNETR (BraTS21, BTCV, the self-supervised "
        "encoder) and for anything trained with MONAI <= 1.4 and its default; 'merging' for MONAI >= 1.5 and its default; 'mergingv2' "
        "where the training script says so."
    )
