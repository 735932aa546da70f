"""The names that the pickle of a PyTorch file may contain, and the results of the calls that it may make.

Nothing here imports, looks up or calls anything that a file names: names are only compared with the tables below. A tensor becomes a
NumPy array. A value that no network needs, such as a path or a date, becomes an `Opaque`, which has only the name of its class.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from swinunetr_jax.weights.weight_file import printable

STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.storage.UntypedStorage": None,  # for types that have no storage class; the tensor states the type
}
STORAGE_OF = {dtype: name for name, dtype in STORAGES.items() if dtype is not None}
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")  # torch's and ml_dtypes' names
DTYPES = {f"torch.{dtype.name}": dtype for dtype in STORAGE_OF}
DTYPES |= {f"torch.{name}": np.dtype(name) for name in ("uint16", "uint32", "uint64")}
DTYPES |= {f"torch.{name}": np.dtype(getattr(ml_dtypes, name)) for name in FLOAT8}

_FUNCTIONS = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "collections.OrderedDict",
    "collections.defaultdict",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "_codecs.encode",
}
# Classes of harmless values that trainers save together with a network.
_HARMLESS = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    "torch.device",
    "torch.torch_version.TorchVersion",
    "numpy.ndarray",
    "collections.Counter",
    "collections.deque",
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")  # Python 3.13
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")  # the second one is used in protocol 2, which is torch's
        for name in (
            *("bool", "bytearray", "bytes", "complex", "dict", "Ellipsis", "float", "frozenset", "int", "list"),
            *("NotImplemented", "range", "set", "slice", "str", "tuple", "xrange"),
        )
    ),
}
_NUMPY_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}
_OTHER_NUMPY_CODES = re.compile(r"[USV]\d{1,9}|[Mm]8|f16|c32")  # text, bytes, times, long double: not needed for weights
_MAX_NUMBER_TEXT = 16  # the number of characters that can encode the bytes of a number


class Refused(Exception):
    """A file is refused. The message is the rest of a sentence that starts with the path."""


class Global:
    """The name of a function or storage type. It is only a name, so that a file cannot call or change what it stands for."""

    def __init__(self, name: str):
        self.name = name


class Opaque:
    """A harmless value, of which only the name of its class is kept. Everything that a file does to it is ignored."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Storage(NamedTuple):
    """The storage of a tensor's numbers: its key, type and number of elements.

    If `dtype` is None, the elements are bytes and the tensor states the type.
    """

    key: str
    dtype: np.dtype | None
    numel: int


def expect(condition: bool, message: str) -> None:
    """Raises ValueError, which stands for a damaged file, unless the condition is true."""
    if not condition:
        raise ValueError(message)


def find_global(name: str) -> Global | Opaque | np.dtype:
    """Returns the value that represents a dotted name. Raises Refused for every name that is not in the tables."""
    if name in DTYPES:
        return DTYPES[name]
    if name in STORAGES or name in _FUNCTIONS:
        return Global(name)
    if name in _HARMLESS:
        return Opaque(name)
    raise Refused(
        f"requires `{printable(name)}`, expected only tensors, numbers and text, so it was refused and nothing was executed: "
        "if you trust its author, load it in torch and save only its state_dict"
    )


def find_storage(reference: Any) -> Storage:
    """Returns the storage that a reference of torch.save describes. Raises ValueError for any other value."""
    match reference:
        case (str("storage"), Global(name=name), str(key), str(), int(numel)) if name in STORAGES:
            return Storage(key, STORAGES[name], numel)
    raise ValueError("a storage reference that torch.save never writes")


def call(function: Any, args: tuple, read: Callable[[str], bytes]) -> Any:
    """Returns the result of a call that a file makes. Raises Refused for a function or arguments that torch.save does not write.

    Args:
        function: the value that represents the function.
        args: the arguments of the call.
        read: a function that returns the bytes of the storage with a key.
    """
    if isinstance(function, Opaque):
        return Opaque(function.name)
    expect(type(function) is Global, "REDUCE of a value that is not a function")
    match function.name.rpartition(".")[2], *args:
        case "_rebuild_tensor_v2", Storage(dtype=np.dtype() as dtype) as storage, offset, tuple(size), tuple(
            stride
        ), _, _, *views:
            return _tensor(read(storage.key), storage, dtype, offset, size, stride, views)
        case "_rebuild_tensor_v3", Storage() as storage, offset, tuple(size), tuple(stride), _, _, np.dtype() as dtype, *views:
            return _tensor(read(storage.key), storage, dtype, offset, size, stride, views)
        case "_rebuild_parameter", np.ndarray() as tensor, _, _:
            return tensor
        case "Size", tuple(size) if len(size) <= 64 and all(type(n) is int for n in size):
            return size
        case ("OrderedDict",) | ("defaultdict",) | ("defaultdict", None | Opaque()):
            return {}
        case "dtype", str(code), *_ if code in _NUMPY_CODES:
            return np.dtype(code)
        case "dtype", str(code), *_ if _OTHER_NUMPY_CODES.fullmatch(code):
            return Opaque(f"numpy.dtype {code}")
        case "scalar", np.dtype() as dtype, bytes(raw) if len(raw) == dtype.itemsize:
            return np.frombuffer(raw, dtype)[0].item()
        case "scalar", Opaque(), bytes() | Opaque():
            return Opaque("numpy.generic")
        case "_reconstruct", Opaque(name="numpy.ndarray"), tuple(), bytes():
            return Opaque("numpy.ndarray")
        case "encode", str(text), str("latin1"):  # the only way to store bytes in protocol 2
            return text.encode("latin1") if len(text) <= _MAX_NUMBER_TEXT else Opaque("bytes")
    raise Refused(
        f"calls `{function.name}` in a way that torch.save never does, so it was refused: get the file from a source you trust"
    )


def build(target: Any, state: Any) -> None:
    """Accepts the attributes that torch.save gives to an object. Raises Refused for all others.

    Those of an OrderedDict, which are versions of modules, are ignored. Those of a NumPy dtype may only repeat its defaults.
    """
    match target, state:
        case (dict(), dict()) | (Opaque(), _):
            return
        case np.dtype(), (int(3), str("<" | "|" | "="), None, None, None, int(-1), int(-1), *_):
            return
    raise Refused("sets attributes that torch.save never sets, so it was refused: get the file from a source you trust")


def _tensor(raw: bytes, storage: Storage, dtype: np.dtype, offset: Any, size: tuple, stride: tuple, views: list) -> np.ndarray:
    """Returns a read-only view of a storage's bytes, after every number that the file states for it was checked.

    The checks are necessary because NumPy would read outside of the bytes for a wrong offset, shape or stride.
    """
    if not all(type(view) is dict and not view for view in views):
        raise Refused("has a tensor that is a lazy conjugate or negative, expected its values: save `resolve_conj()` of it")
    itemsize = 1 if storage.dtype is None else storage.dtype.itemsize
    if len(raw) // itemsize != storage.numel:
        raise Refused(
            f"states {printable(str(storage.numel))} numbers for storage {printable(storage.key)} of {len(raw)} bytes, {itemsize} each, "
            "expected them to agree: download or copy it again"
        )
    expect(len(size) == len(stride) <= 32, "expected a tensor with as many strides as sizes")
    expect(all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *size, *stride)), "a size, stride or offset out of range")
    numel, available = math.prod(size), len(raw) // dtype.itemsize
    if numel == 0:
        return np.empty(size, dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= available or numel > available:
        raise Refused(
            f"has a tensor of {printable(str(numel))} elements that ends at element {last + 1} of a storage of {available}, "
            "expected it to fit: save `.contiguous()` tensors if it was expanded, otherwise download or copy it again"
        )
    strides = [step * dtype.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
    return np.ndarray(size, dtype, buffer=raw, offset=offset * dtype.itemsize, strides=strides)
