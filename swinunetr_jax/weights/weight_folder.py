"""Reads weights that are one file in a folder, such as a MONAI bundle, or several files with an index (shards)."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import numpy as np

from swinunetr_jax import files
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.safetensors_file import read_safetensors
from swinunetr_jax.weights.torch_file import read_torch_file
from swinunetr_jax.weights.weight_file import SAFETENSORS, file_kind, printable

INDEX = ".index.json"  # the ending of an index of shards
# The names of weight files in a MONAI bundle and on the Hugging Face hub.
BUNDLE_WEIGHTS = "models/model.pt"
_NAMES = (BUNDLE_WEIGHTS, "model.safetensors", "pytorch_model.bin", "model.pt")


class _Index(TypedDict):
    """An index of shards, which maps each tensor's name to its file."""

    weight_map: dict[str, str]


def weight_file_in(folder: str | os.PathLike) -> Path | None:
    """Returns the weight file in the folder of a bundle or a model, or the index of its shards, or None if there is neither.

    Raises:
        InputError: there are several weight files, or the folder cannot be read.
    """
    folder = Path(folder)
    names = [name for name in _NAMES if files.is_file(folder / name)]
    try:
        names += [path.name for path in folder.iterdir() if path.name.endswith(INDEX) and files.is_file(path)]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({files.reason(error)}), expected a folder with weights: check it.") from error
    name = choose_weight_file(names, str(folder))
    return None if name is None else folder / name


def choose_weight_file(names: Iterable[str], folder: str) -> str | None:
    """Returns the weight file or the index of shards among the names of files in a folder, or None if there is neither.

    Raises:
        InputError: there are several; the message names the folder.
    """
    names = list(names)
    candidates = [name for name in _NAMES if name in names]
    candidates += sorted(name for name in names if name.endswith(INDEX) and "/" not in name)
    if len(candidates) > 1:
        listed = ", ".join(map(printable, candidates))
        raise InputError(f"{folder} holds several weight files, expected one: give the path of one of {listed}.")
    return candidates[0] if candidates else None


def is_configuration(name: str) -> bool:
    """Returns whether a file of this name, relative to the folder of a MONAI bundle, is part of the bundle's configuration."""
    return name.startswith("configs/") and name.endswith((".json", ".yaml", ".yml"))


def read_index(index: str | os.PathLike) -> dict[str, str]:
    """Returns the names of the files that an index of shards states, by tensor name.

    Raises:
        InputError: the index is damaged, or a file is outside its folder.
    """
    shard_of = files.read_json(index, _Index, "download or copy it again")["weight_map"]
    for name in sorted(set(shard_of.values())):
        if Path(name).name != name or not name.strip("."):
            raise InputError(f"{index} refers to {printable(name)}, expected names of files in the same folder: do not trust it.")
    return shard_of


def read_shards(index: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the tensors of all files of an index of shards by name.

    Raises:
        InputError: the index or a file cannot be read, a file is outside the folder, or a file lacks a tensor of the index.
    """
    index = Path(index)
    shard_of = read_index(index)
    tensors = {}
    for name in sorted(set(shard_of.values())):
        shard = index.parent / name
        content = read_safetensors(shard) if file_kind(shard) == SAFETENSORS else read_torch_file(shard)
        wanted = [tensor for tensor, shard_name in shard_of.items() if shard_name == name]
        missing = [tensor for tensor in wanted if not isinstance(content.get(tensor), np.ndarray)]
        if missing:
            raise InputError(
                f"{shard} lacks {printable(missing[0])}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, which it should have "
                f"according to {index.name}: download or copy both again."
            )
        tensors |= {tensor: content[tensor] for tensor in wanted}
    return tensors
