"""A weight file as a whole: what kind of file lies at a path, and how a file is replaced in one step."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from swinunetr_jax.errors import InputError

PYTORCH, SAFETENSORS = "a PyTorch zip archive", "a safetensors file"

_LEGACY_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.serialization.MAGIC_NUMBER, pickled
_BY_FIRST_BYTES = {
    _LEGACY_TORCH: "a PyTorch file in the legacy format from before torch 1.6",
    b"\x80": "a bare Python pickle",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "a NumPy .npy file",
    b"\x89HDF": "an HDF5 file",
    b"PK\x03\x04": PYTORCH,
}


def file_kind(path: str | os.PathLike) -> str:
    """Tell from its first bytes, never from its name, what a weight file is.

    Returns `PYTORCH` for any zip archive (`read_torch_file` looks closer), `SAFETENSORS`, or a phrase such as "a gzip file".

    Raises:
        InputError: nothing is there, or it is no file, empty, unreadable, a git-lfs pointer or a web page.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a weight file: check the path.")
    if not path.is_file():  # opening a pipe would wait for ever, reading a device might never end
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise InputError(f"{path} is {what}, expected a weight file: give the path of the file itself.")
    try:
        with open(path, "rb") as file:
            head, size = file.read(512), path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}), expected a weight file: check its permissions.") from error

    if not head:
        raise InputError(f"{path} is empty, expected a weight file: download or copy it again.")
    if head.startswith(b"version https://git-lfs.github.com/"):
        raise InputError(f"{path} is a git-lfs pointer, expected the weights themselves: fetch them with `git lfs pull`.")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(f"{path} is an HTML page, expected a weight file: download it from the link of the file itself.")

    for first_bytes, kind in _BY_FIRST_BYTES.items():
        if head.startswith(first_bytes):
            return kind
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return SAFETENSORS
    if head[257:262] == b"ustar":
        return "a tar archive (PyTorch's legacy format from before version 0.2 is one)"
    return "not a known weight file"


@contextlib.contextmanager
def replaced_in_one_step(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Give a binary file to write; `path` becomes that file when the block ends well and stays as it was when it does not.

    Raises:
        InputError: the operating system refuses (no such folder, read-only, disk full).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the same folder: a rename cannot cross file systems
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the bytes do
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}), expected a folder with room: check it.") from error
    finally:
        with contextlib.suppress(OSError):  # already renamed, or never made
            os.unlink(temporary)
