"""Functions for weight files of every format: they detect the format, write a file atomically and make text from a file printable."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from swinunetr_jax import console, files
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
    """Returns the format of a weight file, which depends on its first bytes and not on its name.

    The format is `PYTORCH` for any zip archive (`read_torch_file` checks the content), `SAFETENSORS`, or text such as "a gzip file".

    Raises:
        InputError: the path does not exist, is not a file, or is a file that is empty, unreadable, a git-lfs pointer or a web page.
    """
    path = Path(path)
    if not files.exists(path):
        raise InputError(f"{path} does not exist, expected a weight file or a checkpoint folder: check the path.")
    if not files.is_file(path):  # opening a pipe would wait forever, and a device may have no end
        path_kind = "a folder" if files.is_folder(path) else "a device or a pipe"
        raise InputError(f"{path} is {path_kind}, expected a weight file: give the path of the file itself.")
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
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Writes a binary file atomically: the file becomes `path` when the block ends without an error; otherwise `path` is unchanged.

    Yields:
        The file to write.

    Raises:
        InputError: the file cannot be written, for example because the folder does not exist or the disk is full.
    """
    try:
        with files.atomic_path(path) as temporary, open(temporary, "xb") as file:
            yield file
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}), expected an existing folder with free space: check it."
        ) from error


def refuse_existing(path: str | os.PathLike, *, overwrite: bool) -> None:
    """Raises InputError if a file exists that would be replaced, unless `overwrite` is set."""
    if os.path.lexists(path) and not overwrite:
        raise InputError(
            f"{path} exists already, expected a new name: choose another one, or replace it with `overwrite` (--overwrite)."
        )


def printable(text: object) -> str:
    """Returns text from a file for use in a message: on one line, without control characters, and at most 120 characters long."""
    text = console.literal(text)
    return text if len(text) <= 120 else f"{text[:117]}..."
