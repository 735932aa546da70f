"""PyTorch archives that are assembled by hand, and the checks that tests of weight files share.

The functions from `number` to `program` return the pickle instructions that build a value.
"""

import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.torch_file import read_torch_file

DTYPES = [
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]
FLOAT8 = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
NO_STORAGE_CLASS = ["uint16", "uint32", "uint64", *FLOAT8]  # dtypes for which torch has no storage class

# By default, an archive has one float32 tensor [1, 2, 3, 4] with the name "w".
W_BYTES = np.arange(1, 5, dtype=np.float32).tobytes()
FLOATS = b"ctorch\nFloatStorage\n"


def array_of(dtype: str) -> np.ndarray:
    """Returns a small array of this type, which may be a type of ml_dtypes."""
    return np.array([[0, 1, 2], [3, 100, 1]]).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))


def as_bytes(tensor) -> bytes:
    """Returns the bytes of a torch tensor in row-major order."""
    torch = pytest.importorskip("torch")
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same_tensor(array: np.ndarray, tensor) -> None:
    """Asserts that an array has the type, the shape and the bytes of a torch tensor."""
    assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
    assert array.shape == tuple(tensor.shape)
    assert array.tobytes() == as_bytes(tensor)


def refusal(path: Path, read=read_torch_file) -> str:
    """Returns the message with which a file is refused, after checking that it is one sentence on one line with the file's path."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.endswith(".") and message.count(". ") == 0
    assert "expected" in message or "refused" in message
    return message


def number(n: int) -> bytes:
    digits = pickle.encode_long(n)
    return b"\x8a" + bytes([len(digits)]) + digits


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(numel: int = 4, key: str = "0", kind: bytes = FLOATS) -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(numel) + b"tQ"


def tensor(offset=0, size=(4,), stride=(1,), where=None, views=b"") -> bytes:
    layout = number(offset) + numbers(*size) + numbers(*stride)
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (where or storage()) + layout + b"\x89" + hooks + views + b"tR"


def program(value: bytes | None = None) -> bytes:
    return b"\x80\x02}(" + text("w") + (tensor() if value is None else value) + b"u."


def archive(
    path: Path, value: bytes | None = None, *, root: str = "archive/", extra=(), data: bytes = W_BYTES, compress=False
) -> Path:
    """Writes an archive with the value under the name "w", or with the complete pickle `value`, and returns the path.

    Args:
        path: the file to write.
        value: the instructions of the value, or a complete pickle; by default those of one float32 tensor.
        root: the folder within the archive.
        extra: the names and contents of further members.
        data: the bytes of the storage "0".
        compress: whether to compress the storage.
    """
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(root + "data.pkl", program(value) if value is None or not value.startswith(b"\x80") else value)
        z.writestr(root + "data/0", data, zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED)
        z.writestr(root + "version", "3\n")
        for name, content in extra:
            z.writestr(name, content)
    return path
