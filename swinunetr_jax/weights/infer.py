"""Infers the configuration of a network from its tensors, which have MONAI's names.

The caller has to give what tensors do not determine: the order of neighbours in patch merging, which changes the network's output but
not its tensors, the number of groups of a group norm, and the padding of Hyena stages. `normalize` cannot be inferred either; its default
is True.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from swinunetr_jax.config import STAGES, SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.monai import is_index_table

_BLOCK = "swinViT.layers{}.0.blocks.0."
_TABLE = _BLOCK + "attn.relative_position_bias_table"
_INDEX = _BLOCK + "attn.relative_position_index"
_QKV_BIAS = _BLOCK + "attn.qkv.bias"
_MIXER = _BLOCK + "mixer.mixer."
_KERNEL = _MIXER + "global_conv.kernel."
_HIDDEN = "swinViT.layers{}.0.blocks.0.mlp.linear1.weight"
_OUT = "out.conv.conv.bias"


class NotInferable(InputError):
    """A field of the configuration was not given and cannot be inferred from the tensors; `field` is its name."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


def infer_config(tensors: Mapping[str, np.ndarray], path: str, **fields: Any) -> SwinUNETRConfig:
    """Returns the configuration of the network that the tensors belong to.

    Args:
        tensors: the tensors by MONAI's names. Those of the encoder are sufficient if `out_channels` is given.
        path: the file, for messages.
        fields: fields of the configuration, which replace inferred values. If they contradict the tensors, the load fails later, with a
            list of all tensors that differ.

    Raises:
        NotInferable: a field that cannot be inferred was not given.
        InputError: the tensors do not belong to a Swin UNETR.
    """
    inferred: dict[str, Any] = {}
    embed = _tensor(tensors, "swinViT.patch_embed.proj.weight", path, 4, 5)  # [width, in_channels, 2, 2(, 2)]
    width = inferred["feature_size"] = embed.shape[0]
    inferred["in_channels"], inferred["spatial_dims"] = embed.shape[1], embed.ndim - 2
    if "out_channels" not in fields:
        inferred["out_channels"] = _out_channels(tensors, path)
    inferred["depths"] = tuple(_depth(tensors, stage, path) for stage in range(1, STAGES + 1))
    hyena = tuple(_MIXER.format(stage) + "short_conv.weight" in tensors for stage in range(1, STAGES + 1))
    if any(hyena):
        inferred |= {"hyena_stages": hyena, **_hyena(tensors, 1 + hyena.index(True), path, fields)}
    inferred["num_heads"] = tuple(_heads(tensors, stage, hyena[stage - 1], path) for stage in range(1, STAGES + 1))
    hidden = [_tensor(tensors, _HIDDEN.format(stage), path, 2).shape[0] for stage in range(1, STAGES + 1)]
    inferred["mlp_ratio"] = _mlp_ratio([(width * 2**stage, count) for stage, count in enumerate(hidden)])
    attention = 1 + hyena.index(False) if not all(hyena) else None  # a stage with window attention
    if attention is not None:
        inferred["qkv_bias"] = _QKV_BIAS.format(attention) in tensors
    inferred["patch_norm"] = "swinViT.patch_embed.norm.weight" in tensors
    inferred["use_v2"] = any(name.startswith("swinViT.layers1c.") for name in tensors)
    if attention is not None and "window_size" not in fields:
        inferred["window_size"] = _window(tensors, attention, inferred["spatial_dims"], path)
    if "norm_name" not in fields and "num_groups" not in fields:
        inferred["norm_name"] = _norm(tensors, path)
    elif "num_groups" in fields:
        inferred["norm_name"] = "group"
    if "downsample" not in fields:
        inferred["downsample"] = _downsample(inferred["spatial_dims"], path)
    try:
        return SwinUNETRConfig.from_dict(inferred | fields)
    except InputError as error:  # the value that is out of range may come from the file
        raise InputError(f"{path}: {error}") from error


def _tensor(tensors: Mapping[str, np.ndarray], name: str, path: str, *ndims: int) -> np.ndarray:
    """Returns the tensor of this name. Raises InputError unless it exists, has one of these numbers of axes and is not empty."""
    if name not in tensors:
        raise InputError(f"{path} is not a complete Swin UNETR, because {name} is missing: check which file was given.")
    tensor = tensors[name]
    if tensor.ndim not in ndims or tensor.size == 0:
        expected = " or ".join(map(str, ndims))
        raise InputError(
            f"{path} is not a Swin UNETR: {name} has the shape {tensor.shape}, expected {expected} axes and at least one number."
        )
    return tensor


def _out_channels(tensors: Mapping[str, np.ndarray], path: str) -> int:
    if _OUT in tensors:
        return len(_tensor(tensors, _OUT, path, 1))
    if any(name.startswith("decoder") for name in tensors):
        raise NotInferable(
            "out_channels",
            f"{path} has no output layer: to initialise this layer randomly, use `adapt_channels` (--adapt-channels) and give the number "
            "of outputs as `out_channels` (--out-channels).",
        )
    raise NotInferable(
        "out_channels",
        f"{path} holds only a Swin encoder: to initialise the rest randomly, use `encoder_only` (--encoder-only) and give the number of "
        "outputs as `out_channels` (--out-channels).",
    )


def _depth(tensors: Mapping[str, np.ndarray], stage: int, path: str) -> int:
    """Returns the number of blocks of a stage."""
    pattern = re.compile(rf"swinViT\.layers{stage}\.0\.blocks\.(\d+)\.")
    blocks = {int(match[1]) for match in map(pattern.match, tensors) if match}
    if not blocks or blocks != set(range(len(blocks))):
        got = ", ".join(map(str, sorted(blocks))) or "none"
        raise InputError(
            f"{path} is not a complete Swin UNETR: expected the blocks 0, 1, … without a gap in stage {stage}, got {got}."
        )
    return len(blocks)


def _mlp_ratio(stages: list[tuple[int, int]]) -> float:
    """Returns the ratio with the fewest decimals for which int(width * ratio) == hidden in every stage.

    Args:
        stages: (width, hidden) of each stage, where hidden is the width of the MLP's hidden layer.
    """
    lower_bound = max(hidden / width for width, hidden in stages)
    decimals = [math.ceil(lower_bound * 10**places) / 10**places for places in range(16)]
    for ratio in (*decimals[:6], lower_bound, *decimals[6:]):  # `lower_bound` itself may be a fraction such as 7 / 3
        if all(int(width * ratio) == hidden for width, hidden in stages):
            return ratio
    return lower_bound  # no ratio gives these widths, so the load will list the tensors that differ


def _heads(tensors: Mapping[str, np.ndarray], stage: int, hyena: bool, path: str) -> int:
    """Returns the number of attention heads of a stage; a Hyena stage has none, and keeps the default."""
    return SwinUNETRConfig.num_heads[stage - 1] if hyena else _tensor(tensors, _TABLE.format(stage), path, 2).shape[1]


def _hyena(tensors: Mapping[str, np.ndarray], stage: int, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of Hyena stages that the tensors of one of these stages determine."""
    if "hyena_fft_padding" not in fields:
        raise NotInferable(
            "hyena_fft_padding",
            f"{path} has Hyena stages, and a wrong padding of their convolution results in wrong segmentations without an error: give "
            "`hyena_fft_padding` (--hyena-fft-padding): 'circular', which is MONAI's default, or 'zero'; and, if the training script sets "
            "them, `hyena_grid_type` (--hyena-grid-type), `hyena_l_cache` (--hyena-l-cache) and `hyena_mask_max_attenuation` "
            "(--hyena-mask-max-attenuation), which otherwise have MONAI's defaults single, 32 and 0.95.",
        )
    hidden = re.compile(re.escape(_KERNEL.format(stage)) + r"hidden_linears\.(\d+)\.weight")
    layers = {int(match[1]) for match in map(hidden.fullmatch, tensors) if match}
    return {
        "hyena_kernel_size": _tensor(tensors, _MIXER.format(stage) + "short_conv.weight", path, 4, 5).shape[-1],
        "hyena_kernel_mlp_dim": _tensor(tensors, _KERNEL.format(stage) + "out_linear.weight", path, 2).shape[1],
        "hyena_kernel_layers": len(layers) + 1,
    }


def _window(tensors: Mapping[str, np.ndarray], stage: int, spatial_dims: int, path: str) -> tuple[int, ...]:
    """Returns the window that fits the file's index table or, if the file has no such buffer, the only cube that fits the bias table."""
    rows = len(_tensor(tensors, _TABLE.format(stage), path, 2))
    index = tensors.get(_INDEX.format(stage))
    fitting = _windows(rows, spatial_dims)
    if index is not None:
        fitting = [w for w in fitting if is_index_table(index, w)]
    cubes = [w for w in fitting if len(set(w)) == 1]
    if len(fitting) == 1 or (index is None and cubes):
        return (cubes or fitting)[0]
    examples = " or ".join(map(str, sorted(fitting, key=lambda w: max(w) - min(w))[:6])) or "none"
    raise NotInferable(
        "window_size",
        f"{path}: the attention window cannot be inferred from the tensors, {examples} would fit: give `window_size` (--window-size) as "
        "in the training script.",
    )


def _windows(rows: int, axes: int) -> list[tuple[int, ...]]:
    """Returns every window with this number of axes whose bias table has `rows` rows: the product of (2 * side - 1) over the axes."""
    if axes == 0:
        return [()] if rows == 1 else []
    sides = [side for side in range(1, (rows + 1) // 2 + 1) if rows % (2 * side - 1) == 0] if axes > 1 else [(rows + 1) // 2]
    return [(side, *rest) for side in sides for rest in _windows(rows // (2 * side - 1), axes - 1)]


def _norm(tensors: Mapping[str, np.ndarray], path: str) -> str:
    """Returns the name of the convolutional blocks' norm."""
    prefix = next((p for p in ("encoder1.layer.norm1.", "encoder10.layer.norm1.") if f"{p}weight" in tensors), None)
    if prefix is None:
        return "instance"
    if f"{prefix}running_mean" in tensors:
        return "batch"
    raise NotInferable(
        "num_groups",
        f"{path} has a group norm, whose number of groups cannot be inferred from the tensors: give `num_groups` (--num-groups) as "
        "in the training script.",
    )


def _downsample(spatial_dims: int, path: str) -> str:
    if spatial_dims == 2:
        return "merging"  # in 2-D all modes are equal
    raise NotInferable(
        "downsample",
        f"{path} does not state the order of neighbours in its patch merging, and a wrong order results in wrong segmentations without "
        "an error: give `downsample` (--downsample): 'legacy' for every published Swin UNETR (BraTS21, BTCV, the self-supervised "
        "encoder) and for networks trained with MONAI <= 1.4 and its default; 'merging' for MONAI >= 1.5 and its default; 'mergingv2' "
        "if the training script says so.",
    )
