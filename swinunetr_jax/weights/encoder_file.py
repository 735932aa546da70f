"""Writes the Swin encoder alone, in the form that the method `load_from` of MONAI's network reads.

Such a file is a PyTorch file {"state_dict": …} with the names of MONAI's self-supervised training: they begin with "module." instead of
"swinViT.", and the layers of an MLP are `fc1` and `fc2`.
"""

import os
import re
from pathlib import Path

from swinunetr_jax.buckets import path_or_address
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.find_network import Tensors
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.params import Params, check, count_bytes
from swinunetr_jax.weights.torch_file import write_torch_file
from swinunetr_jax.weights.upload import new_file

_ENCODER, _PREFIX = "swinViT.", "module."
_MLP = re.compile(r"\.mlp\.linear([12])\.")
# How MONAI computes each order of patch merging.
_MERGING = {
    "legacy": (
        '`legacy`, which the published code and MONAI up to 1.4 compute with downsample="merging"; MONAI from 1.5 on computes another '
        "order"
    ),
    "merging": (
        '`merging`, which MONAI from 1.5 on computes with downsample="merging"; MONAI up to 1.4 and the published code compute another '
        "order, `legacy`"
    ),
    "mergingv2": '`mergingv2`, which MONAI computes with downsample="mergingv2", and not by default',
}


def encoder_state(params: Params, config: SwinUNETRConfig) -> Tensors:
    """Returns the encoder of a network with the names and the order of axes that `load_from` expects.

    Raises:
        InputError: MONAI's network has no counterpart for a parameter, or `load_from` needs a tensor that the network does not have.
    """
    if not config.qkv_bias:
        raise InputError(
            "MONAI's `load_from` needs the bias of the layer `qkv`, which this network does not have (`qkv_bias` is False): write the "
            "whole network instead, without --write-encoder."
        )
    tensors = {name: tensor for name, tensor in to_monai(params, config).items() if name.startswith(_ENCODER)}
    return {_PREFIX + _MLP.sub(r".mlp.fc\1.", name.removeprefix(_ENCODER)): tensor for name, tensor in tensors.items()}


def write_encoder(path: str | os.PathLike, config: SwinUNETRConfig, params: Params, *, overwrite: bool = False) -> None:
    """Writes the encoder of a network for `load_from`.

    Args:
        path: the file to write, or its address in a bucket.
        config: the configuration of the whole network.
        params: the variables of the whole network by dotted name.
        overwrite: whether to replace an existing file.

    Raises:
        InputError: the file exists and `overwrite` is not set, it cannot be written, or `load_from` could not read it.
    """
    path = path_or_address(path)
    check(params, config)
    with new_file(path, count_bytes(config), overwrite=overwrite) as file:
        write_torch_file(file, {"state_dict": encoder_state(params, config)})


def encoder_file_name(config: SwinUNETRConfig) -> str:
    """Returns a name for a file with the encoder. The name states the order of patch merging, which the file itself cannot."""
    return f"swin_encoder_{config.downsample}_f{config.feature_size}.pt"


def encoder_notes(path: Path, config: SwinUNETRConfig) -> list[str]:
    """Returns sentences for the user on what a file with the encoder does not state, and on what `load_from` does not read."""
    notes = []
    if config.spatial_dims == 3:  # in 2-D all orders are the same
        note = f"The order of patch merging is {_MERGING[config.downsample]}. The file cannot state the order"
        is_named = re.search(rf"{config.downsample}(?!v2)", path.name) is not None
        notes.append(f"{note}{'' if is_named else f', so state it in its name, such as {encoder_file_name(config)}'}.")
    unread = [f"layers{stage}c" for stage in range(1, 5)] if config.use_v2 else []
    unread += [f"the blocks of layers{stage}" for stage, is_hyena in enumerate(config.hyena, 1) if is_hyena]
    unread += ["patch_embed.norm"] if config.patch_norm else []
    if unread:
        notes.append(
            f"MONAI's `load_from` does not read {', '.join(unread)}, which MONAI's network then initialises randomly; the file holds these "
            "tensors too."
        )
    return notes
