"""Files that appear whole or not at all, JSON files with a checked shape, and digests. Imports neither JAX nor numpy.

Every file that this project writes goes through `atomic_path` (or `write_text` and `write_json`), and every JSON file of its own is
read by `read_json`.
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
MAX_JSON_BYTES = 1 << 30  # a larger JSON file is none of ours
_MAX_NAME_BYTES = 255  # of one file name, on all common file systems
# .NAME.HOST-PROCESS-RANDOM.tmp: the host and the process tell whether a temporary file still has a writer.
_TEMPORARY = re.compile(r"\..*\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.tmp(\.\w+)*")
# A scheme has two letters or more: "C:/scans" is a drive.
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(//?|$)")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """Gives a temporary path in the same folder; the file written there becomes `path` when the block ends without an error.

    The bytes and the new name are on the disk (fsync) when this returns. After an error nothing of the temporary file remains, and
    `path` is what it was.

    Args:
        path: the file to make or to replace.
        suffix: the end of the temporary name, for writers that look at it, such as ".nii.gz".

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
        with contextlib.suppress(OSError):  # it was renamed, or never made
            os.unlink(temporary)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary folder beside `path`, which becomes `path` when the block ends without an error; otherwise nothing remains.

    Folders above it are made. All its files, and the new name, are on the disk (fsync) when this returns.

    Args:
        path: the folder to make; nothing must be there, but for an empty folder.

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
    """Writes a file by `atomic_path`. Raises OSError, which names `path`."""
    with atomic_path(path) as temporary, open(temporary, "xb") as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 by `atomic_path`; what UTF-8 cannot say (a lone surrogate of a file name) is written as a backslash escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON, indented by one space, by `atomic_path`. Raises ValueError for NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, kind: type[T], remedy: str) -> T:
    """The content of one of the project's own JSON files, with the shape and types of `kind`.

    Args:
        path: the file.
        kind: what it must hold: a TypedDict, a dataclass, or a type such as dict[str, list[float]].
        remedy: what the user should do about a damaged file, such as "delete it, and it is made again"; it ends the sentence.

    Raises:
        FileNotFoundError: there is no such file, so that a caller can tell that from a damaged one.
        InputError: it cannot be read, is no JSON, or has another shape; the sentence says where.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise InputError(f"{path} is not a file: {remedy}.")
        if status.st_size > MAX_JSON_BYTES:
            raise InputError(f"{path} has {status.st_size} bytes, far more than such a file can have: {remedy}.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{path} cannot be read ({reason(error)}): {remedy}.") from error
    return decode_json(data, kind, str(path), remedy)


def decode_json(data: bytes, kind: type[T], where: str, remedy: str) -> T:
    """As `read_json`, for text that was read already, such as a line of a log; `where` names it."""
    try:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            if b"\\ud" not in data.lower():
                raise
            # A file name that is no UTF-8 is written with lone surrogates, which json reads and msgspec does not.
            return msgspec.convert(json.loads(data, parse_constant=_no_number, parse_float=_finite), type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where} does not hold what it should ({_lower(str(error))}): {remedy}.") from error
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{where} is damaged ({_lower(str(error))}): {remedy}.") from error


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Only one process at a time runs the block for this folder; others wait. It leaves no lock file behind.

    Where the system or the file system has no such locks, the block runs without one.
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
    """Removes temporary files and folders in a folder whose writers were killed: those of this machine's processes that have ended."""
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
    """Whether a file name is one that `atomic_path` gives to a file that is not finished."""
    return _TEMPORARY.fullmatch(name) is not None


def exists(path: str | os.PathLike) -> bool:
    """As `Path.exists`, and False for a name that no file can have: too long, with a null character, a link to itself.

    Raises:
        InputError: the path cannot be looked at, such as in a folder without the right to enter it.
    """
    return _mode(path) is not None


def is_file(path: str | os.PathLike) -> bool:
    """As `Path.is_file`, with the exceptions of `exists`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: str | os.PathLike) -> bool:
    """As `Path.is_dir`, with the exceptions of `exists`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def make_folder(path: str | os.PathLike) -> Path:
    """Makes a folder and those above it where they do not exist.

    Raises:
        InputError: it cannot be made: no write access, a file where a folder is expected, a name that no folder can have.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be made ({reason(error)}); give a folder with write access.") from error
    return path


def local_path(path: str | os.PathLike) -> Path:
    """The path, unless it is the address of a remote store, such as "gs://bucket/run", of which a system would make a folder "gs:".

    Raises:
        InputError: it is such an address, also where `Path` has made one slash of its two.
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
    """Why the system refused, such as "No space left on device"."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def digest_of_json(value: Any) -> str:
    """SHA-256, in hexadecimal, of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError if it cannot be read."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mode(path: str | os.PathLike) -> int | None:
    """The kind of file and its permissions, or None where there is no such file."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            return None
        raise InputError(f"{path}: cannot be looked at ({reason(error)}); give a path that can be read.") from error


def _check_encodable(path: Path) -> None:
    """Raises OSError, and not ValueError as Python's functions do, for a name with a null character or half a surrogate pair."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise OSError(errno.EINVAL, "no file can have such a name", str(path))


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is out of range")
    return number


def _temporary_name(name: str, suffix: str) -> str:
    end = f".{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}"
    room = _MAX_NAME_BYTES - len(end) - 1
    return f".{name.encode(errors='surrogateescape')[:room].decode(errors='ignore')}{end}"


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode(errors="replace")).hexdigest()[:8]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, and is another user's
        return True
    return True


def _sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk; a file system that cannot say so (for folders, some cannot) is not asked."""
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
