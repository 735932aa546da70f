"""Safetensors files read and written as NumPy arrays. No code can hide in one: the format to prefer.

The format has no checksum: a flipped bit in the weights goes unnoticed unless a digest is kept elsewhere.
"""

import os
from collections.abc import Mapping

import ml_dtypes  # noqa: F401  importing it is what teaches NumPy the name "bfloat16", which safetensors looks up
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.weight_file import SAFETENSORS, file_kind, replaced_in_one_step


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read every tensor of a safetensors file, by name.

    Raises:
        InputError: the file is missing, of another kind, truncated or damaged, or holds a type that NumPy lacks.
    """
    kind = file_kind(path)
    if kind != SAFETENSORS:
        raise InputError(f"{path} is {kind}, expected a safetensors file: check which file was given.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:  # the last three: unknown types
        why = " ".join(str(error).split())
        raise InputError(
            f"{path} is truncated or damaged ({why}), expected a whole safetensors file: download or copy it again."
        ) from error


def read_safetensors_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The text metadata of a safetensors file that `read_safetensors` reads; empty where it has none."""
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays, and optionally text `metadata`, in one step: `path` never holds half a file.

    Raises:
        InputError: an array's type does not exist in safetensors, or the file cannot be written.
    """
    # safetensors writes the memory behind an array and ignores its strides: a transposed array would be stored wrongly
    dense = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        content = save(dense, metadata=None if metadata is None else dict(metadata))
    except (SafetensorError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path} cannot be written ({why}), expected named arrays of numbers: convert them first.") from error
    with replaced_in_one_step(path) as file:
        file.write(content)
