"""Paths that users give: whether they exist, whether they are local, and why an operation on them failed."""

import errno
import hashlib
import os
import re
import stat
from pathlib import Path

from swinunetr_jax.errors import InputError

# A scheme has at least two letters, because "C:/scans" is a drive.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(//?|$)")

_EXPECTED = (
    "a path on this machine, because only training runs, weights and data of `swinunetr prepare` can be in a bucket (gs:// or s3://): copy "
    "the data here, or mount the store and give the path of the mount"
)


def exists(path: str | os.PathLike) -> bool:
    """Returns whether a path exists. The result is False for an impossible name: too long, with a null character, or a link to itself.

    Raises:
        InputError: the path cannot be accessed, for example in a folder without permission to enter it.
    """
    return _mode(path) is not None


def is_file(path: str | os.PathLike) -> bool:
    """Returns whether a path is a regular file. Raises the same errors as `exists`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether a path is a folder. Raises the same errors as `exists`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def make_folder(path: str | os.PathLike) -> Path:
    """Creates a folder and those above it unless they exist, and returns it.

    Raises:
        InputError: the folder cannot be created: no write access, a file in its place, or an impossible name.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be created ({reason(error)}); give a folder with write access.") from error
    return path


def local_path(path: str | os.PathLike, *, expected: str = _EXPECTED) -> Path:
    """Returns the path unless it is the address of a remote store, such as "gs://bucket/run", which would create a folder "gs:".

    Args:
        path: the path.
        expected: the end of the message for an address: what is expected instead, and what the user should do.

    Raises:
        InputError: the path is such an address, also if `Path` has reduced its two slashes to one.
    """
    match = _ADDRESS.match(os.fspath(path))
    if match and match["scheme"].lower() == "file":
        raise InputError(f"{path} is the address of a file, expected a path: leave out {match[0]}.")
    if match:
        written = re.sub(r":/+", "://", os.fspath(path), count=1)  # as it was before `Path` reduced its two slashes
        raise InputError(f"{written} is an address of a remote store ({match['scheme']}:), expected {expected}.")
    return Path(path)


def user_cache() -> Path | None:
    """Returns the user's cache folder for files that can be computed again, or None if no such folder can be written.

    The result is None in a container without a home directory, where HOME is unset or the folder cannot be created.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swinunetr_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):  # RuntimeError: there is no home directory
        return None
    return folder if os.access(folder, os.W_OK) else None


def real_path(path: str | os.PathLike) -> Path:
    """Returns the absolute path without links. A link to itself and a name that no file can have remain as they are."""
    try:
        return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for a link to itself until Python 3.12
    except (OSError, ValueError):  # ValueError: a null character
        return Path(path).absolute()


def reason(error: Exception) -> str:
    """Returns the reason that the system gives for an error, such as "No space left on device"."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def digest_of_file(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal. Raises OSError if the file cannot be read."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mode(path: str | os.PathLike) -> int | None:
    """Returns the type and the permissions of a file, or None if it does not exist."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return None
        raise InputError(f"{path}: cannot be accessed ({reason(error)}); give a path that can be read.") from error
