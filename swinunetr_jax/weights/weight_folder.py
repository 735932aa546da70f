"""Weights that are several files, or a file somewhere in a folder: MONAI bundles, and index files of shards."""

import os
from pathlib import Path
from typing import TypedDict

import numpy as np

from swinunetr_jax import files
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.safetensors_file import read_safetensors
from swinunetr_jax.weights.torch_file import read_torch_file
from swinunetr_jax.weights.weight_file import SAFETENSORS, file_kind, shown

INDEX = ".index.json"  # the end of the name of an index of shards
# Where tools put the weights in a folder: a MONAI bundle, and the Hugging Face hub.
_PLACES = ("models/model.pt", "model.safetensors", "pytorch_model.bin", "model.pt")


class _Index(TypedDict):
    """An index of shards: the file of each tensor."""

    weight_map: dict[str, str]


def weight_file_in(folder: str | os.PathLike) -> Path | None:
    """The weight file in a bundle's or a model's folder, or the index of its shards; None where there is none.

    Raises:
        InputError: there are several, or the folder cannot be read.
    """
    folder = Path(folder)
    found = [folder / place for place in _PLACES if files.is_file(folder / place)]
    try:
        found += sorted(path for path in folder.iterdir() if path.name.endswith(INDEX) and files.is_file(path))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({files.reason(error)}), expected a folder with weights: check it.") from error
    if len(found) > 1:
        names = ", ".join(shown(path.relative_to(folder)) for path in found)
        raise InputError(f"{folder} holds several weight files, expected one: give the path of one of {names}.")
    return found[0] if found else None


def read_shards(index: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of all files that an index of shards names, by name.

    Raises:
        InputError: the index or a file cannot be read, a file is outside the folder, or a tensor is not where the index says.
    """
    index = Path(index)
    places = files.read_json(index, _Index, "download or copy it again")["weight_map"]
    tensors = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.strip("."):
            raise InputError(f"{index} names the file {shown(name)}, expected names of files beside it: do not trust it.")
        shard = index.parent / name
        content = read_safetensors(shard) if file_kind(shard) == SAFETENSORS else read_torch_file(shard)
        wanted = [tensor for tensor, place in places.items() if place == name]
        lacking = [tensor for tensor in wanted if not isinstance(content.get(tensor), np.ndarray)]
        if lacking:
            raise InputError(
                f"{shard} lacks {shown(lacking[0])}{f' and {len(lacking) - 1} more' if len(lacking) > 1 else ''}, which {index.name} "
                "says it holds: download or copy both again."
            )
        tensors |= {tensor: content[tensor] for tensor in wanted}
    return tensors
