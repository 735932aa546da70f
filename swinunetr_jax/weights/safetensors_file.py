"""Safetensors files read and written as NumPy arrays. No code can hide in one: the format to prefer.

The format has no checksum: a flipped bit in the weights goes unnoticed unless a digest is kept elsewhere.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.weight_file import SAFETENSORS, atomic_file, file_kind, shown

_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"{name}{bits}") for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "C64": np.dtype(np.complex64),
}


class _Place(msgspec.Struct):
    """Where the numbers of one tensor are, as the header of a file says it."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads every tensor of a safetensors file, by name.

    Raises:
        InputError: the file is missing, of another kind, truncated or damaged, or holds a type of numbers that NumPy and ml_dtypes lack.
    """
    kind = file_kind(path)
    if kind != SAFETENSORS:
        raise InputError(f"{path} is {kind}, expected a safetensors file: check which file was given.")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            places = _places(file.read(length))
            _refuse_unknown_types(path, places)
            with safe_open(path, framework="numpy"):  # the format's own library checks that the places are in order
                pass
            arrays = {}
            for name, place in places.items():
                start, end = place.data_offsets
                dtype = _DTYPES[place.dtype]
                if math.prod(place.shape) * dtype.itemsize != end - start:
                    raise ValueError(f"{shown(name)} does not fill its place")
                array = np.empty(place.shape, dtype)
                file.seek(8 + length + start)
                if array.size and file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:
                    raise ValueError(f"{shown(name)} ends after the file")
                arrays[name] = array
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, msgspec.MsgspecError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} is truncated or damaged ({shown(error)}), expected a whole safetensors file: download or copy it again."
        ) from error
    return arrays


def _places(header: bytes) -> dict[str, _Place]:
    entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
    return {name: msgspec.json.decode(raw, type=_Place) for name, raw in entries.items() if name != "__metadata__"}


def _refuse_unknown_types(path: str | os.PathLike, places: Mapping[str, _Place]) -> None:
    for name, place in places.items():
        if place.dtype not in _DTYPES:
            raise InputError(
                f"{path} holds numbers of the type {shown(place.dtype)} in {shown(name)}, which NumPy and ml_dtypes lack, expected one "
                f"of {', '.join(_DTYPES)}: save its weights as float32, float16 or bfloat16."
            )


def read_safetensors_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The text metadata of a safetensors file that `read_safetensors` reads; empty where it has none."""
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes named arrays, and optionally text `metadata`, in one step: `path` never holds half a file.

    Raises:
        InputError: an array's type does not exist in safetensors, or the file cannot be written.
    """
    # safetensors writes the memory behind an array and ignores its strides: a transposed array would be stored wrongly
    dense: dict[str, Any] = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        content = save(dense, metadata=None if metadata is None else dict(metadata))
    except (SafetensorError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{path} cannot be written ({why}), expected named arrays of numbers: convert them first.") from error
    with atomic_file(path) as file:
        file.write(content)
