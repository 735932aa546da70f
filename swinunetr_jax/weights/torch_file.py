"""Reads and writes PyTorch weight files, the zip archives of `torch.save`, without torch.

Such an archive contains `<root>/data.pkl`, a pickle of nested dictionaries, and `<root>/data/<key>`, the bytes of each storage. Nothing
in a file is executed (see torch_pickle.py), and the memory that a file can make this process allocate is bounded by its size on the disk.
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
from swinunetr_jax.weights.weight_file import PYTORCH, atomic_file, file_kind, printable

# These limits are far above any real checkpoint, and low enough to refuse a hostile one within seconds. torch.save writes about 40
# instructions and 200 bytes for each tensor, and a member of the archive for each storage. The constant part of a limit allows for other
# values.
_MAX_PICKLE_BYTES, _PICKLE_BYTES_PER_MEMBER = 8 << 20, 512
_MAX_INSTRUCTIONS, _INSTRUCTIONS_PER_MEMBER = 600_000, 48
_MAX_DEPTH = 64
_MAX_VALUES = 2_000_000  # in the result, each counted as often as it is referred to
_MAX_REUSE = 64  # the total size of all tensors, which may share storages (tied weights), as a multiple of the file's size

_ALIGNMENT = 64  # storages start at multiples of it, as in torch's own files, so that a file can be mapped into memory

# The exceptions that zipfile, pickletools, NumPy and the interpreter raise for a damaged file.
_DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, OSError, LookupError, ValueError, OverflowError, RuntimeError)


def read_torch_file(path: str | os.PathLike) -> dict:
    """Returns the content of a file that `torch.save` wrote: nested dicts, lists, tuples, text, numbers, None and arrays.

    Tensors and parameters become read-only NumPy arrays (bfloat16 and float8 with ml_dtypes) of the same shape and strides, and tensors
    that share a storage still share it. OrderedDicts become dicts without attributes, NumPy scalars become Python numbers, and torch
    dtypes become NumPy dtypes. Values that weights do not need, such as a path, a date or a set, become `Opaque`.

    Raises:
        InputError: the file is missing, has another format, is truncated or damaged, or requires anything that weights do not need.
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
    except Refused as reason:
        raise InputError(f"{path} {reason}.") from None
    except _DAMAGE as error:
        reason = printable(str(error) or type(error).__name__)
        raise InputError(
            f"{path} is truncated or damaged ({reason}), expected a complete archive written by torch.save: download or copy it again."
        ) from error
    return tree


def write_torch_file(path: str | os.PathLike, state: Mapping[str, Any]) -> None:
    """Writes arrays so that `torch.load(path, weights_only=True)` returns a dict of contiguous tensors with the same bytes.

    The file is written atomically, and equal states result in equal bytes.

    Args:
        path: the file to create or replace.
        state: names with arrays, numbers, text, None or further such mappings.

    Raises:
        InputError: a value has another type, torch lacks the type of an array, or the file cannot be written.
    """
    try:
        program, arrays = pickled(state)
    except Refused as reason:
        raise InputError(f"{path} cannot be written: {reason}.") from None
    members: dict[str, Any] = {"data.pkl": program, "byteorder": b"little"}
    members |= {f"data/{key}": array.reshape(-1).view(np.uint8) for key, array in enumerate(arrays)}
    members["version"] = b"3\n"

    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(f"archive/{name}")  # with a fixed date, so that equal states result in equal files
            member.file_size = len(content)
            header = 30 + len(member.filename) + 4
            padding = -(file.tell() + header) % _ALIGNMENT
            member.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(member, "w") as stream:
                stream.write(content)


class _Archive:
    """The members of an archive. They are checked before any of them is read, and each storage is read once."""

    def __init__(self, file: BinaryIO):
        self.size = os.fstat(file.fileno()).st_size
        self._zip = zipfile.ZipFile(file)
        self._storages: dict[str, bytes] = {}
        self._members = {member.filename: member for member in self._zip.infolist()}
        self.count = len(self._members)
        self._root = self._find_root()  # before the members are checked, because names identify the format of a foreign archive
        self._check_members()

        program = self._members[self._root + "data.pkl"]
        limit = _MAX_PICKLE_BYTES + _PICKLE_BYTES_PER_MEMBER * self.count
        if program.file_size > limit:
            raise Refused(f"has a pickle of {program.file_size} bytes, expected at most {limit}: save a state_dict")
        if program.CRC == 0:
            raise Refused(
                "was saved without checksums, expected one for each member, because damage is not noticed otherwise: "
                "save it again with torch.serialization.set_crc32_options(True)"
            )
        if self._root + "byteorder" in self._members and self.read("byteorder") != b"little":
            raise Refused("was saved on a big-endian machine, expected little-endian: save it again on a little-endian one")

    def _find_root(self) -> str:
        """Returns the folder of data.pkl in the archive. Raises Refused if the archive was not written by torch.save."""
        names = list(self._members)
        if any(name.split("/")[1:2] == ["code"] or name.split("/")[1:] == ["constants.pkl"] for name in names):
            raise Refused("is a TorchScript archive, which is a program, expected weights: save the model's state_dict instead")
        roots = [name.removesuffix("data.pkl") for name in names if name.split("/")[-1] == "data.pkl" and name.count("/") <= 1]
        if len(roots) != 1:
            archive_kind = (
                "a NumPy .npz archive" if any(name.endswith(".npy") for name in names) else "a zip archive of another kind"
            )
            raise Refused(f"is {archive_kind}, expected one written by torch.save with one data.pkl: check which file was given")
        return roots[0]

    def _check_members(self) -> None:
        """Raises Refused unless every name occurs once, no member is compressed and all of them fit into the file."""
        members = self._zip.infolist()
        if len(self._members) < len(members):  # two readers could read different content
            raise Refused("has two members of the same name, expected each name once: get the file from its source again")
        for member in members:  # torch never compresses, so a compressed member comes from another program or is a zip bomb
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size or member.flag_bits & 1:
                name = printable(member.filename)
                raise Refused(
                    f"has the compressed or encrypted member {name}, expected uncompressed ones: write it with torch.save"
                )
        if sum(member.file_size for member in members) > self.size:
            raise Refused("states members larger than the file, expected an archive by torch.save: download or copy it again")

    def read(self, name: str) -> bytes:
        """Returns the bytes of the member with this name under the root."""
        member = self._members.get(self._root + name)
        if member is None:
            raise Refused(f"lacks its member {printable(name)}, expected a complete archive: download or copy it again")
        return self._zip.read(member)  # zipfile compares the CRC-32 at the end of the member

    def storage(self, key: str) -> bytes:
        """Returns the bytes of the storage with this key."""
        if key not in self._storages:
            self._storages[key] = self.read(f"data/{key}")
        return self._storages[key]


_LEAVES = {str, int, float, bool, bytes, type(None), Opaque}


def _check_tree(tree: Any, max_values: int, max_bytes: int) -> None:
    """Raises Refused for a result that is hard to process: one with bare storages or cycles, or one far larger than its file."""
    if type(tree) is not dict:
        raise Refused(f"contains a {type(tree).__name__}, expected a dict of weights: save a state_dict")
    values, array_bytes, height = _measure(tree, 0, {})
    if values > max_values or array_bytes > max_bytes or height > _MAX_DEPTH:
        raise _too_large()


def _too_large() -> Refused:
    return Refused("expands to far more than its size, expected only weights: get the file from a source you trust")


def _measure(value: Any, depth: int, known: dict[int, tuple[int, int, int] | None]) -> tuple[int, int, int]:
    """Returns the number of values, the bytes of the arrays and the height of a tree.

    A value that is referred to twice counts twice, but is visited once.

    Args:
        value: the tree.
        depth: its depth in the whole tree.
        known: the results for containers by their id, None for those that are being measured.
    """
    if isinstance(value, np.ndarray):
        return 1, value.nbytes, 0
    if isinstance(value, Global | Storage):
        name = value.name if isinstance(value, Global) else "storage"
        raise Refused(f"contains a bare {name}, expected tensors, numbers and text: save a state_dict")
    if type(value) not in (dict, list, tuple):
        return 1, 0, 0
    if id(value) in known:
        measured = known[id(value)]
    elif depth > _MAX_DEPTH:
        measured = None
    else:
        known[id(value)] = None
        values, array_bytes, height = 1, 0, 0
        for child in value.values() if type(value) is dict else value:
            if type(child) in _LEAVES:
                values += 1
            else:
                child_values, child_bytes, child_height = _measure(child, depth + 1, known)
                values, array_bytes, height = values + child_values, array_bytes + child_bytes, max(height, child_height)
        measured = known[id(value)] = values, array_bytes, height + 1
    if measured is None:  # it contains itself or is too deep
        raise _too_large()
    return measured
