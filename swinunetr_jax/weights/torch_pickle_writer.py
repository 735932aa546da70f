"""Writes the pickle of a PyTorch weight file without torch, with the instructions that `torch_pickle.interpret` reads."""

import math
import pickle
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from swinunetr_jax.weights.torch_globals import DTYPES, STORAGE_OF, Refused


def pickled(state: Mapping[str, Any]) -> tuple[bytes, list[np.ndarray]]:
    """Returns the pickle of nested mappings and the contiguous arrays that it refers to. Array n is the storage with the key "n".

    The comments state the names of the instructions in pickletools.

    Raises:
        Refused: a value or a key has a type that `write_torch_file` does not list.
    """
    arrays: list[np.ndarray] = []
    return b"\x80\x02" + _pickled(state, "", arrays) + b".", arrays  # PROTO 2, STOP


def _pickled(value: Any, name: str, arrays: list[np.ndarray]) -> bytes:
    """Returns the instructions that build one value, and appends its arrays to `arrays`. `name` is for messages."""
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise Refused(f"{name or 'the state'} has a key that is not text, expected names: rename it")
            pairs = (
                _pickled(key, name, arrays) + _pickled(item, f"{name}/{key}".lstrip("/"), arrays) for key, item in value.items()
            )
            return b"}(" + b"".join(pairs) + b"u"  # EMPTY_DICT MARK SETITEMS
        case None:
            return b"N"  # NONE
        case bool():
            return b"\x88" if value else b"\x89"  # NEWTRUE NEWFALSE
        case int() if -(1 << 31) <= value < 1 << 31:
            return b"J" + struct.pack("<i", value)  # BININT
        case int() if -(1 << 63) <= value < 1 << 63:
            digits = pickle.encode_long(value)
            return b"\x8a" + bytes([len(digits)]) + digits  # LONG1
        case float():
            return b"G" + struct.pack(">d", value)  # BINFLOAT
        case str():
            text = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(text)) + text  # BINUNICODE
    if not hasattr(value, "__array__"):
        raise Refused(f"{name} is a {type(value).__name__}, expected an array, a number, text, None or a dict: convert it")
    array = np.asarray(value, order="C")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.byteorder == ">" else array
    if f"torch.{array.dtype.name}" not in DTYPES:
        raise Refused(f"{name} has the type {array.dtype}, which torch lacks, expected numbers: convert it")
    arrays.append(array)
    return _pickled_tensor(array, key=str(len(arrays) - 1))


def _pickled_tensor(array: np.ndarray, key: str) -> bytes:
    """Returns the call that rebuilds a contiguous tensor from all numbers of the storage with this key."""

    def pushed(*values: Any) -> bytes:
        return b"".join(_pickled(value, "", []) for value in values)

    def named(name: str) -> bytes:
        return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n"  # GLOBAL

    if array.dtype in STORAGE_OF:
        function, kind, numel, dtype = "torch._utils._rebuild_tensor_v2", STORAGE_OF[array.dtype], array.size, b""
    else:
        function, kind, numel = "torch._utils._rebuild_tensor_v3", "torch.storage.UntypedStorage", array.nbytes
        dtype = named(f"torch.{array.dtype.name}")
    # These are the strides that torch computes, also for an empty tensor.
    stride = [math.prod(max(n, 1) for n in array.shape[axis + 1 :]) for axis in range(array.ndim)]

    storage = b"(" + pushed("storage") + named(kind) + pushed(key, "cpu", numel) + b"tQ"  # MARK ... TUPLE BINPERSID
    layout = pushed(0) + b"(" + pushed(*array.shape) + b"t(" + pushed(*stride) + b"t"  # offset, size, stride
    rest = pushed(False) + named("collections.OrderedDict") + b")R" + dtype  # requires_grad, hooks: EMPTY_TUPLE REDUCE
    return named(function) + b"(" + storage + layout + rest + b"tR"  # MARK ... TUPLE REDUCE
