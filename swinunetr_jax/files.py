"""Files that are written completely or not at all, JSON files with checked types, and digests. Imports neither JAX nor numpy.

Every file of this project is written with `atomic_path` (or `write_text` and `write_json`), and every JSON file of its own is read by
`read_json`.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from swinunetr_jax.errors import InputError

T = TypeVar("T")
MAX_JSON_BYTES = 1 << 30  # no JSON file of this project is larger
_MAX_NAME_BYTES = 255  # the limit for one file name on all common file systems
# .NAME.HOST-PROCESS-RANDOM.tmp: the host and the process show whether the writer of a temporary file still runs.
_TEMPORARY = re.compile(r"\..*\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.tmp(\.\w+)*")
# A scheme has at least two letters, because "C:/scans" is a drive.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(//?|$)")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """Writes a file atomically: the file at the temporary path becomes `path` when the block ends without an error.

    When this returns, the bytes and the new name are on the disk (fsync). After an error the temporary file is removed and `path` is
    unchanged.

    Args:
        path: the file to create or replace.
        suffix: the end of the temporary name, for writers that depend on it, such as ".nii.gz".

    Yields:
        The temporary path, in the same folder.

    Raises:
        OSError: the file cannot be written; `filename` is `path`, not the temporary name.
    """
    path = Path(path)
    _check_encodable(path)
    temporary = path.with_name(_temporary_name(path.name, suffix))
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary), temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):  # it was renamed or never created
            os.unlink(temporary)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a folder atomically: the temporary folder becomes `path` when the block ends without an error, and is removed otherwise.

    Folders above it are created. When this returns, all files and the new name are on the disk (fsync).

    Args:
        path: the folder to create; it may exist only as an empty folder.

    Yields:
        The temporary folder, next to `path`.

    Raises:
        OSError: the folder cannot be written; `filename` is `path`, not the temporary name.
    """
    path = Path(path)
    _check_encodable(path)
    temporary = path.with_name(_temporary_name(path.name, ""))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for root, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(root, name))
            _sync(Path(root))
        os.rename(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary), temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file with `atomic_path`. Raises OSError, which names `path`."""
    with atomic_path(path) as temporary, open(temporary, "xb") as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 with `atomic_path`. Lone surrogates from file names, which UTF-8 cannot encode, become backslash escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON, indented by one space, with `atomic_path`. Raises ValueError for NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, kind: type[T], remedy: str) -> T:
    """Returns the content of one of the project's own JSON files after checking its types.

    Args:
        path: the file.
        kind: the type of the content: a TypedDict, a dataclass, or a type such as dict[str, list[float]].
        remedy: what the user should do about a damaged file, such as "delete it", for the end of the message.

    Raises:
        FileNotFoundError: the file does not exist, which a caller may distinguish from a damaged one.
        InputError: the file cannot be read, is not JSON, or has other types; the message says where.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise InputError(f"{path} is not a file: {remedy}.")
        if status.st_size > MAX_JSON_BYTES:
            raise InputError(f"{path} has {status.st_size} bytes, expected at most {MAX_JSON_BYTES}: {remedy}.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{path} cannot be read ({reason(error)}): {remedy}.") from error
    return decode_json(data, kind, str(path), remedy)


def decode_json(data: bytes, kind: type[T], where: str, remedy: str) -> T:
    """Returns the content of JSON text, such as a line of a log, with the checks of `read_json`; `where` names it in messages."""
    try:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            if b"\\ud" not in data.lower():
                raise
            # A file name that is not UTF-8 is stored with lone surrogates, which json reads and msgspec does not.
            return msgspec.convert(json.loads(data, parse_constant=_no_number, parse_float=_finite), type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where} has unexpected content ({_lower(str(error))}): {remedy}.") from error
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{where} is damaged ({_lower(str(error))}): {remedy}.") from error


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Runs the block in only one process at a time for this folder, without a lock file; other processes wait.

    If the system or the file system does not support locks, the block runs without one.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_stale_temporaries(folder: str | os.PathLike) -> None:
    """Removes the temporary files and folders in a folder whose writers were processes of this machine that have ended."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            found = _TEMPORARY.fullmatch(entry.name)
            if found and found["host"] == _host() and not _runs(int(found["process"])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)


def is_temporary(name: str) -> bool:
    """Returns whether a file name is that of an incomplete file of `atomic_path`."""
    return _TEMPORARY.fullmatch(name) is not None


def exists(path: str | os.PathLike) -> bool:
    """Returns whether a path exists. It is False for an impossible name: too long, with a null character, or a link to itself.

    Raises:
        InputError: the path cannot be accessed, for example in a folder without permission to enter it.
    """
    return _mode(path) is not None


def is_file(path: str | os.PathLike) -> bool:
    """Returns whether a path is a regular file, with the exceptions of `exists`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether a path is a folder, with the exceptions of `exists`."""
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


def local_path(path: str | os.PathLike) -> Path:
    """Returns the path unless it is the address of a remote store, such as "gs://bucket/run", which would create a folder "gs:".

    Raises:
        InputError: the path is such an address, also if `Path` has reduced its two slashes to one.
    """
    found = _ADDRESS.match(os.fspath(path))
    if found and found["scheme"].lower() == "file":
        raise InputError(f"{path} is the address of a file, expected a path: leave out {found[0]}.")
    if found:
        raise InputError(
            f"{path} is an address of a remote store ({found['scheme']}:), expected a path of this machine: copy the data here, or mount "
            "the store and give the path of the mount."
        )
    return Path(path)


def reason(error: Exception) -> str:
    """Returns the reason that the system gives for an error, such as "No space left on device"."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def digest_of_json(value: Any) -> str:
    """Returns the SHA-256 of a JSON value in hexadecimal, which does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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


def _check_encodable(path: Path) -> None:
    """Raises OSError, instead of Python's ValueError, for a name with a null character or a surrogate that cannot be encoded."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise OSError(errno.EINVAL, "no file can have such a name", str(path))


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is out of range")
    return number


def _temporary_name(name: str, suffix: str) -> str:
    """Returns a name that is unique to this process, shortened to what file systems allow."""
    end = f".{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}"
    room = _MAX_NAME_BYTES - len(end) - 1
    return f".{name.encode(errors='surrogateescape')[:room].decode(errors='ignore')}{end}"


def _host() -> str:
    """Returns eight characters that identify this machine."""
    return hashlib.sha256(socket.gethostname().encode(errors="replace")).hexdigest()[:8]


def _runs(process: int) -> bool:
    """Returns whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs and belongs to another user
        return True
    return True


def _sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk. Errors of file systems that do not support this, often for folders, are ignored."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(handle)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
