"""PyTorch weight files (the zip archives of `torch.save`), read and written without torch.

Such an archive holds `<root>/data.pkl`, a pickle of nested dictionaries, and `<root>/data/<key>`, the numbers of each storage.
Nothing in a file is executed (see torch_pickle.py), and what it can make this process allocate is bounded by its size on disk.
"""

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.torch_globals import Global, Opaque, Refused, Storage
from swinunetr_jax.weights.torch_pickle import interpret
from swinunetr_jax.weights.torch_pickle_writer import pickled
from swinunetr_jax.weights.weight_file import PYTORCH, atomic_file, file_kind, shown

# Far above any real checkpoint, low enough that a hostile one is refused soon. torch.save writes some 40 instructions and 200 bytes
# for a tensor, and a member of the archive for each storage; the constant parts are for all that is not a tensor.
_MAX_PICKLE_BYTES, _PICKLE_BYTES_PER_MEMBER = 8 << 20, 512
_MAX_INSTRUCTIONS, _INSTRUCTIONS_PER_MEMBER = 600_000, 48
_MAX_DEPTH = 64
_MAX_VALUES = 2_000_000  # in the result, each counted as often as it is referred to
_MAX_REUSE = 64  # tensors may share a storage (tied weights): how many times the file's size they may claim together

_ALIGNMENT = 64  # of a storage in the file, as torch does it: one mapped into memory can be used in place

# What zipfile, pickletools, numpy and the interpreter raise on a file with wrong bytes.
_DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, OSError, LookupError, ValueError, OverflowError, RuntimeError)


def read_torch_file(path: str | os.PathLike) -> dict:
    """Read a file written by `torch.save`, as it was saved: nested dicts, lists, tuples, text, numbers, None and arrays.

    Tensors and parameters become read-only NumPy arrays (bfloat16 and float8 through ml_dtypes) with their own shape and strides;
    those that shared a storage still do. OrderedDicts become dicts without attributes, NumPy scalars Python numbers, torch dtypes
    NumPy's. Values of no use in weights, such as a path, a date or a set, become `Opaque`.

    Raises:
        InputError: the file is missing, of another kind, truncated or damaged, or asks for anything that weights do not need.
    """
    kind = file_kind(path)
    if kind != PYTORCH:
        raise InputError(
            f"{path} is {kind}, expected a zip archive written by torch.save: "
            "if you trust it, load it in torch and save its state_dict again, as .pt or .safetensors."
        )
    try:
        with open(path, "rb") as file:
            archive = _Archive(file)
            instructions = _MAX_INSTRUCTIONS + _INSTRUCTIONS_PER_MEMBER * archive.count
            tree = interpret(archive.read("data.pkl"), archive.storage, instructions)
            _check_tree(tree, max_values=max(_MAX_VALUES, instructions), max_bytes=_MAX_REUSE * archive.size)
    except Refused as why:
        raise InputError(f"{path} {why}.") from None
    except _DAMAGE as error:
        why = shown(str(error) or type(error).__name__)
        raise InputError(
            f"{path} is truncated or damaged ({why}), expected a whole archive written by torch.save: download or copy it again."
        ) from error
    return tree


def write_torch_file(path: str | os.PathLike, state: Mapping[str, Any]) -> None:
    """Write arrays so that `torch.load(path, weights_only=True)` gives a dict of contiguous tensors with the same bytes.

    `state` maps text to arrays, numbers, text, None or further such mappings. The file appears in one step, whole or not at all,
    and the same state gives the same bytes.

    Raises:
        InputError: a value of another type, an array type torch lacks, or a file that cannot be written.
    """
    try:
        program, arrays = pickled(state)
    except Refused as why:
        raise InputError(f"{path} cannot be written: {why}.") from None
    members: dict[str, Any] = {"data.pkl": program, "byteorder": b"little"}
    members |= {f"data/{key}": array.reshape(-1).view(np.uint8) for key, array in enumerate(arrays)}
    members["version"] = b"3\n"

    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(f"archive/{name}")  # its date is fixed: equal states give equal files
            member.file_size = len(content)
            header = 30 + len(member.filename) + 4
            padding = -(file.tell() + header) % _ALIGNMENT
            member.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(member, "w") as stream:
                stream.write(content)


class _Archive:
    """The members of one archive, checked before any is read; each storage is read once."""

    def __init__(self, file: BinaryIO):
        self.size = os.fstat(file.fileno()).st_size
        self._zip = zipfile.ZipFile(file)
        self._storages: dict[str, bytes] = {}
        self._members = {member.filename: member for member in self._zip.infolist()}
        self.count = len(self._members)
        self._root = self._find_root()  # first: names tell what a foreign archive is, compressed or not
        self._check_members()

        program = self._members[self._root + "data.pkl"]
        most = _MAX_PICKLE_BYTES + _PICKLE_BYTES_PER_MEMBER * self.count
        if program.file_size > most:
            raise Refused(f"has a pickle of {program.file_size} bytes, expected {most} at most: save a state_dict")
        if program.CRC == 0:
            raise Refused(
                "was saved without checksums, expected them as damage cannot be seen otherwise: "
                "save it again with torch.serialization.set_crc32_options(True)"
            )
        if self._root + "byteorder" in self._members and self.read("byteorder") != b"little":
            raise Refused("was saved on a big-endian machine, expected little-endian: save it again on a little-endian one")

    def _find_root(self) -> str:
        names = list(self._members)
        if any(name.split("/")[1:2] == ["code"] or name.split("/")[1:] == ["constants.pkl"] for name in names):
            raise Refused("is a TorchScript archive, which is a program, expected weights: save the model's state_dict instead")
        roots = [name.removesuffix("data.pkl") for name in names if name.split("/")[-1] == "data.pkl" and name.count("/") <= 1]
        if len(roots) != 1:
            what = "a NumPy .npz archive" if any(name.endswith(".npy") for name in names) else "some other zip archive"
            raise Refused(f"is {what}, expected one written by torch.save with one data.pkl: check which file was given")
        return roots[0]

    def _check_members(self) -> None:
        members = self._zip.infolist()
        if len(self._members) < len(members):  # two readers could see two different files
            raise Refused("holds two members of one name, expected each once: get the file from its source again")
        for member in members:  # torch stores as is: a compressed member is a foreign archive or a bomb
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size or member.flag_bits & 1:
                name = shown(member.filename)
                raise Refused(f"holds the compressed or encrypted member {name}, expected plain ones: write it with torch.save")
        if sum(member.file_size for member in members) > self.size:
            raise Refused("claims members larger than the file, expected an archive by torch.save: download or copy it again")

    def read(self, name: str) -> bytes:
        """All bytes of the member with this name under the root."""
        member = self._members.get(self._root + name)
        if member is None:
            raise Refused(f"lacks its member {shown(name)}, expected a whole archive: download or copy it again")
        return self._zip.read(member)  # to the end, which is where zipfile compares the CRC-32

    def storage(self, key: str) -> bytes:
        """The bytes of the storage with this key."""
        if key not in self._storages:
            self._storages[key] = self.read(f"data/{key}")
        return self._storages[key]


_LEAVES = {str, int, float, bool, bytes, type(None), Opaque}


def _check_tree(tree: Any, max_values: int, max_bytes: int) -> None:
    """Refuses what would surprise whoever walks the result: bare storages, cycles, a small file that unfolds to a huge one."""
    if type(tree) is not dict:
        raise Refused(f"holds a {type(tree).__name__}, expected a dict of weights: save a state_dict")
    values, claimed, height = _measure(tree, 0, {})
    if values > max_values or claimed > max_bytes or height > _MAX_DEPTH:
        raise _unfolding()


def _unfolding() -> Refused:
    return Refused("unfolds to far more than its size, expected plain weights: get the file from a source you trust")


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int, int] | None]) -> tuple[int, int, int]:
    """Values, bytes of arrays and height of a tree; what is referred to twice counts twice, and is visited once.

    `known` has the results for containers by their id, None while one is being measured.
    """
    if isinstance(value, np.ndarray):
        return 1, value.nbytes, 0
    if isinstance(value, Global | Storage):
        what = value.name if isinstance(value, Global) else "storage"
        raise Refused(f"holds a bare {what}, expected tensors, numbers and text: save a state_dict")
    if type(value) not in (dict, list, tuple):
        return 1, 0, 0
    if id(value) in known:
        measured = known[id(value)]
    elif depth > _MAX_DEPTH:
        measured = None
    else:
        known[id(value)] = None
        values, claimed, height = 1, 0, 0
        for child in value.values() if type(value) is dict else value:
            if type(child) in _LEAVES:
                values += 1
            else:
                more, nbytes, below = _measure(child, depth + 1, known)
                values, claimed, height = values + more, claimed + nbytes, max(height, below)
        measured = known[id(value)] = values, claimed, height + 1
    if measured is None:  # it holds itself, or is too deep
        raise _unfolding()
    return measured
