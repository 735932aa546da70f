"""Reads and writes safetensors files as NumPy arrays. Such a file cannot contain code, so this format is preferable to a pickle.

The format has no checksum: a flipped bit in the weights remains unnoticed unless a digest is stored elsewhere.
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
from swinunetr_jax.weights.weight_file import SAFETENSORS, atomic_file, file_kind, printable

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


class _Entry(msgspec.Struct):
    """The entry of a tensor in the header of a file."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns every tensor of a safetensors file by name.

    Raises:
        InputError: the file is missing, has another format, is truncated or damaged, or has numbers of a type that NumPy and ml_dtypes
            lack.
    """
    kind = file_kind(path)
    if kind != SAFETENSORS:
        raise InputError(f"{path} is {kind}, expected a safetensors file: check which file was given.")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = _read_header(file.read(length))
            _refuse_unknown_types(path, entries)
            with safe_open(path, framework="numpy"):  # the format's own library checks the header
                pass
            arrays = {}
            for name, entry in entries.items():
                start, end = entry.data_offsets
                dtype = _DTYPES[entry.dtype]
                if math.prod(entry.shape) * dtype.itemsize != end - start:
                    raise ValueError(f"the shape of {printable(name)} does not fit its number of bytes")
                array = np.empty(entry.shape, dtype)
                file.seek(8 + length + start)
                if array.size and file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                    raise ValueError(f"{printable(name)} extends beyond the end of the file")
                arrays[name] = array
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, msgspec.MsgspecError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} is truncated or damaged ({printable(error)}), expected a complete safetensors file: download or copy it again."
        ) from error
    return arrays


def _read_header(header: bytes) -> dict[str, _Entry]:
    """Returns the entries of a header by the tensors' names."""
    entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
    return {name: msgspec.json.decode(raw, type=_Entry) for name, raw in entries.items() if name != "__metadata__"}


def _refuse_unknown_types(path: str | os.PathLike, entries: Mapping[str, _Entry]) -> None:
    """Raises InputError if a tensor has a type that NumPy and ml_dtypes lack."""
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES:
            raise InputError(
                f"{path} has numbers of the type {printable(entry.dtype)} in {printable(name)}, which NumPy and ml_dtypes lack, expected "
                f"one of {', '.join(_DTYPES)}: save its weights as float32, float16 or bfloat16."
            )


def read_safetensors_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Returns the text metadata of a safetensors file that `read_safetensors` accepts; empty if it has none."""
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata() or {})


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes named arrays and optional text `metadata` atomically.

    Raises:
        InputError: safetensors lacks the type of an array, or the file cannot be written.
    """
    # safetensors writes the memory of an array and ignores its strides, so that a transposed array would be stored incorrectly.
    contiguous: dict[str, Any] = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        content = save(contiguous, metadata=None if metadata is None else dict(metadata))
    except (SafetensorError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be written ({reason}), expected named arrays of numbers: convert them first.") from error
    with atomic_file(path) as file:
        file.write(content)
