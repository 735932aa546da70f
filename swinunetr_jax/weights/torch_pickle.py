"""The pickle inside a PyTorch weight file, read without unpickling and written without torch.

Unpickling runs whatever a file names, and torch's own `weights_only=True` was broken twice (CVE-2025-32434, CVE-2026-24747) and
refuses real MONAI checkpoints (a NumPy scalar). So `interpret` follows the instructions itself: it knows those that torch.save
writes, answers the few calls listed in `_call` in its own words, and imports, calls and changes nothing on behalf of a file.
"""

import math
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

# The globals a file may name; `_call` has the functions among them.
_STORAGES = {
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
    "torch.storage.UntypedStorage": None,  # types younger than the named storages; the tensor says which
}
_STORAGE_OF = {dtype: name for name, dtype in _STORAGES.items() if dtype is not None}
_DTYPES = {f"torch.{dtype.name}": dtype for dtype in _STORAGE_OF}
_DTYPES |= {f"torch.{name}": np.dtype(name) for name in ("uint16", "uint32", "uint64")}
_FUNCTIONS = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "collections.OrderedDict",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",
}
_NUMPY_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}


class Refused(Exception):
    """Why a file is refused: the rest of a sentence that starts with its path."""


class Global:
    """A function or storage type that a file named: only a name, so there is nothing behind it to call or to change."""

    def __init__(self, name: str):
        self.name = name


class Storage(NamedTuple):
    """Where a tensor's numbers lie; dtype None: bytes of a type that the tensor gives."""

    key: str
    dtype: np.dtype | None
    numel: int


def shown(text: str) -> str:
    """Text out of a file made fit for a message: one short line without control characters."""
    text = ascii(text)[1:-1]
    return text if len(text) <= 120 else text[:117] + "..."


def interpret(program: bytes, read: Callable[[str], bytes]) -> Any:
    """Follow the pickle instructions that torch.save writes, and refuse every other one by its name.

    `read` gives the bytes of the storage with a key. A damaged pickle raises LookupError, ValueError or OverflowError.

    Raises:
        Refused: the file asks for something that weights do not need.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}  # not a list: an instruction of five bytes may name place 4,000,000,000

    def top(n: int) -> list:
        if n > len(stack):
            raise ValueError("pickle stack underflow")
        items = stack[len(stack) - n :]
        del stack[len(stack) - n :]
        return items

    def since_mark() -> list:
        return top(max(len(stack) - marks.pop(), 0))

    for instruction, arg, _ in pickletools.genops(program):
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(arg)
            case "BINUNICODE8" | "BINBYTES" | "SHORT_BINBYTES":
                stack.append(arg)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(top(int(instruction.name[-1]))))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPEND" | "APPENDS":
                items = top(1) if instruction.name == "APPEND" else since_mark()
                _expect(type(stack[-1]) is list, "APPEND on no list")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = top(2) if instruction.name == "SETITEM" else since_mark()
                _expect(type(stack[-1]) is dict and len(items) % 2 == 0, "SETITEM on no dict")
                # nested tuples as keys would be hashed recursively, without a limit
                _expect(all(type(key) in (str, int, float, bool) for key in items[::2]), "a key that is neither text nor number")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL":
                stack.append(_global(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, name = top(2)
                _expect(type(module) is str and type(name) is str, "STACK_GLOBAL without names")
                stack.append(_global(f"{module}.{name}"))
            case "BINPERSID":
                stack.append(_persistent(stack.pop()))
            case "REDUCE":
                function, args = top(2)
                _expect(type(function) is Global and type(args) is tuple, "REDUCE on no function")
                stack.append(_call(function.name, args, read))
            case "BUILD":
                _build(stack[-2], stack.pop())
            case "STOP":
                return stack.pop()
            case name:
                what = f"{name} {shown(str(arg))}" if isinstance(arg, str) else name
                raise Refused(
                    f"asks for the pickle instruction `{what}`, which torch.save never writes for weights, "
                    "so it was refused and nothing was executed: get the file from a source you trust"
                )


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _global(name: str) -> Global | np.dtype:
    if name in _DTYPES:
        return _DTYPES[name]
    if name in _STORAGES or name in _FUNCTIONS:
        return Global(name)
    raise Refused(
        f"asks for `{shown(name)}`, expected nothing but tensors, numbers and text, so it was refused and nothing was executed: "
        "if you trust its author, load it in torch and save its state_dict alone"
    )


def _persistent(pid: Any) -> Storage:
    match pid:
        case (str("storage"), Global(name=name), str(key), str(), int(numel)) if name in _STORAGES:
            return Storage(key, _STORAGES[name], numel)
    raise ValueError("a storage reference that torch.save never writes")


def _call(name: str, args: tuple, read: Callable[[str], bytes]) -> Any:
    """Every call a file may ask for, with the arguments torch.save gives it."""
    match name.rpartition(".")[2], *args:
        case "_rebuild_tensor_v2", Storage(dtype=np.dtype()) as storage, offset, tuple(size), tuple(stride), _, _, *views:
            return _tensor(read(storage.key), storage, storage.dtype, offset, size, stride, views)
        case "_rebuild_tensor_v3", Storage() as storage, offset, tuple(size), tuple(stride), _, _, np.dtype() as dtype, *views:
            return _tensor(read(storage.key), storage, dtype, offset, size, stride, views)
        case "_rebuild_parameter", np.ndarray() as tensor, _, _:
            return tensor
        case "Size", tuple(size) if len(size) <= 64 and all(type(n) is int for n in size):
            return size
        case ("OrderedDict",):
            return {}
        case "dtype", str(code), *_ if code in _NUMPY_CODES:
            return np.dtype(code)
        case "scalar", np.dtype() as dtype, bytes(raw) if len(raw) == dtype.itemsize:
            return np.frombuffer(raw, dtype)[0].item()
        case "encode", str(text), str("latin1") if len(text) <= 16:  # a number's bytes: pickle 2 has no other way
            return text.encode("latin1")
    raise Refused(f"calls `{name}` as torch.save never does, so it was refused: get the file from a source you trust")


def _build(target: Any, state: Any) -> None:
    """Attributes given to an object: an OrderedDict's (module versions) are dropped, a NumPy dtype's may say nothing new."""
    match target, state:
        case dict(), dict():
            return
        case np.dtype(), (int(3), str("<" | "|" | "="), None, None, None, int(-1), int(-1), *_):
            return
    raise Refused("sets attributes that torch.save never sets, so it was refused: get the file from a source you trust")


def _tensor(raw: bytes, storage: Storage, dtype: np.dtype, offset: Any, size: tuple, stride: tuple, views: list) -> np.ndarray:
    """A read-only view of a storage's bytes, with every number the file gives for it checked: numpy reads where strides point."""
    if not all(type(view) is dict and not view for view in views):
        raise Refused("holds a tensor that is a lazy conjugate or negative, expected plain ones: save `resolve_conj()` of it")
    itemsize = 1 if storage.dtype is None else storage.dtype.itemsize
    if len(raw) // itemsize != storage.numel:
        raise Refused(
            f"claims {shown(str(storage.numel))} numbers for storage {shown(storage.key)} of {len(raw)} bytes, {itemsize} each, "
            "expected them to agree: download or copy it again"
        )
    _expect(len(size) == len(stride) <= 32, "a tensor with as many strides as sizes was expected")
    _expect(all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *size, *stride)), "a size, stride or offset out of range")
    numel, available = math.prod(size), len(raw) // dtype.itemsize
    if numel == 0:
        return np.empty(size, dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= available or numel > available:
        raise Refused(
            f"holds a tensor of {shown(str(numel))} elements that ends at element {last + 1} of a storage of {available}, "
            "expected it to fit: save `.contiguous()` tensors if it was expanded, else download or copy it again"
        )
    strides = [step * dtype.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
    return np.ndarray(size, dtype, buffer=raw, offset=offset * dtype.itemsize, strides=strides)


# Writing: the same instructions by their bytes; the comments give pickletools' names.


def pickled(state: Mapping[str, Any]) -> tuple[bytes, list[np.ndarray]]:
    """The pickle of nested mappings, and the contiguous arrays it refers to: array n is the storage with key "n".

    Raises:
        Refused: a value or a key of another type than `write_torch_file` lists.
    """
    arrays: list[np.ndarray] = []
    return b"\x80\x02" + _pickled(state, "", arrays) + b".", arrays  # PROTO 2, STOP


def _pickled(value: Any, where: str, arrays: list[np.ndarray]) -> bytes:
    """The instructions that build one value; `where` names it in messages, an array is appended to `arrays`."""
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise Refused(f"{where or 'the state'} has a key that is no text, expected names: rename it")
            pairs = (
                _pickled(key, where, arrays) + _pickled(item, f"{where}/{key}".lstrip("/"), arrays) for key, item in value.items()
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
        raise Refused(f"{where} is a {type(value).__name__}, expected an array, a number, text, None or a dict: convert it")
    array = np.asarray(value, order="C")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.byteorder == ">" else array
    if f"torch.{array.dtype.name}" not in _DTYPES:
        raise Refused(f"{where} has the type {array.dtype}, which torch lacks, expected numbers: convert it")
    arrays.append(array)
    return _pickled_tensor(array, key=str(len(arrays) - 1))


def _pickled_tensor(array: np.ndarray, key: str) -> bytes:
    """The call that rebuilds a contiguous tensor from the whole of the storage with this key."""

    def pushed(*values: Any) -> bytes:
        return b"".join(_pickled(value, "", []) for value in values)

    def named(name: str) -> bytes:
        return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n"  # GLOBAL

    if array.dtype in _STORAGE_OF:
        function, kind, numel, dtype = "torch._utils._rebuild_tensor_v2", _STORAGE_OF[array.dtype], array.size, b""
    else:
        function, kind, numel = "torch._utils._rebuild_tensor_v3", "torch.storage.UntypedStorage", array.nbytes
        dtype = named(f"torch.{array.dtype.name}")
    stride = [math.prod(max(n, 1) for n in array.shape[axis + 1 :]) for axis in range(array.ndim)]  # torch's, also when empty

    storage = b"(" + pushed("storage") + named(kind) + pushed(key, "cpu", numel) + b"tQ"  # MARK ... TUPLE BINPERSID
    layout = pushed(0) + b"(" + pushed(*array.shape) + b"t(" + pushed(*stride) + b"t"  # offset, size, stride
    rest = pushed(False) + named("collections.OrderedDict") + b")R" + dtype  # requires_grad, hooks: EMPTY_TUPLE REDUCE
    return named(function) + b"(" + storage + layout + rest + b"tR"  # MARK ... TUPLE REDUCE
